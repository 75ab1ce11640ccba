//! `inbound`: what is for the application, port by port.
//!
//! A ClientHello that offers a `heddle-*` name is a sidecar's: it must show a certificate, and what is negotiated is plain
//! `http/1.1`, `h2` or `heddle-tcp`. Everything else is taken as it came where the port's mode allows plaintext, the
//! application's own TLS included; where it does not there is no chain for it, and Envoy closes the connection.
//! The application is dialled at the address the client dialled, from 127.0.0.6 or ::6.
//!
//! Envoy searches chains by port first and never goes back, so every port has a full set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, SocketAddress, TrafficDirection, TransportSocket,
};
use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{
    MatchSet, Rule as Predicate,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilterChainMatchPredicate,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, RouteSpecifier,
};
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use heddle_xds::resource::{INBOUND, Kind, Resource};

use super::http::{self, Caller, Manager, Side};
use super::outbound::NOWHERE;
use super::{
    INBOUND_PORT, OUTBOUND_PORT, Out, Settings, chain, cluster, families, family_name, rate_limit, rbac, route, tls,
};
use crate::emit::pb;
use crate::model::{Inbound, InboundPort, Protocol, ResourceName, Route, ServiceName, TlsMode, Workload};

/// Adds the listener of each family of `workload` and a cluster for each port.
pub(super) fn emit(workload: &Workload, inbound: &Inbound, settings: &Settings, out: &mut Out) {
    let known = inbound.ports.iter().filter(|(number, _)| !OURS.contains(number));
    let ports = known.map(|(number, port)| Port { number: Some(*number), port, workload, settings });
    let other = Port { number: None, port: &inbound.other_ports, workload, settings };
    let ports: Vec<Port<'_>> = ports.chain([other]).collect();
    let sources = pb::sources(&inbound.sources);
    let chains: Vec<FilterChain> =
        OURS.map(loop_chain).into_iter().chain(ports.iter().flat_map(Port::chains)).collect();
    let inspectors = [
        enabled(&ports, Port::needs_tls_inspector).map(chain::tls_inspector),
        enabled(&ports, Port::needs_http_inspector).map(chain::http_inspector),
    ];
    for wildcard in families(workload) {
        let name = family_name(INBOUND, wildcard);
        let message = Listener {
            name: name.clone(),
            address: Some(pb::address(SocketAddr::new(wildcard, INBOUND_PORT))),
            traffic_direction: TrafficDirection::Inbound as i32,
            listener_filters: [chain::original_dst()].into_iter().chain(inspectors.iter().flatten().cloned()).collect(),
            listener_filters_timeout: Some(pb::duration(settings.detection_timeout)),
            continue_on_listener_filters_timeout: true,
            filter_chains: chains.clone(),
            ..Listener::default()
        };
        out.add(Kind::Listener, Resource::encode(name, &message, sources.clone()));
    }
    for port in &ports {
        let message = cluster::original_dst(&port.name(), &port.port.settings, Some(bind(workload)), None);
        out.add(Kind::Cluster, Resource::encode(message.name.clone(), &message, sources.clone()));
    }
}

/// One port of the application; without number all that no object mentions.
struct Port<'m> {
    number: Option<u16>,
    port: &'m InboundPort,
    workload: &'m Workload,
    settings: &'m Settings,
}

