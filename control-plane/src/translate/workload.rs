//! One Pod or Workload: what its own sidecar is told, and what clients need that dial it directly.

use std::collections::{BTreeMap, BTreeSet};

use super::instance::{self, Instance};
use super::{Settings, policy, rate_limit, service, tls, traffic};
use crate::model::{
    self, Direct, DirectPort, Inbound, InboundPort, Protocol, ServiceName, SourceRef, TlsMode, WorkloadName,
};
use crate::objects::{Objects, name_of, namespace_of};

/// The Pod or Workload under `name`; `None` if there is none, it has no address, or all its containers have ended.
pub fn workload(objects: &Objects, settings: &Settings, name: &WorkloadName) -> Option<model::Workload> {
    let instance = instance::named(objects, &name.namespace, &name.name)?;
    if instance.addresses.is_empty() {
        return None;
    }
    let ports = ports(objects, settings, &instance);
    let sources = sources(objects, settings, &instance, &ports);
    let authorization = policy::sources(objects, &instance);
    let limits = rate_limit::sources(objects, &instance);
    let for_inbound = sources.iter().cloned().chain(authorization).chain(limits).collect();
    let owners = ports.values().filter_map(|port| port.owner.as_ref());
    let for_direct =
        sources.iter().cloned().chain(owners.flat_map(|owner| traffic::for_service(objects, owner).sources()));
    let other_ports = tls::other_ports(objects, settings, &instance);
    Some(model::Workload {
        name: name.clone(),
        controller: instance.controller.clone(),
        uid: instance.uid.clone(),
        service_account: instance.service_account.clone(),
        identity: service::identity(settings, &instance),
        addresses: instance.addresses.clone(),
        node: instance.node.clone(),
        host_network: instance.host_network,
        inbound: instance.meshed.then(|| inbound(objects, settings, &instance, &ports, for_inbound)),
        direct: direct(objects, &instance, &ports, other_ports, for_direct.collect()),
    })
}

/// Ports reached past the sidecar that are told one by one. Chosen: a range of thousands is for something no client dials by
/// address.
const MAX_EXCLUDED: usize = 256;

/// What is known of one port.
struct Port {
    protocol: Protocol,
    tls: TlsMode,
    /// The Service that owns it, if exactly one does.
    owner: Option<ServiceName>,
    /// All that lead to it.
    owners: BTreeSet<ServiceName>,
}

/// Ports that the instance declares, a Service leads to, or a policy names.
fn ports(objects: &Objects, settings: &Settings, instance: &Instance) -> BTreeMap<u16, Port> {
    let owners = service::owners(objects, instance);
    let mut numbers: BTreeSet<u16> = instance.ports.iter().map(|port| port.number).collect();
    numbers.extend(owners.iter().map(|(_, _, target)| *target));
    numbers.extend(tls::named_ports(objects, settings, instance));
    numbers.extend(instance.excluded.iter().flat_map(|range| range.ports()).take(MAX_EXCLUDED));
    let ports = numbers.into_iter().map(|number| {
        let mine: Vec<_> = owners.iter().filter(|(_, _, target)| *target == number).collect();
        let names: BTreeSet<_> = mine
            .iter()
            .map(|(service, _, _)| ServiceName::new(namespace_of(&service.metadata), name_of(&service.metadata)))
            .collect();
        let own =
            instance.ports.iter().filter(|port| port.number == number).find_map(|port| port.app_protocol.as_deref());
        let declared: BTreeSet<_> = match own {
            Some(_) => BTreeSet::from([instance::protocol(own)]),
            None => mine.iter().map(|(_, port, _)| port.declared).collect(),
        };
        // Two Services that disagree: neither is believed, each connection is looked at.
        let protocol = if declared.len() == 1 { declared.first().copied() } else { None };
        let port = Port {
            protocol: protocol.unwrap_or(Protocol::Detect),
            tls: tls::mode(objects, settings, instance, number),
            owner: if names.len() == 1 { names.first().cloned() } else { None },
            owners: names,
        };
        (number, port)
    });
    ports.collect()
}

fn inbound(
    objects: &Objects,
    settings: &Settings,
    instance: &Instance,
    ports: &BTreeMap<u16, Port>,
    sources: BTreeSet<SourceRef>,
) -> Inbound {
    let ports = ports.iter().map(|(number, port)| {
        let inbound = InboundPort {
            protocol: port.protocol,
            tls: port.tls,
            service: port.owner.clone(),
            policies: policy::in_force(objects, settings, instance, Some(*number)),
            rate_limits: rate_limit::in_force(objects, settings, instance, Some(*number)),
            concurrency: rate_limit::concurrency(objects, instance, Some(*number)),
            settings: to_application(port.protocol),
        };
        (*number, inbound)
    });
    Inbound {
        mesh: settings.mesh.clone(),
        ports: ports.collect(),
        other_ports: InboundPort {
            protocol: Protocol::Detect,
            tls: tls::other_ports(objects, settings, instance),
            service: None,
            policies: policy::in_force(objects, settings, instance, None),
            rate_limits: rate_limit::in_force(objects, settings, instance, None),
            concurrency: rate_limit::concurrency(objects, instance, None),
            settings: to_application(Protocol::Detect),
        },
        sources: sources.into_iter().collect(),
    }
}

/// One endpoint that is always the same: there is nothing to eject it for.
fn to_application(protocol: Protocol) -> model::Settings {
    model::Settings { outlier: None, upstream_http: service::upstream_http(protocol), ..model::Settings::default() }
}

fn direct(
    objects: &Objects,
    instance: &Instance,
    ports: &BTreeMap<u16, Port>,
    other_ports: TlsMode,
    sources: BTreeSet<SourceRef>,
) -> Direct {
    let port = |protocol: Protocol, tls: TlsMode, service: Option<ServiceName>| {
        let traffic = service.as_ref().map(|service| traffic::for_service(objects, service)).unwrap_or_default();
        let settings = model::Settings { outlier: None, ..traffic.settings(service::upstream_http(protocol)) };
        DirectPort {
            protocol,
            mtls: instance.meshed && tls != TlsMode::Disable,
            service,
            settings,
            request_timeout: traffic.request_timeout(),
            idle_timeout: traffic.idle_timeout(),
            try_timeout: traffic.try_timeout(),
            retry: traffic.retry(),
            hedge: traffic.hedge(),
        }
    };
    let known = ports.iter().map(|(number, known)| (*number, port(known.protocol, known.tls, known.owner.clone())));
    Direct {
        ports: known.collect(),
        other_ports: (!instance.host_network).then(|| port(Protocol::Detect, other_ports, None)),
        draining: instance.draining,
        locality: instance.locality.clone(),
        sources: sources.into_iter().collect(),
    }
}

/// What both directions are made from.
fn sources(
    objects: &Objects,
    settings: &Settings,
    instance: &Instance,
    ports: &BTreeMap<u16, Port>,
) -> BTreeSet<SourceRef> {
    let mut all = BTreeSet::from([instance.source.clone()]);
    let owners = ports.values().flat_map(|port| &port.owners);
    all.extend(owners.map(|service| SourceRef::new("Service", &service.namespace, &service.name)));
    all.extend(tls::sources(objects, settings, instance));
    all
}
