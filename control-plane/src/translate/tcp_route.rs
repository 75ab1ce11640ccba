//! TCPRoute: where the opaque connections of a Service's port go, by weight (Gateway API, GEP-1294).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{accept, age, rule};
use crate::model::{ResourceName, ServiceName, SourceRef, TcpRoutes};
use crate::objects::{Kind, Objects, Route, name_of, namespace_of};

/// The TCPRoutes in force at a port.
pub(super) struct InForce<'o> {
    producer: Option<&'o Arc<Route>>,
    consumers: BTreeMap<&'o str, &'o Arc<Route>>,
}

impl<'o> InForce<'o> {
    /// At this port of `service`: of each namespace the oldest.
    pub(super) fn at(objects: &'o Objects, service: &ServiceName, port: u16) -> Self {
        let mut consumers: BTreeMap<&str, &Arc<Route>> = BTreeMap::new();
        for route in objects.routes_of(&service.namespace, &service.name).filter(|route| route.kind == Kind::TcpRoute) {
            if accept::holds_at(objects, route, &service.namespace, &service.name, port) {
                let oldest = consumers.entry(namespace_of(&route.metadata)).or_insert(route);
                if age(&route.metadata) < age(&oldest.metadata) {
                    *oldest = route;
                }
            }
        }
        Self { producer: consumers.remove(&*service.namespace), consumers }
    }

    /// Whether the Service's own namespace says what its port carries.
    pub(super) fn has_producer(&self) -> bool {
        self.producer.is_some()
    }

    /// Where connections go; those nobody speaks of to `own`, the port's cluster.
    pub(super) fn routes(&self, objects: &Objects, service: &ServiceName, own: ResourceName) -> TcpRoutes {
        let shares = |route: &Route| rule::build(objects, route, service).shares;
        let consumers = self.consumers.iter().map(|(namespace, route)| (Arc::from(*namespace), shares(route)));
        TcpRoutes {
            shares: self.producer.map_or_else(|| TcpRoutes::all_to(own).shares, |route| shares(route)),
            consumers: consumers.collect(),
        }
    }

    /// What it was made from.
    pub(super) fn sources(&self) -> impl Iterator<Item = SourceRef> {
        let routes = self.producer.iter().chain(self.consumers.values());
        routes.map(|route| SourceRef::new("TCPRoute", namespace_of(&route.metadata), name_of(&route.metadata)))
    }
}
