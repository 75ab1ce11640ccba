//! How a cluster chooses endpoints: `load_balancing_policy`, else `lb_policy`.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy, SlowStartConfig};
use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::ConsistentHashingLbConfig;
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use envoy_types::pb::google::protobuf::{Any, Duration as PbDuration};
use prost::Name;

use super::read::{self, Error, Within, at_most};
use crate::tables::cluster::{HashOn, LoadBalancing};

/// Reads a cluster's.
pub(super) fn read(message: &PbCluster) -> Result<LoadBalancing, Error> {
    if message.load_balancing_policy.is_some() {
        return extension(extended(message)).within("load_balancing_policy.policies[0].typed_extension_config");
    }
    match LbPolicy::try_from(message.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Ok(LoadBalancing::RoundRobin),
        Ok(LbPolicy::LeastRequest) => Ok(LoadBalancing::P2cEwma),
        Ok(LbPolicy::Random) => Ok(LoadBalancing::Random),
        _ => {
            let reason = format!("is {}, must be ROUND_ROBIN, LEAST_REQUEST or RANDOM", message.lb_policy);
            Err(Error::new("lb_policy", reason))
        }
    }
}

/// Over how long a new endpoint's share grows.
pub(super) fn slow_start(message: &PbCluster) -> Result<Option<Duration>, Error> {
    let window = match (&message.load_balancing_policy, &message.lb_config) {
        (Some(_), _) => {
            let any = extended(message);
            let least: Option<LeastRequest> = any
                .filter(|any| any.type_url == LeastRequest::type_url())
                .map(|any| read::unpack(Some(any)))
                .transpose()?;
            least.and_then(|least| least.slow_start_config?.slow_start_window)
        }
        (None, Some(LbConfig::LeastRequestLbConfig(config))) => window(config.slow_start_config.as_ref()),
        (None, Some(LbConfig::RoundRobinLbConfig(config))) => window(config.slow_start_config.as_ref()),
        (None, _) => None,
    };
    window.map(|window| read::positive(Some(&window), Duration::ZERO)).transpose().within("slow_start_window")
}

fn window(config: Option<&SlowStartConfig>) -> Option<PbDuration> {
    config?.slow_start_window
}

/// The first extension, which is the one that counts.
fn extended(message: &PbCluster) -> Option<&Any> {
    let first = message.load_balancing_policy.as_ref()?.policies.first()?;
    first.typed_extension_config.as_ref()?.typed_config.as_ref()
}

fn extension(any: Option<&Any>) -> Result<LoadBalancing, Error> {
    let url = any.map(|any| any.type_url.as_str()).unwrap_or_default();
    if url == LeastRequest::type_url() {
        read::unpack::<LeastRequest>(any)?;
        Ok(LoadBalancing::LeastRequest)
    } else if url == RingHash::type_url() {
        let ring: RingHash = read::unpack(any)?;
        Ok(LoadBalancing::RingHash(hash_on(ring.consistent_hashing_lb_config.as_ref())?))
    } else if url == Maglev::type_url() {
        let maglev: Maglev = read::unpack(any)?;
        Ok(LoadBalancing::Maglev(hash_on(maglev.consistent_hashing_lb_config.as_ref())?))
    } else {
        Err(Error::new("typed_config", format!("is {url:?}, must be LeastRequest, RingHash or Maglev")))
    }
}

fn hash_on(config: Option<&ConsistentHashingLbConfig>) -> Result<Arc<[HashOn]>, Error> {
    let policies = config.map(|config| config.hash_policy.as_slice()).unwrap_or_default();
    let field = "typed_config.consistent_hashing_lb_config.hash_policy";
    at_most(field, policies, MAX_HASH_POLICIES)?;
    policies.iter().enumerate().map(|(at, policy)| one(policy).nth(field, at)).collect()
}

fn one(policy: &HashPolicy) -> Result<HashOn, Error> {
    if !policy.terminal {
        return Err(Error::new("terminal", "must be true: the first that a request has counts"));
    }
    match &policy.policy_specifier {
        Some(PolicySpecifier::Header(header)) if header.header_name == ":path" => Ok(HashOn::Path),
        Some(PolicySpecifier::Header(header)) => {
            Ok(HashOn::Header(read::header_name(&header.header_name).within("header.header_name")?))
        }
        Some(PolicySpecifier::Cookie(cookie)) => Ok(HashOn::Cookie(named("cookie.name", &cookie.name)?)),
        Some(PolicySpecifier::QueryParameter(parameter)) => {
            Ok(HashOn::QueryParam(named("query_parameter.name", &parameter.name)?))
        }
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => Ok(HashOn::SourceIp),
        _ => Err(Error::new("policy_specifier", "must be a header, cookie, query_parameter or source_ip")),
    }
}

fn named(field: &str, name: &str) -> Result<Box<str>, Error> {
    if name.is_empty() { Err(Error::new(field, "is empty")) } else { Ok(name.into()) }
}

/// As a TrafficPolicy allows.
const MAX_HASH_POLICIES: usize = 8;
