//! Limits that a service counts, which is told them with each question: before the filter that asks, another lays down what they
//! allow where the question takes it from.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{ApiVersion, GrpcService};
use envoy_types::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use envoy_types::pb::envoy::config::route::v3::{RateLimit as PbRateLimit, rate_limit};
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3::RateLimit as AskingFilter;
use envoy_types::pb::envoy::extensions::filters::http::set_metadata::v3::{Config as SetMetadata, Metadata};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::r#type::metadata::v3::MetadataKey;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::{PathSegment, path_segment};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use rate_limit::r#override::{DynamicMetadata, OverrideSpecifier};

use super::{Limit, enforced};
use crate::emit::envoy::http;
use crate::emit::pb;
use crate::model::rate_limit::RateLimitService;

/// The filters of limits that one question is about.
pub(super) fn filters(together: &[&Limit<'_>]) -> Vec<HttpFilter> {
    let Some(first) = together.first() else { return Vec::new() };
    let Some(service) = &first.limit.service else { return Vec::new() };
    let allowed =
        SetMetadata { metadata: together.iter().flat_map(|each| allowed(each)).collect(), ..SetMetadata::default() };
    let rate_limits = together.iter().flat_map(|each| {
        each.descriptors().into_iter().map(|entries| PbRateLimit {
            actions: entries
                .into_iter()
                .map(|(_, action)| rate_limit::Action { action_specifier: Some(action) })
                .collect(),
            limit: Some(told(each)),
            ..PbRateLimit::default()
        })
    });
    let asking = AskingFilter {
        domain: service.domain.clone(),
        timeout: Some(pb::duration(service.timeout)),
        failure_mode_deny: service.deny_on_failure,
        rate_limited_as_resource_exhausted: true,
        rate_limit_service: Some(question(service)),
        status_on_error: Some(HttpStatus { code: 500 }),
        stat_prefix: "limits".to_owned(),
        filter_enforced: Some(enforced(first.limit)),
        rate_limits: rate_limits.collect(),
        enable_retry_after_header: true,
        ..AskingFilter::default()
    };
    vec![
        http::http_filter("envoy.filters.http.set_metadata", pb::any(&allowed)),
        http::http_filter("envoy.filters.http.ratelimit", pb::any(&asking)),
    ]
}

fn question(service: &RateLimitService) -> RateLimitServiceConfig {
    let envoy = EnvoyGrpc {
        cluster_name: service.cluster.as_str().to_owned(),
        authority: service.authority.clone(),
        skip_envoy_headers: true,
        ..EnvoyGrpc::default()
    };
    let grpc_service =
        GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(envoy)), ..GrpcService::default() };
    RateLimitServiceConfig { grpc_service: Some(grpc_service), transport_api_version: ApiVersion::V3 as i32 }
}

/// Where a limit's question finds what it allows.
fn told(each: &Limit<'_>) -> rate_limit::Override {
    let segment = path_segment::Segment::Key(each.name.clone());
    let key = MetadataKey { key: ALLOWED.to_owned(), path: vec![PathSegment { segment: Some(segment) }] };
    let found = DynamicMetadata { metadata_key: Some(key) };
    rate_limit::Override { override_specifier: Some(OverrideSpecifier::DynamicMetadata(found)) }
}

/// Two pieces that Envoy merges, because a map with several entries has no order.
fn allowed(each: &Limit<'_>) -> [Metadata; 2] {
    let unit = each.limit.unit().to_owned();
    let pieces =
        [("requests_per_unit", Kind::NumberValue(f64::from(each.limit.requests))), ("unit", Kind::StringValue(unit))];
    pieces.map(|(key, value)| Metadata {
        metadata_namespace: ALLOWED.to_owned(),
        allow_overwrite: true,
        value: Some(single(&each.name, Kind::StructValue(single(key, value)))),
        ..Metadata::default()
    })
}

fn single(key: &str, kind: Kind) -> Struct {
    Struct { fields: HashMap::from([(key.to_owned(), Value { kind: Some(kind) })]) }
}

/// Namespace of the metadata.
const ALLOWED: &str = "heddle.limits";