impl Port<'_> {
    /// `inbound/<port>` or `inbound/other`: chains, cluster and routes.
    fn name(&self) -> String {
        match self.number {
            Some(number) => format!("{INBOUND}/{number}"),
            None => format!("{INBOUND}/other"),
        }
    }

    fn chains(&self) -> Vec<FilterChain> {
        let mut chains = match self.port.tls {
            TlsMode::Strict | TlsMode::Permissive => self.mutual_tls_chains(),
            TlsMode::Disable => Vec::new(),
        };
        match self.port.tls {
            TlsMode::Permissive | TlsMode::Disable => chains.extend(self.plaintext_chains()),
            TlsMode::Strict => {}
        }
        chains
    }

    /// From sidecars. What a sidecar offers is believed where the port does not declare a protocol; a declared one is read
    /// as declared.
    fn mutual_tls_chains(&self) -> Vec<FilterChain> {
        let chain = |suffix: &str, offered: &[&str], filters| {
            let socket = tls::downstream(self.settings, &self.workload.identity, &NEGOTIATED);
            self.chain(suffix, chain::tls(self.matches(), offered), filters, Some(socket))
        };
        let [http1, http2, opaque] = [tls::OFFER_HTTP1[0], tls::OFFER_HTTP2[0], tls::OFFER_TCP[0]];
        match self.port.protocol {
            Protocol::Tcp => vec![chain("mtls", &[http1, http2, opaque], self.relay())],
            Protocol::Http2 => {
                vec![chain("mtls", &[http1, http2, opaque], self.http(CodecType::Http2, Caller::Sidecar))]
            }
            Protocol::Http => vec![
                chain("mtls-http1", &[http1], self.http(CodecType::Http1, Caller::Sidecar)),
                chain("mtls-http2", &[http2], self.http(CodecType::Http2, Caller::Sidecar)),
                chain("mtls-tcp", &[opaque], self.http(CodecType::Auto, Caller::Sidecar)),
            ],
            Protocol::Detect => vec![
                chain("mtls-http1", &[http1], self.http(CodecType::Http1, Caller::Sidecar)),
                chain("mtls-http2", &[http2], self.http(CodecType::Http2, Caller::Sidecar)),
                chain("mtls-tcp", &[opaque], self.relay()),
            ],
        }
    }

    /// From everyone else; the application's own TLS is opaque on every port.
    fn plaintext_chains(&self) -> Vec<FilterChain> {
        let any_raw = || chain::plaintext(self.matches(), &[]);
        let raw = |protocols: &[&str]| chain::plaintext(self.matches(), protocols);
        let tls = self.chain("tls", chain::tls(self.matches(), &[]), self.relay(), None);
        let mut chains = match self.port.protocol {
            Protocol::Tcp => vec![self.chain("raw", any_raw(), self.relay(), None)],
            Protocol::Http => vec![self.chain("raw", any_raw(), self.http(CodecType::Auto, Caller::Anyone), None)],
            Protocol::Http2 => vec![self.chain("raw", any_raw(), self.http(CodecType::Http2, Caller::Anyone), None)],
            Protocol::Detect => vec![
                self.chain(
                    "raw-http1",
                    raw(&chain::INSPECTED_HTTP1),
                    self.http(CodecType::Http1, Caller::Anyone),
                    None,
                ),
                self.chain(
                    "raw-http2",
                    raw(&chain::INSPECTED_HTTP2),
                    self.http(CodecType::Http2, Caller::Anyone),
                    None,
                ),
                self.chain("raw", any_raw(), self.relay(), None),
            ],
        };
        chains.push(tls);
        chains
    }

    fn matches(&self) -> FilterChainMatch {
        let destination_port = self.number.map(|number| pb::uint32(u32::from(number)));
        FilterChainMatch { destination_port, ..FilterChainMatch::default() }
    }

    fn chain(
        &self,
        suffix: &str,
        matches: FilterChainMatch,
        filters: Vec<Filter>,
        socket: Option<TransportSocket>,
    ) -> FilterChain {
        chain::chain(&format!("{}/{suffix}", self.name()), matches, filters, socket)
    }

    fn http(&self, codec: CodecType, caller: Caller) -> Vec<Filter> {
        let name = self.name();
        // The default rule's timeouts and retries: none, and what was never delivered.
        let rule = Route::default_to(ResourceName::service_port(&ServiceName::new("", ""), 0)).rule;
        let routes = vec![route::all_to(&name, &rule)];
        let mut filters = rbac::http_filters(&self.port.policies);
        filters.extend(rate_limit::http_filters(self.port));
        let manager = Manager {
            // Only a sidecar may speak for the mesh, so the application's own end here.
            routes: RouteSpecifier::RouteConfig(route::configuration(&name, routes, &[http::UNDELIVERED, http::ERROR])),
            stat_prefix: name,
            codec,
            filters,
            side: Side::Inbound { normalize: rbac::reads_paths(self.port), caller },
        };
        vec![manager.filter()]
    }

    fn relay(&self) -> Vec<Filter> {
        let mut filters = rbac::network_filters(&self.port.policies);
        filters.extend(chain::relay(&self.name()));
        filters
    }

    /// Sidecars are told by their ClientHello, and so is the application's own TLS where plain HTTP is expected.
    fn needs_tls_inspector(&self) -> bool {
        self.port.tls != TlsMode::Disable || matches!(self.port.protocol, Protocol::Http | Protocol::Http2)
    }

    /// Only what may be HTTP or not has to wait for its first bytes.
    fn needs_http_inspector(&self) -> bool {
        self.port.tls != TlsMode::Strict && self.port.protocol == Protocol::Detect
    }
}

