//! TrafficPolicies in force: field by field, a route's over a Service's over its Namespace's; of two with the same
//! target the oldest whole.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::age;
use crate::api::health_check;
use crate::api::load_balancing::{HashOnType, LoadBalancingPolicy};
use crate::api::traffic_policy::{
    BACKOFF_GROWTH, CircuitBreaker, DEFAULT_ATTEMPTS, DEFAULT_BACKOFF, DEFAULT_INTERVAL, DEFAULT_MINIMUM_HOSTS,
    DEFAULT_REQUEST_VOLUME, OutlierDetection, Retry,
};
use crate::api::{self, TargetRef, TrafficPolicy};
use crate::model::cluster::{Connections, KeepAlive, Limits, Outlier, Statistics};
use crate::model::route::{Hedge, RetryPolicy};
use crate::model::{
    HashOn, HealthCheck, HealthQuestion, LoadBalancing, ServiceName, Settings, SourceRef, UpstreamHttp,
};
use crate::objects::{Objects, Route, name_of, namespace_of};

/// The policies that reach something, nearest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Traffic(Vec<Arc<TrafficPolicy>>);

/// What reaches a Service.
pub(super) fn for_service(objects: &Objects, service: &ServiceName) -> Traffic {
    let own = winner(objects, &service.namespace, &|t| t.kind == "Service" && t.name == *service.name);
    let wide = winner(objects, &service.namespace, &|t| t.kind == "Namespace" && t.name == *service.namespace);
    Traffic(own.into_iter().chain(wide).collect())
}

/// What reaches a route's requests to a Service.
pub(super) fn for_route(objects: &Objects, route: &Route, service: &ServiceName) -> Traffic {
    let kind = route.kind.name();
    let name = name_of(&route.metadata);
    let own = winner(objects, namespace_of(&route.metadata), &|t| t.kind == kind && t.name == name);
    Traffic(own.into_iter().chain(for_service(objects, service).0).collect())
}

/// The oldest usable policy of the namespace with such a target.
pub(super) fn winner(
    objects: &Objects,
    namespace: &str,
    hits: &dyn Fn(&TargetRef) -> bool,
) -> Option<Arc<TrafficPolicy>> {
    let policies = objects.traffic_policies.in_namespace(namespace);
    let usable = policies.filter(|policy| policy.spec.target_refs.iter().any(hits) && policy.spec.check().is_empty());
    usable.min_by_key(|policy| age(&policy.metadata)).cloned()
}

impl Traffic {
    /// How connections to the Service are made and kept.
    pub(super) fn settings(&self, upstream_http: UpstreamHttp) -> Settings {
        let defaults = Settings::default();
        let breaker = |field: fn(&CircuitBreaker) -> Option<u32>| {
            self.first(|policy| policy.spec.circuit_breaker.as_ref().and_then(field))
        };
        Settings {
            load_balancing: self
                .first(|policy| policy.spec.load_balancing.as_ref().map(load_balancing))
                .unwrap_or(defaults.load_balancing),
            slow_start: self
                .first(|policy| policy.spec.load_balancing.as_ref())
                .and_then(|balancing| balancing.slow_start)
                .map(|length| length.get()),
            connect_timeout: self
                .first(|policy| policy.spec.connect_timeout)
                .map_or(defaults.connect_timeout, |length| length.get()),
            connections: self.connections(),
            limits: Limits {
                connections: breaker(|b| b.max_connections).unwrap_or(defaults.limits.connections),
                pending: breaker(|b| b.max_pending).unwrap_or(defaults.limits.pending),
                requests: breaker(|b| b.max_requests).unwrap_or(defaults.limits.requests),
                retries: breaker(|b| b.max_retries).unwrap_or(defaults.limits.retries),
            },
            outlier: self.outlier(),
            panic_percent: self
                .first(|policy| policy.spec.outlier_detection.as_ref()?.panic_threshold)
                .unwrap_or(defaults.panic_percent),
            upstream_http,
            ..defaults
        }
    }

