//! An upstream cluster: its settings, its endpoints, and the state that belongs to the whole process.
//!
//! A [`Cluster`] is replaced when its settings change and handed the [`ClusterState`] of the one before; its
//! endpoint list is replaced in place, because endpoints change far more often than anything else and must not
//! cost a new route table. Workers keep what is theirs alone (pools, latency averages) by [`Endpoint::id`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderName;

use super::{Millis, ServiceName, Sources};
use crate::balance::{breaker, hashed, health, outlier};
use crate::http::MAX_SHARED_STREAMS;

/// Where requests for one Service port go.
#[derive(Debug)]
pub struct Cluster {
    /// Resource name, `<namespace>/<service>/<port>`.
    pub name: Arc<str>,
    /// The Service behind it; `None` for the application itself and for hosts outside the mesh.
    pub service: Option<ServiceName>,
    /// Limits, timeouts, policies.
    pub settings: Settings,
    /// SPIFFE IDs a meshed endpoint may show where the endpoint names none itself.
    pub identities: Arc<[Arc<str>]>,
    /// What it was made from.
    pub sources: Sources,
    /// The endpoints in force. Written by the control thread; a pick reads it once.
    pub endpoints: ArcSwap<EndpointSet>,
    /// Outlives replacement of the cluster.
    pub state: Arc<ClusterState>,
}

/// What a cluster is configured to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How an endpoint is chosen.
    pub policy: LoadBalancing,
    /// Over how long the share of a new endpoint grows; `None`: it is whole at once.
    pub slow_start: Option<Duration>,
    /// How long a TCP connection with its TLS handshake may take.
    pub connect_timeout: Duration,
    /// How connections are kept.
    pub connections: Connections,
    /// Finite by default.
    pub limits: breaker::Limits,
    /// When an endpoint is taken out; `None`: never.
    pub outlier: Option<outlier::Settings>,
    /// How endpoints are asked whether they are well; `None`: they are not.
    pub health_check: Option<Arc<health::Check>>,
    /// Below this share of endpoints that are well and not ejected, in percent, all are used: rather all than a crowd on few.
    pub panic_percent: u32,
    /// Share of active requests that may be retries, in percent.
    pub retry_budget_percent: u32,
    /// Retries that are always allowed at once, however few requests are active.
    pub retry_budget_floor: u32,
    /// What endpoints speak when a request must not leave as it came.
    pub upstream_http: UpstreamHttp,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: LoadBalancing::P2cEwma,
            slow_start: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            connections: Connections::default(),
            limits: breaker::Limits::default(),
            outlier: Some(outlier::Settings::default()),
            health_check: None,
            panic_percent: DEFAULT_PANIC_PERCENT,
            retry_budget_percent: DEFAULT_RETRY_BUDGET_PERCENT,
            retry_budget_floor: DEFAULT_RETRY_BUDGET_FLOOR,
            upstream_http: UpstreamHttp::AsDownstream,
        }
    }
}

/// How connections to endpoints are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// How long one without requests is kept.
    pub idle_timeout: Duration,
    /// After how long one gets no new requests; `None`: never.
    pub max_age: Option<Duration>,
    /// After how many requests one gets no new ones; `None`: never.
    pub max_requests: Option<u32>,
    /// Most requests at once on one of HTTP/2.
    pub max_streams: u32,
    /// How it is found out that the other end is gone; `None`: as the kernel does.
    pub keep_alive: Option<KeepAlive>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            max_age: None,
            max_requests: None,
            max_streams: MAX_SHARED_STREAMS,
            keep_alive: None,
        }
    }
}

/// Probes of TCP (RFC 9293 §3.8.4), which the other end's kernel answers: a busy peer is never taken for a dead one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence before the first probe.
    pub time: Duration,
    /// Between two of them.
    pub interval: Duration,
    /// How many without an answer end the connection.
    pub probes: u32,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    RingHash(Arc<[HashOn]>),
    /// By a hash, from Maglev's table.
    Maglev(Arc<[HashOn]>),
}

impl LoadBalancing {
    /// What is hashed; nothing where no hash chooses.
    pub fn hash_on(&self) -> &[HashOn] {
        match self {
            Self::RingHash(hash_on) | Self::Maglev(hash_on) => hash_on,
            Self::P2cEwma | Self::LeastRequest | Self::RoundRobin | Self::Random => &[],
        }
    }
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// The values of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(Box<str>),
    /// The value of the first query parameter of a name.
    QueryParam(Box<str>),
    /// The client's address.
    SourceIp,
    /// The path without its query.
    Path,
}

/// The HTTP version spoken to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamHttp {
    /// The version the request came in.
    AsDownstream,
    /// HTTP/1.1 always.
    Http1,
    /// HTTP/2 always.
    Http2,
}

