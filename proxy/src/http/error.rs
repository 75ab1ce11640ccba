//! What can go wrong with a request, and what each failure means: its status, its name, whose fault it is, and
//! whether trying again is safe.
//!
//! The short name of a cause is the same in the `x-heddle-error` header, the `cause` label of metrics, the access
//! log and the documentation.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::body::Body;

/// Tells the caller which cause a response of the mesh's own has.
pub const X_HEDDLE_ERROR: HeaderName = HeaderName::from_static("x-heddle-error");
/// Tells the caller what made an answer of the mesh's own that is no failure.
pub const X_HEDDLE_ANSWER: HeaderName = HeaderName::from_static("x-heddle-answer");
/// Said by an inbound sidecar to the outbound one: the application never saw this request.
pub const X_HEDDLE_UNDELIVERED: HeaderName = HeaderName::from_static("x-heddle-undelivered");
/// Said by an inbound sidecar to the outbound one: its workload is on its way out, others are to be preferred. The control
/// plane says the same to everybody, if it is there and a moment later.
pub const X_HEDDLE_DRAINING: HeaderName = HeaderName::from_static("x-heddle-draining");

/// Why a request or connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The endpoint refused the TCP connection or could not be reached.
    ConnectRefused,
    /// The endpoint did not complete TCP and TLS in time.
    ConnectTimeout,
    /// The TLS handshake failed, or the peer showed another identity than expected.
    TlsFailure,
    /// The cluster has no endpoints.
    NoEndpoints,
    /// Every endpoint is ejected by outlier detection.
    AllEjected,
    /// A circuit breaker limit was reached.
    Overflow,
    /// The route's request timeout ran out.
    RequestTimeout,
    /// The timeout of one attempt ran out.
    PerTryTimeout,
    /// Nothing came, either way, for as long as the policy allows.
    IdleTimeout,
    /// The connection broke before the first byte of a response.
    ResetBeforeResponse,
    /// The connection broke after the response began.
    ResetAfterResponse,
    /// The inbound sidecar could not reach its application.
    Undelivered,
    /// Mutual TLS is required, and the caller came without.
    TlsRequired,
    /// An authorization policy said no.
    Denied,
    /// A rate limit was reached.
    RateLimited,
    /// The application has as many requests as leave its latency what it is.
    ConcurrencyLimited,
    /// The service that counts for a rate limit did not answer.
    RateLimitUnavailable,
    /// A FaultInjection said so.
    FaultInjected,
    /// The client's request breaks the protocol.
    ProtocolError,
    /// The upstream's response breaks the protocol.
    UpstreamProtocolError,
    /// Bytes that are not HTTP where HTTP is declared.
    ProtocolMismatch,
    /// The control plane has not answered about this destination.
    ConfigUnavailable,
    /// The connection would lead the proxy to itself.
    Loop,
    /// No route matches the request.
    NoRoute,
    /// The route names a backend that does not exist or may not be named.
    InvalidBackend,
    /// The destination lies outside the mesh and the egress default is to deny.
    EgressDenied,
    /// The client went away before the response ended.
    DownstreamClosed,
}

/// Who has to look into a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller.
    Downstream,
    /// The called application, its node or its network.
    Upstream,
    /// What the mesh was configured to do.
    Configuration,
}

impl Cause {
    /// Every cause, once.
    pub const ALL: [Self; 27] = [
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::TlsFailure,
        Self::NoEndpoints,
        Self::AllEjected,
        Self::Overflow,
        Self::RequestTimeout,
        Self::PerTryTimeout,
        Self::IdleTimeout,
        Self::ResetBeforeResponse,
        Self::ResetAfterResponse,
        Self::Undelivered,
        Self::TlsRequired,
        Self::Denied,
        Self::RateLimited,
        Self::RateLimitUnavailable,
        Self::ConcurrencyLimited,
        Self::FaultInjected,
        Self::ProtocolError,
        Self::UpstreamProtocolError,
        Self::ProtocolMismatch,
        Self::ConfigUnavailable,
        Self::Loop,
        Self::NoRoute,
        Self::InvalidBackend,
        Self::EgressDenied,
        Self::DownstreamClosed,
    ];

    /// The short name, the same everywhere.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// The HTTP status of the answer.
    pub fn status(self) -> StatusCode {
        self.facts().1
    }

