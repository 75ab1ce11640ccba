//! An immutable snapshot of the objects that describe the mesh.
//!
//! Objects are shared, so a snapshot costs little to keep beside the next. [`Objects::changed_since`] names what
//! differs between two, [`touch`] says which Services, workloads and statuses that reaches. Nothing is interpreted
//! here: what objects mean is said in `translate`. Written by one source; read by everyone else.

mod index;
pub mod pod;
pub mod ports;
pub mod route;
pub mod touch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use gateway_api::experimental::referencegrants::ReferenceGrant;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{AuthorizationPolicy, FaultInjection, MeshTlsPolicy, RateLimitPolicy, TrafficPolicy, Workload};
use index::Index;
pub use pod::Pod;
pub use route::Route;
pub use touch::{Touched, touched};

/// Makes what there is once for each kind, so that a new one is a line here. The order is that in which kinds are listed.
macro_rules! kinds {
    ($($kind:ident = $name:literal of $version:literal: $object:ty, in $table:ident;)*) => {
        /// The kinds that are read.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = concat!("`", $version, "`")] $kind,)*
        }

        /// All kinds, in the order of [`Kind`].
        pub const KINDS: [Kind; [$(Kind::$kind),*].len()] = [$(Kind::$kind),*];

        /// One object of any kind. Equal when it says the same.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Object {
            $(#[doc = concat!("`", $name, "`")] $kind(Arc<$object>),)*
        }

        /// The snapshot. Cloning it is cheap.
        #[derive(Debug, Clone, Default)]
        pub struct Objects {
            $(#[doc = concat!("`", $name, "`")] pub $table: Table<$object>,)*
            index: Index,
            generation: u64,
        }

        impl Kind {
            /// As manifests write it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata,)* }
            }

            /// Counts it as changed so often, if it does not say so itself.
            pub fn set_generation(&mut self, generation: i64) {
                match self {
                    $(Self::$kind(object) => {
                        Arc::make_mut(object).metadata.generation.get_or_insert(generation);
                    })*
                }
            }

            /// Whether both are one shared value.
            pub fn same(&self, other: &Self) -> bool {
                match (self, other) {
                    $((Self::$kind(a), Self::$kind(b)) => Arc::ptr_eq(a, b),)*
                    _ => false,
                }
            }
        }

        impl Objects {
            /// The object under `key`.
            pub fn object(&self, key: &ObjectKey) -> Option<Object> {
                match key.kind {
                    $(Kind::$kind => self.$table.get(&key.namespace, &key.name).cloned().map(Object::$kind),)*
                }
            }

            /// The keys of one kind's objects, in order.
            pub fn keys_of(&self, kind: Kind) -> Vec<ObjectKey> {
                match kind { $(Kind::$kind => self.$table.keys(kind),)* }
            }

            /// What was added, removed or replaced since `before`. An object that is the same shared value is unchanged.
            pub fn changed_since(&self, before: &Self) -> BTreeSet<ObjectKey> {
                let mut keys = BTreeSet::new();
                $(self.$table.changed(&before.$table, Kind::$kind, &mut keys);)*
                keys
            }

            /// How many objects of a kind there are.
            pub fn count(&self, kind: Kind) -> usize {
                match kind { $(Kind::$kind => self.$table.len(),)* }
            }

            fn insert(&mut self, ObjectKey { namespace, name, .. }: ObjectKey, object: Object) {
                match object { $(Object::$kind(object) => self.$table.insert(namespace, name, object),)* }
            }

            fn take_out(&mut self, key: &ObjectKey) {
                match key.kind { $(Kind::$kind => self.$table.remove(&key.namespace, &key.name),)* }
            }
        }
    };
}

