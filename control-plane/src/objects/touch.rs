//! What a change of objects reaches: the Services, workloads and statuses that must be recomputed, and no others.
//!
//! Errs towards more, never towards less; a property test in `translate` holds the result of an update equal to a full
//! rebuild. Both snapshots are looked at, because what an object *was* may have reached something else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::index::SERVICE_LABEL;
use super::{Kind, Object, ObjectKey, Objects, name_of, namespace_of};
use crate::api::TargetRef;
use crate::model::{ServiceName, WorkloadName};

/// What must be recomputed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose listeners, routes, clusters or endpoints may differ.
    pub services: BTreeSet<ServiceName>,
    /// Pods and Workloads whose inbound or direct settings may differ.
    pub workloads: BTreeSet<WorkloadName>,
    /// Objects whose status may differ.
    pub statuses: BTreeSet<ObjectKey>,
}

/// What `changed` objects reach. `root_namespace` is where mesh-wide policies live.
pub fn touched(before: &Objects, after: &Objects, changed: &BTreeSet<ObjectKey>, root_namespace: &str) -> Touched {
    let mut touched = Touched::default();
    for objects in [before, after] {
        for key in changed {
            touched.statuses.insert(key.clone());
            if let Some(object) = objects.object(key) {
                // What the object reaches is looked up in both snapshots: either may hold the other end.
                for other in [before, after] {
                    Reach { objects: other, root_namespace, touched: &mut touched }.of(&object);
                }
            }
        }
    }
    touched
}

struct Reach<'a> {
    objects: &'a Objects,
    root_namespace: &'a str,
    touched: &'a mut Touched,
}

