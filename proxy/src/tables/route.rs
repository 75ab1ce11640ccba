//! HTTP routes as the request path reads them: already in order of precedence, names resolved to clusters.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

use super::Sources;
use super::cluster::Cluster;

/// All routes of one Service port, first match wins.
#[derive(Debug)]
pub struct RouteTable {
    /// Resource name, `<namespace>/<service>/<port>`.
    pub name: Arc<str>,
    /// In order of Gateway API precedence; the control plane sorts, the sidecar only walks.
    pub routes: Vec<Route>,
    /// What they were made from.
    pub sources: Sources,
}

/// One match and what it leads to. A rule with several matches stands here once per match.
#[derive(Debug)]
pub struct Route {
    /// What a request must look like.
    pub matches: RouteMatch,
    /// What is done with it.
    pub rule: Arc<Rule>,
}

/// Conditions on a request; all must hold. Absent ones hold always.
#[derive(Debug, Default)]
pub struct RouteMatch {
    /// Condition on the path, without query.
    pub path: Option<PathMatch>,
    /// Conditions on headers; names are matched without case (RFC 9110 §5.1).
    pub headers: Vec<(HeaderName, StringMatch)>,
    /// Conditions on query parameters; the first of a repeated name counts.
    pub query: Vec<(String, StringMatch)>,
    /// The method, exactly.
    pub method: Option<Method>,
}

/// Condition on a path.
#[derive(Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments from the start: `/abc` matches `/abc` and `/abc/d`, not `/abcd`. Kept without a trailing
    /// slash; `""` matches every path.
    Prefix(String),
    /// The whole path against an RE2-style expression.
    Regex(Regex),
}

/// Condition on a header's or a query parameter's value.
#[derive(Debug)]
pub enum StringMatch {
    /// The whole value.
    Exact(String),
    /// The whole value against an RE2-style expression.
    Regex(Regex),
    /// The name is there, whatever its value.
    Present,
}

/// What one route rule does with the requests it matches.
#[derive(Debug)]
pub struct Rule {
    /// The route object and rule this came from, for metrics and `explain`.
    pub name: Arc<str>,
    /// What pages of other origins may do; `None`: nothing is said to them.
    pub cors: Option<Cors>,
    /// What goes wrong on purpose; `None`: nothing.
    pub fault: Option<Box<Fault>>,
    /// Applied in this order, to the request or later to its response.
    pub filters: Vec<Filter>,
    /// Where copies of requests go.
    pub mirrors: Vec<Mirror>,
    /// Where requests go, by weight; empty only if a filter answers.
    pub backends: Vec<Backend>,
    /// Sum of the backends' weights.
    pub total_weight: u32,
    /// From the request's arrival to the end of its response; `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// Longest silence both ways; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// For one attempt; `None`: only the request timeout limits it.
    pub try_timeout: Option<Duration>,
    /// When a failed attempt is made again; `None`: only what was never delivered is.
    pub retry: Option<RetryPolicy>,
    /// When another endpoint is asked beside one that does not answer; `None`: never.
    pub hedge: Option<Hedge>,
    /// How a client comes back to the endpoint that answered it before; `None`: it does not.
    pub session: Option<Session>,
}

impl Rule {
    /// The clusters its requests and their copies go to.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let mirrors = self.mirrors.iter().chain(self.backends.iter().flat_map(|backend| &backend.mirrors));
        self.backends.iter().filter_map(|backend| backend.cluster.as_ref()).chain(mirrors.map(|mirror| &mirror.cluster))
    }
}

/// Where a client is told its endpoint, and says it again.
#[derive(Debug)]
pub enum Session {
    /// In a cookie.
    Cookie {
        /// Its name.
        name: String,
        /// How long it lasts; `None`: as long as browsers keep a session.
        lifetime: Option<Duration>,
    },
    /// In a header field.
    Header(HeaderName),
}

/// One weighted target of a rule.
#[derive(Debug)]
pub struct Backend {
    /// Share of the rule's requests, relative to the other backends; 0 gets none.
    pub weight: u32,
    /// `None`: the reference is invalid, and this share is answered 500 (Gateway API `BackendRefs`).
    pub cluster: Option<Arc<Cluster>>,
    /// Applied after the rule's own filters.
    pub filters: Vec<Filter>,
    /// Where copies go besides the rule's own mirrors.
    pub mirrors: Vec<Mirror>,
}

