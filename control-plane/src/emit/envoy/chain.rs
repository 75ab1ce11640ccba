//! Filter chains and what stands in them: which connections they take, which ALPN their upstream connections offer, the
//! relay of opaque bytes.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, SubstitutionFormatString, TransportSocket, data_source::Specifier,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, ListenerFilter, ListenerFilterChainMatchPredicate, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::{Key, Value};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::set_filter_state::v3::Config as SetFilterState;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::r#type::v3::HashPolicy;
use envoy_types::pb::envoy::r#type::v3::hash_policy::{PolicySpecifier, SourceIp};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::tls::OFFER_TCP;
use crate::emit::pb;

/// A chain for what `matches`; `tls` takes mutual TLS first.
pub fn chain(name: &str, matches: FilterChainMatch, filters: Vec<Filter>, tls: Option<TransportSocket>) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(matches),
        filters,
        transport_socket: tls,
        ..FilterChain::default()
    }
}

/// A chain for what no other takes.
pub fn default_chain(filters: Vec<Filter>) -> FilterChain {
    FilterChain { name: "default".to_owned(), filters, ..FilterChain::default() }
}

/// Narrows `matches` to plaintext that `http_inspector` found to be one of `protocols`.
pub fn plaintext(matches: FilterChainMatch, protocols: &[&str]) -> FilterChainMatch {
    let protocols = protocols.iter().map(|name| (*name).to_owned()).collect();
    FilterChainMatch { transport_protocol: RAW.to_owned(), application_protocols: protocols, ..matches }
}

/// Narrows `matches` to TLS that offers one of `alpn`; none: any TLS.
pub fn tls(matches: FilterChainMatch, alpn: &[&str]) -> FilterChainMatch {
    let alpn = alpn.iter().map(|name| (*name).to_owned()).collect();
    FilterChainMatch { transport_protocol: "tls".to_owned(), application_protocols: alpn, ..matches }
}

/// Opaque bytes to `cluster`, offered as `heddle-tcp` where an endpoint is meshed. A connection that was never made is
/// made again, as the sidecar does.
pub fn relay(cluster: &str) -> Vec<Filter> {
    relay_to(cluster, ClusterSpecifier::Cluster(cluster.to_owned()))
}

/// The same to several clusters; `name` is for Envoy's own statistics.
pub fn relay_to(name: &str, clusters: ClusterSpecifier) -> Vec<Filter> {
    let offer = SetFilterState { on_new_connection: vec![offer(&OFFER_TCP)], ..SetFilterState::default() };
    let proxy = TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(clusters),
        max_connect_attempts: Some(pb::uint32(CONNECT_ATTEMPTS)),
        // No limit: a database connection may be silent for days. Envoy's default is an hour.
        idle_timeout: Some(pb::duration(Duration::ZERO)),
        // Only for clusters that choose by a hash.
        hash_policy: vec![HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})) }],
        ..TcpProxy::default()
    };
    vec![network("envoy.filters.network.set_filter_state", &offer), network("envoy.filters.network.tcp_proxy", &proxy)]
}

/// Makes upstream TLS offer `alpn`, over what the cluster says (Envoy, "Well Known Filter State Objects").
pub fn offer(alpn: &[&str]) -> FilterStateValue {
    let text = DataSource { specifier: Some(Specifier::InlineString(alpn.join(","))), ..DataSource::default() };
    let format = SubstitutionFormatString {
        format: Some(Format::TextFormatSource(text)),
        ..SubstitutionFormatString::default()
    };
    FilterStateValue {
        key: Some(Key::ObjectKey("envoy.network.application_protocols".to_owned())),
        value: Some(Value::FormatString(format)),
        ..FilterStateValue::default()
    }
}

/// A network filter.
pub fn network<M: Message + Name>(name: &str, config: &M) -> Filter {
    network_any(name, pb::any(config))
}

/// A network filter whose configuration is encoded already.
pub fn network_any(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

/// Reads the original destination.
pub fn original_dst() -> ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", &OriginalDst {}, None)
}

/// Reads ALPN from a ClientHello, except where `disabled` says so.
pub fn tls_inspector(disabled: Option<ListenerFilterChainMatchPredicate>) -> ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default(), disabled)
}

/// Tells HTTP/1, HTTP/2 and other bytes apart, except where `disabled` says so.
pub fn http_inspector(disabled: Option<ListenerFilterChainMatchPredicate>) -> ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", &HttpInspector {}, disabled)
}

fn listener_filter<M: Message + Name>(
    name: &str,
    config: &M,
    filter_disabled: Option<ListenerFilterChainMatchPredicate>,
) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        filter_disabled,
        config_type: Some(listener_filter::ConfigType::TypedConfig(pb::any(config))),
    }
}

/// What `http_inspector` says of HTTP/1.
pub const INSPECTED_HTTP1: [&str; 2] = ["http/1.0", "http/1.1"];
/// What `http_inspector` says of HTTP/2.
pub const INSPECTED_HTTP2: [&str; 1] = ["h2c"];

/// What a connection is that no inspector found to be TLS (`FilterChainMatch.transport_protocol`).
const RAW: &str = "raw_buffer";
/// Attempts to connect: the first and two more, the sidecar's own for what was never delivered.
const CONNECT_ATTEMPTS: u32 = 3;
