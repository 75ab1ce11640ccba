//! One Service: its listeners, clusters and endpoints; its routes are `http_route`'s and `grpc_route`'s.
//!
//! Left out: UDP and SCTP ports (only TCP is captured), `ExternalName` (it has neither address nor endpoints),
//! NodePort and load balancer addresses (traffic from outside the mesh).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{self as given, EndpointSlice};

use super::instance::{self, Instance};
use super::{Settings, rule, tls, traffic};
use crate::model::{
    self, Cluster, Endpoint, Endpoints, Hints, HttpRoutes, Locality, OutboundListener, Owner, Protocol, ResourceName,
    ServiceName, SourceRef, SpiffeId, UpstreamHttp,
};
use crate::objects::{Objects, name_of, namespace_of};

/// The Service under `name`; `None` if there is none, or it is an `ExternalName`.
pub fn service(objects: &Objects, settings: &Settings, name: &ServiceName) -> Option<model::Service> {
    let service = objects.services.get(&name.namespace, &name.name)?;
    if is_external(service) {
        return None;
    }
    let mut built = model::Service {
        name: name.clone(),
        listeners: Vec::new(),
        routes: BTreeMap::new(),
        clusters: BTreeMap::new(),
        endpoints: BTreeMap::new(),
    };
    let instances = instance::Namespace::new(objects, &name.namespace);
    for port in tcp_ports(service) {
        let cluster = ResourceName::service_port(name, port.number);
        let tables = rule::tables(objects, service, &port);
        let endpoints = endpoints(objects, settings, service, &port, &instances);
        let traffic = traffic::for_service(objects, name);
        built.listeners.push(listener(service, name, &port, &tables));
        let identities: BTreeSet<_> = endpoints.iter().filter_map(|endpoint| endpoint.mtls.clone()).collect();
        built.clusters.insert(
            cluster.clone(),
            Cluster {
                name: cluster.clone(),
                service: Some(name.clone()),
                settings: model::Settings {
                    health_check: traffic.health_check(name),
                    ..traffic.settings(upstream_http(port.declared))
                },
                identities: identities.into_iter().collect(),
                sources: sources(service, traffic.sources()),
            },
        );
        built.endpoints.insert(cluster.clone(), Endpoints { name: cluster, endpoints });
        built.routes.extend(tables.tables.into_iter().map(|table| (table.name.clone(), table)));
    }
    Some(built)
}

/// A TCP port of a Service.
#[derive(Debug, Clone)]
pub(super) struct Port<'s> {
    pub(super) spec: &'s ServicePort,
    pub(super) number: u16,
    /// What `appProtocol` says.
    pub(super) declared: Protocol,
}

/// The TCP ports of a Service, by number.
pub(super) fn tcp_ports(service: &Service) -> Vec<Port<'_>> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let tcp = ports.filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    let mut ports: Vec<_> = tcp
        .filter_map(|spec| {
            let number = u16::try_from(spec.port).ok().filter(|number| *number > 0)?;
            Some(Port { spec, number, declared: instance::protocol(spec.app_protocol.as_deref()) })
        })
        .collect();
    ports.sort_by_key(|port| port.number);
    ports.dedup_by_key(|port| port.number);
    ports
}

/// Whether it only is another name for something outside.
pub(super) fn is_external(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

/// Whether it has no address of its own.
pub(super) fn is_headless(service: &Service) -> bool {
    cluster_ips(service).is_empty()
}

/// Its cluster IPs, sorted.
pub fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut ips: Vec<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// Services of the instance's namespace that own its port `number`, with the port of theirs that leads there. By
/// selector; a Service without one owns what its EndpointSlices name.
pub(super) fn owners<'o>(objects: &'o Objects, instance: &Instance) -> Vec<(&'o Arc<Service>, Port<'o>, u16)> {
    let mut found = Vec::new();
    for service in objects.services.in_namespace(&instance.name.namespace) {
        let has_selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|s| !s.is_empty());
        if is_external(service) || (has_selector && !instance.selected_by(service)) {
            continue;
        }
        for port in tcp_ports(service) {
            let target = if has_selector {
                instance.target_port(port.spec.target_port.as_ref(), port.number)
            } else {
                slice_target(objects, service, &port, instance)
            };
            if let Some(target) = target {
                found.push((service, port, target));
            }
        }
    }
    found
}

