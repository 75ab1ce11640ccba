//! Faults, as Envoy's filter for them is configured at a route; gRPC knows the same (gRFC A33).

use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::Any;

use super::pb;
use crate::model::route::{AbortStatus, Fault, HeaderValue};

/// The entry of a route's `typed_per_filter_config`.
pub fn entry(fault: &Fault) -> (String, Any) {
    let delay = fault.delay.as_ref().map(|delay| FaultDelay {
        percentage: Some(share(delay.per_million)),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(pb::duration(delay.length))),
    });
    let abort = fault.abort.as_ref().map(|abort| FaultAbort {
        percentage: Some(share(abort.per_million)),
        error_type: Some(match abort.status {
            AbortStatus::Http(status) => ErrorType::HttpStatus(status.into()),
            AbortStatus::Grpc(status) => ErrorType::GrpcStatus(status.into()),
        }),
        ..FaultAbort::default()
    });
    let headers = fault.headers.iter().map(matcher).collect();
    (FILTER.to_owned(), pb::any(&HttpFault { delay, abort, headers, ..HttpFault::default() }))
}

/// What the filter does where no route says anything: nothing.
pub fn none() -> Any {
    pb::any(&HttpFault::default())
}

fn matcher(header: &HeaderValue) -> HeaderMatcher {
    let exact = pb::text(MatchPattern::Exact(header.value.clone()));
    HeaderMatcher {
        name: header.name.clone(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact)),
        ..HeaderMatcher::default()
    }
}

fn share(per_million: u32) -> FractionalPercent {
    FractionalPercent { numerator: per_million, denominator: DenominatorType::Million as i32 }
}

/// By this name a route configures the filter.
pub const FILTER: &str = "envoy.filters.http.fault";
