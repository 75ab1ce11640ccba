//! Injection: a pod as it was written → the same pod with a sidecar, as a JSON patch; or why not. Pure.
//!
//! The webhook and `heddle inject` call [`decide`], so what a file becomes offline is what a pod becomes in a cluster. A pod
//! that has a sidecar already gets no second one; what other webhooks added to it since (containers, probes, init
//! containers before ours) is brought in order, so it may be asked as often as the API server likes.
//!
//! | Part | Says |
//! |---|---|
//! | [`settings`] | what the installation wants of every sidecar |
//! | `select` | whether this pod is to have one |
//! | `annotations` | what the pod's author wants of it |
//! | `check` | what cannot be meshed, or collides with a sidecar |
//! | `containers` | the capture container, the sidecar, their volume |
//! | `probes` | probes and lifecycle hooks, which the sidecar does in the kubelet's place |

mod annotations;
mod check;
mod containers;
mod patch;
mod probes;
mod quantity;
mod select;
pub mod settings;

use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::api::FieldError;
pub use crate::objects::pod::{INJECTED, METRICS_PORT};
use patch::Edits;
pub use select::{INJECT, Reason};
pub use settings::Settings;

/// What injection knows of the pod's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its label [`INJECT`], if it has one.
    pub inject: Option<String>,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It gets a sidecar.
    Inject(Injection),
    /// It stays as it is.
    Skip(Skip),
    /// It must not be created like this: each field at fault with its value and what would be right.
    Refuse(Vec<FieldError>),
}

/// What is changed, and what its author should know.
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    /// RFC 6902. Empty if the pod is in order already.
    pub patch: Patch,
    /// Shown to whoever creates the pod; nothing here keeps it from working.
    pub warnings: Vec<String>,
}

/// Why a pod stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skip {
    /// The reason.
    pub reason: Reason,
    /// Whether somebody asked for a sidecar who must be told that there is none.
    pub tell: bool,
}

/// Decides about `pod`: an object of kind Pod, or the template of a workload.
pub fn decide(pod: &Value, namespace: &Namespace, settings: &Settings) -> Decision {
    let typed: Pod = match FieldError::read(pod) {
        Ok(typed) => typed,
        Err(error) => return Decision::Refuse(vec![error]),
    };
    let asked = match select::asked(&typed, namespace) {
        Ok(asked) => asked,
        Err(error) => return Decision::Refuse(vec![error]),
    };
    match select::wanted(&typed, namespace, asked) {
        select::Verdict::Inject => inject(pod, &typed, settings),
        select::Verdict::Skip(skip) => Decision::Skip(skip),
        select::Verdict::Refuse(error) => Decision::Refuse(vec![error]),
    }
}

fn inject(pod: &Value, typed: &Pod, settings: &Settings) -> Decision {
    let (wishes, mut errors) = annotations::read(&typed.metadata, settings);
    errors.extend(check::errors(typed, &wishes));
    if !errors.is_empty() {
        return Decision::Refuse(errors);
    }
    let mut edits = Edits::default();
    let probes = probes::rewrite(pod, typed, &wishes, &mut edits);
    containers::pre_stop(typed, &wishes, &mut edits);
    containers::place(typed, settings, &wishes, &probes, &mut edits);
    Decision::Inject(Injection { patch: edits.into_patch(), warnings: annotations::warnings(&typed.metadata) })
}

/// The version that is written there: this build's.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The init container that redirects the pod's traffic.
pub const CAPTURE_CONTAINER: &str = "heddle-capture";
/// The sidecar.
pub const PROXY_CONTAINER: &str = "heddle-proxy";
/// The volume with token and roots.
pub const IDENTITY_VOLUME: &str = "heddle-identity";
/// The user the sidecar runs as, by which capture tells its connections from the application's.
pub const PROXY_UID: i64 = 1337;
