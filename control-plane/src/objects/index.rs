//! Which objects name a Service: kept with the snapshot, so that nobody walks all routes for one Service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Object, ObjectKey, namespace_of};

/// Keys of the objects that name a Service, by that Service.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    parents: Names,
    backends: Names,
    slices: Names,
    counting: Names,
}

type Names = Arc<BTreeMap<(String, String), BTreeSet<ObjectKey>>>;

impl Index {
    pub(super) fn add(&mut self, object: &Object) {
        self.each(object, |names, service, key| {
            Arc::make_mut(names).entry(service).or_default().insert(key);
        });
    }

    pub(super) fn forget(&mut self, object: &Object) {
        self.each(object, |names, service, key| {
            let names = Arc::make_mut(names);
            if let Some(keys) = names.get_mut(&service) {
                keys.remove(&key);
                if keys.is_empty() {
                    names.remove(&service);
                }
            }
        });
    }

    pub(super) fn routes_of(&self, namespace: &str, service: &str) -> impl Iterator<Item = &ObjectKey> {
        named(&self.parents, namespace, service)
    }

    pub(super) fn routes_to(&self, namespace: &str, service: &str) -> impl Iterator<Item = &ObjectKey> {
        named(&self.backends, namespace, service)
    }

    pub(super) fn slices_of(&self, namespace: &str, service: &str) -> impl Iterator<Item = &ObjectKey> {
        named(&self.slices, namespace, service)
    }

    /// RateLimitPolicies that let it count.
    pub(super) fn counted_by(&self, namespace: &str, service: &str) -> impl Iterator<Item = &ObjectKey> {
        named(&self.counting, namespace, service)
    }

    fn each(&mut self, object: &Object, mut change: impl FnMut(&mut Names, (String, String), ObjectKey)) {
        let owned = |(namespace, name): (&str, &str)| (namespace.to_owned(), name.to_owned());
        match object {
            Object::HttpRoute(route) | Object::GrpcRoute(route) | Object::TlsRoute(route) | Object::TcpRoute(route) => {
                for service in route.parent_services() {
                    change(&mut self.parents, owned(service), object.key());
                }
                for service in route.backend_services() {
                    change(&mut self.backends, owned(service), object.key());
                }
            }
            Object::EndpointSlice(slice) => {
                let labels = slice.metadata.labels.as_ref();
                if let Some(service) = labels.and_then(|labels| labels.get(SERVICE_LABEL)) {
                    let name = owned((namespace_of(&slice.metadata), service));
                    change(&mut self.slices, name, object.key());
                }
            }
            Object::RateLimitPolicy(policy) => {
                if let Some(service) = &policy.spec.service {
                    let namespace = service.namespace.as_deref().unwrap_or(namespace_of(&policy.metadata));
                    change(&mut self.counting, owned((namespace, &service.name)), object.key());
                }
            }
            Object::Namespace(_)
            | Object::ServiceAccount(_)
            | Object::Service(_)
            | Object::Pod(_)
            | Object::ReferenceGrant(_)
            | Object::Workload(_)
            | Object::TrafficPolicy(_)
            | Object::FaultInjection(_)
            | Object::AuthorizationPolicy(_)
            | Object::MeshTlsPolicy(_) => {}
        }
    }
}

fn named<'n>(names: &'n Names, namespace: &str, service: &str) -> impl Iterator<Item = &'n ObjectKey> + use<'n> {
    names.get(&(namespace.to_owned(), service.to_owned())).into_iter().flatten()
}

/// The label by which an EndpointSlice names its Service (Kubernetes, `discovery.k8s.io/v1`).
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
