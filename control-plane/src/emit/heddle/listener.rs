//! `outbound/<ip>:<port>`: how bytes to one original destination are read, and where they go.
//!
//! | protocol | listener filter | filter chain | default filter chain |
//! |---|---|---|---|
//! | Detect | http_inspector | HTTP connection manager for `http/1.1` and `h2c` | tcp_proxy |
//! | Http | | HTTP connection manager, codec AUTO | |
//! | Http2 | | HTTP connection manager, codec HTTP2 | |
//! | Tcp | | tcp_proxy | |
//! | Tcp, by server name | tls_inspector | tcp_proxy for each `server_names` | |
//!
//! The address is the original destination; nobody binds it. Facts: owner, port name, sources.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType as ListenerFilterConfig;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use heddle_xds::resource::{Resource, outbound};
use prost::Name;
use serde::Serialize;

use super::route::INVALID_CLUSTER;
use crate::emit::{pb, shares};
use crate::model::{
    Opaque, OutboundListener, Owner, Protocol, ResourceName, ServiceName, SourceRef, TcpShare, WorkloadName,
};

/// The listener of one of its addresses, with the routes clients of `client_namespace` get.
pub fn listener(listener: &OutboundListener, address: SocketAddr, client_namespace: &str) -> Resource {
    let name = outbound(address);
    let protocol = listener.protocol_for(client_namespace);
    let http = listener.http.as_ref().map(|routes| routes.for_client(client_namespace));
    let http = http.map(|table| chain("http", connection_manager(table, protocol)));
    let tcp = listener.tcp.as_ref().map(|routes| routes.for_client(client_namespace));
    let relay = |shares: &[TcpShare]| chain("tcp", tcp_proxy(&name, shares));
    let (filter_chains, default_filter_chain, listener_filters) = match (protocol, tcp) {
        (Protocol::Http | Protocol::Http2, _) => (http.into_iter().collect(), None, Vec::new()),
        (Protocol::Detect, Some(Opaque::Shares(shares))) => {
            (http.map(only_http).into_iter().collect(), Some(relay(shares)), vec![http_inspector()])
        }
        (Protocol::Detect, _) => (http.map(only_http).into_iter().collect(), None, vec![http_inspector()]),
        (Protocol::Tcp, Some(Opaque::Shares(shares))) => (vec![relay(shares)], None, Vec::new()),
        (Protocol::Tcp, Some(Opaque::ServerNames(names))) => {
            let chains = names.iter().map(|(name, shares)| only_for(name, relay(shares)));
            (chains.collect(), None, vec![tls_inspector()])
        }
        (Protocol::Tcp, None) => (Vec::new(), None, Vec::new()),
    };
    let message = Listener {
        name: name.clone(),
        address: Some(pb::address(address)),
        filter_chains,
        default_filter_chain,
        listener_filters,
        traffic_direction: TrafficDirection::Outbound as i32,
        metadata: Some(pb::facts(&Facts::of(listener))),
        ..Listener::default()
    };
    Resource::encode(name, &message, pb::sources(&listener.sources))
}

/// What Envoy has no field for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts<'m> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'m ServiceName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'m WorkloadName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_name: Option<&'m str>,
    sources: &'m [SourceRef],
}

impl<'m> Facts<'m> {
    fn of(listener: &'m OutboundListener) -> Self {
        let (service, workload) = match &listener.owner {
            Owner::Service(service) => (Some(service), None),
            Owner::Workload(workload) => (None, Some(workload)),
        };
        Self { service, workload, port_name: listener.port_name.as_deref(), sources: &listener.sources }
    }
}

fn chain(name: &str, filter: Filter) -> FilterChain {
    FilterChain { name: name.to_owned(), filters: vec![filter], ..FilterChain::default() }
}

/// The chain for TLS clients that ask for `name`.
fn only_for(name: &str, chain: FilterChain) -> FilterChain {
    let server_names = vec![name.to_owned()];
    FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(FilterChainMatch { server_names, ..FilterChainMatch::default() }),
        ..chain
    }
}

/// The chain for what the http_inspector found to be HTTP (its names for HTTP/1.1 and for HTTP/2 without TLS).
fn only_http(chain: FilterChain) -> FilterChain {
    let application_protocols = vec!["http/1.1".to_owned(), "h2c".to_owned()];
    FilterChain {
        filter_chain_match: Some(FilterChainMatch { application_protocols, ..FilterChainMatch::default() }),
        ..chain
    }
}

fn connection_manager(table: &ResourceName, protocol: Protocol) -> Filter {
    let codec = match protocol {
        Protocol::Http2 => CodecType::Http2,
        Protocol::Detect | Protocol::Http | Protocol::Tcp => CodecType::Auto,
    };
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pb::any(&Router::default()))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        codec_type: codec as i32,
        stat_prefix: table.to_string(),
        http_filters: vec![router],
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(pb::ads()),
            route_config_name: table.to_string(),
        })),
        ..HttpConnectionManager::default()
    };
    network_filter("envoy.filters.network.http_connection_manager", &manager)
}

fn tcp_proxy(name: &str, shares: &[TcpShare]) -> Filter {
    let first = shares.first().and_then(|share| share.cluster.as_ref());
    let proxy = TcpProxy {
        stat_prefix: first.map_or(name, ResourceName::as_str).to_owned(),
        cluster_specifier: Some(shares::specifier(shares, INVALID_CLUSTER)),
        ..TcpProxy::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", &proxy)
}

fn network_filter(name: &str, config: &impl Name) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(pb::any(config))) }
}

fn http_inspector() -> ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", &HttpInspector::default())
}

fn tls_inspector() -> ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default())
}

fn listener_filter(name: &str, config: &impl Name) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(ListenerFilterConfig::TypedConfig(pb::any(config))),
        ..ListenerFilter::default()
    }
}
