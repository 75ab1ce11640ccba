//! Conditions, filters and settings in words.

use std::time::Duration;

use crate::balance::standing::{Against, Gets, Standing};
use crate::http::route::Miss;
use crate::reading::Reading;
use crate::tables::TlsMode;
use crate::tables::cluster::{HashOn, LoadBalancing};
use crate::tables::listener::Protocol;
use crate::tables::route::{
    AbortStatus, Fault, Filter, HeaderChanges, Hedge, Mirror, PathChange, PathMatch, Redirect, RetryPolicy, Rewrite,
    RouteMatch, Session, StringMatch,
};

pub(super) fn protocol(protocol: Protocol) -> String {
    match protocol {
        Protocol::Detect => "detect",
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Tcp => "tcp",
    }
    .to_owned()
}

pub(super) fn reading(reading: Reading) -> String {
    match reading {
        Reading::Http1 => "http1",
        Reading::Http2 => "http2",
        Reading::Opaque => "opaque",
        Reading::ByServerName => "serverName",
        Reading::Mismatch => "mismatch",
    }
    .to_owned()
}

pub(super) fn tls(mode: TlsMode) -> String {
    match mode {
        TlsMode::Strict => "strict",
        TlsMode::Permissive => "permissive",
        TlsMode::Disable => "disable",
    }
    .to_owned()
}

/// As people write it: `1m30s`, `250ms`.
pub(super) fn duration(length: Duration) -> String {
    format!("{length:?}")
}

pub(super) fn matches(conditions: &RouteMatch) -> String {
    let mut parts = Vec::new();
    parts.extend(conditions.method.as_ref().map(|method| format!("method {method}")));
    parts.extend(conditions.path.as_ref().map(path));
    parts.extend(conditions.headers.iter().map(|(name, value)| format!("header {name} {}", string(value))));
    parts.extend(conditions.query.iter().map(|(name, value)| format!("query parameter {name} {}", string(value))));
    if parts.is_empty() { "every request".to_owned() } else { parts.join(", ") }
}

fn path(condition: &PathMatch) -> String {
    match condition {
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(prefix) if prefix.is_empty() => "every path".to_owned(),
        PathMatch::Prefix(prefix) => format!("path {prefix} and below"),
        PathMatch::Regex(regex) => format!("path like {}", expression(regex)),
    }
}

fn string(condition: &StringMatch) -> String {
    match condition {
        StringMatch::Exact(value) => format!("is `{value}`"),
        StringMatch::Regex(regex) => format!("is like {}", expression(regex)),
        StringMatch::Present => "is there".to_owned(),
    }
}

/// As it was written: tables hold it anchored.
fn expression(regex: &regex::Regex) -> &str {
    let text = regex.as_str();
    text.strip_prefix(r"\A(?:").and_then(|text| text.strip_suffix(r")\z")).unwrap_or(text)
}

pub(super) fn miss(miss: Miss<'_>) -> String {
    match miss {
        Miss::Method => "method".to_owned(),
        Miss::Path => "path".to_owned(),
        Miss::Header(name) => format!("header {name}"),
        Miss::Query(name) => format!("query parameter {name}"),
    }
}

pub(super) fn filter(filter: &Filter) -> String {
    match filter {
        Filter::RequestHeaders(changes) => format!("request headers: {}", header_changes(changes)),
        Filter::ResponseHeaders(changes) => format!("response headers: {}", header_changes(changes)),
        Filter::Redirect(Redirect { status, .. }) => format!("redirect, {}", status.as_u16()),
        Filter::Rewrite(Rewrite { hostname, path }) => {
            let host = hostname.as_ref().map(|host| format!("host to {}", String::from_utf8_lossy(host.as_bytes())));
            let path = path.as_ref().map(|change| match change {
                PathChange::Full(path) => format!("path to {path}"),
                PathChange::Prefix { matched, replacement } => format!("prefix {matched} to {replacement}"),
            });
            format!("rewrite {}", host.into_iter().chain(path).collect::<Vec<_>>().join(", "))
        }
    }
}

fn header_changes(changes: &HeaderChanges) -> String {
    let set = changes.set.iter().map(|(name, _)| format!("set {name}"));
    let add = changes.add.iter().map(|(name, _)| format!("add {name}"));
    let remove = changes.remove.iter().map(|name| format!("remove {name}"));
    set.chain(add).chain(remove).collect::<Vec<_>>().join(", ")
}

