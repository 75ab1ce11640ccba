//! `TrafficPolicy`: how clients talk to a Service: balancing, timeouts, circuit breaking, outlier detection, retries.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::target::{self, GATEWAY_GROUP};
use super::{Connections, Duration, FieldError, HealthCheck, LoadBalancing, ObjectStatus, TargetRef};

/// How clients talk to what is targeted. Field by field, a route's policy wins over a Service's and that over the
/// Namespace's; of two with the same target the oldest wins whole.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    namespaced,
    status = "ObjectStatus",
    doc = "How clients talk to a Service: balancing, timeouts, circuit breaking, outlier detection, retries.",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.targetRefs.all(t, ((!has(t.group) || t.group == '') && t.kind in ['Service', 'Namespace']) || (has(t.group) && t.group == 'gateway.networking.k8s.io' && t.kind in ['HTTPRoute', 'GRPCRoute']))").message("target a Service, an HTTPRoute, a GRPCRoute or this Namespace"))]
#[x_kube(validation = Rule::new("!has(self.loadBalancing) || (has(self.loadBalancing.hashOn) && size(self.loadBalancing.hashOn) > 0) == (self.loadBalancing.policy in ['RingHash', 'Maglev'])").message("loadBalancing.hashOn belongs to the policies RingHash and Maglev, and only to them"))]
#[x_kube(validation = Rule::new("!has(self.loadBalancing) || !has(self.loadBalancing.hashOn) || self.loadBalancing.hashOn.all(h, has(h.name) == (h.type in ['Header', 'Cookie', 'QueryParam']))").message("loadBalancing.hashOn: a Header, Cookie or QueryParam has a name, SourceIP and Path have none"))]
#[x_kube(validation = Rule::new("!has(self.loadBalancing) || !has(self.loadBalancing.slowStart) || (self.loadBalancing.policy in ['P2CEWMA', 'LeastRequest', 'RoundRobin'] && duration(self.loadBalancing.slowStart) > duration('0s'))").message("loadBalancing.slowStart must be above 0s, and belongs to P2CEWMA, LeastRequest and RoundRobin"))]
#[x_kube(validation = Rule::new("!has(self.connectTimeout) || duration(self.connectTimeout) > duration('0s')").message("connectTimeout must be above 0s"))]
#[x_kube(validation = Rule::new("!has(self.outlierDetection) || !has(self.outlierDetection.baseEjection) || duration(self.outlierDetection.baseEjection) > duration('0s')").message("outlierDetection.baseEjection must be above 0s"))]
#[x_kube(validation = Rule::new("!has(self.outlierDetection) || !has(self.outlierDetection.maxEjection) || duration(self.outlierDetection.maxEjection) > duration('0s')").message("outlierDetection.maxEjection must be above 0s"))]
#[x_kube(validation = Rule::new("!has(self.outlierDetection) || !has(self.outlierDetection.interval) || duration(self.outlierDetection.interval) > duration('0s')").message("outlierDetection.interval must be above 0s"))]
#[x_kube(validation = Rule::new("!has(self.outlierDetection) || !has(self.outlierDetection.latencyPercent) || self.outlierDetection.latencyPercent == 0 || self.outlierDetection.latencyPercent > 100").message("outlierDetection.latencyPercent must be above 100, or 0"))]
#[x_kube(validation = Rule::new("!has(self.healthCheck) || [has(self.healthCheck.http), has(self.healthCheck.grpc), has(self.healthCheck.tcp)].filter(given, given).size() == 1").message("healthCheck: give one of http, grpc and tcp"))]
#[x_kube(validation = Rule::new("!has(self.healthCheck) || !has(self.healthCheck.interval) || duration(self.healthCheck.interval) >= duration('100ms')").message("healthCheck.interval must be at least 100ms"))]
#[x_kube(validation = Rule::new("!has(self.healthCheck) || !has(self.healthCheck.timeout) || duration(self.healthCheck.timeout) > duration('0s')").message("healthCheck.timeout must be above 0s"))]
#[x_kube(validation = Rule::new("!has(self.connections) || !has(self.connections.idleTimeout) || duration(self.connections.idleTimeout) > duration('0s')").message("connections.idleTimeout must be above 0s"))]
#[x_kube(validation = Rule::new("!has(self.connections) || !has(self.connections.maxAge) || duration(self.connections.maxAge) > duration('0s')").message("connections.maxAge must be above 0s"))]
#[x_kube(validation = Rule::new("!has(self.connections) || !has(self.connections.tcpKeepalive) || !has(self.connections.tcpKeepalive.time) || duration(self.connections.tcpKeepalive.time) >= duration('1s')").message("connections.tcpKeepalive.time must be at least 1s"))]
#[x_kube(validation = Rule::new("!has(self.connections) || !has(self.connections.tcpKeepalive) || !has(self.connections.tcpKeepalive.interval) || duration(self.connections.tcpKeepalive.interval) >= duration('1s')").message("connections.tcpKeepalive.interval must be at least 1s"))]
#[x_kube(validation = Rule::new("!has(self.hedge) || duration(self.hedge.delay) > duration('0s')").message("hedge.delay must be above 0s"))]
#[x_kube(validation = Rule::new("!has(self.retry) || !has(self.retry.backoff) || duration(self.retry.backoff) > duration('0s')").message("retry.backoff must be above 0s"))]
pub struct TrafficPolicySpec {
    /// Services, HTTPRoutes, GRPCRoutes (group `gateway.networking.k8s.io`) or the Namespace of the policy itself; 1
    /// to 16. A route takes only `retry`, `hedge` and `timeouts`: the rest belongs to a Service's connections.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// How an endpoint is chosen. Default: P2CEWMA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// How long a TCP connection with its TLS handshake may take; above 0. Default: 2s (one lost SYN survives, RFC
    /// 6298).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// How connections to endpoints are kept. Default: as said at its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// Most that may be open at once from one client workload to one Service port. Overflow is answered 503 at once.
    /// Default: the limits named at its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// When a failing endpoint is left out for a while. Default: as said at its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are asked whether they are well; those that are not get no requests. Default: they are not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// When a failed request is made again. Default: only what was never delivered is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When another endpoint is asked beside one that does not answer. Sidecars only: Envoy's hedging would ask twice whatever the
    /// method. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// How long a request may take. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
}

