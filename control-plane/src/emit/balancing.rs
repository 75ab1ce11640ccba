//! How an endpoint is chosen, as clusters say it.
//!
//! What `lb_policy` cannot say stands in `load_balancing_policy`, which comes first where it is known; `lb_policy` is then
//! what nearest to it an older reader knows.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    LbConfig, LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig, SlowStartConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster as PbCluster, LoadBalancingPolicy};
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::{
    self as common, ConsistentHashingLbConfig,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::ring_hash::HashFunction;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use prost::{Message, Name};

use super::pb;
use crate::model::{HashOn, LoadBalancing, Settings};

/// A cluster that chooses so.
pub fn balanced(settings: &Settings) -> PbCluster {
    let (lb_policy, load_balancing_policy) = match &settings.load_balancing {
        LoadBalancing::P2cEwma => (LbPolicy::LeastRequest, None),
        LoadBalancing::LeastRequest => {
            (LbPolicy::LeastRequest, Some(only(LEAST_REQUEST, &least_request(settings.slow_start))))
        }
        LoadBalancing::RoundRobin => (LbPolicy::RoundRobin, None),
        LoadBalancing::Random => (LbPolicy::Random, None),
        LoadBalancing::RingHash(hash_on) => (LbPolicy::LeastRequest, Some(only(RING_HASH, &ring_hash(hash_on)))),
        LoadBalancing::Maglev(hash_on) => (LbPolicy::LeastRequest, Some(only(MAGLEV, &maglev(hash_on)))),
    };
    PbCluster {
        lb_policy: lb_policy as i32,
        lb_config: settings.slow_start.and_then(|window| slow_start(&settings.load_balancing, window)),
        load_balancing_policy,
        ..PbCluster::default()
    }
}

/// Where it stands for policies that `lb_policy` says. Envoy's growth is linear and begins with a tenth by default, as ours.
fn slow_start(balancing: &LoadBalancing, window: Duration) -> Option<LbConfig> {
    let slow_start_config =
        Some(SlowStartConfig { slow_start_window: Some(pb::duration(window)), ..SlowStartConfig::default() });
    match balancing {
        LoadBalancing::P2cEwma => {
            Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig { slow_start_config, ..Default::default() }))
        }
        LoadBalancing::RoundRobin => Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config })),
        _ => None,
    }
}

fn least_request(slow_start: Option<Duration>) -> LeastRequest {
    let slow_start_config = slow_start
        .map(|window| common::SlowStartConfig { slow_start_window: Some(pb::duration(window)), ..Default::default() });
    LeastRequest { slow_start_config, ..LeastRequest::default() }
}

/// One policy among those that a reader chooses from.
pub fn policy<M: Message + Name>(name: &str, config: &M) -> Policy {
    Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(pb::any(config)),
        }),
    }
}

/// What is hashed; the first that a request has counts.
pub fn hash_policies(hash_on: &[HashOn]) -> Vec<HashPolicy> {
    let one = |hash_on: &HashOn| HashPolicy { policy_specifier: Some(specifier(hash_on)), terminal: true };
    hash_on.iter().map(one).collect()
}

fn only<M: Message + Name>(name: &str, config: &M) -> LoadBalancingPolicy {
    LoadBalancingPolicy { policies: vec![policy(name, config)] }
}

fn ring_hash(hash_on: &[HashOn]) -> RingHash {
    RingHash {
        hash_function: HashFunction::XxHash as i32,
        consistent_hashing_lb_config: Some(hashing(hash_on)),
        ..RingHash::default()
    }
}

fn maglev(hash_on: &[HashOn]) -> Maglev {
    Maglev { consistent_hashing_lb_config: Some(hashing(hash_on)), ..Maglev::default() }
}

fn hashing(hash_on: &[HashOn]) -> ConsistentHashingLbConfig {
    ConsistentHashingLbConfig { hash_policy: hash_policies(hash_on), ..ConsistentHashingLbConfig::default() }
}

fn specifier(hash_on: &HashOn) -> PolicySpecifier {
    match hash_on {
        HashOn::Header(name) => {
            PolicySpecifier::Header(Header { header_name: name.to_ascii_lowercase(), regex_rewrite: None })
        }
        HashOn::Cookie(name) => PolicySpecifier::Cookie(Cookie { name: name.clone(), ..Cookie::default() }),
        HashOn::QueryParam(name) => PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }),
        HashOn::SourceIp => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
        HashOn::Path => PolicySpecifier::Header(Header {
            header_name: ":path".to_owned(),
            regex_rewrite: Some(RegexMatchAndSubstitute {
                pattern: Some(pb::regex(QUERY)),
                substitution: String::new(),
            }),
        }),
    }
}

/// Name of the extension.
pub const LEAST_REQUEST: &str = "envoy.load_balancing_policies.least_request";
/// Name of the extension.
pub const RING_HASH: &str = "envoy.load_balancing_policies.ring_hash";
const MAGLEV: &str = "envoy.load_balancing_policies.maglev";
/// What is cut off a `:path` before it is hashed.
const QUERY: &str = r"\?.*";
