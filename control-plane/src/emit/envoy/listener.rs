//! The listener of one original destination. It is not bound to a port: connections come from `outbound`, which took them
//! redirected.
//!
//! HTTP/1 and HTTP/2 are told apart before the connection manager, because what is offered to the upstream depends on it.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, RouteSpecifier,
};
use heddle_xds::resource::{self, Resource};

use super::http::{self, Manager, Side};
use super::route::NO_CLUSTER;
use super::{Settings, chain, tls};
use crate::emit::{pb, shares};
use crate::model::{Opaque, OutboundListener, Protocol, ResourceName, TcpShare};

/// One listener for each address of `listener`, for clients in `namespace`; HTTP is routed by `table`.
pub fn listeners(
    listener: &OutboundListener,
    table: Option<&ResourceName>,
    namespace: &str,
    settings: &Settings,
) -> impl Iterator<Item = Resource> {
    let one = move |address: &SocketAddr| {
        let name = resource::outbound(*address);
        let message = Listener {
            name: name.clone(),
            address: Some(pb::address(*address)),
            bind_to_port: Some(pb::boolean(false)),
            traffic_direction: TrafficDirection::Outbound as i32,
            ..protocol(listener, table, namespace, settings)
        };
        Resource::encode(name, &message, pb::sources(&listener.sources))
    };
    listener.addresses.iter().map(one)
}

/// How bytes are read. Without routes for HTTP, or without a cluster for opaque bytes, such connections are closed.
fn protocol(
    listener: &OutboundListener,
    table: Option<&ResourceName>,
    namespace: &str,
    settings: &Settings,
) -> Listener {
    let http1 = || table.map(|table| vec![manager(table, CodecType::Http1, &tls::OFFER_HTTP1)]).unwrap_or_default();
    let http2 = || table.map(|table| vec![manager(table, CodecType::Http2, &tls::OFFER_HTTP2)]).unwrap_or_default();
    let relay =
        |shares: &[TcpShare]| chain::relay_to(&format!("tcp/{}", listener.port), shares::specifier(shares, NO_CLUSTER));
    let tcp = listener.tcp.as_ref().map(|routes| routes.for_client(namespace));
    let opaque = || match tcp {
        Some(Opaque::Shares(shares)) => relay(shares),
        Some(Opaque::ServerNames(_)) | None => Vec::new(),
    };
    let any = FilterChainMatch::default;
    let http2_chain = || chain::chain("http2", chain::plaintext(any(), &chain::INSPECTED_HTTP2), http2(), None);
    match listener.protocol_for(namespace) {
        Protocol::Tcp if let Some(Opaque::ServerNames(names)) = tcp => Listener {
            listener_filters: vec![chain::tls_inspector(None)],
            // A client that says nothing is not hurried: there is nothing else it could be.
            listener_filters_timeout: Some(pb::duration(Duration::ZERO)),
            filter_chains: names.iter().map(|(name, shares)| named(name, relay(shares))).collect(),
            ..Listener::default()
        },
        Protocol::Tcp => Listener { default_filter_chain: Some(chain::default_chain(opaque())), ..Listener::default() },
        Protocol::Http2 => {
            Listener { default_filter_chain: Some(chain::default_chain(http2())), ..Listener::default() }
        }
        // Whatever is not HTTP/2 is refused by the HTTP/1 codec if it is not HTTP at all; there is nothing to hurry for.
        Protocol::Http => Listener {
            listener_filters: vec![chain::http_inspector(None)],
            listener_filters_timeout: Some(pb::duration(Duration::ZERO)),
            filter_chains: vec![http2_chain()],
            default_filter_chain: Some(chain::default_chain(http1())),
            ..Listener::default()
        },
        Protocol::Detect => Listener {
            listener_filters: vec![chain::tls_inspector(None), chain::http_inspector(None)],
            listener_filters_timeout: Some(pb::duration(settings.detection_timeout)),
            continue_on_listener_filters_timeout: true,
            filter_chains: vec![
                chain::chain("http1", chain::plaintext(any(), &chain::INSPECTED_HTTP1), http1(), None),
                http2_chain(),
            ],
            default_filter_chain: Some(chain::default_chain(opaque())),
            ..Listener::default()
        },
    }
}

/// The chain for TLS clients that ask for `name`.
fn named(name: &str, filters: Vec<Filter>) -> FilterChain {
    let matches = FilterChainMatch { server_names: vec![name.to_owned()], ..FilterChainMatch::default() };
    chain::chain(name, chain::tls(matches, &[]), filters, None)
}

fn manager(table: &ResourceName, codec: CodecType, alpn: &[&str]) -> Filter {
    let rds = Rds { config_source: Some(pb::ads()), route_config_name: table.to_string() };
    let manager = Manager {
        stat_prefix: table.to_string(),
        codec,
        routes: RouteSpecifier::Rds(rds),
        filters: vec![http::cors_filter(), http::fault_filter(), http::session_filter(), http::offer_filter(alpn)],
        side: Side::Outbound,
    };
    manager.filter()
}
