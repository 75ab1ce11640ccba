//! Writes what became of objects into their status, on the replica that holds the lease.
//!
//! What is to be written is decided by [`crate::status::merge`]; here it is compared with what the API server has, as the watch last
//! saw it, and patched into the status subresource with that version, so that a write by another controller in between is a
//! conflict and nothing is lost. Only what differs is written, so many at a time, and counts of clients less often than judgements.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::lease::Lead;
use super::{CONFLICT, Clients, FIELD_MANAGER, NOT_FOUND, refused_with};
use crate::ads::Shared;
use crate::feedback::Counts;
use crate::metrics::Metrics;
use crate::model::SourceRef;
use crate::objects::ObjectKey;
use crate::replicas::Reports;
use crate::source::kubernetes::resource;
use crate::source::{Observed, Snapshot};
use crate::status::Status;
use crate::status::merge::merge;

/// Writes statuses.
#[derive(Debug)]
pub struct Writer {
    /// To write with.
    pub clients: Clients,
    /// The judgements, and what clients of this replica say.
    pub shared: Arc<Shared>,
    /// What clients of others say.
    pub reports: Arc<Reports>,
    /// What is written now.
    pub snapshots: watch::Receiver<Snapshot>,
    /// Whether it is this replica's to do.
    pub lead: watch::Receiver<Lead>,
    /// Counters.
    pub metrics: Metrics,
}

/// What is remembered of an object from one round to the next.
#[derive(Debug)]
struct Memory {
    /// The counts that were last shown, and when they were first.
    counts: Option<(Option<Counts>, Instant)>,
    /// A write from this version was tried then: nothing is written from it again before the watch has seen another.
    tried: Option<(String, Instant)>,
    /// The API server refused to take this; it would again.
    refused: Option<Value>,
    /// What was written already when it was last compared.
    agreed: Option<Compared>,
}

/// What a comparison was made of.
#[derive(Debug, PartialEq)]
struct Compared {
    observed: Arc<Observed>,
    wanted: Option<Status>,
    counts: Option<Counts>,
}

/// One write.
#[derive(Debug)]
struct Write {
    key: ObjectKey,
    observed: Arc<Observed>,
    status: Value,
}

impl Writer {
    /// Writes, for ever.
    pub async fn run(mut self) {
        let mut published = self.shared.publisher.published();
        let mut memory = BTreeMap::new();
        loop {
            published.mark_unchanged();
            self.snapshots.mark_unchanged();
            let more = if self.lead.borrow_and_update().is_mine() {
                self.round(&mut memory).await
            } else {
                memory.clear();
                false
            };
            tokio::time::sleep(ROUND_PAUSE).await;
            if more {
                continue;
            }
            tokio::select! {
                // What was judged, or what somebody has written.
                _ = published.changed() => {}
                _ = self.snapshots.changed() => {}
                _ = self.lead.changed() => {}
                // What clients say.
                () = tokio::time::sleep(COUNTS_PAUSE) => {}
            }
        }
    }

    /// Writes a number of differing statuses; whether there may be more.
    async fn round(&self, memory: &mut BTreeMap<ObjectKey, Memory>) -> bool {
        let now = Instant::now();
        let mut writes = self.due(memory, now);
        let more = writes.len() > WRITES_A_ROUND;
        writes.truncate(WRITES_A_ROUND);
        let done = futures::stream::iter(writes).map(|write| async {
            let result = self.write(&write).await;
            (write, result)
        });
        let done: Vec<_> = done.buffer_unordered(WRITES_AT_ONCE).collect().await;
        for (write, result) in done {
            let remembered = memory.entry(write.key.clone()).or_insert_with(Memory::new);
            remembered.tried = Some((write.observed.resource_version.clone(), now));
            let outcome = match result {
                Ok(()) => Outcome::Written,
                Err(error) if refused_with(&error, CONFLICT) => Outcome::Conflict,
                Err(error) if refused_with(&error, NOT_FOUND) => Outcome::Gone,
                Err(error) => {
                    tracing::warn!(object = %write.key, %error, "the status could not be written");
                    if refused_with(&error, UNPROCESSABLE) {
                        remembered.refused = Some(write.status);
                    }
                    Outcome::Failed
                }
            };
            self.metrics.status_written(outcome);
        }
        more
    }

