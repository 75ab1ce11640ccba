//! RateLimitPolicies in force on a port of a workload: by the name of the policy, then as they are written.
//!
//! A policy with a value that cannot be meant is not in force; its status says so.

use std::sync::Arc;

use super::instance::Instance;
use super::{Settings, fault, policy};
use crate::api::RateLimitPolicy;
use crate::api::rate_limit_policy::{self as api, LimitByType};
use crate::model::SourceRef;
use crate::model::rate_limit::{LimitBy, RateLimit};
use crate::objects::{Objects, name_of, namespace_of};

/// What holds on `port`; `None`: on the ports nobody speaks of.
pub(super) fn in_force(
    objects: &Objects,
    settings: &Settings,
    instance: &Instance,
    port: Option<u16>,
) -> Vec<Arc<RateLimit>> {
    let policies = objects.rate_limit_policies.in_namespace(&instance.name.namespace);
    let policies = policies.filter(|policy| applies(objects, policy, instance, port));
    policies.flat_map(|policy| limits(policy, settings)).map(Arc::new).collect()
}

/// The policies that reach some port of this instance, for `explain`.
pub(super) fn sources(objects: &Objects, instance: &Instance) -> Vec<SourceRef> {
    let ports = policy::ports(objects, instance);
    let reaches = |policy: &&Arc<RateLimitPolicy>| ports.iter().any(|port| applies(objects, policy, instance, *port));
    let policies = objects.rate_limit_policies.in_namespace(&instance.name.namespace).filter(reaches);
    policies.map(|p| SourceRef::new("RateLimitPolicy", namespace_of(&p.metadata), name_of(&p.metadata))).collect()
}

fn applies(objects: &Objects, policy: &RateLimitPolicy, instance: &Instance, port: Option<u16>) -> bool {
    let spec = &policy.spec;
    spec.check().is_empty() && policy::attached(objects, spec.selector.as_ref(), &spec.target_refs, instance, port)
}

fn limits<'p>(policy: &'p RateLimitPolicy, settings: &'p Settings) -> impl Iterator<Item = RateLimit> + use<'p> {
    let (namespace, name) = (namespace_of(&policy.metadata), name_of(&policy.metadata));
    policy.spec.limits.iter().enumerate().map(move |(index, limit)| RateLimit {
        name: format!("{namespace}/{name}#{index}").into(),
        dry_run: policy.spec.dry_run,
        requests: limit.requests,
        per: limit.per(),
        burst: limit.burst.unwrap_or(limit.requests),
        by: by(limit.by.as_ref()),
        counts: policy::rule(&limit.from, &limit.to, settings),
        headers: limit.headers.iter().map(fault::required_header).collect(),
    })
}

fn by(given: Option<&api::LimitBy>) -> LimitBy {
    let name = given.and_then(|by| by.name.as_deref()).unwrap_or_default();
    match given.map(|by| by.r#type) {
        None => LimitBy::Nothing,
        Some(LimitByType::Identity) => LimitBy::Identity,
        Some(LimitByType::SourceIp) => LimitBy::SourceIp,
        Some(LimitByType::Header) => LimitBy::Header(name.to_ascii_lowercase()),
    }
}
