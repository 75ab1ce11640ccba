//! The server's side: `inbound`, then `http/request` and `http/limit`, in the same order and with the same functions.

use std::net::IpAddr;

use heddle_certs::identity::SpiffeId;
use http::HeaderMap;

use super::answer::{
    Concurrency as ConcurrencyAnswer, Decision, Ending, Inbound, Policy as PolicyAnswer, PolicyRule,
    RateLimit as LimitAnswer,
};
use super::cluster::{closed, refused, sources};
use super::request::{Invalid, Request, Speaks};
use super::{Sight, describe};
use crate::authz::{self, Effect, Facts, Part};
use crate::http::error::Cause;
use crate::http::{guard, limit};
use crate::reading::{self, Reading};
use crate::tables::policy::{Policy, PolicySet};
use crate::tables::rate_limit::Counter;
use crate::tables::{Port, Protocol, TlsMode};

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// SPIFFE ID it shows; `None`: it comes without mutual TLS.
    pub principal: Option<String>,
    /// Its address.
    pub ip: IpAddr,
    /// Its own sidecar relays what it says as opaque bytes.
    pub opaque: bool,
}

/// What the server's sidecar does with `request` of `caller` for the application's port `port`.
///
/// # Errors
/// If the request cannot be sent at all.
pub fn inbound(sight: &Sight<'_>, port: u16, caller: &Caller, request: &Request) -> Result<Inbound, Invalid> {
    let head = request.head()?;
    let Some(in_force) = &sight.tables.inbound else {
        return Ok(nothing_known(port, caller));
    };
    let number = port;
    let port = in_force.port(number);
    let reading = reading_of(port, caller, request);
    let namespace = caller.principal.as_deref().and_then(|id| SpiffeId::parse(id).ok());
    let namespace = namespace.as_ref().map(SpiffeId::namespace);
    let principal = caller.principal.as_deref();
    let http = matches!(reading, Reading::Http1 | Reading::Http2);
    let http_head = head.as_ref().filter(|_| http);
    let facts = match http_head {
        Some(head) => Facts::of_request(principal, namespace, caller.ip, number, head),
        None => Facts { principal, namespace, ip: caller.ip, port: number, http: None },
    };
    let mut answer = Inbound {
        port: number,
        workload: format!("{}/{}", in_force.namespace, in_force.workload),
        protocol: describe::protocol(port.protocol),
        reading: describe::reading(reading),
        tls: describe::tls(port.tls),
        caller: caller.principal.clone(),
        peer: caller.ip,
        sources: sources(&in_force.sources),
        policies: policies(&port.policies, &facts),
        decision: None,
        rate_limits: Vec::new(),
        concurrency: Vec::new(),
        ending: Ending::Delivered,
    };
    if principal.is_none() && port.tls == TlsMode::Strict {
        answer.ending = closed(Cause::TlsRequired);
    } else if reading == Reading::Mismatch {
        answer.ending = closed(Cause::ProtocolMismatch);
    } else if let Some(Err(wrong)) = http_head.map(guard::check) {
        answer.ending = refused(Cause::ProtocolError, Some(wrong.to_string()));
    } else {
        decide(sight, port, &facts, http_head.map(|head| &head.headers), &mut answer);
    }
    Ok(answer)
}

fn decide(sight: &Sight<'_>, port: &Port, facts: &Facts<'_>, headers: Option<&HeaderMap>, answer: &mut Inbound) {
    if !port.policies.is_empty() {
        let decision = authz::decide(&port.policies, facts);
        let by = decision.by();
        answer.decision = Some(Decision {
            verdict: decision.name().to_owned(),
            rule: by.map(|by| format!("AuthorizationPolicy/{}/{}", by.policy.name, by.rule)),
            place: None,
        });
        if matches!(decision, authz::Decision::Deny(_)) {
            answer.ending = match headers {
                Some(_) => refused(Cause::Denied, Some(authz::reason(by))),
                None => closed(Cause::Denied),
            };
        }
    }
    let Some(headers) = headers else { return };
    for limit in &port.rate_limits {
        let counts = limit::is_counted(limit, facts, headers);
        let full = if counts { limit::wait(limit, facts, headers, sight.elapsed) } else { None };
        if let Some(wait) = full.filter(|_| !limit.dry_run && answer.ending == Ending::Delivered) {
            let because = format!("RateLimitPolicy {} has no room for {}", limit.name, describe::duration(wait));
            answer.ending = refused(Cause::RateLimited, Some(because));
        }
        answer.rate_limits.push(LimitAnswer {
            object: format!("RateLimitPolicy/{}", limit.name.replace('#', "/")),
            place: None,
            dry_run: limit.dry_run,
            counts,
            service: match &limit.counter {
                Counter::Local(_) => None,
                Counter::Service(service, _) => Some(service.cluster.to_string()),
            },
            full_for: full.map(describe::duration),
        });
    }
    for limit in &port.concurrency {
        let (open, most) = (limit.controller.open(), limit.controller.limit());
        if open >= most && !limit.dry_run && answer.ending == Ending::Delivered {
            let because = format!("RateLimitPolicy {} lets in {most} at once", limit.name);
            answer.ending = refused(Cause::ConcurrencyLimited, Some(because));
        }
        answer.concurrency.push(ConcurrencyAnswer {
            object: format!("RateLimitPolicy/{}", limit.name),
            place: None,
            dry_run: limit.dry_run,
            open,
            limit: most,
        });
    }
}

/// What the bytes are taken for: over mutual TLS the caller's sidecar has told by ALPN, and what it calls opaque is looked into
/// only where policies ask for HTTP.
fn reading_of(port: &Port, caller: &Caller, request: &Request) -> Reading {
    if caller.principal.is_none() {
        return reading::inbound(port.protocol, request.sniffed());
    }
    let looked_into = !caller.opaque || (port.protocol != Protocol::Tcp && port.policies.needs_http());
    match request.protocol {
        Speaks::Http1 if looked_into => Reading::Http1,
        Speaks::Http2 if looked_into => Reading::Http2,
        Speaks::Http1 | Speaks::Http2 | Speaks::Tls | Speaks::Tcp => Reading::Opaque,
    }
}

fn policies(set: &PolicySet, facts: &Facts<'_>) -> Vec<PolicyAnswer> {
    let described = |action: &str, effect, policy: &Policy| PolicyAnswer {
        object: format!("AuthorizationPolicy/{}", policy.name),
        place: None,
        action: action.to_owned(),
        dry_run: policy.dry_run,
        rules: policy.rules.iter().map(|rule| rule_answer(authz::miss(rule, facts, effect))).collect(),
    };
    let deny = set.deny.iter().map(|policy| described("DENY", Effect::Deny, policy));
    deny.chain(set.allow.iter().map(|policy| described("ALLOW", Effect::Allow, policy))).collect()
}

fn rule_answer(missed: Option<Part>) -> PolicyRule {
    let part = missed.map(|part| match part {
        Part::From => "from",
        Part::To => "to",
    });
    PolicyRule { matches: missed.is_none(), missed: part.map(str::to_owned) }
}

/// Before the control plane has said anything about the workload.
fn nothing_known(port: u16, caller: &Caller) -> Inbound {
    Inbound {
        port,
        workload: String::new(),
        protocol: String::new(),
        reading: String::new(),
        tls: String::new(),
        caller: caller.principal.clone(),
        peer: caller.ip,
        sources: Vec::new(),
        policies: Vec::new(),
        decision: None,
        rate_limits: Vec::new(),
        concurrency: Vec::new(),
        ending: closed(Cause::ConfigUnavailable),
    }
}