    /// What is to be written now, by key.
    fn due(&self, memory: &mut BTreeMap<ObjectKey, Memory>, now: Instant) -> Vec<Write> {
        let Some(mesh) = self.shared.publisher.snapshot() else { return Vec::new() };
        let observed = self.snapshots.borrow().observed.clone();
        let counts = self.reports.with(self.shared.feedback.counts(), now);
        let statuses = &mesh.translation().statuses;
        memory.retain(|key, _| observed.contains_key(key));
        let time = Timestamp::now();
        let due = observed.iter().filter_map(|(key, observed)| {
            let remembered = memory.entry(key.clone()).or_insert_with(Memory::new);
            if remembered.waits(observed, now) {
                return None;
            }
            let name = SourceRef::new(key.kind.name(), &key.namespace, &key.name).to_string();
            let counts = remembered.shown(counts.get(name.as_str()), now);
            let compared = Compared { observed: observed.clone(), wanted: statuses.get(key).cloned(), counts };
            if remembered.agreed.as_ref() == Some(&compared) {
                return None;
            }
            let Compared { wanted, counts, .. } = &compared;
            let Some(status) = merge(wanted.as_ref(), counts.as_ref(), &observed.status, time) else {
                remembered.agreed = Some(compared);
                return None;
            };
            let refused = remembered.refused.as_ref().is_some_and(|refused| same_but_for_times(refused, &status));
            (!refused).then(|| Write { key: key.clone(), observed: observed.clone(), status })
        });
        due.collect()
    }

    async fn write(&self, write: &Write) -> kube::Result<()> {
        let Write { key, observed, status } = write;
        let Some(resource) = resource(key.kind) else { return Ok(()) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.clients.calls.clone(), &key.namespace, &resource);
        let patch = patch(observed, status);
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        api.patch_status(&key.name, &parameters, &Patch::Merge(&patch)).await.map(drop)
    }
}

impl Memory {
    fn new() -> Self {
        Self { counts: None, tried: None, refused: None, agreed: None }
    }

    /// Whether the watch is still to tell what became of the last write.
    fn waits(&self, observed: &Observed, now: Instant) -> bool {
        let tried = self.tried.as_ref().filter(|(version, _)| *version == observed.resource_version);
        tried.is_some_and(|(_, at)| now.saturating_duration_since(*at) < NEWS_PAUSE)
    }

    /// The counts to show: those of last time, until they have been shown for a while. A refusal that is new is shown at once.
    fn shown(&mut self, counts: Option<&Counts>, now: Instant) -> Option<Counts> {
        let news = match &self.counts {
            None => true,
            Some((shown, since)) => {
                let refused = |counts: Option<&Counts>| counts.is_some_and(|counts| counts.refused > 0);
                let over = now.saturating_duration_since(*since) >= COUNTS_SHOWN;
                shown.as_ref() != counts && (over || refused(shown.as_ref()) != refused(counts) || shown.is_none())
            }
        };
        if news {
            self.counts = Some((counts.cloned(), now));
        }
        self.counts.as_ref().and_then(|(shown, _)| shown.clone())
    }
}

/// How a write ended, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Written,
    /// Somebody else was first; it is decided again.
    Conflict,
    /// The object is gone.
    Gone,
    /// The API server refused, or is away.
    Failed,
}

impl Outcome {
    /// Each once.
    pub const ALL: [Self; 4] = [Self::Written, Self::Conflict, Self::Gone, Self::Failed];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::Failed => "failed",
        }
    }
}

