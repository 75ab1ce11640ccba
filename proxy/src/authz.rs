//! Allow or deny. Pure: who calls, what is asked and the policies in force go in, a decision comes out.
//!
//! Any DENY policy that matches denies; if there are ALLOW policies, one must match; without any, all is allowed. A
//! policy in dry run decides nothing, and what it would have denied is told.
//!
//! A path is matched in normalised form, and there are two readings of `%2f`: as a slash and as a character of a
//! segment. Which one the application takes is unknown, so DENY matches if either reading does, and ALLOW only if
//! both do.

use std::net::IpAddr;
use std::sync::Arc;

use crate::tables::policy::{Operation, Policy, PolicySet, Rule, Source, TextMatch};

mod path;

pub use path::Readings;

/// Who calls and what is asked.
#[derive(Debug)]
pub struct Facts<'f> {
    /// SPIFFE ID of the peer; `None` without mutual TLS.
    pub principal: Option<&'f str>,
    /// Namespace of the SPIFFE ID.
    pub namespace: Option<&'f str>,
    /// The peer's address.
    pub ip: IpAddr,
    /// The application's port.
    pub port: u16,
    /// `None` for an opaque connection.
    pub http: Option<HttpFacts<'f>>,
}

/// What is asked over HTTP.
#[derive(Debug)]
pub struct HttpFacts<'f> {
    /// Method, as sent.
    pub method: &'f str,
    /// The path without query, in both readings.
    pub path: Readings,
    /// Host without port, lower case, no trailing dot.
    pub host: String,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Allowed.
    Allow,
    /// Denied: by this DENY policy, or `None`: no ALLOW policy matches.
    Deny(Option<Arc<str>>),
    /// Allowed, but this policy in dry run would have denied (`None`: no ALLOW policy in dry run matches).
    WouldDeny(Option<Arc<str>>),
}

/// Decides one request or one opaque connection.
pub fn decide(policies: &PolicySet, facts: &Facts<'_>) -> Decision {
    let denies = |policy: &&Policy| matches(policy, facts, Effect::Deny);
    if let Some(policy) = policies.deny.iter().filter(|p| !p.dry_run).find(denies) {
        return Decision::Deny(Some(policy.name.clone()));
    }
    let mut enforced = policies.allow.iter().filter(|p| !p.dry_run).peekable();
    if enforced.peek().is_some() && !enforced.any(|policy| matches(policy, facts, Effect::Allow)) {
        return Decision::Deny(None);
    }
    if let Some(policy) = policies.deny.iter().filter(|p| p.dry_run).find(denies) {
        return Decision::WouldDeny(Some(policy.name.clone()));
    }
    // In dry run as if enforced: together with the enforced ones, one must match.
    let dry_run = policies.allow.iter().any(|p| p.dry_run);
    if dry_run && !policies.allow.iter().any(|policy| matches(policy, facts, Effect::Allow)) {
        return Decision::WouldDeny(None);
    }
    Decision::Allow
}

/// Whether a rate limit counts what `rule` says; a request cannot get out of it by the reading of its path.
pub fn counts(rule: &Rule, facts: &Facts<'_>) -> bool {
    rule_matches(rule, facts, Effect::Deny)
}

/// Which way doubt goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

fn matches(policy: &Policy, facts: &Facts<'_>, effect: Effect) -> bool {
    policy.rules.iter().any(|rule| rule_matches(rule, facts, effect))
}

fn rule_matches(rule: &Rule, facts: &Facts<'_>, effect: Effect) -> bool {
    let from = rule.from.is_empty() || rule.from.iter().any(|source| source_matches(source, facts));
    let to = rule.to.is_empty() || rule.to.iter().any(|operation| operation_matches(operation, facts, effect));
    from && to
}

fn source_matches(source: &Source, facts: &Facts<'_>) -> bool {
    let contains = |blocks: &[ipnet::IpNet]| blocks.iter().any(|block| block.contains(&facts.ip));
    text(&source.principals, &source.not_principals, facts.principal)
        && text(&source.namespaces, &source.not_namespaces, facts.namespace)
        && (source.ip_blocks.is_empty() || contains(&source.ip_blocks))
        && !contains(&source.not_ip_blocks)
}

fn operation_matches(operation: &Operation, facts: &Facts<'_>, effect: Effect) -> bool {
    let port = operation.ports.is_empty() || operation.ports.contains(&facts.port);
    if !port || operation.not_ports.contains(&facts.port) {
        return false;
    }
    let Some(http) = &facts.http else {
        // Opaque bytes: what they ask is unknown. A DENY with HTTP fields covers them, an ALLOW does not.
        return !operation.needs_http() || effect == Effect::Deny;
    };
    let path = |reading: &str| text(&operation.paths, &operation.not_paths, Some(reading));
    let paths = match effect {
        Effect::Allow => http.path.iter().all(path),
        Effect::Deny => http.path.iter().any(path),
    };
    paths
        && text(&operation.methods, &operation.not_methods, Some(http.method))
        && text(&operation.hosts, &operation.not_hosts, Some(&http.host))
}

/// One of `want` must match if there are any, none of `not` may.
fn text(want: &[TextMatch], not: &[TextMatch], value: Option<&str>) -> bool {
    let any = |matches: &[TextMatch]| value.is_some_and(|value| matches.iter().any(|m| m.matches(value)));
    (want.is_empty() || any(want)) && !any(not)
}

/// Why a denial was made, in words.
pub fn reason(policy: Option<&str>) -> String {
    match policy {
        Some(policy) => format!("AuthorizationPolicy {policy} denies it"),
        None => "no ALLOW AuthorizationPolicy matches it".to_owned(),
    }
}

/// A request's host as policies see it: without port, lower case, without the root's trailing dot.
pub fn host(authority: &str) -> String {
    let host = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
