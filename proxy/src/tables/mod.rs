//! The immutable runtime tables that the data path reads.
//!
//! `sync` builds them from xDS resources (tests build them by hand) and publishes a whole snapshot; a connection
//! or a request takes one snapshot and keeps it to its end. Nothing here knows protobuf, sockets or clocks. What
//! changes while a table is in force — breaker counts, outlier state, the endpoint list of a cluster — lives in
//! the types of [`cluster`] and says there who writes it.

pub mod cluster;
pub mod inbound;
pub mod listener;
pub mod policy;
pub mod route;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

pub use cluster::{Cluster, Endpoint, EndpointSet};
pub use inbound::{Egress, Inbound, Mesh, Port, TlsMode};
pub use listener::{Listener, Protocol};
pub use route::RouteTable;

/// One snapshot of everything this sidecar has been told.
#[derive(Debug, Default, Clone)]
pub struct Tables {
    /// What holds for traffic to this workload; `None` until the first answer of the control plane.
    pub inbound: Option<Arc<Inbound>>,
    /// What is known of each original destination that was asked for. No entry: not asked, or not answered yet.
    pub outbound: HashMap<SocketAddr, Destination>,
}

/// The control plane's answer about one original destination.
#[derive(Debug, Clone)]
pub enum Destination {
    /// The mesh knows it: a Service's address and port, or a workload's own.
    Exists(Arc<Listener>),
    /// The mesh knows for certain that it is not one of its own; the egress default decides.
    DoesNotExist,
}

/// Where the current snapshot is published. Written by the control thread only; read by every worker, without
/// locks.
#[derive(Debug, Default)]
pub struct Store(ArcSwap<Tables>);

impl Store {
    /// A store that begins with `tables`.
    pub fn new(tables: Tables) -> Self {
        Self(ArcSwap::from_pointee(tables))
    }

    /// The snapshot in force now, for use within one synchronous step.
    pub fn load(&self) -> Guard<Arc<Tables>> {
        self.0.load()
    }

    /// Puts `tables` in force, whole.
    pub fn publish(&self, tables: Tables) {
        self.0.store(Arc::new(tables));
    }
}

/// A Service by namespace and name, as metric labels and error texts show it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
