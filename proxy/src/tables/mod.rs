//! The immutable runtime tables that the data path reads.
//!
//! `sync` builds them from xDS resources (tests build them by hand) and publishes a whole snapshot; a connection
//! or a request takes one snapshot and keeps it to its end. Nothing here knows protobuf, sockets or clocks. What
//! changes while a table is in force — breaker counts, outlier state, the endpoint list of a cluster — lives in
//! the types of [`cluster`] and says there who writes it.

pub mod cluster;
pub mod demand;
pub mod inbound;
pub mod listener;
pub mod policy;
pub mod rate_limit;
pub mod route;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};

pub use cluster::{Cluster, Endpoint, EndpointSet};
pub use demand::Demand;
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
    /// Clusters that `inbound` names, as far as they are known.
    pub asked: HashMap<Arc<str>, Arc<Cluster>>,
}

impl Tables {
    /// Every cluster that something leads to, once.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let listeners = self.outbound.values().filter_map(|destination| match &destination.answer {
            Answer::Exists(listener) => Some(listener),
            Answer::DoesNotExist => None,
        });
        let asked = self.asked.iter().map(|(name, cluster)| (name.clone(), cluster.clone()));
        let mut by_name: std::collections::BTreeMap<_, _> = asked.collect();
        for listener in listeners {
            let rules = listener.http.iter().flat_map(|table| &table.routes).map(|route| &route.rule);
            for cluster in
                rules.flat_map(|rule| rule.clusters()).chain(listener.tcp.iter().flat_map(listener::Opaque::clusters))
            {
                by_name.insert(cluster.name.clone(), cluster.clone());
            }
        }
        by_name.into_values().collect()
    }
}

/// Milliseconds since the process began; 0 is before any event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// One original destination that was asked for.
#[derive(Debug, Clone)]
pub struct Destination {
    /// What is known.
    pub answer: Answer,
    /// What workers leave here; kept while the destination is subscribed.
    pub seen: Arc<Seen>,
}

impl From<Answer> for Destination {
    fn from(answer: Answer) -> Self {
        Self { answer, seen: Arc::default() }
    }
}

/// What connections to one destination have shown. Written by workers, read by workers and the control thread.
#[derive(Debug, Default)]
pub struct Seen {
    /// [`Millis`] of the last connection or request; a destination long unused is unsubscribed.
    pub used: AtomicU64,
    /// [`Millis`] at which the server was last seen to speak first; 0: never.
    pub server_first: AtomicU64,
}

impl Seen {
    /// The destination is used now.
    pub fn touch(&self, now: Millis) {
        self.used.store(now.0, Ordering::Relaxed);
    }
}

/// The control plane's answer about one original destination.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The mesh knows it: a Service's address and port, or a workload's own.
    Exists(Arc<Listener>),
    /// The mesh knows for certain that it is not one of its own; the egress default decides.
    DoesNotExist,
}

/// Where the current snapshot is published. Written by the control thread only; read by every worker, without
/// locks.
#[derive(Debug, Default)]
pub struct Store {
    current: ArcSwap<Tables>,
    published: tokio::sync::Notify,
}

impl Store {
    /// A store that begins with `tables`.
    pub fn new(tables: Tables) -> Self {
        Self { current: ArcSwap::from_pointee(tables), published: tokio::sync::Notify::new() }
    }

    /// The snapshot in force now, for use within one synchronous step.
    pub fn load(&self) -> Guard<Arc<Tables>> {
        self.current.load()
    }

    /// The snapshot in force now, to keep.
    pub fn load_full(&self) -> Arc<Tables> {
        self.current.load_full()
    }

    /// Puts `tables` in force, whole, and wakes whoever waits for them.
    pub fn publish(&self, tables: Tables) {
        self.current.store(Arc::new(tables));
        self.published.notify_waiters();
    }

    /// Waits until `find` finds something in the snapshot in force; looks at once and after each publication.
    pub async fn wait_for<T>(&self, mut find: impl FnMut(&Tables) -> Option<T>) -> T {
        loop {
            // Before the look, so that a publication between look and wait is not missed.
            let published = self.published.notified();
            if let Some(found) = find(&self.load()) {
                return found;
            }
            published.await;
        }
    }
}

/// The objects that something was made from, each `<Kind>/<namespace>/<name>`, for `explain`.
pub type Sources = Arc<[Box<str>]>;

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