    fn connections(&self) -> Connections {
        let Connections { keep_alive: defaults, idle_timeout, .. } = Connections::default();
        let field = |field: fn(&api::Connections) -> Option<u32>| {
            self.first(|policy| policy.spec.connections.as_ref().and_then(field))
        };
        let length = |field: fn(&api::Connections) -> Option<api::Duration>| {
            self.first(|policy| policy.spec.connections.as_ref().and_then(field)).map(api::Duration::get)
        };
        let probing = self.first(|policy| policy.spec.connections.as_ref()?.tcp_keepalive.as_ref());
        Connections {
            idle_timeout: length(|c| c.idle_timeout).unwrap_or(idle_timeout),
            max_age: length(|c| c.max_age),
            max_requests: field(|c| c.max_requests),
            max_streams: field(|c| c.max_streams),
            keep_alive: probing.map_or(defaults, |given| KeepAlive {
                time: given.time.map_or(defaults.time, api::Duration::get),
                interval: given.interval.map_or(defaults.interval, api::Duration::get),
                probes: given.probes.unwrap_or(defaults.probes),
            }),
        }
    }

    /// How the endpoints of `service` are asked whether they are well.
    pub(super) fn health_check(&self, service: &ServiceName) -> Option<HealthCheck> {
        self.first(|policy| policy.spec.health_check.as_ref()).map(|check| health_check(check, service))
    }

    /// When a failed request is made again; `None`: never by policy.
    pub(super) fn retry(&self) -> Option<RetryPolicy> {
        self.0.iter().find_map(|policy| policy.spec.retry.as_ref()).map(retry)
    }

    /// When another endpoint is asked beside one that does not answer.
    pub(super) fn hedge(&self) -> Option<Hedge> {
        let given = self.first(|policy| policy.spec.hedge.as_ref())?;
        let attempts = given.attempts.unwrap_or(DEFAULT_ATTEMPTS);
        Some(Hedge { delay: given.delay.get(), attempts })
    }

    /// How long one attempt may take.
    pub(super) fn try_timeout(&self) -> Option<Duration> {
        let set = self.first(|policy| policy.spec.retry.as_ref().and_then(|retry| retry.per_try_timeout));
        set.map(|length| length.get()).filter(|length| !length.is_zero())
    }

    /// How long nothing may come of a request either way.
    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        let set = self.first(|policy| policy.spec.timeouts.as_ref().and_then(|timeouts| timeouts.idle));
        set.map(|length| length.get()).filter(|length| !length.is_zero())
    }

    /// How long a request may take.
    pub(super) fn request_timeout(&self) -> Option<Duration> {
        let set = self.first(|policy| policy.spec.timeouts.as_ref().and_then(|timeouts| timeouts.request));
        set.map(|length| length.get()).filter(|length| !length.is_zero())
    }

    /// The policies, for `explain`.
    pub(super) fn sources(&self) -> Vec<SourceRef> {
        let names = self.0.iter().map(|policy| &policy.metadata);
        names.map(|metadata| SourceRef::new("TrafficPolicy", namespace_of(metadata), name_of(metadata))).collect()
    }

    fn outlier(&self) -> Option<Outlier> {
        let defaults = Outlier::default();
        let field = |field: fn(&OutlierDetection) -> Option<u32>| {
            self.first(|policy| policy.spec.outlier_detection.as_ref().and_then(field))
        };
        let length = |field: fn(&OutlierDetection) -> Option<api::Duration>| {
            self.first(|policy| policy.spec.outlier_detection.as_ref().and_then(field)).map(|length| length.get())
        };
        let consecutive_failures = field(|o| o.consecutive_failures).unwrap_or(defaults.consecutive_failures);
        let base_ejection = length(|o| o.base_ejection).unwrap_or(defaults.base_ejection);
        let consecutive_gateway_errors = field(|o| o.consecutive_gateway_errors).unwrap_or_default();
        let consecutive_local_origin_failures = field(|o| o.consecutive_local_origin_failures).unwrap_or_default();
        let some = |factor: Option<u32>| factor.filter(|factor| *factor > 0);
        let success_rate_stdev_factor = some(field(|o| o.success_rate_stdev_factor));
        let latency_percent = some(field(|o| o.latency_percent));
        let compared = success_rate_stdev_factor.is_some() || latency_percent.is_some();
        let statistics = compared.then(|| Statistics {
            interval: length(|o| o.interval).unwrap_or(DEFAULT_INTERVAL),
            minimum_hosts: field(|o| o.minimum_hosts).unwrap_or(DEFAULT_MINIMUM_HOSTS),
            request_volume: field(|o| o.request_volume).unwrap_or(DEFAULT_REQUEST_VOLUME),
            success_rate_stdev_factor,
            latency_percent,
        });
        let in_a_row = [consecutive_failures, consecutive_gateway_errors, consecutive_local_origin_failures];
        (compared || in_a_row != [0, 0, 0]).then(|| Outlier {
            consecutive_failures,
            consecutive_gateway_errors,
            consecutive_local_origin_failures,
            statistics,
            base_ejection,
            max_ejection: length(|o| o.max_ejection).unwrap_or(defaults.max_ejection).max(base_ejection),
            max_ejected_percent: field(|o| o.max_ejection_percent).unwrap_or(defaults.max_ejected_percent),
        })
    }

    fn first<'p, T>(&'p self, field: impl Fn(&'p TrafficPolicy) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(|policy| field(policy))
    }
}

