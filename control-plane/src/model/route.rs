//! HTTP routes, already in order of precedence.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::duration;
use super::name::{ResourceName, ServiceName, SourceRef};

/// All routes of one Service port for one kind of client. First match wins; no match is 404.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTable {
    /// `<ns>/<svc>/<port>`, `<ns>/<svc>/<port>@<client ns>`, or a direct destination's.
    pub name: ResourceName,
    /// The Service whose port it is; `None` for a workload dialled directly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// In order of Gateway API precedence.
    pub routes: Vec<Route>,
    /// Objects this was made from, sorted.
    pub sources: Vec<SourceRef>,
}

/// One match and what it leads to. A rule with several matches stands here once per match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// What a request must look like.
    pub matches: RouteMatch,
    /// What is done with it; shared between the matches of one rule.
    pub rule: Arc<Rule>,
}

/// Conditions on a request; all must hold. Absent ones hold always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// Condition on the path, without query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Conditions on headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Conditions on query parameters; the first of a repeated name counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryMatch>,
    /// The method, exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// Condition on a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments from the start. Kept without trailing slash; `""` matches every path.
    Prefix(String),
    /// The whole path against an RE2-style expression, not anchored by itself.
    Regex(String),
}

/// Condition on a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    /// Condition on its value.
    pub value: StringMatch,
}

/// Condition on a query parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryMatch {
    /// Exactly as sent, after percent-decoding.
    pub name: String,
    /// Condition on its value.
    pub value: StringMatch,
}

/// Condition on a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// The whole value.
    Exact(String),
    /// The whole value against an RE2-style expression, not anchored by itself.
    Regex(String),
}

/// What one route rule does with the requests it matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// `<Kind>/<namespace>/<name>/<rule index or name>`, or `default` where no route object applies.
    pub name: Arc<str>,
    /// Applied in this order, to the request or later to its response.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Where requests go, by weight. Empty with no redirect among the filters: 500 (Gateway API, `BackendRefs`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// From the request's arrival to the end of its response; `None`: no limit.
    #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
    /// Longest silence both ways; `None`: no limit.
    #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// For one attempt; `None`: only the request timeout limits it.
    #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub try_timeout: Option<Duration>,
    /// When a failed attempt is made again; `None`: only what was never delivered is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// When another endpoint is asked beside one that does not answer; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// How a client comes back to the endpoint that answered it before; `None`: it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// Where a client is told its endpoint, and says it again (GEP-1619).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Session {
    /// In a cookie.
    #[serde(rename_all = "camelCase")]
    Cookie {
        /// Its name.
        name: String,
        /// How long it lasts; `None`: as long as browsers keep a session.
        #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
        lifetime: Option<Duration>,
    },
    /// In a header field.
    Header {
        /// Its name, in lower case.
        name: String,
    },
}

/// One weighted target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Share of the rule's requests, relative to the other backends; 0 gets none. At most 1,000,000.
    pub weight: u32,
    /// The cluster; `None`: the reference is invalid and this share is answered 500.
    pub cluster: Option<ResourceName>,
    /// Applied after the rule's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
}

/// When and how often a failed attempt is made again by policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicy {
    /// Retries after the first attempt.
    pub retries: u32,
    /// Response codes that are tried again, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// gRPC status codes that are tried again, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grpc_codes: Vec<u16>,
    /// Connections that broke or timed out are tried again.
    pub connection_failures: bool,
    /// Base of the exponential back-off with full jitter.
    #[serde(serialize_with = "duration::text")]
    pub backoff_base: Duration,
    /// Longest back-off.
    #[serde(serialize_with = "duration::text")]
    pub backoff_max: Duration,
}

/// Attempts beside one another, of requests without a body whose method is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hedge {
    /// How long an answer is waited for before one more is asked.
    #[serde(serialize_with = "duration::text")]
    pub delay: Duration,
    /// How many more at most.
    pub attempts: u32,
}