kinds! {
    Namespace = "Namespace" of "v1": Namespace, in namespaces;
    ServiceAccount = "ServiceAccount" of "v1": ServiceAccount, in service_accounts;
    Service = "Service" of "v1": Service, in services;
    Pod = "Pod" of "v1": Pod, in pods;
    EndpointSlice = "EndpointSlice" of "discovery.k8s.io/v1": EndpointSlice, in endpoint_slices;
    HttpRoute = "HTTPRoute" of "gateway.networking.k8s.io/v1": Route, in http_routes;
    GrpcRoute = "GRPCRoute" of "gateway.networking.k8s.io/v1": Route, in grpc_routes;
    TlsRoute = "TLSRoute" of "gateway.networking.k8s.io/v1": Route, in tls_routes;
    TcpRoute = "TCPRoute" of "gateway.networking.k8s.io/v1alpha2": Route, in tcp_routes;
    ReferenceGrant = "ReferenceGrant" of "gateway.networking.k8s.io/v1": ReferenceGrant, in reference_grants;
    Workload = "Workload" of "heddle.dev/v1alpha1": Workload, in workloads;
    TrafficPolicy = "TrafficPolicy" of "heddle.dev/v1alpha1": TrafficPolicy, in traffic_policies;
    FaultInjection = "FaultInjection" of "heddle.dev/v1alpha1": FaultInjection, in fault_injections;
    AuthorizationPolicy = "AuthorizationPolicy" of "heddle.dev/v1alpha1": AuthorizationPolicy, in authorization_policies;
    RateLimitPolicy = "RateLimitPolicy" of "heddle.dev/v1alpha1": RateLimitPolicy, in rate_limit_policies;
    MeshTlsPolicy = "MeshTLSPolicy" of "heddle.dev/v1alpha1": MeshTlsPolicy, in mesh_tls_policies;
}

/// An object by kind, namespace and name; shown as `<Kind> <namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// All objects of one kind, by namespace. Snapshots share what did not change: the whole table, or else its namespaces.
#[derive(Debug)]
pub struct Table<T>(Arc<BTreeMap<Arc<str>, Names<T>>>);

/// The objects of one namespace by name.
type Names<T> = Arc<BTreeMap<Arc<str>, Arc<T>>>;

impl Objects {
    /// A snapshot of `objects`.
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut all = Self::default();
        objects.into_iter().for_each(|object| all.set(object));
        all
    }

    /// How often this snapshot and those it came from were changed.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Puts `object` in the place of the one with the same key.
    pub fn set(&mut self, object: Object) {
        let key = object.key();
        self.remove(&key);
        self.index.add(&object);
        self.insert(key, object);
        self.generation += 1;
    }

    /// Takes the object out, if it is there.
    pub fn remove(&mut self, key: &ObjectKey) {
        let Some(object) = self.object(key) else { return };
        self.index.forget(&object);
        self.take_out(key);
        self.generation += 1;
    }

    /// The keys of all objects, in order.
    pub fn keys(&self) -> BTreeSet<ObjectKey> {
        KINDS.into_iter().flat_map(|kind| self.keys_of(kind)).collect()
    }

    /// Routes that name the Service as parent.
    pub fn routes_of(&self, namespace: &str, service: &str) -> impl Iterator<Item = &Arc<Route>> {
        self.index.routes_of(namespace, service).filter_map(|key| self.route(key))
    }

    /// EndpointSlices that say they are the Service's.
    pub fn slices_of(&self, namespace: &str, service: &str) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let names = self.index.slices_of(namespace, service);
        names.filter_map(move |key| self.endpoint_slices.get(&key.namespace, &key.name))
    }

    /// A route of any kind by key.
    pub fn route(&self, key: &ObjectKey) -> Option<&Arc<Route>> {
        let table = match key.kind {
            Kind::GrpcRoute => &self.grpc_routes,
            Kind::TlsRoute => &self.tls_routes,
            Kind::TcpRoute => &self.tcp_routes,
            _ => &self.http_routes,
        };
        table.get(&key.namespace, &key.name)
    }

    /// All routes, of every kind.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.http_routes
            .iter()
            .chain(self.grpc_routes.iter())
            .chain(self.tls_routes.iter())
            .chain(self.tcp_routes.iter())
    }
}

