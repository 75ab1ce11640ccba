//! Whether a route attaches to a parent Service, and at which ports.

use super::service::{is_external, is_headless, tcp_ports};
use super::{age, server_name};
use crate::model::Protocol;
use crate::objects::route::ParentRef;
use crate::objects::{Kind, Objects, Route, name_of, namespace_of};
use crate::status::Reason;

/// What became of a route at one parent, values within its rules apart.
pub(super) type Acceptance = Result<Vec<u16>, (Reason, String)>;

/// The parent's ports the route holds at, or why it holds at none.
pub(super) fn acceptance(objects: &Objects, route: &Route, parent: &ParentRef) -> Acceptance {
    let ports = named_ports(objects, route, parent)?;
    let free: Vec<u16> = ports.iter().copied().filter(|port| rival(objects, route, parent, *port).is_none()).collect();
    if free.is_empty()
        && let Some(rival) = ports.first().and_then(|port| rival(objects, route, parent, *port))
    {
        let message = format!(
            "{rival} holds the same port of {}: at one port the more specific kind of route holds alone, GRPCRoute \
             before HTTPRoute before TLSRoute before TCPRoute, and of TCPRoutes the oldest; attach this route to another port",
            shown(route, parent)
        );
        return Err((Reason::Conflicted, message));
    }
    if route.kind == Kind::TlsRoute {
        let taken = server_name::taken(objects, route, parent, &free);
        if taken.len() == route.spec.hostnames.len()
            && let Some((name, holder)) = taken.first()
        {
            let message = format!(
                "at {} older TLSRoutes have every name of this one: {name} is {holder}'s; ask for other names",
                shown(route, parent)
            );
            return Err((Reason::Conflicted, message));
        }
    }
    Ok(free)
}

/// Whether the route holds at this port of this Service.
pub(super) fn holds_at(objects: &Objects, route: &Route, namespace: &str, service: &str, port: u16) -> bool {
    parents(route, namespace, service)
        .any(|parent| acceptance(objects, route, parent).is_ok_and(|ports| ports.contains(&port)))
}

/// Ports by what the parent reference says alone.
pub(super) fn named_ports(objects: &Objects, route: &Route, parent: &ParentRef) -> Acceptance {
    let namespace = parent.namespace.as_deref().unwrap_or(namespace_of(&route.metadata));
    let shown = shown(route, parent);
    let Some(service) = objects.services.get(namespace, &parent.name) else {
        return Err((Reason::NoMatchingParent, format!("{shown} does not exist")));
    };
    if is_external(service) {
        return Err((Reason::NoMatchingParent, format!("{shown} is an ExternalName, which no traffic can be told by")));
    }
    if is_headless(service) {
        let message = format!(
            "{shown} is headless: its clients dial pods, so no traffic can be told to be for it (GEP-1294); give it a \
             cluster IP"
        );
        return Err((Reason::NoMatchingParent, message));
    }
    let ports = tcp_ports(service);
    let wanted = |port: &&super::service::Port<'_>| {
        parent.port.is_none_or(|number| i32::from(port.number) == number)
            && parent.section_name.as_ref().is_none_or(|name| port.spec.name.as_ref() == Some(name))
    };
    let named: Vec<_> = ports.iter().filter(wanted).collect();
    if named.is_empty() {
        let has: Vec<_> = ports.iter().map(|port| port.number.to_string()).collect();
        let message = format!("{shown} has no such TCP port; it has {}", has.join(", "));
        return Err((Reason::NoMatchingParent, message));
    }
    let opaque = route.kind.routes_connections();
    let carries = |declared: Protocol| if opaque { declared.may_be_opaque() } else { declared.may_be_http() };
    let ports: Vec<u16> = named.iter().filter(|port| carries(port.declared)).map(|port| port.number).collect();
    if ports.is_empty() {
        let what = if opaque { "HTTP" } else { "bytes that are not HTTP" };
        let message = format!("the appProtocol of {shown} declares {what}: change it or the parentRef");
        return Err((Reason::NoMatchingParent, message));
    }
    Ok(ports)
}

/// The route that keeps another from a port (GEP-1294: routes of the more specific kind hold alone). Producer routes contend
/// with each other, and so do the consumer routes of each namespace.
fn rival(objects: &Objects, route: &Route, parent: &ParentRef, port: u16) -> Option<String> {
    let own = namespace_of(&route.metadata);
    let namespace = parent.namespace.as_deref().unwrap_or(own);
    objects.routes_of(namespace, &parent.name).find_map(|other| {
        let contends = namespace_of(&other.metadata) == own && comes_before(other, route);
        let there = contends
            && parents(other, namespace, &parent.name)
                .any(|parent| named_ports(objects, other, parent).is_ok_and(|ports| ports.contains(&port)));
        there.then(|| format!("{} {own}/{}", other.kind, name_of(&other.metadata)))
    })
}

/// Whether `other` keeps `route` from the ports of both. TCPRoutes match everything, so that of them only one can hold.
fn comes_before(other: &Route, route: &Route) -> bool {
    let specific = |route: &Route| match route.kind {
        Kind::GrpcRoute => 3,
        Kind::TlsRoute => 1,
        Kind::TcpRoute => 0,
        _ => 2,
    };
    let older = route.kind == Kind::TcpRoute && age(&other.metadata) < age(&route.metadata);
    specific(other) > specific(route) || (specific(other) == specific(route) && older)
}

pub(super) fn parents<'r>(
    route: &'r Route,
    namespace: &'r str,
    service: &'r str,
) -> impl Iterator<Item = &'r ParentRef> {
    let own = namespace_of(&route.metadata);
    route.spec.parent_refs.iter().filter(move |parent| {
        parent.is_service() && parent.name == service && parent.namespace.as_deref().unwrap_or(own) == namespace
    })
}

fn shown(route: &Route, parent: &ParentRef) -> String {
    let namespace = parent.namespace.as_deref().unwrap_or(namespace_of(&route.metadata));
    let mut shown = format!("Service {namespace}/{}", parent.name);
    if let Some(port) = parent.port {
        shown.push_str(&format!(", port {port}"));
    }
    if let Some(section) = &parent.section_name {
        shown.push_str(&format!(", port name {section}"));
    }
    shown
}
