//! What is kept for each name: what was told of it, and what is in force. Pure values, put in order by
//! [`super::Core`].

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::balance::outlier;
use crate::sync::{cluster, endpoints, listener};
use crate::tables::cluster::{EndpointSet, Settings};
use crate::tables::{Answer, Cluster, Millis, RouteTable, Seen};

/// What the control plane last said about a name.
#[derive(Debug, Clone, Default)]
pub(super) enum Told<T> {
    /// Nothing yet, or only what was refused.
    #[default]
    Nothing,
    /// There is none.
    Absent,
    /// This.
    Is(T),
}

impl<T> Told<T> {
    pub(super) fn is_answered(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Absent | Self::Is(_) => true,
        }
    }

    pub(super) fn as_ref(&self) -> Option<&T> {
        match self {
            Self::Nothing | Self::Absent => None,
            Self::Is(value) => Some(value),
        }
    }
}

/// A destination somebody asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its listener's.
    pub(super) name: Arc<str>,
    pub(super) seen: Arc<Seen>,
    pub(super) told: Told<listener::Parsed>,
    /// Since when what was told waits to be put in force; `None`: it does not.
    pub(super) waiting: Option<Millis>,
    /// In force: what it was made from (`None`: it does not exist), and how workers see it.
    pub(super) live: Option<(Option<listener::Parsed>, Answer)>,
}

#[derive(Debug, Default)]
pub(super) struct RouteEntry {
    pub(super) told: Told<RouteSource>,
    pub(super) waiting: Option<Millis>,
    pub(super) live: Option<LiveRoutes>,
}

/// A route table before its clusters are known: it is read again when they change.
#[derive(Debug, Clone)]
pub(super) struct RouteSource {
    pub(super) bytes: Bytes,
    pub(super) clusters: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
pub(super) struct LiveRoutes {
    pub(super) source: RouteSource,
    pub(super) table: Arc<RouteTable>,
}

#[derive(Debug, Default)]
pub(super) struct ClusterEntry {
    pub(super) settings: Told<cluster::Parsed>,
    pub(super) endpoints: Told<endpoints::Parsed>,
    pub(super) live: Option<Arc<Cluster>>,
}

impl ClusterEntry {
    pub(super) fn is_answered(&self) -> bool {
        match &self.settings {
            Told::Nothing => false,
            Told::Absent => true,
            Told::Is(_) => self.endpoints.is_answered(),
        }
    }
}

impl Wanted {
    pub(super) fn is_known(&self) -> bool {
        matches!(self.live, Some((Some(_), _))) || self.told.as_ref().is_some()
    }

    pub(super) fn last_used(&self) -> u64 {
        self.seen.used.load(Ordering::Relaxed)
    }
}

pub(super) fn is_made_from(live: &Cluster, parsed: &cluster::Parsed) -> bool {
    live.service == parsed.service
        && live.settings == parsed.settings
        && live.identities == parsed.identities
        && live.sources == parsed.sources
}

pub(super) fn make_cluster(name: &Arc<str>, parsed: &cluster::Parsed, entry: &ClusterEntry) -> Cluster {
    let endpoints = match (&entry.endpoints, &entry.live) {
        // New ones were told, and taken over, before.
        (Told::Is(told), Some(live)) => next_endpoints(live, told, &parsed.identities, Millis::default()),
        (Told::Is(told), None) => endpoints::set(told, &parsed.identities, None),
        // What is in force stays, whatever was said of its endpoints since.
        (Told::Nothing | Told::Absent, Some(live)) => EndpointSet::new(live.endpoints.load().endpoints.clone()),
        (Told::Nothing | Told::Absent, None) => EndpointSet::default(),
    };
    Cluster {
        name: name.clone(),
        service: parsed.service.clone(),
        settings: parsed.settings.clone(),
        identities: parsed.identities.clone(),
        sources: parsed.sources.clone(),
        endpoints: endpoints.into_swap(),
        state: entry.live.as_ref().map(|live| live.state.clone()).unwrap_or_default(),
    }
}

/// The endpoints that follow those of a cluster in force. Ejections of endpoints that leave are forgotten.
pub(super) fn next_endpoints(
    cluster: &Cluster,
    parsed: &endpoints::Parsed,
    identities: &Arc<[Arc<str>]>,
    now: Millis,
) -> EndpointSet {
    let before = cluster.endpoints.load();
    let after = endpoints::set(parsed, identities, Some((&before, now)));
    let stay: HashSet<u64> = after.endpoints.iter().map(|endpoint| endpoint.id()).collect();
    for endpoint in before.endpoints.iter().filter(|endpoint| !stay.contains(&endpoint.id())) {
        // Asked as of the beginning of time: whether an ejection is still counted, over or not.
        if endpoint.state.outlier.ejected(Millis(0)) {
            outlier::forget_ejection(cluster);
        }
    }
    after
}

/// What a cluster is taken for of which nothing is known.
pub(super) fn unanswered_settings() -> cluster::Parsed {
    let (identities, sources) = (Arc::new([]), Arc::new([]));
    cluster::Parsed { service: None, settings: Settings::default(), identities, sources }
}