/// State of a cluster that belongs to the process, not to one worker or one configuration.
#[derive(Debug, Default)]
pub struct ClusterState {
    /// What is open now, against [`breaker::Limits`].
    pub breaker: breaker::Counts,
    /// Endpoints ejected now; written by `balance::outlier`.
    pub ejected: AtomicU32,
    /// Endpoints that are not well; written by `balance::health` on the control thread.
    pub unwell: AtomicU32,
    /// [`Millis`](super::Millis) at which the interval of `balance::outlier` ends; 0: none has begun.
    pub window_ends: AtomicU64,
    /// [`Millis`](super::Millis) up to which one of its endpoints is leaving; written by `balance::leaving`.
    pub leaving_until: AtomicU64,
    /// Next position of round robin.
    pub round_robin: AtomicU64,
}

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// All that may be picked, far ones after near ones, draining ones last.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How many of them are not draining; they stand first.
    pub active: usize,
    /// How many of those are near, at least one if there is any: without near ones the far ones are.
    near: usize,
    /// Of the active ones, for choices by a hash.
    pub hashed: hashed::Tables,
}

impl EndpointSet {
    /// A set from endpoints in any order.
    pub fn new(mut endpoints: Vec<Arc<Endpoint>>) -> Self {
        endpoints.sort_by_key(|endpoint| (endpoint.draining, endpoint.far));
        let active = endpoints.iter().filter(|endpoint| !endpoint.draining).count();
        let near = endpoints.iter().take(active).filter(|endpoint| !endpoint.far).count();
        let near = if near == 0 { active } else { near };
        Self { endpoints, active, near, hashed: hashed::Tables::default() }
    }

    /// This set, where a cluster holds it.
    pub fn into_swap(self) -> ArcSwap<Self> {
        ArcSwap::from_pointee(self)
    }

    /// Those that take new requests.
    pub fn active(&self) -> &[Arc<Endpoint>] {
        self.endpoints.get(..self.active).unwrap_or_default()
    }

    /// Those of them that are used while they are well.
    pub fn near(&self) -> &[Arc<Endpoint>] {
        self.endpoints.get(..self.near).unwrap_or_default()
    }

    /// Those of them that help out.
    pub fn far(&self) -> &[Arc<Endpoint>] {
        self.endpoints.get(self.near..self.active).unwrap_or_default()
    }

    /// The state of each endpoint by address, for the set that replaces this one.
    pub fn states(&self) -> HashMap<SocketAddr, Arc<EndpointState>> {
        self.endpoints.iter().map(|e| (e.address, e.state.clone())).collect()
    }
}

/// One endpoint of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether and as whom it is spoken to over mutual TLS.
    pub tls: EndpointTls,
    /// Relative share, at least 1.
    pub weight: u32,
    /// On its way out: keeps its connections, gets no new requests.
    pub draining: bool,
    /// Helps out as far as those that are not are not well.
    pub far: bool,
    /// The workload behind it, `<namespace>/<name>`, for metrics; empty if unknown.
    pub workload: Arc<str>,
    /// Kept when the endpoint is announced again.
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// The identity under which workers keep pools and averages: unique in the process, kept over updates.
    pub fn id(&self) -> u64 {
        self.state.id
    }
}

/// How an endpoint is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointTls {
    /// As the application would.
    Plaintext,
    /// Mutual TLS, and the peer must show one of these SPIFFE IDs.
    Mtls(Arc<[Arc<str>]>),
}

/// State of an endpoint that belongs to the process.
#[derive(Debug)]
pub struct EndpointState {
    id: u64,
    /// When it was announced; 0: with its cluster.
    pub since: Millis,
    /// Written by `balance::outlier` as results come in.
    pub outlier: outlier::State,
    /// What it answered when it was asked; written by `balance::health` on the control thread.
    pub health: health::State,
    /// [`Millis`](super::Millis) up to which it is leaving; 0: it never said so. Written by `balance::leaving`.
    pub leaving_until: AtomicU64,
    /// [`Millis`](super::Millis) up to which it wants to be left alone; 0: it never said so. Written by `balance::leaving`.
    pub resting_until: AtomicU64,
}

impl EndpointState {
    /// Of an endpoint that is new.
    pub fn appeared(now: Millis) -> Self {
        Self { since: now, ..Self::default() }
    }
}

impl Default for EndpointState {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            id,
            since: Millis::default(),
            outlier: outlier::State::default(),
            health: health::State::default(),
            leaving_until: AtomicU64::new(0),
            resting_until: AtomicU64::new(0),
        }
    }
}

/// Chosen, because a handshake inside a cluster takes milliseconds, and one lost SYN is sent again after 1 s
/// (RFC 6298 §2.1): twice that survives one loss.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Below the keep-alive of common servers (nginx 75 s, Go unlimited, Node 5 s is the exception), so that a
/// connection is rarely closed by the other side just when it is lent.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Chosen: between Envoy's 50 and Istio's 0.
pub const DEFAULT_PANIC_PERCENT: u32 = 30;
/// Chosen as Linkerd and Envoy do: a fifth more load at the worst.
pub const DEFAULT_RETRY_BUDGET_PERCENT: u32 = 20;
/// Chosen: with few requests active, a percentage would allow none.
pub const DEFAULT_RETRY_BUDGET_FLOOR: u32 = 3;