    /// The gRPC status of the answer (gRPC `doc/statuscodes.md`).
    pub fn grpc_status(self) -> u16 {
        self.facts().2
    }

    /// Who has to look into it.
    pub fn fault(self) -> Fault {
        self.facts().3
    }

    /// Where it is explained.
    pub fn page(self) -> String {
        page(self.name())
    }

    /// What an operator checks first.
    pub fn advice(self) -> &'static str {
        self.facts().4
    }

    /// Whether the application certainly never saw the request, so that any method may be tried again.
    pub fn never_delivered(self) -> bool {
        match self {
            Self::ConnectRefused | Self::ConnectTimeout | Self::TlsFailure | Self::Undelivered => true,
            Self::NoEndpoints
            | Self::AllEjected
            | Self::Overflow
            | Self::RequestTimeout
            | Self::PerTryTimeout
            | Self::IdleTimeout
            | Self::ResetBeforeResponse
            | Self::ResetAfterResponse
            | Self::TlsRequired
            | Self::Denied
            | Self::RateLimited
            | Self::RateLimitUnavailable
            | Self::ConcurrencyLimited
            | Self::FaultInjected
            | Self::ProtocolError
            | Self::UpstreamProtocolError
            | Self::ProtocolMismatch
            | Self::ConfigUnavailable
            | Self::Loop
            | Self::NoRoute
            | Self::InvalidBackend
            | Self::EgressDenied
            | Self::DownstreamClosed => false,
        }
    }

    #[rustfmt::skip]
    fn facts(self) -> (&'static str, StatusCode, u16, Fault, &'static str) {
        use Fault::{Configuration, Downstream, Upstream};
        match self {
            Self::ConnectRefused => ("connect_refused", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Upstream, "is the application listening on this port?"),
            Self::ConnectTimeout => ("connect_timeout", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Upstream, "is the endpoint reachable, or a NetworkPolicy in the way?"),
            Self::TlsFailure => ("tls_failure", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Upstream, "do both sidecars have certificates of the same trust domain?"),
            Self::NoEndpoints => ("no_endpoints", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Configuration, "does the Service's selector match ready pods?"),
            Self::AllEjected => ("all_ejected", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Upstream, "every endpoint was failing; see heddle_outlier_ejections_total"),
            Self::Overflow => ("overflow", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Upstream, "a circuit breaker limit was reached; see TrafficPolicy circuitBreaker"),
            Self::RequestTimeout => ("request_timeout", StatusCode::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, Upstream, "the route's request timeout ran out"),
            Self::PerTryTimeout => ("per_try_timeout", StatusCode::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, Upstream, "one attempt took longer than its timeout"),
            Self::IdleTimeout => ("idle_timeout", StatusCode::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, Upstream, "nothing of request or response came for as long as TrafficPolicy timeouts.idle allows"),
            Self::ResetBeforeResponse => ("reset_before_response", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Upstream, "the application closed the connection before it answered"),
            Self::ResetAfterResponse => ("reset_after_response", StatusCode::BAD_GATEWAY, UNAVAILABLE, Upstream, "the application broke off its response"),
            Self::Undelivered => ("undelivered", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Upstream, "the sidecar there could not reach its application"),
            Self::TlsRequired => ("tls_required", StatusCode::FORBIDDEN, PERMISSION_DENIED, Configuration, "the port is STRICT and the caller has no sidecar; see MeshTLSPolicy"),
            Self::Denied => ("denied", StatusCode::FORBIDDEN, PERMISSION_DENIED, Configuration, "an AuthorizationPolicy does not allow this caller"),
            Self::RateLimited => ("rate_limited", StatusCode::TOO_MANY_REQUESTS, RESOURCE_EXHAUSTED, Configuration, "a RateLimitPolicy of the workload has no room for it; try again after Retry-After"),
            Self::RateLimitUnavailable => ("rate_limit_unavailable", StatusCode::INTERNAL_SERVER_ERROR, UNAVAILABLE, Configuration, "the service of a RateLimitPolicy did not answer, and its onFailure is Deny; see heddle_rate_limit_asked_total"),
            Self::ConcurrencyLimited => ("concurrency_limited", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Upstream, "the application has as many requests as it serves at once; see heddle_concurrency_limit and RateLimitPolicy concurrency"),
            Self::FaultInjected => ("fault_injected", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Configuration, "a FaultInjection of the route says so"),
            Self::ProtocolError => ("protocol_error", StatusCode::BAD_REQUEST, INTERNAL, Downstream, "the request is not valid HTTP"),
            Self::UpstreamProtocolError => ("upstream_protocol_error", StatusCode::BAD_GATEWAY, INTERNAL, Upstream, "the application's response is not valid HTTP"),
            Self::ProtocolMismatch => ("protocol_mismatch", StatusCode::BAD_REQUEST, UNAVAILABLE, Configuration, "the port is declared HTTP but the client speaks something else"),
            Self::ConfigUnavailable => ("config_unavailable", StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Configuration, "the control plane has not answered about this destination"),
            Self::Loop => ("loop", StatusCode::LOOP_DETECTED, UNAVAILABLE, Configuration, "the connection leads to the sidecar itself"),
            Self::NoRoute => ("no_route", StatusCode::NOT_FOUND, UNIMPLEMENTED, Configuration, "no route of this Service matches the request"),
            Self::InvalidBackend => ("invalid_backend", StatusCode::INTERNAL_SERVER_ERROR, UNAVAILABLE, Configuration, "the route names a backend that does not exist; see the route's ResolvedRefs condition"),
            Self::EgressDenied => ("egress_denied", StatusCode::FORBIDDEN, PERMISSION_DENIED, Configuration, "the destination is outside the mesh and the egress default is Deny"),
            Self::DownstreamClosed => ("downstream_closed", StatusCode::BAD_REQUEST, CANCELLED, Downstream, "the client went away"),
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name(), self.advice())
    }
}

