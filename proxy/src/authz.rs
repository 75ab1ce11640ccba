//! Allow or deny. Pure: who calls, what is asked and the policies in force go in, a decision comes out.
//!
//! Any DENY policy that matches denies; if there are ALLOW policies, one must match; without any, all is allowed. A
//! policy in dry run decides nothing, and what it would have denied is told.
//!
//! A path is matched in normalised form, and there are two readings of `%2f`: as a slash and as a character of a
//! segment. Which one the application takes is unknown, so DENY matches if either reading does, and ALLOW only if
//! both do.

use std::net::IpAddr;

use http::header;
use http::request::Parts;

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

impl<'f> Facts<'f> {
    /// Of a request with this head.
    pub fn of_request(
        principal: Option<&'f str>,
        namespace: Option<&'f str>,
        ip: IpAddr,
        port: u16,
        head: &'f Parts,
    ) -> Self {
        let host = match head.uri.authority() {
            Some(authority) => authority.as_str(),
            None => head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
        };
        let http =
            HttpFacts { method: head.method.as_str(), path: Readings::of(head.uri.path()), host: self::host(host) };
        Self { principal, namespace, ip, port, http: Some(http) }
    }
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
#[derive(Debug, Clone, Copy)]
pub enum Decision<'p> {
    /// Allowed: by this ALLOW policy, or `None`: none is enforced.
    Allow(Option<By<'p>>),
    /// Denied: by this DENY policy, or `None`: no ALLOW policy matches.
    Deny(Option<By<'p>>),
    /// Allowed, but this policy in dry run would have denied (`None`: no ALLOW policy in dry run matches).
    WouldDeny(Option<By<'p>>),
}

/// What decided.
#[derive(Debug, Clone, Copy)]
pub struct By<'p> {
    /// The policy.
    pub policy: &'p Policy,
    /// The place of the rule in it that matched.
    pub rule: usize,
}

impl<'p> Decision<'p> {
    /// As metrics name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Allow(_) => "allow",
            Self::Deny(_) => "deny",
            Self::WouldDeny(_) => "would_deny",
        }
    }

    /// What decided; `None`: that nothing matched.
    pub fn by(&self) -> Option<By<'p>> {
        let (Self::Allow(by) | Self::Deny(by) | Self::WouldDeny(by)) = self;
        *by
    }
}

/// Decides one request or one opaque connection.
pub fn decide<'p>(policies: &'p PolicySet, facts: &Facts<'_>) -> Decision<'p> {
    let by = |policy: &'p Policy, effect| {
        let rule = policy.rules.iter().position(|rule| miss(rule, facts, effect).is_none())?;
        Some(By { policy, rule })
    };
    let denies = |policy| by(policy, Effect::Deny);
    let allows = |policy| by(policy, Effect::Allow);
    if let Some(by) = policies.deny.iter().filter(|p| !p.dry_run).find_map(denies) {
        return Decision::Deny(Some(by));
    }
    let mut enforced = policies.allow.iter().filter(|p| !p.dry_run).peekable();
    let must_match = enforced.peek().is_some();
    let allowed = enforced.find_map(allows);
    if must_match && allowed.is_none() {
        return Decision::Deny(None);
    }
    if let Some(by) = policies.deny.iter().filter(|p| p.dry_run).find_map(denies) {
        return Decision::WouldDeny(Some(by));
    }
    // In dry run as if enforced: together with the enforced ones, one must match.
    let dry_run = policies.allow.iter().any(|p| p.dry_run);
    if dry_run && !policies.allow.iter().any(|policy| allows(policy).is_some()) {
        return Decision::WouldDeny(None);
    }
    Decision::Allow(allowed)
}

/// Whether a rate limit counts what `rule` says; a request cannot get out of it by the reading of its path.
pub fn counts(rule: &Rule, facts: &Facts<'_>) -> bool {
    miss(rule, facts, Effect::Deny).is_none()
}

/// Which way doubt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Doubt denies: every reading must match.
    Allow,
    /// Doubt denies: any reading may match.
    Deny,
}

/// A part of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Who calls.
    From,
    /// What is asked.
    To,
}

/// The first part of `rule` that does not match; `None`: it matches.
pub fn miss(rule: &Rule, facts: &Facts<'_>, effect: Effect) -> Option<Part> {
    if !rule.from.is_empty() && !rule.from.iter().any(|source| source_matches(source, facts)) {
        return Some(Part::From);
    }
    let to = rule.to.is_empty() || rule.to.iter().any(|operation| operation_matches(operation, facts, effect));
    (!to).then_some(Part::To)
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
pub fn reason(by: Option<By<'_>>) -> String {
    match by {
        Some(By { policy, rule }) => format!("AuthorizationPolicy {} denies it by rules[{rule}]", policy.name),
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