/// Most that may be open at once.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct CircuitBreaker {
    /// TCP connections. Default: 10000 (about 200 MiB of sidecar memory at the very worst).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// Requests under way. Default: 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_requests: Option<u32>,
    /// Retries under way, beside the retry budget of 20 % of active requests. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// When a failing endpoint is left out.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct OutlierDetection {
    /// Failures in a row (5xx, connection failures, timeouts) that eject; 0: none do. Default: 5 (Envoy's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// Gateway errors in a row (502, 503, 504, connection failures, timeouts) that eject; 0: none do. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    /// Failures without a response in a row (connection failures, timeouts) that eject; they count for nothing else then. 0:
    /// they count as failures and gateway errors. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_local_origin_failures: Option<u32>,
    /// Ejected if the share of answers that are no 5xx is lower than the endpoints' mean by so many thousandths of a standard
    /// deviation, over an `interval`; 0: not compared. Default: 0; Envoy's is 1900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate_stdev_factor: Option<u32>,
    /// Ejected if answers take on average more than this percentage of the endpoints' median, over an `interval`; above
    /// 100, or 0: not compared. Sidecars only: Envoy does not compare latencies. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_percent: Option<u32>,
    /// Over how long success rates and latencies are compared; above 0. Default: 10s (Envoy's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// Endpoints with `requestVolume` without which none is compared. Default: 5 (Envoy's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2))]
    pub minimum_hosts: Option<u32>,
    /// Requests of one interval from one client without which an endpoint is not compared. Default: 100 (Envoy's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub request_volume: Option<u32>,
    /// Length of the first ejection, the n-th in a row being n times as long; above 0. Default: 30s (Envoy's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection: Option<Duration>,
    /// Longest ejection; above 0. Default: 300s (Envoy's), or `baseEjection` if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejection: Option<Duration>,
    /// Most endpoints out at once, in percent of those that take requests. Default: 50 (Envoy's 10 is none of three).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub max_ejection_percent: Option<u32>,
    /// Below this share of endpoints that are neither ejected nor found unwell by `healthCheck`, in percent, all are used: rather all
    /// than a crowd on few. Default: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub panic_threshold: Option<u32>,
}

