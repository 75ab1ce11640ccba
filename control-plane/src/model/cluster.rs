//! A cluster: how one port of a Service, or one workload, is talked to.

use std::time::Duration;

use serde::Serialize;

use super::duration;
use super::name::{ResourceName, ServiceName, SourceRef, SpiffeId};

/// Where requests for one Service port go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// `<ns>/<svc>/<port>`, or a direct destination's.
    pub name: ResourceName,
    /// The Service behind it; for a workload dialled directly, the one Service that owns the port, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Limits, timeouts, policies.
    #[serde(skip_serializing_if = "Settings::is_default")]
    pub settings: Settings,
    /// All identities its meshed endpoints may show, sorted. Empty: none is meshed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<SpiffeId>,
    /// Objects this was made from, sorted.
    pub sources: Vec<SourceRef>,
}

/// What a cluster is configured to do. Defaults are the sidecar's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Over how long the share of a new endpoint grows; `None`: it is whole at once.
    #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Duration>,
    /// How long a TCP connection with its TLS handshake may take.
    #[serde(serialize_with = "duration::text")]
    pub connect_timeout: Duration,
    /// How connections are kept.
    pub connections: Connections,
    /// Most that may be open at once.
    pub limits: Limits,
    /// When an endpoint is taken out; `None`: never.
    pub outlier: Option<Outlier>,
    /// How endpoints are asked whether they are well; `None`: they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Below this share of endpoints that are well and not ejected, in percent, all are used.
    pub panic_percent: u32,
    /// How many retries there may be.
    pub retry_budget: RetryBudget,
    /// What endpoints speak when a request must not leave as it came.
    pub upstream_http: UpstreamHttp,
}

/// How connections to endpoints are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// How long one without requests is kept.
    #[serde(serialize_with = "duration::text")]
    pub idle_timeout: Duration,
    /// After how long one gets no new requests; `None`: never.
    #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// After how many requests one gets no new ones; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Most requests at once on one of HTTP/2; `None`: as many as the client takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_streams: Option<u32>,
    /// How it is found out that the other end is gone.
    pub keep_alive: KeepAlive,
}

/// Probes of TCP, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeepAlive {
    /// Silence before the first probe.
    #[serde(serialize_with = "duration::text")]
    pub time: Duration,
    /// Between two of them.
    #[serde(serialize_with = "duration::text")]
    pub interval: Duration,
    /// How many without an answer end the connection.
    pub probes: u32,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancing {
    /// The better of two random endpoints by peak EWMA latency and requests in flight.
    P2cEwma,
    /// The one of two random endpoints with fewer requests in flight.
    LeastRequest,
    /// One after another, by weight.
    RoundRobin,
    /// Any, by weight.
    Random,
    /// By a hash, on a ring.
    RingHash(Vec<HashOn>),
    /// By a hash, from Maglev's table.
    Maglev(Vec<HashOn>),
}

/// What of a request is hashed, as its client sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HashOn {
    /// The header of this name, in lower case.
    Header(String),
    /// The cookie of this name.
    Cookie(String),
    /// The first query parameter of this name.
    QueryParam(String),
    /// The client's address.
    SourceIp,
    /// The path without its query.
    Path,
}

/// Circuit breaker limits of one sidecar towards one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// TCP connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests under way.
    pub requests: u32,
    /// Retries under way.
    pub retries: u32,
}

/// How endpoints are compared over intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Over how long requests are counted.
    #[serde(serialize_with = "duration::text")]
    pub interval: Duration,
    /// Endpoints with enough requests without which nothing is compared.
    pub minimum_hosts: u32,
    /// Requests of one interval without which an endpoint is not compared.
    pub request_volume: u32,
    /// Ejected below the mean success rate by so many thousandths of a standard deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate_stdev_factor: Option<u32>,
    /// Ejected above this percentage of the median latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_percent: Option<u32>,
}