/// A merge patch that leaves `status` in the place of what was observed, if that is still there.
fn patch(observed: &Observed, status: &Value) -> Value {
    let mut status = status.clone();
    if let (Some(new), Some(old)) = (status.as_object_mut(), observed.status.as_object()) {
        // What a merge patch does not name stays.
        for field in old.keys() {
            new.entry(field).or_insert(Value::Null);
        }
    }
    json!({ "metadata": { "resourceVersion": observed.resource_version }, "status": status })
}

/// A transition time that was never taken is another each time.
fn same_but_for_times(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| {
                    key == "lastTransitionTime" || other.get(key).is_some_and(|other| same_but_for_times(value, other))
                })
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same_but_for_times(one, other))
        }
        _ => one == other,
    }
}

/// Between two rounds. Chosen: nobody notices it, and with [`WRITES_A_ROUND`] it bounds what the API server is asked: 160 a second.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Writes of one round.
const WRITES_A_ROUND: usize = 16;
/// Writes under way at once. Chosen: the API server has others to serve.
const WRITES_AT_ONCE: usize = 4;
/// How often counts of clients are looked at.
const COUNTS_PAUSE: Duration = Duration::from_secs(2);
/// How long counts are shown before others are. Chosen: while many sidecars take over a change, a status is written ten times a
/// minute and not at each of them.
const COUNTS_SHOWN: Duration = Duration::from_secs(6);
/// How long the watch has to tell of a write. Chosen: far above what it takes; then it is written again.
const NEWS_PAUSE: Duration = Duration::from_secs(5);
/// The API server read it and found it invalid (RFC 9110).
const UNPROCESSABLE: u16 = 422;

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(accepted: u64, refused: u64) -> Counts {
        Counts { accepted, refused, last_refusal: None }
    }

    fn observed(version: &str, status: Value) -> Observed {
        Observed { resource_version: version.to_owned(), status }
    }

    #[test]
    fn counts_are_shown_for_a_while_but_the_first_ones_and_a_refusal_at_once() {
        let (mut memory, begin) = (Memory::new(), Instant::now());
        let later = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(memory.shown(None, begin), None);
        assert_eq!(memory.shown(Some(&counts(1, 0)), later(1)), Some(counts(1, 0)));
        assert_eq!(memory.shown(Some(&counts(2, 0)), later(2)), Some(counts(1, 0)));
        assert_eq!(memory.shown(Some(&counts(2, 1)), later(3)), Some(counts(2, 1)));
        assert_eq!(memory.shown(Some(&counts(3, 1)), later(4)), Some(counts(2, 1)));
        assert_eq!(memory.shown(Some(&counts(3, 1)), later(3) + COUNTS_SHOWN), Some(counts(3, 1)));
    }

    #[test]
    fn nothing_is_written_from_a_version_twice_before_the_watch_has_seen_another() {
        let (mut memory, now) = (Memory::new(), Instant::now());
        memory.tried = Some(("7".into(), now));
        assert!(memory.waits(&observed("7", Value::Null), now));
        assert!(!memory.waits(&observed("8", Value::Null), now));
        assert!(!memory.waits(&observed("7", Value::Null), now + NEWS_PAUSE));
    }

    #[test]
    fn a_patch_names_its_version_and_takes_out_what_is_not_wanted() {
        let patch = patch(&observed("7", json!({ "clients": 1, "conditions": [] })), &json!({ "conditions": [2] }));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["status"], json!({ "clients": null, "conditions": [2] }));
    }

    #[test]
    fn what_was_refused_is_known_again_at_another_time() {
        let status = |time: &str, reason: &str| json!({"conditions": [{"reason": reason, "lastTransitionTime": time}]});
        assert!(same_but_for_times(&status("1", "a"), &status("2", "a")));
        assert!(!same_but_for_times(&status("1", "a"), &status("1", "b")));
    }
}