fn slice_target(objects: &Objects, service: &Service, port: &Port<'_>, instance: &Instance) -> Option<u16> {
    let slices = objects.slices_of(namespace_of(&service.metadata), name_of(&service.metadata));
    for slice in slices {
        let number = slice_port(slice, port);
        let named = slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.first());
        let mine = named.filter_map(|text| text.parse().ok()).any(|ip: IpAddr| instance.addresses.contains(&ip));
        if mine && number.is_some() {
            return number;
        }
    }
    None
}

fn listener(service: &Service, name: &ServiceName, port: &Port<'_>, tables: &rule::Tables) -> OutboundListener {
    let own = ResourceName::service_port(name, port.number);
    let mut used = BTreeSet::from([SourceRef::new("Service", &name.namespace, &name.name)]);
    used.extend(tables.tables.iter().flat_map(|table| table.sources.iter().cloned()));
    used.extend(tables.tcp_sources.iter().cloned());
    let consumers = tables.tables.iter().filter_map(|table| {
        let (_, namespace) = table.name.as_str().split_once('@')?;
        Some((Arc::from(namespace), table.name.clone()))
    });
    OutboundListener {
        owner: Owner::Service(name.clone()),
        port: port.number,
        port_name: port.spec.name.as_deref().map(Arc::from),
        addresses: cluster_ips(service).into_iter().map(|ip| SocketAddr::new(ip, port.number)).collect(),
        protocol: tables.protocol,
        http: tables.protocol.may_be_http().then(|| HttpRoutes { table: own, consumers: consumers.collect() }),
        tcp: tables.tcp.clone(),
        sources: used.into_iter().collect(),
    }
}

/// Endpoints that are ready or draining, by address.
fn endpoints(
    objects: &Objects,
    settings: &Settings,
    service: &Service,
    port: &Port<'_>,
    instances: &instance::Namespace<'_>,
) -> Vec<Endpoint> {
    let namespace = namespace_of(&service.metadata);
    let mut slices = objects.slices_of(namespace, name_of(&service.metadata)).peekable();
    let mut found = BTreeMap::new();
    if slices.peek().is_some() {
        let slices: Vec<_> = slices.collect();
        from_slices(objects, settings, service, port, instances, &slices, &mut found);
    } else {
        from_instances(objects, settings, service, port, instances, &mut found);
    }
    found.into_values().collect()
}

fn from_instances(
    objects: &Objects,
    settings: &Settings,
    service: &Service,
    port: &Port<'_>,
    instances: &instance::Namespace<'_>,
    found: &mut BTreeMap<SocketAddr, Endpoint>,
) {
    let unready_too = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or_default();
    for instance in instances.all().iter().filter(|instance| instance.selected_by(service)) {
        let Some(target) = instance.target_port(port.spec.target_port.as_ref(), port.number) else { continue };
        let Some(ip) = preferred(service, &instance.addresses) else { continue };
        if !instance.ready && !unready_too {
            continue;
        }
        let address = SocketAddr::new(ip, target);
        let place = Placed {
            draining: instance.draining && !unready_too,
            locality: instance.locality.clone(),
            hints: own_hints(service, instance),
        };
        found.insert(address, endpoint(objects, settings, address, Some(instance), place));
    }
}

fn from_slices(
    objects: &Objects,
    settings: &Settings,
    service: &Service,
    port: &Port<'_>,
    instances: &instance::Namespace<'_>,
    slices: &[&Arc<EndpointSlice>],
    found: &mut BTreeMap<SocketAddr, Endpoint>,
) {
    let namespace = namespace_of(&service.metadata);
    let kind = if prefers_v6(service) { "IPv6" } else { "IPv4" };
    // The other family stands in only where the preferred one has nothing at all: both would count pods twice.
    let some_preferred = slices.iter().any(|slice| slice.address_type == kind);
    for slice in slices.iter().filter(|slice| slice.address_type == kind || !some_preferred) {
        let Some(target) = slice_port(slice, port) else { continue };
        for given in slice.endpoints.iter() {
            // "Consumers must handle different addresses as alternatives": the first is enough.
            let Some(ip) = given.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) else { continue };
            let conditions = given.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let draining = !ready && conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or_default();
            if !ready && !draining {
                continue;
            }
            let target_name = given.target_ref.as_ref().and_then(|target| target.name.as_deref());
            let instance = match target_name {
                Some(name) => instance::named(objects, namespace, name).filter(|i| i.addresses.contains(&ip)),
                None => instances.all().iter().find(|i| i.addresses.contains(&ip)).cloned(),
            };
            let zone = given.zone.as_deref().map(Arc::from);
            let known = instance.as_ref().and_then(|instance| instance.locality.clone()).unwrap_or_default();
            let locality = Locality { region: known.region, zone: zone.or(known.zone) };
            let locality = (locality != Locality::default()).then_some(locality);
            let address = SocketAddr::new(ip, target);
            let place = Placed { draining, locality, hints: hints(given) };
            let made = endpoint(objects, settings, address, instance.as_ref(), place);
            // The same address twice: the one that takes requests counts.
            let kept = found.entry(address).or_insert_with(|| made.clone());
            if kept.draining && !made.draining {
                *kept = made;
            }
        }
    }
}