/// When an endpoint is ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outlier {
    /// Failures in a row (5xx, connection failures, timeouts) that eject.
    pub consecutive_failures: u32,
    /// Gateway errors in a row that eject; 0: none do.
    #[serde(skip_serializing_if = "is_zero")]
    pub consecutive_gateway_errors: u32,
    /// Failures without a response in a row that eject, and then count for nothing else; 0: they count as failures.
    #[serde(skip_serializing_if = "is_zero")]
    pub consecutive_local_origin_failures: u32,
    /// How an endpoint is told by comparison; `None`: it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
    /// Length of the first ejection; the n-th in a row is n times as long.
    #[serde(serialize_with = "duration::text")]
    pub base_ejection: Duration,
    /// Longest ejection.
    #[serde(serialize_with = "duration::text")]
    pub max_ejection: Duration,
    /// Most endpoints out at once, in percent.
    pub max_ejected_percent: u32,
}

/// How endpoints are asked whether they are well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// What they are asked.
    pub question: HealthQuestion,
    /// From one answer to the next question.
    #[serde(serialize_with = "duration::text")]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(serialize_with = "duration::text")]
    pub timeout: Duration,
    /// Failures in a row after which an endpoint is not well; of the first question one.
    pub unhealthy_threshold: u32,
    /// Successes in a row after which it is well again.
    pub healthy_threshold: u32,
}

/// What endpoints are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthQuestion {
    /// For a connection.
    Tcp,
    /// `GET` of a path.
    #[serde(rename_all = "camelCase")]
    Http {
        /// The authority.
        host: String,
        /// Path and query.
        path: String,
        /// Status codes that say yes, sorted; empty: 200 to 399.
        codes: Vec<u16>,
    },
    /// `grpc.health.v1.Health/Check`.
    #[serde(rename_all = "camelCase")]
    Grpc {
        /// The authority.
        authority: String,
        /// The gRPC service; empty: the server as a whole.
        service: String,
    },
}

/// How many retries there may be at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Share of active requests, in percent.
    pub percent: u32,
    /// Always allowed, however few requests are active.
    pub floor: u32,
}

/// The HTTP version spoken to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamHttp {
    /// The version the request came in.
    AsDownstream,
    /// HTTP/1.1 always.
    Http1,
    /// HTTP/2 always.
    Http2,
}

impl Settings {
    /// Whether nobody asked for anything; golden files leave such settings out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            load_balancing: LoadBalancing::P2cEwma,
            slow_start: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            connections: Connections::default(),
            limits: Limits::default(),
            outlier: Some(Outlier::default()),
            health_check: None,
            panic_percent: DEFAULT_PANIC_PERCENT,
            retry_budget: RetryBudget::default(),
            upstream_http: UpstreamHttp::AsDownstream,
        }
    }
}

/// The sidecar's own.
impl Default for Connections {
    fn default() -> Self {
        Self {
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            max_age: None,
            max_requests: None,
            max_streams: None,
            keep_alive: KeepAlive::default(),
        }
    }
}

/// The sidecar's own: a node that is gone is found out after two minutes; Linux by itself takes more than two hours.
impl Default for KeepAlive {
    fn default() -> Self {
        Self { time: Duration::from_secs(60), interval: Duration::from_secs(15), probes: 4 }
    }
}

/// The sidecar's own: finite, above what a healthy service with slow answers needs.
impl Default for Limits {
    fn default() -> Self {
        Self { connections: 10_000, pending: 1_000, requests: 10_000, retries: 100 }
    }
}

/// The sidecar's own: Envoy's counts and times, but half the endpoints may go.
impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            consecutive_gateway_errors: 0,
            consecutive_local_origin_failures: 0,
            statistics: None,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
        }
    }
}

/// The sidecar's own: a fifth more load at the worst, and a floor for quiet clients.
impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, floor: 3 }
    }
}

/// The sidecar's own: one lost SYN is sent again after 1 s (RFC 6298 §2.1); twice that survives one loss.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The sidecar's own: between Envoy's 50 and Istio's 0.
pub const DEFAULT_PANIC_PERCENT: u32 = 30;
/// The sidecar's own: below the keep-alive of common servers.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

fn is_zero(count: &u32) -> bool {
    *count == 0
}
