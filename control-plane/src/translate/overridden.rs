//! What says otherwise than a TrafficPolicy, nearer to the requests: field by field a Service's policy before its Namespace's,
//! a route's before the Service's, and a rule's own fields before all policies.

use std::collections::BTreeSet;

use super::traffic;
use crate::api::traffic_policy::TrafficPolicySpec;
use crate::api::{TargetRef, TrafficPolicy};
use crate::objects::route::RouteRule;
use crate::objects::{Kind, Objects, Route, name_of, namespace_of};

/// What overrides fields of `policy`, a phrase for each place; empty: nothing does.
pub(super) fn overridden(objects: &Objects, policy: &TrafficPolicy) -> Vec<String> {
    let namespace = namespace_of(&policy.metadata);
    let mut found = Found { objects, fields: fields(&policy.spec), phrases: BTreeSet::new() };
    for target in &policy.spec.target_refs {
        match target.kind.as_str() {
            "Namespace" => {
                for service in objects.services.in_namespace(namespace) {
                    found.at_service(namespace, name_of(&service.metadata));
                    found.at_routes_of(namespace, name_of(&service.metadata));
                }
            }
            "Service" => found.at_routes_of(namespace, &target.name),
            kind => {
                let routes = objects.routes().filter(|route| route.kind.name() == kind);
                let mut own = routes.filter(|route| namespace_of(&route.metadata) == namespace);
                if let Some(route) = own.find(|route| name_of(&route.metadata) == target.name) {
                    found.in_rules(route);
                }
            }
        }
    }
    found.phrases.into_iter().collect()
}

struct Found<'o> {
    objects: &'o Objects,
    /// What the policy says.
    fields: BTreeSet<&'static str>,
    phrases: BTreeSet<String>,
}

impl Found<'_> {
    fn at_service(&mut self, namespace: &str, name: &str) {
        let hits = |target: &TargetRef| target.kind == "Service" && target.name == name;
        if let Some(nearer) = traffic::winner(self.objects, namespace, &hits) {
            let who = format!("TrafficPolicy {} for Service {name}", name_of(&nearer.metadata));
            self.note(&fields(&nearer.spec), &who);
        }
    }

    fn at_routes_of(&mut self, namespace: &str, service: &str) {
        let objects = self.objects;
        for route in objects.routes_of(namespace, service) {
            let (kind, own, name) = (route.kind.name(), namespace_of(&route.metadata), name_of(&route.metadata));
            let hits = |target: &TargetRef| target.kind == kind && target.name == name;
            if let Some(nearer) = traffic::winner(objects, own, &hits) {
                let said: BTreeSet<_> = fields(&nearer.spec).intersection(&OF_ROUTES.into()).copied().collect();
                self.note(&said, &format!("TrafficPolicy {own}/{} for {kind} {name}", name_of(&nearer.metadata)));
            }
            self.in_rules(route);
        }
    }

    fn in_rules(&mut self, route: &Route) {
        let place = format!("{} {}/{}", route.kind.name(), namespace_of(&route.metadata), name_of(&route.metadata));
        for (index, rule) in route.spec.rules.iter().flatten().enumerate() {
            let at = rule.name.clone().unwrap_or_else(|| index.to_string());
            self.note(&fields_of_rule(route.kind, rule), &format!("{place}, rule {at}"));
        }
    }

    fn note(&mut self, said: &BTreeSet<&'static str>, who: &str) {
        let both: Vec<_> = self.fields.intersection(said).copied().collect();
        if !both.is_empty() {
            self.phrases.insert(format!("{} by {who}", both.join(", ")));
        }
    }
}

