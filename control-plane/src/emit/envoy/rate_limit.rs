//! Rate limits as Envoy's filters, asked after authorization: local ones each as a filter with a bucket of its own, those of one
//! service as one filter that asks it, and at last how many requests are let in at once.
//!
//! Whether a request counts says the RBAC filter before it, whose rules are in shadow: what it found stands in dynamic metadata, which
//! a limit's descriptor reads. So conditions mean what they mean in AuthorizationPolicies. Each filter chain of a port has buckets of
//! its own, because Envoy shares none between configurations.

mod concurrency;
mod local;
mod service;

use envoy_types::pb::envoy::config::core::v3::{RuntimeFractionalPercent, TypedExtensionConfig};
use envoy_types::pb::envoy::config::rbac::v3::Rbac;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action as RbacAction;
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{
    ActionSpecifier, GenericKey, HeaderValueMatch, RequestHeaders,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::Descriptor;
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::descriptor::ExprSpecifier;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use heddle_xds::resource::{Kind, Resource};

use super::{Out, cluster, http, rbac};
use crate::emit::pb;
use crate::model::rate_limit::{LimitBy, RateLimit, RateLimitService};
use crate::model::{Inbound, InboundPort};

/// The filters of a port's limits: local ones in their order, then the services' in theirs.
pub fn http_filters(port: &InboundPort) -> Vec<HttpFilter> {
    let limits: Vec<Limit<'_>> = port
        .rate_limits
        .iter()
        .enumerate()
        .map(|(index, limit)| Limit { limit, name: format!("limit_{index}") })
        .collect();
    let mut filters: Vec<HttpFilter> = limits.iter().filter_map(Limit::conditions).collect();
    filters.extend(limits.iter().filter(|each| each.limit.service.is_none()).map(local::bucket));
    let asking: Vec<&Limit<'_>> = limits.iter().filter(|each| each.limit.service.is_some()).collect();
    for together in asking.chunk_by(|one, next| one.asks() == next.asks()) {
        filters.extend(service::filters(together));
    }
    filters.extend(port.concurrency.iter().filter_map(concurrency::filter));
    filters
}

/// Envoy refuses a listener whose filter asks a cluster that is not there: such a service is a cluster without endpoints.
pub fn clusters(inbound: &Inbound, out: &mut Out) {
    let ports = inbound.ports.values().chain([&inbound.other_ports]);
    let services = ports.flat_map(|port| &port.rate_limits).filter_map(|limit| limit.service.as_ref());
    for service in services {
        let cluster = cluster::nowhere(service.cluster.as_str());
        out.add(Kind::Cluster, Resource::encode(service.cluster.shared(), &cluster, pb::sources(&[])));
    }
}

/// A limit of a port.
struct Limit<'m> {
    limit: &'m RateLimit,
    /// Told apart from the others of the port.
    name: String,
}

impl Limit<'_> {
    /// What it has in common with limits that are asked of the service with one question.
    fn asks(&self) -> (Option<&RateLimitService>, bool) {
        (self.limit.service.as_deref(), self.limit.dry_run)
    }

    /// `None`: every request counts.
    fn conditions(&self) -> Option<HttpFilter> {
        let rule = rbac::counted(&self.limit.counts, &self.limit.headers)?;
        let policies = [(self.limit.name.to_string(), rule)].into();
        let rules = Rbac { action: RbacAction::Allow as i32, policies, ..Rbac::default() };
        let config = HttpRbac {
            shadow_rules: Some(rules),
            shadow_rules_stat_prefix: format!("{}_", self.name),
            ..HttpRbac::default()
        };
        Some(http::http_filter(RBAC, pb::any(&config)))
    }

    /// What makes entries of a request that counts, each with its key; one list for each kind of request there is.
    fn descriptors(&self) -> Vec<Vec<(&'static str, ActionSpecifier)>> {
        let counts = || (LIMIT, self.counts());
        match &self.limit.by {
            LimitBy::Nothing => vec![vec![counts()]],
            LimitBy::SourceIp => vec![vec![counts(), (VALUE, text(VALUE, PEER_ADDRESS))]],
            LimitBy::Identity => vec![
                vec![counts(), (VALUE, expression(VALUE, PEER_IDENTITY))],
                vec![counts(), (NONE, expression(NONE, NO_PEER_IDENTITY))],
            ],
            LimitBy::Header(name) => {
                vec![vec![counts(), (VALUE, value_of(name))], vec![counts(), (NONE, lacks(name))]]
            }
        }
    }

    /// The limit's name. Of a request that does not count there is none, and so no descriptor.
    fn counts(&self) -> ActionSpecifier {
        let name = &*self.limit.name;
        if rbac::counted(&self.limit.counts, &self.limit.headers).is_none() {
            return text(LIMIT, name);
        }
        let found = format!("metadata.filter_metadata['{RBAC}']['{}_shadow_engine_result']", self.name);
        expression(LIMIT, &format!("{{'allowed': '{name}'}}[{found}]"))
    }
}

fn text(key: &str, value: &str) -> ActionSpecifier {
    ActionSpecifier::GenericKey(GenericKey {
        descriptor_key: key.to_owned(),
        descriptor_value: value.to_owned(),
        default_value: "none".to_owned(),
    })
}

/// A value in CEL; there is no descriptor if it is an error.
fn expression(key: &str, cel: &str) -> ActionSpecifier {
    let descriptor = Descriptor {
        descriptor_key: key.to_owned(),
        skip_if_error: false,
        expr_specifier: Some(ExprSpecifier::Text(cel.to_owned())),
    };
    ActionSpecifier::Extension(TypedExtensionConfig {
        name: "envoy.rate_limit_descriptors.expr".to_owned(),
        typed_config: Some(pb::any(&descriptor)),
    })
}

fn value_of(name: &str) -> ActionSpecifier {
    ActionSpecifier::RequestHeaders(RequestHeaders {
        header_name: name.to_owned(),
        descriptor_key: VALUE.to_owned(),
        ..RequestHeaders::default()
    })
}

fn lacks(name: &str) -> ActionSpecifier {
    let present = HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..HeaderMatcher::default()
    };
    ActionSpecifier::HeaderValueMatch(HeaderValueMatch {
        descriptor_key: NONE.to_owned(),
        descriptor_value: YES.to_owned(),
        expect_match: Some(pb::boolean(false)),
        headers: vec![present],
        ..HeaderValueMatch::default()
    })
}

/// What is counted and not enforced is a share of 0.
fn enforced(limit: &RateLimit) -> RuntimeFractionalPercent {
    share(if limit.dry_run { 0 } else { 100 })
}

fn share(percent: u32) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator: percent, denominator: DenominatorType::Hundred as i32 }),
        runtime_key: String::new(),
    }
}

/// Also the namespace of the metadata it writes.
const RBAC: &str = "envoy.filters.http.rbac";
/// Keys of entries, as the sidecar has them: the limit, the value that has a bucket of its own, and that there is none.
const LIMIT: &str = "limit";
const VALUE: &str = "value";
const NONE: &str = "none";
const YES: &str = "yes";
/// An error without a certificate, and the other only then.
const PEER_IDENTITY: &str = "{true: connection.uri_san_peer_certificate}[connection.mtls]";
const NO_PEER_IDENTITY: &str = "{false: 'yes'}[connection.mtls]";
/// The connection's, whatever `x-forwarded-for` says. Read as a format because the bootstrap switches
/// `enable_formatter_for_ratelimit_action_descriptor_value` on; CEL has the port with it.
const PEER_ADDRESS: &str = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%";