/// A failed request: the cause and what was seen.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Error {
    /// What it means.
    pub cause: Cause,
    /// What was seen, if anything more is known.
    #[source]
    pub source: Option<BoxError>,
}

/// An error of a library underneath.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    /// A failure with what was seen.
    pub fn new(cause: Cause, source: impl Into<BoxError>) -> Self {
        Self { cause, source: Some(source.into()) }
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Self { cause, source: None }
    }
}

/// The mesh's own answer to a failed request; a gRPC caller gets a gRPC status (gRPC `PROTOCOL-HTTP2.md`,
/// Trailers-Only), any other a short text.
pub fn response(cause: Cause, grpc: bool) -> Response<Body> {
    let mut response = if grpc {
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = grpc_trailers(cause);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    } else {
        let mut response = Response::new(Body::full(text(cause).into()));
        *response.status_mut() = cause.status();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    };
    name_cause(response.headers_mut(), cause);
    response
}

/// What an answer of the mesh's own says.
pub fn text(cause: Cause) -> String {
    format!("heddle: {cause}\nsee {}\n", cause.page())
}

/// Names the cause of an answer, and the page that explains it (RFC 8288, `help`).
pub fn name_cause(headers: &mut HeaderMap, cause: Cause) {
    headers.insert(X_HEDDLE_ERROR, HeaderValue::from_static(cause.name()));
    link(headers, cause.name());
}

/// Names what made an answer that is no failure, and the page that explains it.
pub fn name_answer(headers: &mut HeaderMap, by: &'static str) {
    headers.insert(X_HEDDLE_ANSWER, HeaderValue::from_static(by));
    link(headers, by);
}

fn link(headers: &mut HeaderMap, section: &str) {
    // A URL and ASCII around it are a value.
    if let Ok(link) = HeaderValue::try_from(format!("<{}>; rel=\"help\"", page(section))) {
        headers.append(header::LINK, link);
    }
}

fn page(section: &str) -> String {
    format!("{PAGE}#{section}")
}

/// Explains every cause, each under a heading of its name; `heddle explain CAUSE` prints the same.
const PAGE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/causes.md");

/// What ends a gRPC response that cannot be completed (gRPC `PROTOCOL-HTTP2.md`, Trailers).
pub fn grpc_trailers(cause: Cause) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    trailers.insert("grpc-status", HeaderValue::from(cause.grpc_status()));
    trailers.insert("grpc-message", HeaderValue::from_static(cause.advice()));
    trailers
}

// gRPC status codes (gRPC doc/statuscodes.md).
const CANCELLED: u16 = 1;
const DEADLINE_EXCEEDED: u16 = 4;
const PERMISSION_DENIED: u16 = 7;
const RESOURCE_EXHAUSTED: u16 = 8;
const UNIMPLEMENTED: u16 = 12;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;