/// Copies of requests.
#[derive(Debug)]
pub struct Mirror {
    /// Where they go.
    pub cluster: Arc<Cluster>,
    /// Share of the requests, in millionths.
    pub per_million: u32,
}

/// What goes wrong on purpose.
#[derive(Debug)]
pub struct Fault {
    /// First requests are held up.
    pub delay: Option<Delay>,
    /// Then they are answered.
    pub abort: Option<Abort>,
    /// What a request must have to be hit.
    pub headers: Vec<(HeaderName, StringMatch)>,
}

/// How requests are held up.
#[derive(Debug)]
pub struct Delay {
    /// For how long.
    pub length: Duration,
    /// Share of the requests, in millionths.
    pub per_million: u32,
}

/// How requests are answered.
#[derive(Debug)]
pub struct Abort {
    /// With what.
    pub status: AbortStatus,
    /// Share of the requests, in millionths.
    pub per_million: u32,
}

/// A status, which stands for one of the other kind where that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortStatus {
    /// Of HTTP.
    Http(StatusCode),
    /// Of gRPC.
    Grpc(u16),
}

/// What pages of other origins may do.
#[derive(Debug)]
pub struct Cors {
    /// Whose pages; exactly `*` is all of them.
    pub origins: Vec<StringMatch>,
    /// Whether credentials may be sent along.
    pub credentials: bool,
    /// Methods.
    pub methods: Names,
    /// Request headers.
    pub headers: Names,
    /// Response headers that pages may read.
    pub exposed: Names,
    /// Seconds for which a preflight's answer may be kept.
    pub max_age: HeaderValue,
}

/// Names in a list.
#[derive(Debug)]
pub enum Names {
    /// Every name.
    Any,
    /// These, as they stand in a header; none: nothing is said.
    These(Option<HeaderValue>),
}

/// When and how often a failed attempt is made again by policy.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Retries after the first attempt.
    pub retries: u32,
    /// Response codes that are tried again.
    pub codes: Vec<StatusCode>,
    /// gRPC status codes that are tried again (when they come in the response's first header block).
    pub grpc_codes: Vec<u16>,
    /// Connections that broke or timed out are tried again.
    pub connection_failures: bool,
    /// Base of the exponential back-off with full jitter.
    pub backoff_base: Duration,
    /// Longest back-off.
    pub backoff_max: Duration,
}

/// Attempts beside one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hedge {
    /// How long an answer is waited for before one more is asked.
    pub delay: Duration,
    /// How many more at most.
    pub attempts: u32,
}

/// What may be done to a request or a response on its way.
#[derive(Debug)]
pub enum Filter {
    /// Changes request headers.
    RequestHeaders(HeaderChanges),
    /// Changes response headers.
    ResponseHeaders(HeaderChanges),
    /// Answers with a redirect; nothing is sent upstream.
    Redirect(Redirect),
    /// Changes host or path before sending upstream.
    Rewrite(Rewrite),
}

impl Filter {
    /// Whether it changes responses.
    pub fn is_for_responses(&self) -> bool {
        matches!(self, Self::ResponseHeaders(_))
    }
}

/// Header changes: `set` replaces, `add` appends, `remove` deletes; in this order.
#[derive(Debug, Default)]
pub struct HeaderChanges {
    /// Replaced, or made.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appended as one more value.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// All values deleted.
    pub remove: Vec<HeaderName>,
}

/// A redirect: parts that are absent are taken from the request.
#[derive(Debug)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Scheme>,
    /// Host of the Location.
    pub hostname: Option<String>,
    /// Path of the Location.
    pub path: Option<PathChange>,
    /// Port of the Location; absent: the scheme's own if a scheme is given, else the port that was dialled.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// A rewrite of what goes upstream.
#[derive(Debug)]
pub struct Rewrite {
    /// New Host.
    pub hostname: Option<HeaderValue>,
    /// New path.
    pub path: Option<PathChange>,
}

/// A change of path.
#[derive(Debug)]
pub enum PathChange {
    /// The whole path.
    Full(String),
    /// The part a [`PathMatch::Prefix`] matched.
    Prefix {
        /// What the route's prefix was, without trailing slash.
        matched: String,
        /// What stands there instead.
        replacement: String,
    },
}
