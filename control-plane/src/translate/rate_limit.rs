//! RateLimitPolicies in force on a port of a workload: by the name of the policy, then as they are written.
//!
//! A policy with a value that cannot be meant is not in force; its status says so.

use std::sync::Arc;

use super::instance::Instance;
use super::service::{is_external, tcp_ports};
use super::{Settings, fault, policy};
use crate::api::RateLimitPolicy;
use crate::api::rate_limit_policy::{self as api, LimitByType, OnFailure};
use crate::model::SourceRef;
use crate::model::rate_limit::{Concurrency, LimitBy, RateLimit, RateLimitService};
use crate::model::{Protocol, ResourceName, ServiceName};
use crate::objects::{Objects, name_of, namespace_of};
use crate::status::Reason;

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

/// How many requests `port` takes at once; as [`in_force`].
pub(super) fn concurrency(objects: &Objects, instance: &Instance, port: Option<u16>) -> Vec<Concurrency> {
    let policies = objects.rate_limit_policies.in_namespace(&instance.name.namespace);
    let policies =
        policies.filter(|policy| policy.spec.concurrency.is_some() && applies(objects, policy, instance, port));
    let found = policies.filter_map(|policy| {
        let given = policy.spec.concurrency.as_ref()?;
        let (minimum, maximum) = given.bounds();
        Some(Concurrency {
            name: format!("{}/{}", namespace_of(&policy.metadata), name_of(&policy.metadata)).into(),
            dry_run: policy.spec.dry_run,
            minimum,
            maximum,
            buffer_percent: given.buffer_percent(),
            interval: given.interval(),
        })
    });
    found.collect()
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

/// Why the service of a policy may not answer its questions.
pub(super) fn unresolved(objects: &Objects, policy: &RateLimitPolicy) -> Option<(Reason, String)> {
    let given = policy.spec.service.as_ref()?;
    let name = counting_service(policy, given);
    let Some(service) = objects.services.get(&name.namespace, &name.name).filter(|service| !is_external(service))
    else {
        return Some((
            Reason::BackendNotFound,
            format!("spec.service: Service {name} does not exist, or is an ExternalName"),
        ));
    };
    let ports = tcp_ports(service);
    let Some(port) = ports.iter().find(|port| port.number == given.port) else {
        let has: Vec<_> = ports.iter().map(|port| port.number.to_string()).collect();
        let text = format!(
            "spec.service.port: {} of Service {name}: name one of its TCP ports: {}",
            given.port,
            has.join(", ")
        );
        return Some((Reason::BackendNotFound, text));
    };
    (port.declared != Protocol::Http2).then(|| {
        let text = format!(
            "spec.service.port: {} of Service {name} is not declared HTTP/2: give it appProtocol grpc",
            given.port
        );
        (Reason::UnsupportedProtocol, text)
    })
}

fn counting_service(policy: &RateLimitPolicy, given: &api::RateLimitService) -> ServiceName {
    ServiceName::new(given.namespace.as_deref().unwrap_or(namespace_of(&policy.metadata)), &given.name)
}

fn service(policy: &RateLimitPolicy) -> Option<Arc<RateLimitService>> {
    let given = policy.spec.service.as_ref()?;
    let name = counting_service(policy, given);
    Some(Arc::new(RateLimitService {
        cluster: ResourceName::service_port(&name, given.port),
        authority: format!("{}.{}", name.name, name.namespace),
        domain: given.domain().to_owned(),
        timeout: given.timeout(),
        deny_on_failure: given.on_failure == Some(OnFailure::Deny),
    }))
}

fn limits<'p>(policy: &'p RateLimitPolicy, settings: &'p Settings) -> impl Iterator<Item = RateLimit> + use<'p> {
    let (namespace, name) = (namespace_of(&policy.metadata), name_of(&policy.metadata));
    let service = service(policy);
    policy.spec.limits.iter().enumerate().map(move |(index, limit)| RateLimit {
        name: format!("{namespace}/{name}#{index}").into(),
        dry_run: policy.spec.dry_run,
        service: service.clone(),
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