/// A connection for a listener of ours, redirected or not.
fn loop_chain(port: u16) -> FilterChain {
    let destination_port = Some(pb::uint32(u32::from(port)));
    let matches = FilterChainMatch { destination_port, ..FilterChainMatch::default() };
    chain::chain(&format!("loop-{port}"), matches, chain::relay(NOWHERE), None)
}

/// For a listener filter that only some ports need: where it is switched off (`None`: nowhere). An outer `None`: no port
/// needs it.
fn enabled<'m>(
    ports: &[Port<'m>],
    needs: impl Fn(&Port<'m>) -> bool,
) -> Option<Option<ListenerFilterChainMatchPredicate>> {
    let numbers = |wanted: bool| {
        let some = ports.iter().filter(|port| needs(port) == wanted);
        some.filter_map(|port| port.number).map(port_predicate).collect::<Vec<_>>()
    };
    let other = ports.iter().any(|port| port.number.is_none() && needs(port));
    let (needing, not_needing) = (numbers(true), numbers(false));
    match (other, needing.is_empty()) {
        (true, _) => Some(any_of(not_needing)),
        (false, true) => None,
        (false, false) => Some(any_of(needing).map(|needing| predicate(Predicate::NotMatch(Box::new(needing))))),
    }
}

/// Envoy wants at least two in a set.
fn any_of(mut predicates: Vec<ListenerFilterChainMatchPredicate>) -> Option<ListenerFilterChainMatchPredicate> {
    match predicates.len() {
        0 | 1 => predicates.pop(),
        _ => Some(predicate(Predicate::OrMatch(MatchSet { rules: predicates }))),
    }
}

fn port_predicate(port: u16) -> ListenerFilterChainMatchPredicate {
    let start = i32::from(port);
    predicate(Predicate::DestinationPortRange(Int32Range { start, end: start + 1 }))
}

fn predicate(rule: Predicate) -> ListenerFilterChainMatchPredicate {
    ListenerFilterChainMatchPredicate { rule: Some(rule) }
}

/// The addresses capture lets pass; Envoy takes the one of the family it dials.
fn bind(workload: &Workload) -> BindConfig {
    let sources = families(workload).into_iter().map(|family| match family {
        IpAddr::V4(_) => source(SOURCE_V4.into()),
        IpAddr::V6(_) => source(SOURCE_V6.into()),
    });
    let mut sources = sources;
    BindConfig {
        source_address: sources.next(),
        extra_source_addresses: sources
            .map(|address| ExtraSourceAddress { address: Some(address), ..ExtraSourceAddress::default() })
            .collect(),
        ..BindConfig::default()
    }
}

fn source(address: IpAddr) -> SocketAddress {
    SocketAddress {
        address: address.to_string(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    }
}

/// An object that declares these for the application cannot be meant.
const OURS: [u16; 2] = [INBOUND_PORT, OUTBOUND_PORT];
/// What is negotiated with a sidecar; of each offered list one is here.
const NEGOTIATED: [&str; 3] = ["h2", "http/1.1", "heddle-tcp"];
/// Source of connections to the application, which capture leaves alone.
const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// As above, for IPv6; capture adds it to `lo`.
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
