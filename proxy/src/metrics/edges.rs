//! Who talks to whom: the labels that requests and opaque connections share, and the bound on their number.
//!
//! An edge has its series once per process; workers keep handles to the ones they use, so recording costs no look-up
//! by label. Edges that lie idle expire, and what comes above the bound is counted under one overflow edge.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Direction;
use crate::tables::cluster::EndpointTls;
use crate::tables::{Endpoint, Inbound, Millis, ServiceName};
use crate::tls::Peer;

/// Most edges of one kind a sidecar keeps. Chosen: at about 4 KiB an edge this is 4 MiB, and more than any workload of
/// sense has.
pub const MAX_EDGES: usize = 1_000;
/// An edge unused for so long loses its series. Chosen: a scrape a minute has then seen its last value many times.
const IDLE_MS: u64 = 60 * 60 * 1000;

/// Labels of an edge, in the order of [`Edge::values`].
pub const LABELS: [&str; 9] = [
    "direction",
    "protocol",
    "connection_security_policy",
    "source_principal",
    "source_namespace",
    "source_workload",
    "destination_namespace",
    "destination_service",
    "destination_workload",
];

/// Who talks to whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Edge {
    direction: Direction,
    protocol: &'static str,
    mutual_tls: bool,
    source_principal: Option<Arc<str>>,
    source_namespace: Option<Arc<str>>,
    destination: Option<ServiceName>,
    /// `<namespace>/<name>`.
    destination_workload: Option<Arc<str>>,
    overflow: bool,
}

impl Edge {
    /// An edge as far as it is known when a connection or request begins; `caller` is known inbound, over mutual TLS.
    pub fn new(direction: Direction, protocol: &'static str, caller: Option<&Peer>) -> Self {
        Self {
            direction,
            protocol,
            mutual_tls: caller.is_some(),
            source_principal: caller.map(|caller| caller.principal.clone()),
            source_namespace: caller.and_then(|caller| caller.namespace.clone()),
            destination: None,
            destination_workload: None,
            overflow: false,
        }
    }

    /// The Service it goes to.
    pub fn destination(&mut self, service: Option<&ServiceName>) {
        self.destination = service.cloned();
    }

    /// The endpoint it goes to; inbound, the application beside us, which says nothing new.
    pub fn endpoint(&mut self, endpoint: &Endpoint) {
        if self.direction == Direction::Outbound {
            self.mutual_tls = matches!(endpoint.tls, EndpointTls::Mtls(_));
            self.destination_workload = Some(endpoint.workload.clone()).filter(|name| !name.is_empty());
        }
    }

    /// Which protocol it is counted under.
    pub fn protocol(&self) -> &'static str {
        self.protocol
    }

    fn to_overflow(&self) -> Self {
        Self { overflow: true, ..Self::new(self.direction, self.protocol, None) }
    }

    /// Values of [`LABELS`]. `own` is the workload this sidecar belongs to.
    fn values(&self, own: Option<&Inbound>) -> [String; 9] {
        let text = |part: &Option<Arc<str>>| part.as_deref().unwrap_or_default().to_owned();
        let (own_namespace, own_workload) = match own {
            Some(own) => (own.namespace.to_string(), own.workload.to_string()),
            None => (String::new(), String::new()),
        };
        let (workload_namespace, destination_workload) =
            self.destination_workload.as_deref().and_then(|name| name.split_once('/')).unwrap_or_default();
        let (namespace, service) = match &self.destination {
            Some(service) => (service.namespace.to_string(), service.name.to_string()),
            None if self.overflow => (OVERFLOW.to_owned(), OVERFLOW.to_owned()),
            None => (workload_namespace.to_owned(), String::new()),
        };
        let security = if self.mutual_tls { "mutual_tls" } else { "none" };
        let [source_namespace, source_workload, destination_workload] = match self.direction {
            Direction::Outbound => [own_namespace, own_workload, destination_workload.to_owned()],
            Direction::Inbound => [text(&self.source_namespace), String::new(), own_workload],
        };
        [
            self.direction.name().to_owned(),
            self.protocol.to_owned(),
            security.to_owned(),
            text(&self.source_principal),
            source_namespace,
            source_workload,
            namespace,
            service,
            destination_workload,
        ]
    }
}

/// The series of one edge.
pub struct Series<S> {
    /// The handles.
    pub handles: S,
    labels: [String; 9],
    used: AtomicU64,
    expired: AtomicBool,
}