impl Reach<'_> {
    fn of(&mut self, object: &Object) {
        let namespace = namespace_of(object.metadata());
        let name = name_of(object.metadata());
        match object {
            Object::Namespace(_) => {
                self.all_services(name);
                self.all_workloads(name);
            }
            Object::ServiceAccount(_) => self.policies(namespace),
            Object::Service(service) => {
                self.service(namespace, name);
                self.sharing(namespace, name);
                self.owned_by(service);
                self.policies(namespace);
                let to: Vec<_> = self.objects.index.routes_to(namespace, name).cloned().collect();
                to.iter().for_each(|route| self.route(route));
                let of: Vec<_> = self.objects.index.routes_of(namespace, name).cloned().collect();
                of.iter().for_each(|route| self.route(route));
                let limits = self.objects.index.counted_by(namespace, name).cloned();
                self.touched.statuses.extend(limits);
            }
            Object::Pod(pod) => {
                self.selecting(&pod.metadata, &pod.addresses);
                // A Workload of the same name comes and goes with it, the other way round.
                if let Some(hidden) = self.objects.workloads.get(namespace, name).cloned() {
                    self.selecting(&hidden.metadata, &hidden.spec.ips());
                }
                self.workload(namespace, name);
                // Policies say whether they select anyone.
                self.policies(namespace);
            }
            Object::Workload(workload) => {
                self.selecting(&workload.metadata, &workload.spec.ips());
                self.workload(namespace, name);
                self.policies(namespace);
            }
            Object::EndpointSlice(slice) => {
                if let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL)) {
                    self.service(namespace, service);
                    self.sharing(namespace, service);
                    self.named_in(namespace, service, slice);
                }
            }
            Object::HttpRoute(route) | Object::GrpcRoute(route) | Object::TlsRoute(route) | Object::TcpRoute(route) => {
                self.route(&route.key());
                route.parent_services().for_each(|(namespace, name)| {
                    self.parent(namespace, name);
                    // Policies there say what comes before them.
                    self.policies(namespace);
                });
                self.policies(namespace);
            }
            Object::ReferenceGrant(_) => {
                let routes: Vec<_> = self.objects.routes().map(Arc::clone).collect();
                for route in routes {
                    if route.backend_services().any(|(target, _)| target == namespace) {
                        self.route(&route.key());
                    }
                }
            }
            Object::TrafficPolicy(policy) => {
                self.all_workloads(namespace);
                self.policies(namespace);
                for target in &policy.spec.target_refs {
                    match target.kind.as_str() {
                        "Service" => self.service(namespace, &target.name),
                        "HTTPRoute" => self.routed(&ObjectKey::new(Kind::HttpRoute, namespace, &target.name)),
                        "GRPCRoute" => self.routed(&ObjectKey::new(Kind::GrpcRoute, namespace, &target.name)),
                        _ => self.all_services(namespace),
                    }
                }
            }
            Object::FaultInjection(_) => {
                let objects = self.objects;
                let routes =
                    objects.http_routes.in_namespace(namespace).chain(objects.grpc_routes.in_namespace(namespace));
                routes
                    .filter(|route| route.faults().any(|fault| fault == name))
                    .for_each(|route| self.route(&route.key()));
            }
            Object::AuthorizationPolicy(_) | Object::RateLimitPolicy(_) => self.all_workloads(namespace),
            Object::MeshTlsPolicy(_) => {
                self.policies(namespace);
                if namespace == self.root_namespace {
                    let namespaces: Vec<_> = self.namespaces();
                    for namespace in namespaces {
                        self.all_services(&namespace);
                        self.all_workloads(&namespace);
                    }
                } else {
                    self.all_services(namespace);
                    self.all_workloads(namespace);
                }
            }
        }
    }

    fn service(&mut self, namespace: &str, name: &str) {
        self.touched.services.insert(ServiceName::new(namespace, name));
    }

    fn workload(&mut self, namespace: &str, name: &str) {
        self.touched.workloads.insert(WorkloadName::new(namespace, name));
        // A Pod takes the name from a Workload.
        self.touched.statuses.insert(ObjectKey::new(Kind::Workload, namespace, name));
    }

    /// A route's parents change their tables, and its status may.
    fn route(&mut self, key: &ObjectKey) {
        self.touched.statuses.insert(key.clone());
        if let Some(route) = self.objects.route(key).cloned() {
            route.parent_services().for_each(|(namespace, name)| self.service(namespace, name));
        }
    }

    /// The same for a policy of the route, which policies of its parents say comes before them.
    fn routed(&mut self, key: &ObjectKey) {
        self.route(key);
        let route = self.objects.route(key).cloned();
        route.iter().flat_map(|route| route.parent_services()).for_each(|(namespace, _)| self.policies(namespace));
    }

    /// Routes with the same parent may win or lose against each other.
    fn parent(&mut self, namespace: &str, name: &str) {
        self.service(namespace, name);
        let siblings = self.objects.index.routes_of(namespace, name).cloned();
        self.touched.statuses.extend(siblings);
    }

    fn all_services(&mut self, namespace: &str) {
        let names = self.objects.services.in_namespace(namespace).map(|service| name_of(&service.metadata));
        self.touched.services.extend(names.map(|name| ServiceName::new(namespace, name)));
    }

    fn all_workloads(&mut self, namespace: &str) {
        let pods = self.objects.pods.in_namespace(namespace).map(|pod| name_of(&pod.metadata));
        let workloads = self.objects.workloads.in_namespace(namespace).map(|workload| name_of(&workload.metadata));
        self.touched.workloads.extend(pods.chain(workloads).map(|name| WorkloadName::new(namespace, name)));
    }

    /// Services that select the workload, or whose EndpointSlices name it.
    fn selecting(&mut self, metadata: &ObjectMeta, addresses: &[IpAddr]) {
        let namespace = namespace_of(metadata);
        for service in self.objects.services.in_namespace(namespace) {
            let name = name_of(&service.metadata);
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let selected = selector.is_some_and(|selector| has_labels(metadata, selector));
            let mut slices = self.objects.slices_of(namespace, name);
            if selected || slices.any(|slice| names(slice, name_of(metadata), addresses)) {
                self.touched.services.insert(ServiceName::new(namespace, name));
            }
        }
    }

    /// Statuses of the policies of a namespace: their targets or rivals changed.
    fn policies(&mut self, namespace: &str) {
        let objects = self.objects;
        let traffic = objects.traffic_policies.in_namespace(namespace).map(|p| (Kind::TrafficPolicy, &p.metadata));
        let tls = objects.mesh_tls_policies.in_namespace(namespace).map(|p| (Kind::MeshTlsPolicy, &p.metadata));
        let authorization = objects.authorization_policies.in_namespace(namespace);
        let authorization = authorization.map(|p| (Kind::AuthorizationPolicy, &p.metadata));
        let limits = objects.rate_limit_policies.in_namespace(namespace).map(|p| (Kind::RateLimitPolicy, &p.metadata));
        let keys =
            traffic.chain(tls).chain(authorization).chain(limits).map(|(kind, metadata)| ObjectKey::of(kind, metadata));
        self.touched.statuses.extend(keys);
    }

    /// A MeshTLSPolicy on a Service decides how its workloads are spoken to, whichever Service leads to them.
    fn sharing(&mut self, namespace: &str, service: &str) {
        let mut policies = self.objects.mesh_tls_policies.in_namespace(namespace);
        let targets = |target: &TargetRef| target.kind == "Service" && target.name == service;
        if policies.any(|policy| policy.spec.target_refs.iter().any(targets)) {
            self.all_services(namespace);
        }
    }

    /// The workloads a Service selects, or else those its slices name.
    fn owned_by(&mut self, service: &Service) {
        let namespace = namespace_of(&service.metadata);
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
            let slices: Vec<_> = self.objects.slices_of(namespace, name_of(&service.metadata)).cloned().collect();
            slices.iter().for_each(|slice| self.named_by(namespace, slice));
            return;
        };
        let pods = self.objects.pods.in_namespace(namespace).map(|pod| &pod.metadata);
        let workloads = self.objects.workloads.in_namespace(namespace).map(|workload| &workload.metadata);
        let selected = pods.chain(workloads).filter(|metadata| has_labels(metadata, selector));
        self.touched.workloads.extend(selected.map(|metadata| WorkloadName::new(namespace, name_of(metadata))));
    }

    /// A Service without selector owns the ports its slices name, so the workloads named there may have a new owner.
    fn named_in(&mut self, namespace: &str, service: &str, slice: &EndpointSlice) {
        let service = self.objects.services.get(namespace, service);
        let selector = service.and_then(|service| service.spec.as_ref()?.selector.as_ref());
        if selector.is_none_or(|selector| selector.is_empty()) {
            self.named_by(namespace, slice);
        }
    }

    fn named_by(&mut self, namespace: &str, slice: &EndpointSlice) {
        let named: BTreeSet<IpAddr> =
            slice.endpoints.iter().filter_map(|endpoint| endpoint.addresses.first()?.parse().ok()).collect();
        let pods = self.objects.pods.in_namespace(namespace);
        let pods = pods.filter(|pod| pod.addresses.iter().any(|ip| named.contains(ip)));
        let pods = pods.map(|pod| name_of(&pod.metadata));
        let workloads = self.objects.workloads.in_namespace(namespace);
        let workloads = workloads.filter(|workload| workload.spec.ips().iter().any(|ip| named.contains(ip)));
        let names = pods.chain(workloads.map(|workload| name_of(&workload.metadata)));
        self.touched.workloads.extend(names.map(|name| WorkloadName::new(namespace, name)));
    }

    fn namespaces(&self) -> Vec<String> {
        let Objects { services, pods, workloads, .. } = self.objects;
        let all: BTreeSet<_> = services.namespaces().chain(pods.namespaces()).chain(workloads.namespaces()).collect();
        all.into_iter().map(|namespace| namespace.to_string()).collect()
    }
}

fn has_labels(metadata: &ObjectMeta, wanted: &BTreeMap<String, String>) -> bool {
    let labels = metadata.labels.as_ref();
    wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether an EndpointSlice names a workload: by its name, or else by its address.
fn names(slice: &EndpointSlice, name: &str, addresses: &[IpAddr]) -> bool {
    slice.endpoints.iter().any(|endpoint| {
        match endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref()) {
            Some(target) => target == name,
            None => endpoint.addresses.first().and_then(|ip| ip.parse().ok()).is_some_and(|ip| addresses.contains(&ip)),
        }
    })
}