impl<T> Table<T> {
    /// The object by namespace and name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.0.get(namespace)?.get(name)
    }

    /// All in one namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        self.0.get(namespace).into_iter().flat_map(|names| names.values())
    }

    /// All, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.values().flat_map(|names| names.values())
    }

    /// Whether nothing has changed between the two.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The namespaces that have some.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    fn len(&self) -> usize {
        self.0.values().map(|names| names.len()).sum()
    }

    fn insert(&mut self, namespace: Arc<str>, name: Arc<str>, object: Arc<T>) {
        let names = Arc::make_mut(&mut self.0).entry(namespace).or_default();
        Arc::make_mut(names).insert(name, object);
    }

    fn remove(&mut self, namespace: &str, name: &str) {
        let table = Arc::make_mut(&mut self.0);
        if let Some(names) = table.get_mut(namespace) {
            Arc::make_mut(names).remove(name);
            if names.is_empty() {
                table.remove(namespace);
            }
        }
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let names = self.0.iter().flat_map(|(namespace, names)| names.keys().map(move |name| (namespace, name)));
        names.map(|(namespace, name)| ObjectKey { kind, namespace: namespace.clone(), name: name.clone() }).collect()
    }

    /// Adds the keys at which the two differ; what they share is not walked.
    fn changed(&self, before: &Self, kind: Kind, keys: &mut BTreeSet<ObjectKey>) {
        if Arc::ptr_eq(&self.0, &before.0) {
            return;
        }
        for (one, other) in [(self, before), (before, self)] {
            for (namespace, names) in &*one.0 {
                let others = other.0.get(namespace);
                if others.is_some_and(|others| Arc::ptr_eq(names, others)) {
                    continue;
                }
                let differing = names.iter().filter(|(name, object)| {
                    let other = others.and_then(|others| others.get(&**name));
                    other.is_none_or(|other| !Arc::ptr_eq(object, other))
                });
                keys.extend(differing.map(|(name, _)| ObjectKey {
                    kind,
                    namespace: namespace.clone(),
                    name: name.clone(),
                }));
            }
        }
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl Object {
    /// Its key. A missing namespace is `default`, as for `kubectl`.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(self.kind(), self.metadata())
    }
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object of `kind` with this metadata.
    pub fn of(kind: Kind, metadata: &ObjectMeta) -> Self {
        let namespace = if kind == Kind::Namespace { "" } else { namespace_of(metadata) };
        Self::new(kind, namespace, name_of(metadata))
    }
}

/// The namespace; `default` if none is given, as for `kubectl`.
pub fn namespace_of(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or("default")
}

/// The name.
pub fn name_of(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

impl Kind {
    /// Whether it is a route of connections that are not looked into.
    pub fn routes_connections(self) -> bool {
        matches!(self, Self::TlsRoute | Self::TcpRoute)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Object {
        let metadata = ObjectMeta { namespace: Some("shop".into()), name: Some(name.into()), ..ObjectMeta::default() };
        Object::Pod(Arc::new(Pod { metadata, ..Pod::default() }))
    }

    #[test]
    fn a_snapshot_keeps_what_it_was_while_the_next_one_changes() {
        let before = Objects::of([pod("a"), pod("b")]);
        let mut after = before.clone();
        after.remove(&pod("a").key());
        after.set(pod("c"));
        let shown: Vec<_> = after.changed_since(&before).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["Pod shop/a", "Pod shop/c"]);
        assert!(before.pods.get("shop", "a").is_some());
        assert!(after.generation() > before.generation());
    }

    #[test]
    fn every_kind_is_listed_once() {
        assert_eq!(BTreeSet::from(KINDS).len(), KINDS.len());
    }
}
