//! The mesh in our own words: what `translate` makes of the objects and `emit` turns into xDS resources.
//!
//! Plain immutable values, equal when they mean the same, in an order that does not depend on how they were
//! gathered. They serialise to YAML for the golden cases and for `/model`; they are never read back. Nothing of
//! Kubernetes, protobuf or the rest of the control plane is named here. One [`Service`] and one [`Workload`] are
//! the units that are recomputed and published.

pub mod cluster;
pub mod duration;
pub mod endpoint;
pub mod inbound;
pub mod listener;
pub mod name;
pub mod policy;
pub mod rate_limit;
pub mod route;
pub mod workload;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

pub use cluster::{
    Cluster, Connections, HashOn, HealthCheck, HealthQuestion, LoadBalancing, Outlier, Settings, UpstreamHttp,
};
pub use endpoint::{Endpoint, Endpoints, ForClient, Hints, Locality, Place, Preference};
pub use inbound::{Egress, Inbound, InboundPort, Mesh, TlsMode};
pub use listener::{HttpRoutes, Opaque, OutboundListener, Owner, Protocol, TcpRoutes, TcpShare};
pub use name::{ResourceName, ServiceName, SourceRef, SpiffeId, WorkloadName};
pub use policy::{Operation, Policy, PolicyRule, PolicySet, Principals, TextMatch};
pub use route::{Backend, Filter, Route, RouteTable, Rule};
pub use workload::{Direct, DirectDestination, DirectPort, Workload};

/// Everything the control plane tells sidecars, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// Every Service, headless ones included.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// Every Pod and Workload with an address.
    pub workloads: BTreeMap<WorkloadName, Arc<Workload>>,
}

/// What outbound traffic to one Service needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Which one.
    pub name: ServiceName,
    /// One per TCP port, by port number. A headless Service's have no address.
    pub listeners: Vec<OutboundListener>,
    /// Route tables, `<ns>/<svc>/<port>` and `<ns>/<svc>/<port>@<client namespace>`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<ResourceName, RouteTable>,
    /// Clusters, `<ns>/<svc>/<port>`.
    pub clusters: BTreeMap<ResourceName, Cluster>,
    /// Endpoints under the name of their cluster.
    pub endpoints: BTreeMap<ResourceName, Endpoints>,
}
