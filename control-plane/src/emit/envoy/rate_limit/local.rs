//! A limit that the Envoy counts by itself.

use envoy_types::pb::envoy::config::route::v3::{RateLimit as PbRateLimit, rate_limit};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::r#type::v3::TokenBucket;

use super::{LIMIT, Limit, NONE, YES, enforced, share};
use crate::emit::envoy::http;
use crate::emit::pb;

/// Its bucket, or a bucket for each value.
pub(super) fn bucket(limited: &Limit<'_>) -> HttpFilter {
    let limit = limited.limit;
    let each = limited.descriptors();
    let tokens = TokenBucket {
        max_tokens: limit.burst,
        tokens_per_fill: Some(pb::uint32(limit.requests)),
        fill_interval: Some(pb::duration(limit.per)),
    };
    // An empty value is any.
    let expected = |key: &str| match key {
        LIMIT => limit.name.to_string(),
        NONE => YES.to_owned(),
        _ => String::new(),
    };
    let descriptors = each.iter().map(|entries| LocalRateLimitDescriptor {
        entries: entries.iter().map(|(key, _)| Entry { key: (*key).to_owned(), value: expected(key) }).collect(),
        token_bucket: Some(tokens),
        ..LocalRateLimitDescriptor::default()
    });
    let rate_limits = each.iter().map(|entries| {
        let actions = entries.iter().map(|(_, action)| rate_limit::Action { action_specifier: Some(action.clone()) });
        PbRateLimit { actions: actions.collect(), ..PbRateLimit::default() }
    });
    let config = LocalRateLimit {
        stat_prefix: limit.name.to_string(),
        filter_enabled: Some(share(100)),
        filter_enforced: Some(enforced(limit)),
        descriptors: descriptors.collect(),
        rate_limits: rate_limits.collect(),
        rate_limited_as_resource_exhausted: true,
        max_dynamic_descriptors: Some(pb::uint32(MAX_VALUES)),
        ..LocalRateLimit::default()
    };
    http::http_filter(FILTER, pb::any(&config))
}

const FILTER: &str = "envoy.filters.http.local_ratelimit";
/// As the sidecar has.
const MAX_VALUES: u32 = 16_384;
