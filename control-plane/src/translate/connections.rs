//! TLSRoute and TCPRoute: where the opaque connections of a Service's port go (Gateway API, GEP-2643 and GEP-1294).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{accept, age, rule, server_name};
use crate::model::{Opaque, ResourceName, ServiceName, SourceRef, TcpRoutes};
use crate::objects::{Kind, Objects, Route, name_of, namespace_of};

/// The routes of connections in force at a port, of each namespace in order of age. They are all TLSRoutes, or one TCPRoute.
pub(super) struct InForce<'o> {
    producers: Vec<&'o Arc<Route>>,
    consumers: BTreeMap<&'o str, Vec<&'o Arc<Route>>>,
}

impl<'o> InForce<'o> {
    /// At this port of `service`.
    pub(super) fn at(objects: &'o Objects, service: &ServiceName, port: u16) -> Self {
        let mut consumers: BTreeMap<&str, Vec<&Arc<Route>>> = BTreeMap::new();
        let routes = objects.routes_of(&service.namespace, &service.name);
        for route in routes.filter(|route| route.kind.routes_connections()) {
            // One that names nobody is not accepted.
            let names_any = route.spec.hostnames.iter().any(|name| server_name::read(name).is_ok());
            if (names_any || route.kind != Kind::TlsRoute)
                && accept::holds_at(objects, route, &service.namespace, &service.name, port)
            {
                consumers.entry(namespace_of(&route.metadata)).or_default().push(route);
            }
        }
        for routes in consumers.values_mut() {
            routes.sort_by_key(|route| age(&route.metadata));
        }
        Self { producers: consumers.remove(&*service.namespace).unwrap_or_default(), consumers }
    }

    /// Whether the Service's own namespace says what its port carries.
    pub(super) fn has_producer(&self) -> bool {
        !self.producers.is_empty()
    }

    /// Where connections go; those nobody speaks of to `own`, the port's cluster.
    pub(super) fn routes(&self, objects: &Objects, service: &ServiceName, own: ResourceName) -> TcpRoutes {
        let mut routes = TcpRoutes::all_to(own);
        if let Some(said) = opaque(objects, service, &self.producers) {
            routes.everyone = said;
        }
        let consumers = self.consumers.iter();
        let said =
            |(namespace, routes): (&&str, &Vec<_>)| Some((Arc::from(*namespace), opaque(objects, service, routes)?));
        routes.consumers = consumers.filter_map(said).collect();
        routes
    }

    /// What it was made from.
    pub(super) fn sources(&self) -> impl Iterator<Item = SourceRef> {
        let routes = self.producers.iter().chain(self.consumers.values().flatten());
        routes.map(|route| SourceRef::new(route.kind.name(), namespace_of(&route.metadata), name_of(&route.metadata)))
    }
}

/// What the routes of one namespace say together, if there are any: for a name of several the oldest's word counts.
fn opaque(objects: &Objects, service: &ServiceName, routes: &[&Arc<Route>]) -> Option<Opaque> {
    let oldest = routes.first()?;
    if oldest.kind == Kind::TcpRoute {
        return Some(Opaque::Shares(rule::build(objects, oldest, service).shares));
    }
    let mut names = BTreeMap::new();
    for route in routes {
        let shares = rule::build(objects, route, service).shares;
        for name in route.spec.hostnames.iter().filter_map(|name| server_name::read(name).ok()) {
            names.entry(name).or_insert_with(|| shares.clone());
        }
    }
    Some(Opaque::ServerNames(names))
}