pub(super) fn fault(fault: &Fault, meant: bool) -> String {
    if !meant {
        return "fault: not of requests with these headers".to_owned();
    }
    let delay = fault
        .delay
        .as_ref()
        .map(|delay| format!("delay of {} for {}%", duration(delay.length), percent(delay.per_million)));
    let abort = fault.abort.as_ref().map(|abort| {
        let status = match abort.status {
            AbortStatus::Http(status) => format!("status {}", status.as_u16()),
            AbortStatus::Grpc(status) => format!("gRPC status {status}"),
        };
        format!("abort with {status} for {}%", percent(abort.per_million))
    });
    format!("fault: {}", delay.into_iter().chain(abort).collect::<Vec<_>>().join(", "))
}

pub(super) fn mirror(mirror: &Mirror) -> String {
    format!("a copy of {}% to {}", percent(mirror.per_million), mirror.cluster.name)
}

pub(super) fn percent(per_million: u32) -> f64 {
    f64::from(per_million) / 10_000.0
}

pub(super) fn retry(policy: Option<&RetryPolicy>) -> String {
    let Some(policy) = policy else { return "only what was never delivered".to_owned() };
    let mut after: Vec<String> = policy.codes.iter().map(|code| code.as_u16().to_string()).collect();
    after.extend(policy.grpc_codes.iter().map(|code| format!("gRPC status {code}")));
    if policy.connection_failures {
        after.push("connection failures".to_owned());
    }
    format!(
        "up to {} after {}, back-off {} to {}",
        policy.retries,
        after.join(", "),
        duration(policy.backoff_base),
        duration(policy.backoff_max)
    )
}

pub(super) fn hedge(hedge: Hedge) -> String {
    format!("up to {} more, each after {}, of what has no body", hedge.attempts, duration(hedge.delay))
}

pub(super) fn session(session: &Session) -> String {
    match session {
        Session::Cookie { name, .. } => format!("cookie {name}"),
        Session::Header(name) => format!("header {name}"),
    }
}

pub(super) fn balancing(policy: &LoadBalancing) -> String {
    match policy {
        LoadBalancing::P2cEwma => "P2CEWMA".to_owned(),
        LoadBalancing::LeastRequest => "LeastRequest".to_owned(),
        LoadBalancing::RoundRobin => "RoundRobin".to_owned(),
        LoadBalancing::Random => "Random".to_owned(),
        LoadBalancing::RingHash(on) => format!("RingHash on {}", hash_on(on)),
        LoadBalancing::Maglev(on) => format!("Maglev on {}", hash_on(on)),
    }
}

fn hash_on(on: &[HashOn]) -> String {
    let words = on.iter().map(|on| match on {
        HashOn::Header(name) => format!("header {name}"),
        HashOn::Cookie(name) => format!("cookie {name}"),
        HashOn::QueryParam(name) => format!("query parameter {name}"),
        HashOn::SourceIp => "source IP".to_owned(),
        HashOn::Path => "path".to_owned(),
    });
    words.collect::<Vec<_>>().join(", else ")
}

/// Why an endpoint gets nothing, or what speaks against one that does all the same.
pub(super) fn standing(standing: &Standing, far_percent: u32) -> Option<String> {
    let against = standing.against.map(|against| match against {
        Against::Draining => "draining: the control plane says that it is on its way out".to_owned(),
        Against::Ejected(left) => format!("ejected by outlier detection for {} more", duration(left)),
        Against::Unwell => "unwell: it failed health checks".to_owned(),
        Against::Leaving(left) => format!("leaving: it said so itself, which holds for {} more", duration(left)),
        Against::Resting(left) => format!("resting: its Retry-After holds for {} more", duration(left)),
        Against::Far => "far: nearer ones suffice".to_owned(),
    });
    match (standing.gets, standing.against) {
        (Gets::Overflow, Some(Against::Far)) => {
            Some(format!("far: takes {far_percent}% that are too much for the near"))
        }
        (Gets::Requests, Some(Against::Far)) => Some("far: no near one is well".to_owned()),
        (Gets::Requests | Gets::Overflow, Some(_)) => against.map(|why| format!("{why}; too few others are well")),
        (Gets::Requests | Gets::Overflow, None) => None,
        (Gets::Nothing, None) => Some("not needed: all requests go to far ones".to_owned()),
        (Gets::Nothing, Some(_)) => against,
    }
}