impl<S> Series<S> {
    /// Values of [`LABELS`].
    pub fn labels(&self) -> [&str; 9] {
        self.labels.each_ref().map(String::as_str)
    }
}

/// All edges of one kind.
pub struct Edges<S> {
    known: Mutex<HashMap<Edge, Arc<Series<S>>>>,
}

impl<S> Default for Edges<S> {
    fn default() -> Self {
        Self { known: Mutex::default() }
    }
}

/// The edges one worker has used.
pub struct Cache<S>(HashMap<Edge, Arc<Series<S>>>);

impl<S> Default for Cache<S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<S> Edges<S> {
    /// The series of `edge`, made by `make` if it has none yet.
    pub fn series<'c>(
        &self,
        cache: &'c mut Cache<S>,
        edge: &Edge,
        own: Option<&Inbound>,
        now: Millis,
        make: impl FnOnce(&[&str; 9]) -> S,
    ) -> &'c Arc<Series<S>> {
        if cache.0.get(edge).is_none_or(|series| series.expired.load(Ordering::Relaxed)) {
            let series = self.find_or_make(edge, own, make);
            if cache.0.len() >= 2 * MAX_EDGES {
                // Only handles: the series themselves stay.
                cache.0.clear();
            }
            cache.0.insert(edge.clone(), series);
        }
        // Proof: the lines above put it there if it was not.
        #[allow(clippy::expect_used)]
        let series = cache.0.get(edge).expect("the edge is cached");
        series.used.store(now.0, Ordering::Relaxed);
        series
    }

    fn find_or_make(&self, edge: &Edge, own: Option<&Inbound>, make: impl FnOnce(&[&str; 9]) -> S) -> Arc<Series<S>> {
        // A panic while holding the lock leaves the map whole: every change is one insert.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let full = known.len() >= MAX_EDGES && !known.contains_key(edge);
        let edge = if full { edge.to_overflow() } else { edge.clone() };
        let series = known.entry(edge).or_insert_with_key(|edge| {
            let labels = edge.values(own);
            let handles = make(&labels.each_ref().map(String::as_str));
            Arc::new(Series { handles, labels, used: AtomicU64::new(0), expired: AtomicBool::new(false) })
        });
        series.clone()
    }

    /// Forgets edges that have been idle too long; `remove` takes their series out of the exposition. What is
    /// recorded at the very moment of expiry may be lost with an edge that was silent for an hour before.
    pub fn expire(&self, now: Millis, remove: impl Fn(&Series<S>)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, series| {
            let keep = now.0.saturating_sub(series.used.load(Ordering::Relaxed)) < IDLE_MS;
            if !keep {
                series.expired.store(true, Ordering::Relaxed);
                remove(series);
            }
            keep
        });
    }
}

/// Stands for all names above the bound.
pub const OVERFLOW: &str = "overflow";

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(service: usize) -> Edge {
        let mut edge = Edge::new(Direction::Outbound, "http", None);
        edge.destination(Some(&ServiceName { namespace: "shop".into(), name: service.to_string().into() }));
        edge
    }

    #[test]
    fn edges_above_the_bound_share_one_series() {
        let (edges, mut cache) = (Edges::default(), Cache::default());
        for i in 0..MAX_EDGES + 50 {
            edges.series(&mut cache, &edge(i), None, Millis(1), |_| i);
        }
        let known = edges.known.lock().unwrap().len();
        assert_eq!(known, MAX_EDGES + 1);
        let last = edges.series(&mut cache, &edge(MAX_EDGES + 49), None, Millis(1), |_| 0);
        assert_eq!(last.labels()[7], OVERFLOW);
    }

    #[test]
    fn an_idle_edge_expires_and_begins_anew_when_used_again() {
        let (edges, mut cache) = (Edges::default(), Cache::default());
        edges.series(&mut cache, &edge(1), None, Millis(0), |_| "old");
        edges.series(&mut cache, &edge(2), None, Millis(IDLE_MS), |_| "kept");
        let removed = std::cell::Cell::new(0);
        edges.expire(Millis(IDLE_MS), |_| removed.set(removed.get() + 1));
        assert_eq!(removed.get(), 1);
        assert_eq!(edges.series(&mut cache, &edge(1), None, Millis(IDLE_MS), |_| "new").handles, "new");
        assert_eq!(edges.series(&mut cache, &edge(2), None, Millis(IDLE_MS), |_| "new").handles, "kept");
    }
}