/// When a failed request is made again.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Retry {
    /// Retries after the first attempt, 0 to 10. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10))]
    pub attempts: Option<u32>,
    /// Response codes that are tried again, 400 to 599. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 400, max = 599)))]
    pub codes: Vec<u16>,
    /// gRPC status codes that are tried again, 1 to 16 (gRPC `statuscodes.md`). Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(range(min = 1, max = 16)))]
    pub grpc_codes: Vec<u16>,
    /// How long one attempt may take; `0s`: no limit of its own. Default: no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// Base of the exponential back-off, which has full jitter and ends at ten times this; above 0. Default: 25ms
    /// (Envoy's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Duration>,
}

/// Attempts beside one another; the first good answer counts and the others are given up. Only of requests without a body whose method
/// is idempotent (RFC 9110 §9.2.2), each at an endpoint that was not asked yet, and within the budget of retries.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Hedge {
    /// How long an answer is waited for before one more endpoint is asked; above 0. A good choice is what 95 in 100 answers take.
    pub delay: Duration,
    /// How many more are asked at most, 1 to 3. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3))]
    pub attempts: Option<u32>,
}

/// How long a request may take.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Timeouts {
    /// From the request's arrival at the client's sidecar to the end of its response, retries included; `0s`: no limit.
    /// Default: no limit. A route rule's own `timeouts` win.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// Longest silence of a request that is under way: nothing of its body and nothing of its response; `0s`: no limit. Connections that
    /// are not looked into, and upgraded ones, have none. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
}

impl TrafficPolicySpec {
    /// What cannot be meant.
    pub fn check(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        if self.target_refs.is_empty() {
            let remedy = "name what the policy is for: a Service, an HTTPRoute, a GRPCRoute or this Namespace";
            found.push(FieldError::new("spec.targetRefs", "[]", remedy));
        }
        target::check(&self.target_refs, None, TARGETS, &mut found);
        let outlier = self.outlier_detection.clone().unwrap_or_default();
        let retry = self.retry.clone().unwrap_or_default();
        let lengths = [
            ("spec.connectTimeout", self.connect_timeout),
            ("spec.outlierDetection.baseEjection", outlier.base_ejection),
            ("spec.outlierDetection.maxEjection", outlier.max_ejection),
            ("spec.outlierDetection.interval", outlier.interval),
            ("spec.retry.backoff", retry.backoff),
        ];
        for (field, length) in lengths {
            if length.is_some_and(Duration::is_zero) {
                found.push(FieldError::new(field, "0s", "give a length above 0, or leave the field out"));
            }
        }
        let percents = [
            ("spec.outlierDetection.maxEjectionPercent", outlier.max_ejection_percent),
            ("spec.outlierDetection.panicThreshold", outlier.panic_threshold),
        ];
        for (field, percent) in percents {
            if let Some(value) = percent.filter(|value| *value > 100) {
                found.push(FieldError::new(field, value, "give a percentage from 0 to 100"));
            }
        }
        if let Some(percent) = outlier.latency_percent.filter(|percent| (1..=100).contains(percent)) {
            let remedy = "give more than 100: half of all endpoints are slower than their median";
            found.push(FieldError::new("spec.outlierDetection.latencyPercent", percent, remedy));
        }
        let least = [
            ("spec.outlierDetection.minimumHosts", outlier.minimum_hosts, 2),
            ("spec.outlierDetection.requestVolume", outlier.request_volume, 1),
        ];
        for (field, value, least) in least {
            if let Some(value) = value.filter(|value| *value < least) {
                found.push(FieldError::new(field, value, format!("give at least {least}")));
            }
        }
        if let Some(breaker) = &self.circuit_breaker {
            let limits = [
                ("spec.circuitBreaker.maxConnections", breaker.max_connections),
                ("spec.circuitBreaker.maxRequests", breaker.max_requests),
            ];
            for (field, limit) in limits {
                if limit == Some(0) {
                    found.push(FieldError::new(field, 0, "give at least 1: with 0 no request could ever pass"));
                }
            }
        }
        self.load_balancing.iter().for_each(|balancing| balancing.check(&mut found));
        self.health_check.iter().for_each(|check| check.check(&mut found));
        self.connections.iter().for_each(|connections| connections.check(&mut found));
        check_retry(&retry, &mut found);
        if let Some(hedge) = &self.hedge {
            if hedge.delay.is_zero() {
                found.push(FieldError::new("spec.hedge.delay", hedge.delay, "give a length above 0"));
            }
            if let Some(attempts) = hedge.attempts.filter(|attempts| !(1..=MAX_HEDGES).contains(attempts)) {
                found.push(FieldError::new("spec.hedge.attempts", attempts, format!("give 1 to {MAX_HEDGES}")));
            }
        }
        found
    }
}