fn load_balancing(given: &api::LoadBalancing) -> LoadBalancing {
    let hash_on = || given.hash_on.iter().map(hash_on).collect();
    match given.policy {
        LoadBalancingPolicy::P2cEwma => LoadBalancing::P2cEwma,
        LoadBalancingPolicy::LeastRequest => LoadBalancing::LeastRequest,
        LoadBalancingPolicy::RoundRobin => LoadBalancing::RoundRobin,
        LoadBalancingPolicy::Random => LoadBalancing::Random,
        LoadBalancingPolicy::RingHash => LoadBalancing::RingHash(hash_on()),
        LoadBalancingPolicy::Maglev => LoadBalancing::Maglev(hash_on()),
    }
}

fn health_check(given: &api::HealthCheck, service: &ServiceName) -> HealthCheck {
    let host = || format!("{}.{}", service.name, service.namespace);
    let length = |given: Option<api::Duration>, default| given.map_or(default, api::Duration::get);
    let question = match (&given.http, &given.grpc) {
        (Some(http), _) => HealthQuestion::Http {
            host: http.host.clone().unwrap_or_else(host),
            path: http.path.clone(),
            codes: http.codes.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
        },
        (None, Some(grpc)) => {
            HealthQuestion::Grpc { authority: host(), service: grpc.service.clone().unwrap_or_default() }
        }
        (None, None) => HealthQuestion::Tcp,
    };
    HealthCheck {
        question,
        interval: length(given.interval, health_check::DEFAULT_INTERVAL),
        timeout: length(given.timeout, health_check::DEFAULT_TIMEOUT),
        unhealthy_threshold: given.unhealthy_threshold.unwrap_or(health_check::DEFAULT_UNHEALTHY_THRESHOLD),
        healthy_threshold: given.healthy_threshold.unwrap_or(health_check::DEFAULT_HEALTHY_THRESHOLD),
    }
}

fn hash_on(given: &api::load_balancing::HashOn) -> HashOn {
    let name = given.name.clone().unwrap_or_default();
    match given.r#type {
        HashOnType::Header => HashOn::Header(name.to_ascii_lowercase()),
        HashOnType::Cookie => HashOn::Cookie(name),
        HashOnType::QueryParam => HashOn::QueryParam(name),
        HashOnType::SourceIp => HashOn::SourceIp,
        HashOnType::Path => HashOn::Path,
    }
}

fn retry(given: &Retry) -> RetryPolicy {
    let base = given.backoff.map_or(DEFAULT_BACKOFF, |length| length.get());
    let mut codes = given.codes.clone();
    codes.sort_unstable();
    codes.dedup();
    let mut grpc_codes = given.grpc_codes.clone();
    grpc_codes.sort_unstable();
    grpc_codes.dedup();
    RetryPolicy {
        retries: given.attempts.unwrap_or(DEFAULT_ATTEMPTS),
        codes,
        grpc_codes,
        connection_failures: true,
        backoff_base: base,
        backoff_max: base.saturating_mul(BACKOFF_GROWTH),
    }
}