/// What is done to a request or a response on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Filter {
    /// Changes request headers.
    RequestHeaders(HeaderChanges),
    /// Changes response headers.
    ResponseHeaders(HeaderChanges),
    /// Answers with a redirect; nothing is sent upstream.
    Redirect(Redirect),
    /// Changes host or path before sending upstream.
    Rewrite(Rewrite),
    /// Sends a copy of some requests elsewhere.
    Mirror(Mirror),
    /// Tells browsers what pages of other origins may do, and answers their preflights. Of a rule only.
    Cors(Cors),
    /// Goes wrong on purpose, before any other filter. Of a rule only.
    Fault(Fault),
}

impl Filter {
    /// What it changes in request headers.
    pub fn request_headers(&self) -> Option<&HeaderChanges> {
        if let Self::RequestHeaders(changes) = self { Some(changes) } else { None }
    }

    /// What it changes in response headers.
    pub fn response_headers(&self) -> Option<&HeaderChanges> {
        if let Self::ResponseHeaders(changes) = self { Some(changes) } else { None }
    }

    /// The redirect it answers with.
    pub fn redirect(&self) -> Option<&Redirect> {
        if let Self::Redirect(redirect) = self { Some(redirect) } else { None }
    }

    /// The rewrite it is.
    pub fn rewrite(&self) -> Option<&Rewrite> {
        if let Self::Rewrite(rewrite) = self { Some(rewrite) } else { None }
    }

    /// The mirror it is.
    pub fn mirror(&self) -> Option<&Mirror> {
        if let Self::Mirror(mirror) = self { Some(mirror) } else { None }
    }

    /// The CORS policy it is.
    pub fn cors(&self) -> Option<&Cors> {
        if let Self::Cors(cors) = self { Some(cors) } else { None }
    }

    /// The fault it is.
    pub fn fault(&self) -> Option<&Fault> {
        if let Self::Fault(fault) = self { Some(fault) } else { None }
    }
}

/// What goes wrong on purpose with requests that have these headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// First they are held up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Then they are answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// All of them, with these values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderValue>,
}

/// How requests are held up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// For how long.
    #[serde(serialize_with = "duration::text")]
    pub length: Duration,
    /// Share of the requests, in millionths.
    pub per_million: u32,
}

/// How requests are answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// With what.
    pub status: AbortStatus,
    /// Share of the requests, in millionths.
    pub per_million: u32,
}

/// A status, which stands for one of the other kind where that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AbortStatus {
    /// Of HTTP.
    Http(u16),
    /// Of gRPC.
    Grpc(u16),
}

/// Copies of requests. Their responses are not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Where copies go.
    pub cluster: ResourceName,
    /// Share of the requests, in millionths.
    pub per_million: u32,
}

/// What pages of other origins may do (Fetch Standard, "HTTP CORS protocol").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// Whose pages.
    pub origins: Vec<Origin>,
    /// Whether credentials may be sent along.
    pub credentials: bool,
    /// Methods, `*` among them: all. None: those that are always allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Request headers, `*` among them: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Response headers that pages may read, `*` among them: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed: Vec<String>,
    /// Seconds for which a preflight's answer may be kept.
    pub max_age: u32,
}

/// Origins, in lower case as browsers write them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// Every one.
    Any,
    /// This one.
    Exact(String),
    /// Those that begin with the first and end with the second, with at least one character between.
    Wildcard(String, String),
}

/// Header changes: `set` replaces, `add` appends, `remove` deletes; in this order. Names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderChanges {
    /// Replaced, or made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<HeaderValue>,
    /// Appended as one more value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HeaderValue>,
    /// All values deleted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// A header to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderValue {
    /// In lower case.
    pub name: String,
    /// Visible ASCII, blanks and tabs.
    pub value: String,
}

/// A redirect: parts that are absent are taken from the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Host of the Location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Path of the Location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathChange>,
    /// Port of the Location; absent: the scheme's own if a scheme is given, else the port that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Scheme of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Scheme {
    /// `http`, port 80.
    Http,
    /// `https`, port 443.
    Https,
}

/// A rewrite of what goes upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    /// New Host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// New path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathChange>,
}

/// A change of path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathChange {
    /// The whole path.
    Full(String),
    /// The part the route's prefix matched is replaced by this; the prefix itself is the route's own
    /// [`PathMatch::Prefix`].
    Prefix(String),
}