fn check_retry(retry: &Retry, found: &mut Vec<FieldError>) {
    if let Some(attempts) = retry.attempts.filter(|attempts| *attempts > MAX_ATTEMPTS) {
        found.push(FieldError::new("spec.retry.attempts", attempts, format!("give at most {MAX_ATTEMPTS} retries")));
    }
    for (i, code) in retry.codes.iter().enumerate() {
        if !(400..=599).contains(code) {
            let remedy = "give a response code from 400 to 599 (Gateway API, HTTPRouteRetry)";
            found.push(FieldError::new(format!("spec.retry.codes[{i}]"), code, remedy));
        }
    }
    for (i, code) in retry.grpc_codes.iter().enumerate() {
        if !(1..=16).contains(code) {
            let remedy = "give a gRPC status code from 1 (CANCELLED) to 16 (UNAUTHENTICATED)";
            found.push(FieldError::new(format!("spec.retry.grpcCodes[{i}]"), code, remedy));
        }
    }
}

/// Kinds a TrafficPolicy may target.
const TARGETS: &[(&str, &str)] =
    &[("", "Service"), ("", "Namespace"), (GATEWAY_GROUP, "HTTPRoute"), (GATEWAY_GROUP, "GRPCRoute")];
/// Chosen: what ten retries do not save, an eleventh will not.
const MAX_ATTEMPTS: u32 = 10;
/// Chosen: each asks one more endpoint for the same.
const MAX_HEDGES: u32 = 3;
/// Envoy's `interval` of outlier detection.
pub const DEFAULT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);
/// Envoy's `success_rate_minimum_hosts`.
pub const DEFAULT_MINIMUM_HOSTS: u32 = 5;
/// Envoy's `success_rate_request_volume`.
pub const DEFAULT_REQUEST_VOLUME: u32 = 100;
/// Chosen: the most common wish, one more attempt.
pub const DEFAULT_ATTEMPTS: u32 = 1;
/// Envoy's `base_interval`.
pub const DEFAULT_BACKOFF: std::time::Duration = std::time::Duration::from_millis(25);
/// Envoy's: the longest back-off is ten times the base.
pub const BACKOFF_GROWTH: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_that_cannot_be_meant_is_named_by_its_field() {
        let spec = TrafficPolicySpec {
            target_refs: vec![TargetRef { kind: "Deployment".into(), name: "api".into(), ..TargetRef::default() }],
            connect_timeout: Some("0s".parse().unwrap()),
            circuit_breaker: Some(CircuitBreaker { max_requests: Some(0), ..CircuitBreaker::default() }),
            outlier_detection: Some(OutlierDetection { panic_threshold: Some(101), ..OutlierDetection::default() }),
            retry: Some(Retry {
                attempts: Some(11),
                codes: vec![200],
                grpc_codes: vec![17],
                backoff: Some("0ms".parse().unwrap()),
                ..Retry::default()
            }),
            hedge: Some(Hedge { delay: "0s".parse().unwrap(), attempts: Some(4) }),
            ..TrafficPolicySpec::default()
        };
        let fields: Vec<_> = spec.check().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "spec.targetRefs[0].kind",
                "spec.connectTimeout",
                "spec.retry.backoff",
                "spec.outlierDetection.panicThreshold",
                "spec.circuitBreaker.maxRequests",
                "spec.retry.attempts",
                "spec.retry.codes[0]",
                "spec.retry.grpcCodes[0]",
                "spec.hedge.delay",
                "spec.hedge.attempts",
            ]
        );
    }
}
