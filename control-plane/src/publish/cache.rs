//! Resources that were made for somebody, by name, until a change makes them of no use. No clock, no lock.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use heddle_xds::resource::{INBOUND, Kind};

use super::{Published, Stale};
use crate::emit::grpc;
use crate::model::{Place, Preference, WorkloadName};

/// What was made of one generation of the mesh.
#[derive(Debug, Default)]
pub(super) struct Cache {
    generation: u64,
    named: BTreeMap<Arc<str>, Named>,
    inbound: HashMap<WorkloadName, Published>,
    /// In both together.
    entries: usize,
}

/// Where a resource is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// A workload's own.
    Inbound(WorkloadName),
    /// Everybody's, or that of some clients.
    Named {
        /// Its name.
        name: Arc<str>,
        /// Its kind: a route table, a cluster and its endpoints share a name.
        kind: Kind,
        /// Who gets it, if not all: [`Differs::whose`].
        whose: Option<Arc<str>>,
    },
}

/// Who asks.
#[derive(Debug)]
pub(super) struct Asker<'a> {
    pub(super) workload: &'a WorkloadName,
    pub(super) place: Place,
}

/// Which clients get another resource under a name than everybody.
#[derive(Debug, Default)]
pub(super) struct Differs {
    /// Those in these namespaces get another listener.
    pub(super) namespaces: Vec<Arc<str>>,
    /// By this, each gets its own endpoints.
    pub(super) places: Preference,
}

impl Differs {
    /// Under what the resource for a client is kept; `None`: everybody's.
    pub(super) fn whose(&self, asker: &Asker<'_>, kind: Kind) -> Option<Arc<str>> {
        let zone = || asker.place.zone.as_deref().unwrap_or_default();
        match (kind, self.places) {
            (Kind::Listener, _) => {
                let namespace = &asker.workload.namespace;
                self.namespaces.contains(namespace).then(|| namespace.clone())
            }
            (Kind::Endpoints, Preference::Zone) => Some(zone().into()),
            (Kind::Endpoints, Preference::Node) => {
                let node = asker.place.node.as_deref().unwrap_or_default();
                // Neither name has a slash (RFC 1123).
                Some(format!("{}/{node}", zone()).into())
            }
            (Kind::Endpoints, Preference::None) | (Kind::Route | Kind::Cluster, _) => None,
        }
    }
}

/// Everything under one name.
#[derive(Debug, Default)]
struct Named {
    differs: Differs,
    made: Vec<(Kind, Option<Arc<str>>, Published)>,
}

impl Cache {
    /// What was made for this name, if it was made of this generation.
    pub(super) fn find(&self, generation: u64, asker: &Asker<'_>, kind: Kind, name: &str) -> Option<Published> {
        if self.generation != generation {
            return None;
        }
        if kind == Kind::Listener && name == INBOUND {
            return self.inbound.get(asker.workload).cloned();
        }
        let named = self.named.get(name)?;
        let asked = named.differs.whose(asker, kind);
        let mut made = named.made.iter();
        made.find(|(of, whose, _)| *of == kind && *whose == asked).map(|(_, _, made)| made.clone())
    }

    /// Keeps what was made of `generation`, unless the mesh has changed since.
    pub(super) fn add(&mut self, generation: u64, key: Key, differs: Differs, published: Published) {
        if self.generation != generation {
            return;
        }
        if self.entries >= MAX_ENTRIES {
            self.named.clear();
            self.inbound.clear();
            self.entries = 0;
        }
        match key {
            Key::Inbound(workload) => {
                self.entries += usize::from(self.inbound.insert(workload, published).is_none());
            }
            Key::Named { name, kind, whose } => {
                let named = self.named.entry(name).or_default();
                match kind {
                    Kind::Listener => named.differs.namespaces = differs.namespaces,
                    Kind::Endpoints => named.differs.places = differs.places,
                    Kind::Route | Kind::Cluster => {}
                }
                // Two streams may have made it at once.
                if !named.made.iter().any(|(of, other, _)| *of == kind && *other == whose) {
                    named.made.push((kind, whose, published));
                    self.entries += 1;
                }
            }
        }
    }

    /// The mesh is of `generation` now.
    pub(super) fn advance(&mut self, generation: u64, stale: &Stale) {
        self.generation = generation;
        for name in &stale.names {
            self.forget(name);
        }
        for prefix in &stale.prefixes {
            let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
            let names = self.named.range::<str, _>(from).map(|(name, _)| name);
            let names: Vec<Arc<str>> = names.take_while(|name| name.starts_with(prefix.as_str())).cloned().collect();
            names.iter().for_each(|name| self.forget(name));
        }
        for workload in &stale.inbound {
            self.entries -= usize::from(self.inbound.remove(workload).is_some());
        }
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.named.values().map(|named| named.made.len()).sum::<usize>() + self.inbound.len()
    }

    fn forget(&mut self, name: &str) {
        if let Some(named) = self.named.remove(name) {
            self.entries -= named.made.len();
        }
    }
}

/// What was made for proxyless gRPC: few names, each for all clients of one namespace; forgotten whole with every change.
#[derive(Debug, Default)]
pub(super) struct Targets {
    generation: u64,
    made: HashMap<(grpc::Client, Kind, Arc<str>), Published>,
}

impl Targets {
    /// What was made for this name, if it was made of this generation.
    pub(super) fn find(&self, generation: u64, client: &grpc::Client, kind: Kind, name: &str) -> Option<Published> {
        let key = (client.clone(), kind, Arc::from(name));
        if self.generation == generation { self.made.get(&key).cloned() } else { None }
    }

    /// Keeps what was made of `generation`, if that is not older than what is kept.
    pub(super) fn add(&mut self, generation: u64, client: &grpc::Client, kind: Kind, published: Published) {
        if generation < self.generation {
            return;
        }
        if generation > self.generation || self.made.len() >= MAX_ENTRIES {
            self.made.clear();
            self.generation = generation;
        }
        self.made.insert((client.clone(), kind, published.resource.name.clone()), published);
    }
}

/// Resources kept; above it all are forgotten and those in use are made anew. Chosen: the whole of a mesh with ten thousand
/// Services, some hundred MiB; a client that asks for every port of a pod gets no further.
pub(super) const MAX_ENTRIES: usize = 65_536;
