//! Immutable sets of resources of one type, and of all four; what changed between two; the order in which changes travel.
//!
//! The control plane publishes a new set when something changed and streams compare versions; nobody edits one in place.
//! Order: make before break. What is new or changed first, in [`Kind::DELIVERY`] order, removals after all of it, in
//! [`Kind::REMOVAL`] order. Called by the two protocol servers (wildcard subscriptions) and by the control plane.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::resource::{Fnv, Kind, Resource};

/// All resources of one type, by name. Immutable once built.
#[derive(Clone, Debug)]
pub struct Set {
    resources: BTreeMap<Arc<str>, Resource>,
    version: Arc<str>,
}

impl Set {
    /// The resource of this name.
    pub fn get(&self, name: &str) -> Option<&Resource> {
        self.resources.get(name)
    }

    /// Every resource, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// Hash of all names and versions, 16 hexadecimal digits: equal sets have equal versions on every replica.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }
}

impl Default for Set {
    fn default() -> Self {
        Self::from_iter([])
    }
}

impl FromIterator<Resource> for Set {
    /// Of two resources with one name the later stays.
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        let resources: BTreeMap<_, _> =
            resources.into_iter().map(|resource| (resource.name.clone(), resource)).collect();
        let version = version_of_set(resources.values());
        Self { resources, version }
    }
}

/// One set for each kind.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    clusters: Arc<Set>,
    endpoints: Arc<Set>,
    listeners: Arc<Set>,
    routes: Arc<Set>,
}

impl Snapshot {
    /// The resources of one kind.
    pub fn set(&self, kind: Kind) -> &Arc<Set> {
        match kind {
            Kind::Cluster => &self.clusters,
            Kind::Endpoints => &self.endpoints,
            Kind::Listener => &self.listeners,
            Kind::Route => &self.routes,
        }
    }

    /// This snapshot with one kind replaced; the others are shared.
    pub fn with(&self, kind: Kind, set: Arc<Set>) -> Self {
        let mut next = self.clone();
        match kind {
            Kind::Cluster => next.clusters = set,
            Kind::Endpoints => next.endpoints = set,
            Kind::Listener => next.listeners = set,
            Kind::Route => next.routes = set,
        }
        next
    }

    /// What leads from this snapshot to `newer`, in the order in which it has to be delivered.
    pub fn diff(&self, newer: &Snapshot) -> Vec<Change> {
        let delivered = Kind::DELIVERY.into_iter().flat_map(|kind| {
            let (old, new) = (self.set(kind), newer.set(kind));
            new.iter()
                .filter(|resource| old.get(&resource.name).is_none_or(|held| held.version != resource.version))
                .map(move |resource| Change::Deliver(kind, resource.clone()))
        });
        let removed = Kind::REMOVAL.into_iter().flat_map(|kind| {
            let (old, new) = (self.set(kind), newer.set(kind));
            old.iter()
                .filter(|resource| new.get(&resource.name).is_none())
                .map(move |resource| Change::Remove(kind, resource.name.clone()))
        });
        delivered.chain(removed).collect()
    }
}

impl FromIterator<(Kind, Resource)> for Snapshot {
    fn from_iter<I: IntoIterator<Item = (Kind, Resource)>>(resources: I) -> Self {
        let mut by_kind: BTreeMap<Kind, Vec<Resource>> = BTreeMap::new();
        for (kind, resource) in resources {
            by_kind.entry(kind).or_default().push(resource);
        }
        by_kind.into_iter().fold(Self::default(), |snapshot, (kind, resources)| {
            snapshot.with(kind, Arc::new(Set::from_iter(resources)))
        })
    }
}

/// One step from a snapshot to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A resource is new or has a new version.
    Deliver(Kind, Resource),
    /// A name has no resource any more.
    Remove(Kind, Arc<str>),
}

/// The version of resources that come in order of their names.
pub(crate) fn version_of_set<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Arc<str> {
    let mut hash = Fnv::new();
    for resource in resources {
        hash.write(resource.name.as_bytes());
        // No name and no version contains a zero byte, so two lists never run together into one.
        hash.write(&[0]);
        hash.write(resource.version.as_bytes());
        hash.write(&[0]);
    }
    hash.version()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn resource(name: &str, content: &'static str) -> Resource {
        Resource::from_bytes(name, Bytes::from_static(content.as_bytes()), [])
    }

    #[test]
    fn what_is_named_is_delivered_first_and_removed_last() {
        let old: Snapshot = Kind::DELIVERY.into_iter().map(|kind| (kind, resource("old", "1"))).collect();
        let new: Snapshot = Kind::DELIVERY.into_iter().map(|kind| (kind, resource("new", "1"))).collect();

        let order: Vec<(Kind, bool)> = old
            .diff(&new)
            .into_iter()
            .map(|change| match change {
                Change::Deliver(kind, _) => (kind, true),
                Change::Remove(kind, _) => (kind, false),
            })
            .collect();

        assert_eq!(
            order,
            [
                (Kind::Cluster, true),
                (Kind::Endpoints, true),
                (Kind::Listener, true),
                (Kind::Route, true),
                (Kind::Listener, false),
                (Kind::Route, false),
                (Kind::Cluster, false),
                (Kind::Endpoints, false),
            ]
        );
    }

    #[test]
    fn only_what_differs_is_in_the_diff() {
        let old: Snapshot =
            [(Kind::Cluster, resource("same", "1")), (Kind::Cluster, resource("changed", "1"))].into_iter().collect();
        let new: Snapshot =
            [(Kind::Cluster, resource("same", "1")), (Kind::Cluster, resource("changed", "2"))].into_iter().collect();

        assert_eq!(old.diff(&new), [Change::Deliver(Kind::Cluster, resource("changed", "2"))]);
        assert_eq!(old.diff(&old), []);
    }

    #[test]
    fn a_set_has_one_version_whatever_the_order_it_was_built_in() {
        let forward: Set = [resource("a", "1"), resource("b", "2")].into_iter().collect();
        let backward: Set = [resource("b", "2"), resource("a", "1")].into_iter().collect();
        let other: Set = [resource("a", "2"), resource("b", "1")].into_iter().collect();

        assert_eq!(forward.version(), backward.version());
        assert_ne!(forward.version(), other.version());
    }
}
