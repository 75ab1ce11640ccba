//! Objects → model and statuses: pure, one Service and one workload at a time.
//!
//! [`all`] is the plain rebuild and the oracle; [`update`] recomputes only what a change touches and must give the
//! same. Called by whoever owns the source; nothing here waits, reads a clock or holds state.

mod accept;
mod backend;
mod connections;
mod cors;
mod fault;
mod filter;
mod grpc_route;
mod http_route;
mod instance;
mod overridden;
mod policy;
mod precedence;
mod problem;
mod rate_limit;
mod rule;
mod server_name;
mod service;
mod session;
mod status;
mod tls;
mod traffic;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{self, Model, ServiceName, WorkloadName};
use crate::objects::{ObjectKey, Objects, Touched, name_of, namespace_of, touched};
use crate::status::Status;

pub use rule::{RuleProblem, problems};
pub use service::{cluster_ips, service};
pub use status::status;
pub use workload::workload;

/// What translation needs besides objects.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Trust domain of all identities, as `mesh.example`.
    pub trust_domain: String,
    /// The namespace whose target-less MeshTLSPolicy holds for the whole mesh.
    pub root_namespace: String,
    /// Facts of the mesh that every sidecar is told.
    pub mesh: model::Mesh,
}

/// The namespace of the mesh itself, where nothing else is configured.
pub const DEFAULT_ROOT_NAMESPACE: &str = "heddle-system";

/// What objects mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translation {
    /// The mesh.
    pub model: Model,
    /// What became of each object that can have a status from us.
    pub statuses: BTreeMap<ObjectKey, Status>,
}

/// Everything, from nothing.
pub fn all(objects: &Objects, settings: &Settings) -> Translation {
    let mut translation = Translation::default();
    let everything = Touched {
        services: objects.services.iter().map(|o| service_name(&o.metadata)).collect(),
        workloads: workload_names(objects),
        statuses: objects.keys(),
    };
    recompute(&mut translation, objects, settings, &everything);
    translation
}

/// `previous`, brought from `before` to `after`, and what was recomputed for it.
pub fn update(
    previous: &Translation,
    before: &Objects,
    after: &Objects,
    settings: &Settings,
) -> (Translation, Touched) {
    let changed = after.changed_since(before);
    let touched = touched(before, after, &changed, &settings.root_namespace);
    let mut translation = previous.clone();
    recompute(&mut translation, after, settings, &touched);
    (translation, touched)
}

fn recompute(translation: &mut Translation, objects: &Objects, settings: &Settings, touched: &Touched) {
    for name in &touched.services {
        match service(objects, settings, name) {
            Some(service) => translation.model.services.insert(name.clone(), Arc::new(service)),
            None => translation.model.services.remove(name),
        };
    }
    for name in &touched.workloads {
        match workload(objects, settings, name) {
            Some(workload) => translation.model.workloads.insert(name.clone(), Arc::new(workload)),
            None => translation.model.workloads.remove(name),
        };
    }
    for key in &touched.statuses {
        match status(objects, settings, key) {
            Some(status) => translation.statuses.insert(key.clone(), status),
            None => translation.statuses.remove(key),
        };
    }
}

fn workload_names(objects: &Objects) -> BTreeSet<WorkloadName> {
    let pods = objects.pods.iter().map(|o| &o.metadata);
    let workloads = objects.workloads.iter().map(|o| &o.metadata);
    pods.chain(workloads).map(|metadata| WorkloadName::new(namespace_of(metadata), name_of(metadata))).collect()
}

fn service_name(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ServiceName {
    ServiceName::new(namespace_of(metadata), name_of(metadata))
}

/// Older first, then by name: the order in which Gateway API lets objects win over each other ("Conflicts").
fn age(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> (Option<k8s_openapi::jiff::Timestamp>, String) {
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created, format!("{}/{}", namespace_of(metadata), name_of(metadata)))
}