/// What a policy says, by the parts that [`super::traffic`] takes whole.
fn fields(spec: &TrafficPolicySpec) -> BTreeSet<&'static str> {
    let breaker = spec.circuit_breaker.as_ref();
    let connections = spec.connections.as_ref();
    let outlier = spec.outlier_detection.as_ref();
    let set = [
        ("loadBalancing", spec.load_balancing.is_some()),
        ("connectTimeout", spec.connect_timeout.is_some()),
        ("circuitBreaker.maxConnections", breaker.is_some_and(|b| b.max_connections.is_some())),
        ("circuitBreaker.maxPending", breaker.is_some_and(|b| b.max_pending.is_some())),
        ("circuitBreaker.maxRequests", breaker.is_some_and(|b| b.max_requests.is_some())),
        ("circuitBreaker.maxRetries", breaker.is_some_and(|b| b.max_retries.is_some())),
        ("outlierDetection.consecutiveFailures", outlier.is_some_and(|o| o.consecutive_failures.is_some())),
        ("outlierDetection.consecutiveGatewayErrors", outlier.is_some_and(|o| o.consecutive_gateway_errors.is_some())),
        (
            "outlierDetection.consecutiveLocalOriginFailures",
            outlier.is_some_and(|o| o.consecutive_local_origin_failures.is_some()),
        ),
        ("outlierDetection.successRateStdevFactor", outlier.is_some_and(|o| o.success_rate_stdev_factor.is_some())),
        ("outlierDetection.latencyPercent", outlier.is_some_and(|o| o.latency_percent.is_some())),
        ("outlierDetection.interval", outlier.is_some_and(|o| o.interval.is_some())),
        ("outlierDetection.minimumHosts", outlier.is_some_and(|o| o.minimum_hosts.is_some())),
        ("outlierDetection.requestVolume", outlier.is_some_and(|o| o.request_volume.is_some())),
        ("outlierDetection.baseEjection", outlier.is_some_and(|o| o.base_ejection.is_some())),
        ("outlierDetection.maxEjection", outlier.is_some_and(|o| o.max_ejection.is_some())),
        ("outlierDetection.maxEjectionPercent", outlier.is_some_and(|o| o.max_ejection_percent.is_some())),
        ("outlierDetection.panicThreshold", outlier.is_some_and(|o| o.panic_threshold.is_some())),
        ("healthCheck", spec.health_check.is_some()),
        ("connections.idleTimeout", connections.is_some_and(|c| c.idle_timeout.is_some())),
        ("connections.maxAge", connections.is_some_and(|c| c.max_age.is_some())),
        ("connections.maxRequests", connections.is_some_and(|c| c.max_requests.is_some())),
        ("connections.maxStreams", connections.is_some_and(|c| c.max_streams.is_some())),
        ("connections.tcpKeepalive", connections.is_some_and(|c| c.tcp_keepalive.is_some())),
        ("timeouts.idle", spec.timeouts.as_ref().is_some_and(|timeouts| timeouts.idle.is_some())),
        ("hedge", spec.hedge.is_some()),
        (RETRY, spec.retry.is_some()),
        (TRY, spec.retry.as_ref().is_some_and(|retry| retry.per_try_timeout.is_some())),
        (REQUEST, spec.timeouts.as_ref().is_some_and(|timeouts| timeouts.request.is_some())),
    ];
    set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
}

/// A GRPCRoute has no such fields.
fn fields_of_rule(kind: Kind, rule: &RouteRule) -> BTreeSet<&'static str> {
    if kind != Kind::HttpRoute {
        return BTreeSet::new();
    }
    let timeouts = rule.timeouts.as_ref();
    let set = [
        (RETRY, rule.retry.is_some()),
        (TRY, timeouts.is_some_and(|timeouts| timeouts.backend_request.is_some())),
        (REQUEST, timeouts.is_some_and(|timeouts| timeouts.request.is_some())),
    ];
    set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
}

const RETRY: &str = "retry";
const TRY: &str = "retry.perTryTimeout";
const REQUEST: &str = "timeouts.request";
/// The fields a route's policy has.
const OF_ROUTES: [&str; 3] = [RETRY, TRY, REQUEST];
