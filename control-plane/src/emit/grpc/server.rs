//! A listener that a server of gRPC asks for by the address it listens at (gRFC A36): whom it takes (A29), and what they may
//! (A41).
//!
//! gRPC cannot tell TLS from plaintext on one port, so a port that takes mutual TLS takes nothing else, PERMISSIVE included:
//! all who speak to a meshed endpoint speak mutual TLS. Nor does it count: rate limits hold at sidecars only.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::{TrafficDirection, TransportSocket};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    NonForwardingAction, Route as PbRoute, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use heddle_xds::resource::Resource;

use super::listener::filter as http_filter;
use super::{CERTIFICATE_PROVIDER, Client, tls};
use crate::emit::{envoy, pb};
use crate::model::{Inbound, PolicySet, TlsMode};

/// The address in a server's listener name, written as the names of all servers are to be: see [`TEMPLATE`].
pub fn listening(name: &str) -> Option<SocketAddr> {
    let text = name.strip_prefix(TEMPLATE)?;
    text.parse().ok().filter(|address: &SocketAddr| address.to_string() == text)
}

/// The listener `name` of a workload that listens at `address`. Without a certificate provider that is known, the one by
/// convention is named: a server that lacks it says so.
pub fn listener(name: &str, address: SocketAddr, inbound: &Inbound, client: &Client) -> Resource {
    let port = inbound.port(address.port());
    let provider = client.certificate_provider.as_deref().unwrap_or(CERTIFICATE_PROVIDER);
    let chain = FilterChain {
        name: format!("inbound/{}", address.port()),
        filters: vec![Filter {
            name: MANAGER.to_owned(),
            config_type: Some(filter::ConfigType::TypedConfig(pb::any(&manager(&port.policies)))),
        }],
        transport_socket: match port.tls {
            TlsMode::Strict | TlsMode::Permissive => Some(mutual_tls(provider)),
            TlsMode::Disable => None,
        },
        ..FilterChain::default()
    };
    let message = Listener {
        name: name.to_owned(),
        address: Some(pb::address(address)),
        traffic_direction: TrafficDirection::Inbound as i32,
        filter_chains: vec![chain],
        ..Listener::default()
    };
    Resource::encode(name, &message, pb::sources(&inbound.sources))
}

/// The filters of authorization, and every call to the application.
fn manager(policies: &PolicySet) -> HttpConnectionManager {
    let route = PbRoute {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(String::new())),
            ..RouteMatch::default()
        }),
        action: Some(Action::NonForwardingAction(NonForwardingAction {})),
        ..PbRoute::default()
    };
    let host = VirtualHost {
        name: APPLICATION.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let routes =
        RouteConfiguration { name: APPLICATION.to_owned(), virtual_hosts: vec![host], ..RouteConfiguration::default() };
    // Two filters of one name are refused (A39).
    let authorization = envoy::rbac::http_filters(policies).into_iter().enumerate();
    let mut filters: Vec<_> = authorization
        .map(|(index, mut filter)| {
            filter.name = format!("{}-{index}", filter.name);
            filter
        })
        .collect();
    filters.push(http_filter(envoy::ROUTER, pb::any(&Router::default())));
    HttpConnectionManager {
        http_filters: filters,
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        ..HttpConnectionManager::default()
    }
}

/// Who has a certificate of the mesh. Names are the business of authorization: gRPC refuses them here (A29).
fn mutual_tls(provider: &str) -> TransportSocket {
    envoy::tls::socket(&DownstreamTlsContext {
        common_tls_context: Some(tls::by(provider, &BTreeSet::new())),
        require_client_certificate: Some(pb::boolean(true)),
        ..DownstreamTlsContext::default()
    })
}

/// How the names of servers' listeners begin; in a bootstrap `server_listener_resource_name_template` with `%s` behind it.
pub const TEMPLATE: &str = "grpc/server?xds.resource.listening_address=";
const MANAGER: &str = "envoy.filters.network.http_connection_manager";
const APPLICATION: &str = "application";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_listener_is_named_by_its_address_which_has_one_spelling() {
        let read = |address: &str| listening(&format!("{TEMPLATE}{address}"));
        assert_eq!(read("0.0.0.0:50051"), Some(([0, 0, 0, 0], 50051).into()));
        assert_eq!(read("[::]:50051"), Some(([0; 8], 50051).into()));
        for other in ["", ":50051", "0.0.0.0:050051", "0.0.0.0:70000", "[0:0::0]:1", "localhost:1", "%s"] {
            assert_eq!(read(other), None, "{other}");
        }
        assert_eq!(listening("0.0.0.0:50051"), None);
    }
}