fn endpoint(
    objects: &Objects,
    settings: &Settings,
    address: SocketAddr,
    instance: Option<&Instance>,
    Placed { draining, locality, hints }: Placed,
) -> Endpoint {
    let meshed = instance.filter(|instance| {
        instance.meshed && tls::mode(objects, settings, instance, address.port()) != model::TlsMode::Disable
    });
    let identity = meshed.map(|instance| identity(settings, instance));
    Endpoint {
        address,
        mtls: identity,
        proxyless: instance.is_some_and(|instance| instance.proxyless),
        weight: instance.map_or(1, |instance| instance.weight),
        draining,
        workload: instance.map(Instance::known_as),
        locality,
        hints,
    }
}

/// Where an endpoint is, and for whom.
struct Placed {
    draining: bool,
    locality: Option<Locality>,
    hints: Hints,
}

/// What an EndpointSlice says.
fn hints(endpoint: &given::Endpoint) -> Hints {
    let Some(hints) = &endpoint.hints else { return Hints::default() };
    let names = |names: &mut dyn Iterator<Item = &String>| names.map(|name| Arc::from(name.as_str())).collect();
    Hints {
        zones: names(&mut hints.for_zones.iter().flatten().map(|zone| &zone.name)),
        nodes: names(&mut hints.for_nodes.iter().flatten().map(|node| &node.name)),
    }
}

/// What a cluster's controller would say, for a Service nobody has made EndpointSlices of (KEP-4444, KEP-3015).
fn own_hints(service: &Service, instance: &Instance) -> Hints {
    let zone = || instance.locality.as_ref().and_then(|locality| locality.zone.clone()).into_iter().collect();
    match service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => Hints { zones: zone(), nodes: Vec::new() },
        Some("PreferSameNode") => Hints { zones: zone(), nodes: instance.node.clone().into_iter().collect() },
        _ => Hints::default(),
    }
}

/// What an instance's certificate says.
pub(super) fn identity(settings: &Settings, instance: &Instance) -> SpiffeId {
    SpiffeId::new(&settings.trust_domain, &instance.name.namespace, &instance.service_account)
}

/// A slice's number for a Service's port: the one with the same name, both without name being equal.
fn slice_port(slice: &EndpointSlice, port: &Port<'_>) -> Option<u16> {
    let wanted = port.spec.name.as_deref().unwrap_or_default();
    let ports = slice.ports.iter().flatten();
    let mut tcp = ports.filter(|given| matches!(given.protocol.as_deref(), None | Some("TCP")));
    let given = tcp.find(|given| given.name.as_deref().unwrap_or_default() == wanted)?;
    given.port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0)
}

/// One address of an instance: of the Service's first family, else any.
fn preferred(service: &Service, addresses: &[IpAddr]) -> Option<IpAddr> {
    let v6 = prefers_v6(service);
    addresses.iter().find(|ip| ip.is_ipv6() == v6).or(addresses.first()).copied()
}

fn prefers_v6(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    if let Some(family) = spec.ip_families.iter().flatten().next() {
        return family == "IPv6";
    }
    let first = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).next();
    first.and_then(|text| text.parse().ok()).is_some_and(|ip: IpAddr| ip.is_ipv6())
}

/// What endpoints of a declared port speak.
pub(super) fn upstream_http(declared: Protocol) -> UpstreamHttp {
    match declared {
        Protocol::Http2 => UpstreamHttp::Http2,
        Protocol::Detect | Protocol::Http | Protocol::Tcp => UpstreamHttp::AsDownstream,
    }
}

fn sources(service: &Service, more: impl IntoIterator<Item = SourceRef>) -> Vec<SourceRef> {
    let own = SourceRef::new("Service", namespace_of(&service.metadata), name_of(&service.metadata));
    let all: BTreeSet<_> = std::iter::once(own).chain(more).collect();
    all.into_iter().collect()
}
