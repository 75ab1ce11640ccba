//! Events about pods that get no sidecar though somebody asked: on the controller that makes them, so that a restarting pod
//! does not fill the list; the same one at most once in [`REPEAT_AFTER`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// Something people should know about an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    /// Namespace of the object and of the event.
    pub namespace: String,
    /// API version of the object.
    pub api_version: String,
    /// Kind of the object.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// Its uid, if it has one already.
    pub uid: Option<String>,
    /// In one word.
    pub reason: &'static str,
    /// In full.
    pub message: &'static str,
}

/// Where notices are handed in.
#[derive(Debug, Clone)]
pub struct Notices {
    queue: mpsc::Sender<Notice>,
    metrics: Metrics,
}

impl Notices {
    /// A queue, and its other end for [`publish`].
    pub fn new(metrics: Metrics) -> (Self, mpsc::Receiver<Notice>) {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        (Self { queue, metrics }, waiting)
    }

    /// Has the notice published, if not too many are waiting.
    pub fn tell(&self, notice: Notice) {
        if self.queue.try_send(notice).is_err() {
            self.metrics.event("dropped");
        }
    }
}

/// Publishes what comes. Ends when nobody can hand in anything any more.
pub async fn publish(client: Client, pod: Option<String>, mut waiting: mpsc::Receiver<Notice>, metrics: Metrics) {
    let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: pod };
    let recorder = Recorder::new(client, reporter);
    let mut told = Told::default();
    while let Some(notice) = waiting.recv().await {
        if !told.admit(&notice, Instant::now()) {
            metrics.event("repeated");
            continue;
        }
        let regarding = ObjectReference {
            api_version: Some(notice.api_version),
            kind: Some(notice.kind),
            namespace: Some(notice.namespace),
            name: Some(notice.name),
            uid: notice.uid,
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: notice.reason.to_owned(),
            note: Some(notice.message.to_owned()),
            action: "Inject".to_owned(),
            secondary: None,
        };
        let published = tokio::time::timeout(PUBLISH_TIMEOUT, recorder.publish(&event, &regarding)).await;
        match published {
            Ok(Ok(())) => metrics.event("published"),
            Ok(Err(error)) => {
                metrics.event("failed");
                tracing::warn!(%error, "an event could not be published");
            }
            Err(_) => metrics.event("failed"),
        }
    }
}

/// What was told lately. Pure in `now`.
#[derive(Debug, Default)]
struct Told(HashMap<Notice, Instant>);

impl Told {
    /// Whether `notice` is to be told now; it counts as told then.
    fn admit(&mut self, notice: &Notice, now: Instant) -> bool {
        self.0.retain(|_, at| now.duration_since(*at) < REPEAT_AFTER);
        if self.0.contains_key(notice) || self.0.len() >= MAX_TOLD {
            return false;
        }
        self.0.insert(notice.clone(), now);
        true
    }
}

/// Who says it.
const CONTROLLER: &str = "heddle.dev/injector";
/// Notices that wait to be published. Chosen: a deployment of a hundred node agents.
const MAX_WAITING: usize = 128;
/// Notices that are remembered, and so how many are told in one [`REPEAT_AFTER`]. Chosen: more are no news.
const MAX_TOLD: usize = 512;
/// Until the same is told again. Chosen: events live an hour by default; one in each sixth of it is not overlooked.
const REPEAT_AFTER: Duration = Duration::from_secs(600);
/// For one event. Chosen: as for the roots; the next is waiting.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(name: &str) -> Notice {
        Notice {
            namespace: "shop".into(),
            api_version: "apps/v1".into(),
            kind: "DaemonSet".into(),
            name: name.into(),
            uid: None,
            reason: "HostNetwork",
            message: "no sidecar",
        }
    }

    #[test]
    fn the_same_is_told_again_only_after_a_while() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert!(told.admit(&notice("a"), now));
        assert!(!told.admit(&notice("a"), now));
        assert!(told.admit(&notice("b"), now));
        assert!(told.admit(&notice("a"), now + REPEAT_AFTER));
    }

    #[test]
    fn what_is_told_in_one_while_is_limited() {
        let (mut told, now) = (Told::default(), Instant::now());
        for i in 0..MAX_TOLD {
            assert!(told.admit(&notice(&i.to_string()), now));
        }
        assert!(!told.admit(&notice("one more"), now));
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let metrics = Metrics::new().unwrap();
        let (notices, _waiting) = Notices::new(metrics.clone());
        for _ in 0..=MAX_WAITING {
            notices.tell(notice("a"));
        }
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        assert!(text.contains("heddle_admission_events_total{outcome=\"dropped\"} 1"), "{text}");
    }
}
