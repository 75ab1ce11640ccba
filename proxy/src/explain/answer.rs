//! What is answered: each decision as data. Names of objects are `<Kind>/<namespace>/<name>`, with `/<rule>` behind them where a
//! rule is meant; `place` is where that stands, as `shop.yaml:12`, where somebody knows.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::request::Request;

/// What the client's sidecar does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outbound {
    /// Where the client connects to.
    pub destination: SocketAddr,
    /// What is known of that; none of what is not the mesh's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<Listener>,
    /// All routes in the order they are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Candidate>,
    /// What the one that won does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// Where it leads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// What comes of it, with the share of each.
    pub outcomes: Vec<Outcome>,
}

/// What is known of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Declared: `http`, `http2`, `tcp`, or `detect`.
    pub protocol: String,
    /// What the client's bytes are taken for: `http1`, `http2`, `opaque`, `serverName` or `mismatch`.
    pub reading: String,
    /// The route table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// What it was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its name.
    pub object: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// A route that was asked, or would have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// The rule it leads to; `default` where no route object speaks of the port.
    pub rule: String,
    /// Where that stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Its conditions.
    pub matches: String,
    /// What became of it.
    pub verdict: Verdict,
    /// The condition that is not met, where it lost by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
}

/// What became of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// The first that matches.
    Won,
    /// It does not match.
    Lost,
    /// It matches, after the one that won.
    Later,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Filters, faults, CORS and mirrors, in the order they are applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// From arrival to the end of the response, what a gRPC client asks for included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<String>,
    /// Of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub try_timeout: Option<String>,
    /// Longest silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    /// When an attempt is made again.
    pub retry: String,
    /// When another endpoint is asked beside the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<String>,
    /// How the client comes back to one endpoint, and which that is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// A target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Share of what is not answered otherwise, in percent.
    pub percent: f64,
    /// Its cluster; none where the reference is invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// `<namespace>/<name>` of the Service behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What it was made from: the policies in force among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// Filters of this backend alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// The request as it leaves; none of opaque bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Request>,
    /// How an endpoint is chosen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub balancing: String,
    /// What is open, against its limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breakers: Vec<Breaker>,
    /// Share of requests that goes to far endpoints, in percent.
    #[serde(default)]
    pub far_percent: u32,
    /// All of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// What comes of requests to it.
    pub ending: Ending,
}

/// One limit of a circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    /// `connections`, `pending`, `requests` or `retries`.
    pub kind: String,
    /// Open now.
    pub open: u32,
    /// Most.
    pub limit: u32,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// What runs it, `<namespace>/<name>`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workload: String,
    /// Relative share.
    pub weight: u32,
    /// Whether it is near this client.
    pub near: bool,
    /// Identities of which it must show one; none: it is spoken to in plaintext.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    /// Whether it may get the request.
    pub eligible: bool,
    /// Why not, or what speaks against it all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// One thing that may come of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How many of a hundred requests.
    pub percent: f64,
    /// What.
    pub ending: Ending,
}

/// What comes of a request, or of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase")]
pub enum Ending {
    /// It goes to an endpoint of this cluster.
    #[serde(rename_all = "camelCase")]
    Sent {
        /// Which.
        cluster: String,
    },
    /// It goes to the application.
    Delivered,
    /// The sidecar answers without a failure.
    #[serde(rename_all = "camelCase")]
    Answered {
        /// `redirect` or `preflight`.
        by: String,
        /// HTTP status.
        status: u16,
        /// Where a redirect leads.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        location: Option<String>,
    },
    /// The sidecar answers with a failure, or closes the connection.
    #[serde(rename_all = "camelCase")]
    Refused {
        /// Its short name, as in `x-heddle-error`.
        cause: String,
        /// HTTP status, where there is an answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// What was seen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<String>,
    },
    /// It is relayed to a host outside the mesh, untouched.
    Outside,
}

/// What the server's sidecar does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inbound {
    /// The application's port.
    pub port: u16,
    /// `<namespace>/<name>` of the workload, as metrics name it.
    pub workload: String,
    /// Declared: `http`, `http2`, `tcp`, or `detect`.
    pub protocol: String,
    /// What the client's bytes are taken for.
    pub reading: String,
    /// `strict`, `permissive` or `disable`.
    pub tls: String,
    /// SPIFFE ID of who calls; none without mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Address of who calls.
    pub peer: IpAddr,
    /// What it was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// AuthorizationPolicies in force on the port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
    /// What they come to; none where they are not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Rate limits in force on the port, in the order they are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// How many requests the port takes at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub concurrency: Vec<Concurrency>,
    /// What comes of it.
    pub ending: Ending,
}

/// One AuthorizationPolicy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Its name.
    pub object: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// `ALLOW` or `DENY`.
    pub action: String,
    /// Counted, never enforced.
    pub dry_run: bool,
    /// Its rules, in order.
    pub rules: Vec<PolicyRule>,
}

/// A rule of an AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Whether it matches.
    pub matches: bool,
    /// The part that does not: `from` or `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
}

/// What AuthorizationPolicies come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `allow`, `deny` or `would_deny`, as metrics name it.
    pub verdict: String,
    /// The rule that decided; none: that no ALLOW policy matches, or that there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// A rate limit in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Its name and the place of the limit in it.
    pub object: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Counted, never enforced.
    pub dry_run: bool,
    /// Whether it counts the request.
    pub counts: bool,
    /// The cluster of the service that counts, which is not asked here; none: the sidecar itself does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// How long until there is room; none: there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_for: Option<String>,
}

/// How many requests are let in at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Concurrency {
    /// The policy that says so.
    pub object: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Counted, never enforced.
    pub dry_run: bool,
    /// Requests that are open.
    pub open: u32,
    /// Most that may be, now.
    pub limit: u32,
}

/// Shows `visit` everything that has a place: its name, and where the place is written.
type Visit<'v> = dyn FnMut(&str, &mut Option<String>) + 'v;

impl Outbound {
    /// Shows `visit` the name of everything that may have a place.
    pub fn places(&mut self, visit: &mut Visit<'_>) {
        self.listener.iter_mut().for_each(|listener| sources(&mut listener.sources, visit));
        self.routes.iter_mut().for_each(|route| visit(&route.rule, &mut route.place));
        self.rule.iter_mut().for_each(|rule| visit(&rule.name, &mut rule.place));
        self.backends.iter_mut().for_each(|backend| sources(&mut backend.sources, visit));
    }
}

impl Inbound {
    /// Shows `visit` the name of everything that may have a place.
    pub fn places(&mut self, visit: &mut Visit<'_>) {
        sources(&mut self.sources, visit);
        self.policies.iter_mut().for_each(|policy| visit(&policy.object, &mut policy.place));
        let decided =
            self.decision.iter_mut().filter_map(|decision| Some((decision.rule.as_ref()?, &mut decision.place)));
        decided.into_iter().for_each(|(rule, place)| visit(rule, place));
        self.rate_limits.iter_mut().for_each(|limit| visit(&limit.object, &mut limit.place));
        self.concurrency.iter_mut().for_each(|limit| visit(&limit.object, &mut limit.place));
    }
}

fn sources(list: &mut [Source], visit: &mut Visit<'_>) {
    list.iter_mut().for_each(|source| visit(&source.object, &mut source.place));
}
