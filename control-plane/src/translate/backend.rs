//! Where a rule sends requests: backend references followed to clusters.

use super::service::{is_external, tcp_ports};
use crate::model::{ResourceName, ServiceName};
use crate::objects::route::BackendRef;
use crate::objects::{Objects, Route, namespace_of};
use crate::status::Reason;

/// The cluster a reference means, or why it means none. `parent` is the Service the route is attached to: its own
/// clients may be sent to it without a grant, since they reach it anyway.
pub(super) fn resolve(
    objects: &Objects,
    route: &Route,
    parent: Option<&ServiceName>,
    backend: &BackendRef,
) -> Result<ResourceName, (Reason, String)> {
    if !backend.is_service() {
        let group = backend.group.as_deref().unwrap_or_default();
        let kind = backend.kind.as_deref().unwrap_or_default();
        let message = format!("backend {kind} ({group}) {}: only Services can be backends", backend.name);
        return Err((Reason::InvalidKind, message));
    }
    let own = namespace_of(&route.metadata);
    let namespace = backend.namespace.as_deref().unwrap_or(own);
    let name = ServiceName::new(namespace, &backend.name);
    if namespace != own && parent != Some(&name) && !granted(objects, route, &name) {
        let message = format!(
            "backend Service {name}: a ReferenceGrant in namespace {namespace} must allow {} from namespace {own}",
            route.kind
        );
        return Err((Reason::RefNotPermitted, message));
    }
    let Some(service) = objects.services.get(namespace, &backend.name).filter(|service| !is_external(service)) else {
        return Err((Reason::BackendNotFound, format!("backend Service {name} does not exist, or is an ExternalName")));
    };
    let ports = tcp_ports(service);
    let Some(port) = ports.iter().find(|port| Some(i32::from(port.number)) == backend.port) else {
        let has: Vec<_> = ports.iter().map(|port| port.number.to_string()).collect();
        let wanted = backend.port.map_or("no port".into(), |port| format!("port {port}"));
        let message = format!("backend Service {name}, {wanted}: name one of its TCP ports: {}", has.join(", "));
        return Err((Reason::BackendNotFound, message));
    };
    let opaque = route.kind.routes_connections();
    let carries = if opaque { port.declared.may_be_opaque() } else { port.declared.may_be_http() };
    if !carries {
        let what = if opaque {
            format!("says HTTP, whose requests a {} cannot see", route.kind)
        } else {
            "is not HTTP".into()
        };
        let message = format!("backend Service {name}, port {}: its appProtocol {what}", port.number);
        return Err((Reason::UnsupportedProtocol, message));
    }
    Ok(ResourceName::service_port(&name, port.number))
}

fn granted(objects: &Objects, route: &Route, service: &ServiceName) -> bool {
    objects.reference_grants.in_namespace(&service.namespace).any(|grant| {
        let from = grant.spec.from.iter().any(|from| {
            from.group == crate::api::target::GATEWAY_GROUP
                && from.kind == route.kind.name()
                && from.namespace == namespace_of(&route.metadata)
        });
        let to = grant.spec.to.iter().any(|to| {
            to.group.is_empty() && to.kind == "Service" && to.name.as_deref().is_none_or(|name| name == &*service.name)
        });
        from && to
    })
}
