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

use crate::api::{AuthorizationPolicy, MeshTlsPolicy, TrafficPolicy, Workload};
use index::Index;
pub use pod::Pod;
pub use route::Route;
pub use touch::{Touched, touched};

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1`
    Namespace,
    /// `v1`
    ServiceAccount,
    /// `v1`
    Service,
    /// `v1`
    Pod,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `gateway.networking.k8s.io/v1`
    HttpRoute,
    /// `gateway.networking.k8s.io/v1`
    GrpcRoute,
    /// `gateway.networking.k8s.io/v1`
    TlsRoute,
    /// `gateway.networking.k8s.io/v1alpha2`
    TcpRoute,
    /// `gateway.networking.k8s.io/v1`
    ReferenceGrant,
    /// `heddle.dev/v1alpha1`
    Workload,
    /// `heddle.dev/v1alpha1`
    TrafficPolicy,
    /// `heddle.dev/v1alpha1`
    AuthorizationPolicy,
    /// `heddle.dev/v1alpha1`
    MeshTlsPolicy,
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

/// One object of any kind. Equal when it says the same.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A Namespace.
    Namespace(Arc<Namespace>),
    /// A ServiceAccount.
    ServiceAccount(Arc<ServiceAccount>),
    /// A Service.
    Service(Arc<Service>),
    /// A Pod.
    Pod(Arc<Pod>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// An HTTPRoute.
    HttpRoute(Arc<Route>),
    /// A GRPCRoute.
    GrpcRoute(Arc<Route>),
    /// A TLSRoute.
    TlsRoute(Arc<Route>),
    /// A TCPRoute.
    TcpRoute(Arc<Route>),
    /// A ReferenceGrant.
    ReferenceGrant(Arc<ReferenceGrant>),
    /// A Workload.
    Workload(Arc<Workload>),
    /// A TrafficPolicy.
    TrafficPolicy(Arc<TrafficPolicy>),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// A MeshTLSPolicy.
    MeshTlsPolicy(Arc<MeshTlsPolicy>),
}

/// All objects of one kind, by namespace. Snapshots share what did not change: the whole table, or else its namespaces.
#[derive(Debug)]
pub struct Table<T>(Arc<BTreeMap<Arc<str>, Names<T>>>);

/// The objects of one namespace by name.
type Names<T> = Arc<BTreeMap<Arc<str>, Arc<T>>>;

/// The snapshot. Cloning it is cheap.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// Namespaces, under the empty namespace.
    pub namespaces: Table<Namespace>,
    /// ServiceAccounts.
    pub service_accounts: Table<ServiceAccount>,
    /// Services.
    pub services: Table<Service>,
    /// Pods.
    pub pods: Table<Pod>,
    /// EndpointSlices.
    pub endpoint_slices: Table<EndpointSlice>,
    /// HTTPRoutes.
    pub http_routes: Table<Route>,
    /// GRPCRoutes.
    pub grpc_routes: Table<Route>,
    /// TLSRoutes.
    pub tls_routes: Table<Route>,
    /// TCPRoutes.
    pub tcp_routes: Table<Route>,
    /// ReferenceGrants.
    pub reference_grants: Table<ReferenceGrant>,
    /// Workloads.
    pub workloads: Table<Workload>,
    /// TrafficPolicies.
    pub traffic_policies: Table<TrafficPolicy>,
    /// AuthorizationPolicies.
    pub authorization_policies: Table<AuthorizationPolicy>,
    /// MeshTLSPolicies.
    pub mesh_tls_policies: Table<MeshTlsPolicy>,
    index: Index,
    generation: u64,
}

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
        let ObjectKey { namespace, name, .. } = key;
        match object {
            Object::Namespace(o) => self.namespaces.insert(namespace, name, o),
            Object::ServiceAccount(o) => self.service_accounts.insert(namespace, name, o),
            Object::Service(o) => self.services.insert(namespace, name, o),
            Object::Pod(o) => self.pods.insert(namespace, name, o),
            Object::EndpointSlice(o) => self.endpoint_slices.insert(namespace, name, o),
            Object::HttpRoute(o) => self.http_routes.insert(namespace, name, o),
            Object::GrpcRoute(o) => self.grpc_routes.insert(namespace, name, o),
            Object::TlsRoute(o) => self.tls_routes.insert(namespace, name, o),
            Object::TcpRoute(o) => self.tcp_routes.insert(namespace, name, o),
            Object::ReferenceGrant(o) => self.reference_grants.insert(namespace, name, o),
            Object::Workload(o) => self.workloads.insert(namespace, name, o),
            Object::TrafficPolicy(o) => self.traffic_policies.insert(namespace, name, o),
            Object::AuthorizationPolicy(o) => self.authorization_policies.insert(namespace, name, o),
            Object::MeshTlsPolicy(o) => self.mesh_tls_policies.insert(namespace, name, o),
        }
        self.generation += 1;
    }

    /// Takes the object out, if it is there.
    pub fn remove(&mut self, key: &ObjectKey) {
        let Some(object) = self.object(key) else { return };
        self.index.forget(&object);
        let (namespace, name) = (&*key.namespace, &*key.name);
        match key.kind {
            Kind::Namespace => self.namespaces.remove(namespace, name),
            Kind::ServiceAccount => self.service_accounts.remove(namespace, name),
            Kind::Service => self.services.remove(namespace, name),
            Kind::Pod => self.pods.remove(namespace, name),
            Kind::EndpointSlice => self.endpoint_slices.remove(namespace, name),
            Kind::HttpRoute => self.http_routes.remove(namespace, name),
            Kind::GrpcRoute => self.grpc_routes.remove(namespace, name),
            Kind::TlsRoute => self.tls_routes.remove(namespace, name),
            Kind::TcpRoute => self.tcp_routes.remove(namespace, name),
            Kind::ReferenceGrant => self.reference_grants.remove(namespace, name),
            Kind::Workload => self.workloads.remove(namespace, name),
            Kind::TrafficPolicy => self.traffic_policies.remove(namespace, name),
            Kind::AuthorizationPolicy => self.authorization_policies.remove(namespace, name),
            Kind::MeshTlsPolicy => self.mesh_tls_policies.remove(namespace, name),
        }
        self.generation += 1;
    }

    /// The object under `key`.
    pub fn object(&self, key: &ObjectKey) -> Option<Object> {
        let (namespace, name) = (&*key.namespace, &*key.name);
        Some(match key.kind {
            Kind::Namespace => Object::Namespace(self.namespaces.get(namespace, name)?.clone()),
            Kind::ServiceAccount => Object::ServiceAccount(self.service_accounts.get(namespace, name)?.clone()),
            Kind::Service => Object::Service(self.services.get(namespace, name)?.clone()),
            Kind::Pod => Object::Pod(self.pods.get(namespace, name)?.clone()),
            Kind::EndpointSlice => Object::EndpointSlice(self.endpoint_slices.get(namespace, name)?.clone()),
            Kind::HttpRoute => Object::HttpRoute(self.http_routes.get(namespace, name)?.clone()),
            Kind::GrpcRoute => Object::GrpcRoute(self.grpc_routes.get(namespace, name)?.clone()),
            Kind::TlsRoute => Object::TlsRoute(self.tls_routes.get(namespace, name)?.clone()),
            Kind::TcpRoute => Object::TcpRoute(self.tcp_routes.get(namespace, name)?.clone()),
            Kind::ReferenceGrant => Object::ReferenceGrant(self.reference_grants.get(namespace, name)?.clone()),
            Kind::Workload => Object::Workload(self.workloads.get(namespace, name)?.clone()),
            Kind::TrafficPolicy => Object::TrafficPolicy(self.traffic_policies.get(namespace, name)?.clone()),
            Kind::AuthorizationPolicy => {
                Object::AuthorizationPolicy(self.authorization_policies.get(namespace, name)?.clone())
            }
            Kind::MeshTlsPolicy => Object::MeshTlsPolicy(self.mesh_tls_policies.get(namespace, name)?.clone()),
        })
    }

    /// The keys of all objects, in order.
    pub fn keys(&self) -> BTreeSet<ObjectKey> {
        KINDS.into_iter().flat_map(|kind| self.keys_of(kind)).collect()
    }

    /// The keys of one kind's objects, in order.
    pub fn keys_of(&self, kind: Kind) -> Vec<ObjectKey> {
        match kind {
            Kind::Namespace => self.namespaces.keys(kind),
            Kind::ServiceAccount => self.service_accounts.keys(kind),
            Kind::Service => self.services.keys(kind),
            Kind::Pod => self.pods.keys(kind),
            Kind::EndpointSlice => self.endpoint_slices.keys(kind),
            Kind::HttpRoute => self.http_routes.keys(kind),
            Kind::GrpcRoute => self.grpc_routes.keys(kind),
            Kind::TlsRoute => self.tls_routes.keys(kind),
            Kind::TcpRoute => self.tcp_routes.keys(kind),
            Kind::ReferenceGrant => self.reference_grants.keys(kind),
            Kind::Workload => self.workloads.keys(kind),
            Kind::TrafficPolicy => self.traffic_policies.keys(kind),
            Kind::AuthorizationPolicy => self.authorization_policies.keys(kind),
            Kind::MeshTlsPolicy => self.mesh_tls_policies.keys(kind),
        }
    }

    /// What was added, removed or replaced since `before`. An object that is the same shared value is unchanged.
    pub fn changed_since(&self, before: &Self) -> BTreeSet<ObjectKey> {
        let mut keys = BTreeSet::new();
        for kind in KINDS {
            match kind {
                Kind::Namespace => self.namespaces.changed(&before.namespaces, kind, &mut keys),
                Kind::ServiceAccount => self.service_accounts.changed(&before.service_accounts, kind, &mut keys),
                Kind::Service => self.services.changed(&before.services, kind, &mut keys),
                Kind::Pod => self.pods.changed(&before.pods, kind, &mut keys),
                Kind::EndpointSlice => self.endpoint_slices.changed(&before.endpoint_slices, kind, &mut keys),
                Kind::HttpRoute => self.http_routes.changed(&before.http_routes, kind, &mut keys),
                Kind::GrpcRoute => self.grpc_routes.changed(&before.grpc_routes, kind, &mut keys),
                Kind::TlsRoute => self.tls_routes.changed(&before.tls_routes, kind, &mut keys),
                Kind::TcpRoute => self.tcp_routes.changed(&before.tcp_routes, kind, &mut keys),
                Kind::ReferenceGrant => self.reference_grants.changed(&before.reference_grants, kind, &mut keys),
                Kind::Workload => self.workloads.changed(&before.workloads, kind, &mut keys),
                Kind::TrafficPolicy => self.traffic_policies.changed(&before.traffic_policies, kind, &mut keys),
                Kind::AuthorizationPolicy => {
                    self.authorization_policies.changed(&before.authorization_policies, kind, &mut keys);
                }
                Kind::MeshTlsPolicy => self.mesh_tls_policies.changed(&before.mesh_tls_policies, kind, &mut keys),
            }
        }
        keys
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces.len(),
            Kind::ServiceAccount => self.service_accounts.len(),
            Kind::Service => self.services.len(),
            Kind::Pod => self.pods.len(),
            Kind::EndpointSlice => self.endpoint_slices.len(),
            Kind::HttpRoute => self.http_routes.len(),
            Kind::GrpcRoute => self.grpc_routes.len(),
            Kind::TlsRoute => self.tls_routes.len(),
            Kind::TcpRoute => self.tcp_routes.len(),
            Kind::ReferenceGrant => self.reference_grants.len(),
            Kind::Workload => self.workloads.len(),
            Kind::TrafficPolicy => self.traffic_policies.len(),
            Kind::AuthorizationPolicy => self.authorization_policies.len(),
            Kind::MeshTlsPolicy => self.mesh_tls_policies.len(),
        }
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
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::Service(_) => Kind::Service,
            Self::Pod(_) => Kind::Pod,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::Workload(_) => Kind::Workload,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::MeshTlsPolicy(_) => Kind::MeshTlsPolicy,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(o) => &o.metadata,
            Self::ServiceAccount(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::HttpRoute(o) | Self::GrpcRoute(o) | Self::TlsRoute(o) | Self::TcpRoute(o) => &o.metadata,
            Self::ReferenceGrant(o) => &o.metadata,
            Self::Workload(o) => &o.metadata,
            Self::TrafficPolicy(o) => &o.metadata,
            Self::AuthorizationPolicy(o) => &o.metadata,
            Self::MeshTlsPolicy(o) => &o.metadata,
        }
    }

    /// Its key. A missing namespace is `default`, as for `kubectl`.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(self.kind(), self.metadata())
    }

    /// Whether both are one shared value.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Namespace(a), Self::Namespace(b)) => Arc::ptr_eq(a, b),
            (Self::ServiceAccount(a), Self::ServiceAccount(b)) => Arc::ptr_eq(a, b),
            (Self::Service(a), Self::Service(b)) => Arc::ptr_eq(a, b),
            (Self::Pod(a), Self::Pod(b)) => Arc::ptr_eq(a, b),
            (Self::EndpointSlice(a), Self::EndpointSlice(b)) => Arc::ptr_eq(a, b),
            (Self::HttpRoute(a), Self::HttpRoute(b))
            | (Self::GrpcRoute(a), Self::GrpcRoute(b))
            | (Self::TlsRoute(a), Self::TlsRoute(b))
            | (Self::TcpRoute(a), Self::TcpRoute(b)) => Arc::ptr_eq(a, b),
            (Self::ReferenceGrant(a), Self::ReferenceGrant(b)) => Arc::ptr_eq(a, b),
            (Self::Workload(a), Self::Workload(b)) => Arc::ptr_eq(a, b),
            (Self::TrafficPolicy(a), Self::TrafficPolicy(b)) => Arc::ptr_eq(a, b),
            (Self::AuthorizationPolicy(a), Self::AuthorizationPolicy(b)) => Arc::ptr_eq(a, b),
            (Self::MeshTlsPolicy(a), Self::MeshTlsPolicy(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
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

    /// As manifests write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Workload => "Workload",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::MeshTlsPolicy => "MeshTLSPolicy",
        }
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

/// All kinds, in the order of [`Kind`].
pub const KINDS: [Kind; 14] = [
    Kind::Namespace,
    Kind::ServiceAccount,
    Kind::Service,
    Kind::Pod,
    Kind::EndpointSlice,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::ReferenceGrant,
    Kind::Workload,
    Kind::TrafficPolicy,
    Kind::AuthorizationPolicy,
    Kind::MeshTlsPolicy,
];

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
