//! What becomes of Envoy's own answers.

use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLogFilter, AndFilter, ComparisonFilter, HeaderFilter, ResponseFlagFilter, StatusCodeFilter, comparison_filter,
};
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, RuntimeUInt32};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    LocalReplyConfig, ResponseMapper,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use super::http::UNDELIVERED;
use super::route::{INVALID_BACKEND, header};
use crate::emit::pb;

/// Marks the answer to a request for which the application could not be reached.
pub fn to_sidecar() -> LocalReplyConfig {
    let unreachable = ResponseFlagFilter { flags: vec![UPSTREAM_UNREACHABLE.to_owned()] };
    let mark = HeaderValueOption {
        header: Some(HeaderValue { key: UNDELIVERED.to_owned(), value: "true".to_owned(), ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..HeaderValueOption::default()
    };
    let mark = ResponseMapper { headers_to_add: vec![mark], ..ResponseMapper::default() };
    mapped(FilterSpecifier::ResponseFlagFilter(unreachable), mark)
}

/// A gRPC call to an invalid backend is UNAVAILABLE (GRPCRoute, `backendRefs`), which Envoy makes of 503 and of no 500.
pub fn outbound() -> LocalReplyConfig {
    let status = StatusCodeFilter {
        comparison: Some(ComparisonFilter {
            op: comparison_filter::Op::Eq as i32,
            value: Some(RuntimeUInt32 { default_value: INVALID_BACKEND, runtime_key: NO_OVERRIDE.to_owned() }),
        }),
    };
    let call = HeaderFilter { header: Some(header("content-type", pb::text(MatchPattern::Prefix(GRPC.to_owned())))) };
    let both = [FilterSpecifier::StatusCodeFilter(status), FilterSpecifier::HeaderFilter(call)];
    let both = both.map(|filter| AccessLogFilter { filter_specifier: Some(filter) });
    let both = FilterSpecifier::AndFilter(AndFilter { filters: both.into() });
    mapped(both, ResponseMapper { status_code: Some(pb::uint32(UNAVAILABLE)), ..ResponseMapper::default() })
}

fn mapped(filter: FilterSpecifier, mapper: ResponseMapper) -> LocalReplyConfig {
    let filter = AccessLogFilter { filter_specifier: Some(filter) };
    LocalReplyConfig { mappers: vec![ResponseMapper { filter: Some(filter), ..mapper }], ..LocalReplyConfig::default() }
}

/// Envoy's flag of an answer it gave because it could not connect (Envoy, "Access logging", `%RESPONSE_FLAGS%`).
const UPSTREAM_UNREACHABLE: &str = "UF";
/// HTTP 503, which gRPC's UNAVAILABLE is made of (gRPC `doc/http-grpc-status-mapping.md`).
const UNAVAILABLE: u32 = 503;
/// How gRPC's content types begin (gRPC `PROTOCOL-HTTP2.md`).
const GRPC: &str = "application/grpc";
/// Envoy asks for the name of a runtime override; nobody sets this one.
const NO_OVERRIDE: &str = "heddle.unset";
