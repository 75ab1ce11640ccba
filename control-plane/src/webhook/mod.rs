//! Answers to the API server's admission requests, on port 15017.
//!
//! | Path | Asked about | Answer |
//! |---|---|---|
//! | `/inject` | a pod that is created | the patch that gives it a sidecar, or why it must not be |
//! | `/validate` | our kinds, HTTPRoute, GRPCRoute | whether it could be meant, see [`crate::validate`] |
//!
//! Nothing in an answer waits for the API server in the ordinary case: what is needed of namespaces is known, and the roots
//! are in the namespace already. Whether a pod may be created while nobody answers is said by the `failurePolicy` of the
//! webhook's configuration, not here: what cannot be decided is no answer.

pub mod bundle;
pub mod live;
pub mod notices;
pub mod review;
pub mod serve;
pub mod settings;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::watch;

use crate::inject::{Decision, Namespace, Reason, Settings, Skip, decide};
use crate::metrics::{Admission, Metrics};
use crate::validate;
use notices::Notice;
use review::{Answer, Request};

/// What the answers need of the cluster.
pub trait Cluster: Send + Sync + 'static {
    /// What is known of a namespace without asking; `None`: it was made a moment ago.
    fn known_namespace(&self, name: &str) -> Option<Namespace>;

    /// What the API server says of a namespace now.
    fn namespace<'c>(&'c self, name: &'c str) -> BoxFuture<'c, Result<Namespace, String>>;

    /// Makes sure that the mesh's roots can be mounted in this namespace. Returns at once where they are known to be there.
    fn ensure_roots<'c>(&'c self, namespace: &'c str) -> BoxFuture<'c, Result<(), String>>;

    /// Tells people something about an object. Never waits.
    fn tell(&self, notice: Notice);
}

/// What answers.
pub struct Webhooks {
    /// What injected sidecars are given; absent: nothing is injected. The last value is in force.
    pub settings: Option<watch::Receiver<Arc<Settings>>>,
    /// The cluster.
    pub cluster: Arc<dyn Cluster>,
    /// Counts.
    pub metrics: Metrics,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the pod's namespace asks for is not known.
    #[error("namespace {0}: {1}")]
    Namespace(String, String),
}

impl Webhooks {
    /// What becomes of a pod.
    ///
    /// # Errors
    /// If it cannot be decided.
    pub async fn inject(&self, request: &Request) -> Result<(Answer, Admission), Error> {
        let is_new_pod = request.kind.group.is_empty()
            && request.kind.kind == "Pod"
            && request.operation == "CREATE"
            && request.writes_object();
        let settings = self.settings.as_ref().map(|settings| Arc::clone(&settings.borrow()));
        let Some(settings) = settings.filter(|_| is_new_pod) else {
            return Ok((Answer::allow(), Admission::Allowed));
        };
        match self.decide(request, &settings).await? {
            Decision::Inject(injection) => {
                if !request.is_dry_run() {
                    self.ensure_roots(&request.namespace).await;
                }
                let changed = !injection.patch.0.is_empty();
                let answer = Answer { patch: Some(injection.patch), warnings: injection.warnings, ..Answer::default() };
                Ok((answer, if changed { Admission::Injected } else { Admission::Allowed }))
            }
            Decision::Skip(skip) => {
                if skip.tell && !request.is_dry_run() {
                    self.tell(request, skip);
                }
                let warnings = if skip.tell { vec![skip.reason.message().to_owned()] } else { Vec::new() };
                Ok((Answer { warnings, ..Answer::default() }, Admission::Skipped))
            }
            Decision::Refuse(errors) => Ok((Answer::refuse(&errors), Admission::Refused)),
        }
    }

    /// The API server sends pods that are asked for only. So one of which nothing is known here is of a namespace that was
    /// made or labelled a moment ago, and the API server knows more.
    async fn decide(&self, request: &Request, settings: &Settings) -> Result<Decision, Error> {
        if let Some(known) = self.cluster.known_namespace(&request.namespace) {
            let decision = decide(&request.object, &known, settings);
            if !matches!(decision, Decision::Skip(Skip { reason: Reason::NotAsked | Reason::Disabled, .. })) {
                return Ok(decision);
            }
        }
        let namespace = self.cluster.namespace(&request.namespace).await;
        let namespace = namespace.map_err(|error| Error::Namespace(request.namespace.clone(), error))?;
        Ok(decide(&request.object, &namespace, settings))
    }

    /// Whether an object could be meant.
    pub fn validate(request: &Request) -> (Answer, Admission) {
        // What only its metadata changes in, a finalizer say, is never held up.
        let same = !request.old_object.is_null() && request.object.get("spec") == request.old_object.get("spec");
        if !request.writes_object() || same {
            return (Answer::allow(), Admission::Allowed);
        }
        let findings = validate::findings(&request.kind.group, &request.kind.kind, &request.object);
        if findings.errors.is_empty() {
            return (Answer { warnings: findings.warnings, ..Answer::default() }, Admission::Allowed);
        }
        (Answer { warnings: findings.warnings, ..Answer::refuse(&findings.errors) }, Admission::Refused)
    }

    /// A pod without roots waits for them before it starts; they are written by the lease's holder too, so it is not refused.
    async fn ensure_roots(&self, namespace: &str) {
        let error = match tokio::time::timeout(ROOTS_WAIT, self.cluster.ensure_roots(namespace)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => format!("not written within {ROOTS_WAIT:?}"),
        };
        self.metrics.admission_without_roots();
        tracing::warn!(
            namespace,
            error,
            "a pod was injected before the roots were in its namespace; it waits for them"
        );
    }

    fn tell(&self, request: &Request, skip: Skip) {
        let text = |path: &str| request.object.pointer(path).and_then(Value::as_str).map(ToOwned::to_owned);
        let owners = request.object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        let owner = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
        let of_owner = |field: &str| owner.and_then(|owner| owner[field].as_str()).map(ToOwned::to_owned);
        // A pod that is being created has no name yet if its controller leaves that to the API server, and no uid.
        let name = text("/metadata/name").or_else(|| text("/metadata/generateName")).unwrap_or_default();
        self.cluster.tell(Notice {
            namespace: request.namespace.clone(),
            api_version: of_owner("apiVersion").unwrap_or_else(|| "v1".to_owned()),
            kind: of_owner("kind").unwrap_or_else(|| "Pod".to_owned()),
            name: of_owner("name").unwrap_or(name),
            uid: of_owner("uid"),
            reason: skip.reason.name(),
            message: skip.reason.message(),
        });
    }
}

/// How long an answer waits for roots in a namespace that has none. Chosen: an API server that takes longer is not well, and
/// what waits for the answer has 10 s.
const ROOTS_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
