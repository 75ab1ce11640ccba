//! Rate limits as Envoy's local rate limit filter, one for each limit, asked after authorization.
//!
//! Whether a request counts says the RBAC filter before it, whose rules are in shadow: what it found stands in dynamic metadata, which
//! the limit's descriptor reads. So conditions mean what they mean in AuthorizationPolicies. Each filter chain of a port has buckets of
//! its own, because Envoy shares none between configurations.

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::rbac::v3::Rbac;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action as RbacAction;
use envoy_types::pb::envoy::config::route::v3::RateLimit as PbRateLimit;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{
    ActionSpecifier, GenericKey, HeaderValueMatch, MetaData, RequestHeaders, meta_data,
};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, rate_limit};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::metadata::v3::MetadataKey;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::{PathSegment, path_segment};
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, TokenBucket};

use super::{http, rbac};
use crate::emit::pb;
use crate::model::rate_limit::{LimitBy, RateLimit};
use crate::model::route::HeaderValue;

/// The filters of `limits`, in their order.
pub fn http_filters<'m>(limits: impl Iterator<Item = &'m RateLimit>) -> Vec<HttpFilter> {
    let filters = limits.enumerate().flat_map(|(index, limit)| {
        let prefix = format!("limit_{index}_");
        let conditions = conditions(limit, &prefix);
        let bucket = bucket(limit, conditions.is_some().then_some(prefix.as_str()));
        [conditions, Some(bucket)]
    });
    filters.flatten().collect()
}

/// `None`: every request counts.
fn conditions(limit: &RateLimit, prefix: &str) -> Option<HttpFilter> {
    let rule = rbac::counted(&limit.counts)?;
    let rules =
        Rbac { action: RbacAction::Allow as i32, policies: [(limit.name.to_string(), rule)].into(), ..Rbac::default() };
    let config =
        HttpRbac { shadow_rules: Some(rules), shadow_rules_stat_prefix: prefix.to_owned(), ..HttpRbac::default() };
    Some(http::http_filter(RBAC, pb::any(&config)))
}

/// `found_under`: the prefix of what the RBAC filter before says, if there is one.
fn bucket(limit: &RateLimit, found_under: Option<&str>) -> HttpFilter {
    let mut always = Descriptor::default();
    always.push(generic("all", "all"), "all", "all");
    if let Some(prefix) = found_under {
        always.push(found(prefix), "counts", "allowed");
    }
    for (index, header) in limit.headers.iter().enumerate() {
        let key = format!("header-{index}");
        always.push(has(&key, header), &key, "yes");
    }
    let each = match &limit.by {
        LimitBy::Nothing => vec![always],
        LimitBy::Identity => always.by(generic("value", PEER_IDENTITY), None),
        LimitBy::SourceIp => always.by(generic("value", PEER_ADDRESS), None),
        LimitBy::Header(name) => always.by(value_of(name), Some(lacks(name))),
    };
    let tokens = TokenBucket {
        max_tokens: limit.burst,
        tokens_per_fill: Some(pb::uint32(limit.requests)),
        fill_interval: Some(pb::duration(limit.per)),
    };
    let descriptors = each.iter().map(|descriptor| LocalRateLimitDescriptor {
        entries: descriptor.entries.clone(),
        token_bucket: Some(tokens),
        ..LocalRateLimitDescriptor::default()
    });
    let rate_limits =
        each.iter().map(|descriptor| PbRateLimit { actions: descriptor.actions.clone(), ..PbRateLimit::default() });
    let config = LocalRateLimit {
        stat_prefix: limit.name.to_string(),
        filter_enabled: Some(share(100)),
        filter_enforced: Some(share(if limit.dry_run { 0 } else { 100 })),
        descriptors: descriptors.collect(),
        rate_limits: rate_limits.collect(),
        rate_limited_as_resource_exhausted: true,
        max_dynamic_descriptors: Some(pb::uint32(MAX_VALUES)),
        ..LocalRateLimit::default()
    };
    http::http_filter(FILTER, pb::any(&config))
}

/// Actions, and the entries they make of a request that counts.
#[derive(Default, Clone)]
struct Descriptor {
    actions: Vec<rate_limit::Action>,
    entries: Vec<Entry>,
}

impl Descriptor {
    fn push(&mut self, action: ActionSpecifier, key: &str, value: &str) {
        self.actions.push(rate_limit::Action { action_specifier: Some(action) });
        self.entries.push(Entry { key: key.to_owned(), value: value.to_owned() });
    }

    /// One for requests that have a value, where an empty one is any, and one for those that have none.
    fn by(self, value: ActionSpecifier, none: Option<ActionSpecifier>) -> Vec<Self> {
        let (mut with, mut without) = (self.clone(), self);
        with.push(value, "value", "");
        let Some(none) = none else { return vec![with] };
        without.push(none, "none", "yes");
        vec![with, without]
    }
}

fn generic(key: &str, value: &str) -> ActionSpecifier {
    ActionSpecifier::GenericKey(GenericKey {
        descriptor_key: key.to_owned(),
        descriptor_value: value.to_owned(),
        default_value: "none".to_owned(),
    })
}

/// What the RBAC filter before found: `allowed` or `denied`.
fn found(prefix: &str) -> ActionSpecifier {
    let segment = path_segment::Segment::Key(format!("{prefix}shadow_engine_result"));
    ActionSpecifier::Metadata(MetaData {
        descriptor_key: "counts".to_owned(),
        metadata_key: Some(MetadataKey { key: RBAC.to_owned(), path: vec![PathSegment { segment: Some(segment) }] }),
        source: meta_data::Source::Dynamic as i32,
        ..MetaData::default()
    })
}

fn has(key: &str, header: &HeaderValue) -> ActionSpecifier {
    let exact = pb::text(MatchPattern::Exact(header.value.clone()));
    matching(key, true, &header.name, HeaderMatchSpecifier::StringMatch(exact))
}

fn lacks(name: &str) -> ActionSpecifier {
    matching("none", false, name, HeaderMatchSpecifier::PresentMatch(true))
}

fn matching(key: &str, expect: bool, name: &str, is: HeaderMatchSpecifier) -> ActionSpecifier {
    let matcher = HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(is), ..HeaderMatcher::default() };
    ActionSpecifier::HeaderValueMatch(HeaderValueMatch {
        descriptor_key: key.to_owned(),
        descriptor_value: "yes".to_owned(),
        expect_match: Some(pb::boolean(expect)),
        headers: vec![matcher],
        ..HeaderValueMatch::default()
    })
}

fn value_of(name: &str) -> ActionSpecifier {
    ActionSpecifier::RequestHeaders(RequestHeaders {
        header_name: name.to_owned(),
        descriptor_key: "value".to_owned(),
        ..RequestHeaders::default()
    })
}

fn share(percent: u32) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator: percent, denominator: DenominatorType::Hundred as i32 }),
        runtime_key: String::new(),
    }
}

const FILTER: &str = "envoy.filters.http.local_ratelimit";
/// Also the namespace of the metadata it writes.
const RBAC: &str = "envoy.filters.http.rbac";
/// Read as a format because the bootstrap switches `enable_formatter_for_ratelimit_action_descriptor_value` on.
const PEER_IDENTITY: &str = "%DOWNSTREAM_PEER_URI_SAN%";
/// The connection's, whatever `x-forwarded-for` says.
const PEER_ADDRESS: &str = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%";
/// As the sidecar has.
const MAX_VALUES: u32 = 16_384;
