//! Small protobuf values all dialects are made of, and what keeps their encoding deterministic.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::UpstreamConnectionOptions;
use envoy_types::pb::envoy::config::core::v3::address::Address as AnyAddress;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, CidrRange, ConfigSource, Metadata, SelfConfigSource, SocketAddress,
    TcpKeepalive,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{
    Any, BoolValue, Duration as PbDuration, StringValue, Struct, UInt32Value, Value, value,
};
use ipnet::IpNet;
use prost::Name;

use crate::model::SourceRef;
use crate::model::cluster::KeepAlive;

/// `google.protobuf.UInt32Value`.
pub fn uint32(value: u32) -> UInt32Value {
    UInt32Value { value }
}

/// `google.protobuf.BoolValue`.
pub fn boolean(value: bool) -> BoolValue {
    BoolValue { value }
}

/// `envoy.type.v3.Percent`.
pub fn percent(value: u32) -> Percent {
    Percent { value: f64::from(value) }
}

/// How it is found out that the other end of a connection is gone.
pub fn keep_alive(keep_alive: &KeepAlive) -> UpstreamConnectionOptions {
    let seconds = |length: Duration| Some(uint32(u32::try_from(length.as_secs()).unwrap_or(u32::MAX)));
    let tcp_keepalive = TcpKeepalive {
        keepalive_time: seconds(keep_alive.time),
        keepalive_interval: seconds(keep_alive.interval),
        keepalive_probes: Some(uint32(keep_alive.probes)),
    };
    UpstreamConnectionOptions { tcp_keepalive: Some(tcp_keepalive), ..UpstreamConnectionOptions::default() }
}

/// `google.protobuf.Duration`; what does not fit its 10,000 years is cut to them.
pub fn duration(value: Duration) -> PbDuration {
    let seconds = value.as_secs().min(MAX_DURATION_SECONDS);
    PbDuration { seconds: seconds.cast_signed(), nanos: value.subsec_nanos().cast_signed() }
}

/// `google.protobuf.Any` of a message.
pub fn any<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// As [`any`], for a message whose maps hold more than one entry: `parts` are messages of one type that hold one entry
/// each, in the order wanted. Encodings one after another are the encoding of their merge (protobuf encoding, "Last one
/// wins"), so the order is ours and not that of prost's hash map.
pub fn merged<M: Name>(parts: impl IntoIterator<Item = M>) -> Any {
    let mut value = Vec::new();
    for part in parts {
        value.extend(part.encode_to_vec());
    }
    Any { type_url: M::type_url(), value }
}

/// A socket's address, as a listener or an endpoint has it.
pub fn address(address: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(address.port()))),
        ..SocketAddress::default()
    };
    Address { address: Some(AnyAddress::SocketAddress(socket)) }
}

/// A network.
pub fn cidr(network: &IpNet) -> CidrRange {
    CidrRange { address_prefix: network.addr().to_string(), prefix_len: Some(uint32(u32::from(network.prefix_len()))) }
}

/// "Whoever said this."
pub fn same_server() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Self_(SelfConfigSource::default())),
        resource_api_version: ApiVersion::V3 as i32,
        ..ConfigSource::default()
    }
}

/// "Ask for it on this same aggregated stream."
pub fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3 as i32,
        ..ConfigSource::default()
    }
}

/// A regular expression, matched against the whole text.
pub fn regex(expression: &str) -> RegexMatcher {
    RegexMatcher { regex: expression.to_owned(), ..RegexMatcher::default() }
}

/// A condition on a text.
pub fn text(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { ignore_case: false, match_pattern: Some(pattern) }
}

/// A Struct with one field that holds a text.
pub fn single(key: &str, value: &str) -> Struct {
    let value = Value { kind: Some(value::Kind::StringValue(value.to_owned())) };
    Struct { fields: HashMap::from([(key.to_owned(), value)]) }
}

/// Metadata that hold facts Envoy has no field for: a JSON text in `typed_filter_metadata["heddle"]`. One entry, and
/// the order inside is the order of the fields of `facts`.
pub fn facts(facts: &impl serde::Serialize) -> Metadata {
    // Writing to memory cannot fail, and facts are structs of texts, numbers and lists; an empty text is read as no facts.
    let json = serde_json::to_string(facts).unwrap_or_default();
    let any = any(&StringValue { value: json });
    Metadata { typed_filter_metadata: HashMap::from([(FACTS_KEY.to_owned(), any)]), ..Metadata::default() }
}

/// Objects as a resource names them: `<Kind>/<namespace>/<name>`.
pub fn sources(sources: &[SourceRef]) -> Arc<[Arc<str>]> {
    sources.iter().map(|source| Arc::from(source.to_string())).collect()
}

/// The metadata key of Heddle's own facts.
pub const FACTS_KEY: &str = "heddle";
/// The metadata key by which Envoy chooses a transport socket (`envoy.config.cluster.v3.Cluster`,
/// `transport_socket_matches`).
pub const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";
/// The field below [`TRANSPORT_SOCKET_MATCH`] in this mesh.
pub const MATCH_KEY: &str = "heddle";
/// Its value for endpoints that are spoken to over mutual TLS.
pub const MATCH_MTLS: &str = "mtls";

/// Seconds a `google.protobuf.Duration` may hold (`google/protobuf/duration.proto`).
const MAX_DURATION_SECONDS: u64 = 315_576_000_000;

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::rbac::v3::{Policy, Rbac};
    use prost::Message;

    use super::*;

    #[test]
    fn merged_parts_are_read_as_one_message_and_always_give_the_same_bytes() {
        let part = |name: &str| Rbac {
            policies: HashMap::from([(name.to_owned(), Policy::default())]),
            action: 1,
            ..Rbac::default()
        };
        let names: Vec<String> = (0..20).map(|n| format!("p{n}")).collect();

        let first = merged(names.iter().map(|name| part(name)));
        let second = merged(names.iter().map(|name| part(name)));

        assert_eq!(first, second);
        let read = Rbac::decode(&*first.value).unwrap();
        assert_eq!(read.policies.len(), 20);
        assert_eq!(read.action, 1);
    }

    #[test]
    fn facts_keep_the_order_of_their_fields() {
        #[derive(serde::Serialize)]
        struct Facts {
            z: u8,
            a: u8,
        }

        let metadata = facts(&Facts { z: 1, a: 2 });

        let text = StringValue::decode(&*metadata.typed_filter_metadata[FACTS_KEY].value).unwrap();
        assert_eq!(text.value, r#"{"z":1,"a":2}"#);
    }

    #[test]
    fn an_endless_duration_is_cut_to_what_protobuf_holds() {
        assert_eq!(duration(Duration::MAX).seconds, 315_576_000_000);
        assert_eq!(duration(Duration::from_millis(1_500)), PbDuration { seconds: 1, nanos: 500_000_000 });
    }
}
