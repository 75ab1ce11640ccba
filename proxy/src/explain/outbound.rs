//! The client's side: `outbound`, then `http/request`, in the same order and with the same functions.

use std::net::{IpAddr, SocketAddr};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::answer::{
    Backend, Candidate, Ending, Listener as ListenerAnswer, Outbound, Outcome, Rule as RuleAnswer, Verdict,
};
use super::cluster::{Wanted, backend, closed, invalid, refused, sources};
use super::request::{Invalid, Request, Speaks};
use super::{Sight, describe};
use crate::balance::breaker::Kind;
use crate::http::attempt::X_HEDDLE_ATTEMPT;
use crate::http::body::Body;
use crate::http::error::{Cause, Error};
use crate::http::filter::{self, Verdict as Filtered};
use crate::http::request::{backend_in_session, hash_for, upstream_version};
use crate::http::{cors, deadline, fault, guard, hash, headers, route, session, trace, translate};
use crate::outbound::egress;
use crate::reading::{self, Reading};
use crate::tables::listener::{Listener, Opaque, Shares};
use crate::tables::route::{Fault, Rule};
use crate::tables::{Answer, RouteTable};
use crate::upstream::Version;

/// What the client's sidecar does with `request` of a client at `client` that connects to `destination`.
///
/// # Errors
/// If the request cannot be sent at all.
pub fn outbound(
    sight: &Sight<'_>,
    destination: SocketAddr,
    client: IpAddr,
    request: &Request,
) -> Result<Outbound, Invalid> {
    let head = request.head()?;
    let known = sight.tables.outbound.get(&destination).map(|destination| &destination.answer);
    let ending = |ending| {
        let outcomes = vec![Outcome { percent: 100.0, ending }];
        Outbound { destination, listener: None, routes: vec![], rule: None, backends: vec![], outcomes }
    };
    let listener = match known {
        Some(Answer::Exists(listener)) => listener,
        Some(Answer::DoesNotExist) | None => {
            let outside = egress(sight.tables, destination.ip(), known.is_some());
            return Ok(ending(outside.map_or_else(closed, |()| Ending::Outside)));
        }
    };
    let reading = reading::outbound(listener, request.sniffed());
    let described = describe_listener(listener, reading);
    let mut answer = match (reading, head, &listener.http) {
        (Reading::Http1 | Reading::Http2, Some(head), Some(table)) => {
            http(sight, destination, client, head, table, ending)
        }
        (Reading::Http1 | Reading::Http2, ..) | (Reading::Mismatch, ..) => ending(closed(Cause::ProtocolMismatch)),
        (Reading::Opaque, ..) => match listener.shares() {
            Some(shares) => opaque(sight, client, shares, ending),
            None => ending(closed(Cause::ProtocolMismatch)),
        },
        (Reading::ByServerName, ..) => match &listener.tcp {
            Some(Opaque::ServerNames(names)) if request.protocol == Speaks::Tls => {
                match names.find(&request.host.to_ascii_lowercase()) {
                    Some(shares) => opaque(sight, client, shares, ending),
                    None => ending(closed(Cause::NoRoute)),
                }
            }
            _ => ending(closed(Cause::ProtocolMismatch)),
        },
    };
    answer.listener = Some(described);
    Ok(answer)
}

fn describe_listener(listener: &Listener, reading: Reading) -> ListenerAnswer {
    ListenerAnswer {
        protocol: describe::protocol(listener.protocol),
        reading: describe::reading(reading),
        table: listener.http.as_ref().map(|table| table.name.to_string()),
        sources: sources(&listener.sources),
    }
}

fn opaque(sight: &Sight<'_>, client: IpAddr, shares: &Shares, ending: impl FnOnce(Ending) -> Outbound) -> Outbound {
    let total: f64 = shares.all().iter().map(|share| f64::from(share.weight)).sum();
    let backends = shares.all().iter().map(|share| {
        let percent = f64::from(share.weight) * 100.0 / total;
        let Some(cluster) = &share.cluster else { return invalid(percent) };
        let hashed = !cluster.settings.policy.hash_on().is_empty();
        let hash = hashed.then(|| hash::of_client(client));
        backend(sight, cluster, percent, Wanted { kind: Kind::Connections, session: None, hash })
    });
    let mut backends: Vec<_> = backends.collect();
    backends.iter_mut().for_each(close);
    let outcomes = outcomes(&backends, 0.0);
    Outbound { backends, outcomes, ..ending(Ending::Outside) }
}

/// What has no HTTP is not answered.
fn close(backend: &mut Backend) {
    if let Ending::Refused { status, .. } = &mut backend.ending {
        *status = None;
    }
}

fn http(
    sight: &Sight<'_>,
    destination: SocketAddr,
    client: IpAddr,
    mut head: Parts,
    table: &RouteTable,
    ending: impl Fn(Ending) -> Outbound,
) -> Outbound {
    if let Err(wrong) = guard::check(&head) {
        return ending(refused(Cause::ProtocolError, Some(wrong.to_string())));
    }
    // What is begun here may be asked for by a route; any value does.
    let given: Vec<HeaderName> = head.headers.keys().cloned().collect();
    trace::begin(&mut head.headers, &mut fastrand::Rng::with_seed(0));
    let begun: Vec<HeaderName> = head.headers.keys().filter(|name| !given.contains(name)).cloned().collect();
    headers::name_host(&mut head, destination);
    head.headers.remove(X_HEDDLE_ATTEMPT);
    let routes = candidates(table, &head);
    let Some(chosen) = route::select(table, &head) else {
        return Outbound { routes, ..ending(refused(Cause::NoRoute, None)) };
    };
    let rule = &*chosen.rule;
    let in_session = rule.session.as_ref().and_then(|kept| session::endpoint(kept, &head.headers, sight.wall));
    let meant = rule.fault.as_deref().filter(|fault| fault::is_meant(fault, &head.headers));
    let described = describe_rule(rule, &head, in_session, meant.is_some());
    let done = |ending: Outbound| Outbound { routes: routes.clone(), rule: Some(described.clone()), ..ending };
    if let Some(policy) = &rule.cors {
        let allowed = cors::allowed(policy, &head.headers);
        if let Some(answer) = cors::preflight(policy, allowed.as_ref(), &head) {
            return done(ending(answered("preflight", answer.status(), None)));
        }
    }
    let place = in_session.and_then(|address| backend_in_session(rule, address, sight.now()));
    let aborted =
        meant.and_then(|fault| fault.abort.as_ref()).map_or(0.0, |abort| describe::percent(abort.per_million));
    let with_fault = |outbound: Outbound| add_fault(done(outbound), meant, aborted);
    // Hashes are of the request as the client sent it.
    let hashes: Vec<_> = (0..rule.backends.len()).map(|place| hash_for(rule, place, &head, client)).collect();
    if let Filtered::Answer(response) = filter::on_request(&rule.filters, &mut head, destination.port()) {
        return with_fault(ending(redirect(&response)));
    }
    if rule.total_weight == 0 {
        return with_fault(ending(refused(Cause::InvalidBackend, Some("no backend has a weight".to_owned()))));
    }
    let mut backends = Vec::new();
    for (number, given) in rule.backends.iter().enumerate() {
        let percent = match place {
            Some(place) if place == number => 100.0,
            Some(_) => 0.0,
            None => f64::from(given.weight) * 100.0 / f64::from(rule.total_weight),
        };
        let Some(cluster) = &given.cluster else {
            backends.push(invalid(percent));
            continue;
        };
        let hash = hashes.get(number).copied().flatten();
        let mut backend = backend(sight, cluster, percent, Wanted { kind: Kind::Requests, session: in_session, hash });
        backend.filters = given.filters.iter().map(describe::filter).collect();
        backend.filters.extend(given.mirrors.iter().map(describe::mirror));
        let mut leaves = head.clone();
        match filter::on_request(&given.filters, &mut leaves, destination.port()) {
            Filtered::Continue => match as_sent(leaves, upstream_version(cluster, head.version), &begun) {
                Ok(sent) => backend.sent = Some(sent),
                Err(error) => backend.ending = refused(error.cause, None),
            },
            Filtered::Answer(response) => backend.ending = redirect(&response),
        }
        backends.push(backend);
    }
    let outcomes = outcomes(&backends, aborted);
    with_fault(Outbound { backends, outcomes, ..ending(Ending::Outside) })
}

fn candidates(table: &RouteTable, head: &Parts) -> Vec<Candidate> {
    let mut won = false;
    let candidate = |route: &crate::tables::route::Route| {
        let missed = route::miss(&route.matches, head);
        let verdict = match missed {
            Some(_) => Verdict::Lost,
            None if won => Verdict::Later,
            None => Verdict::Won,
        };
        won |= missed.is_none();
        Candidate {
            rule: route.rule.name.to_string(),
            place: None,
            matches: describe::matches(&route.matches),
            verdict,
            missed: missed.map(describe::miss),
        }
    };
    table.routes.iter().map(candidate).collect()
}

fn describe_rule(rule: &Rule, head: &Parts, in_session: Option<SocketAddr>, meant: bool) -> RuleAnswer {
    let grpc = route::is_grpc(&head.headers);
    let mut filters = Vec::new();
    filters.extend(rule.cors.as_ref().map(|_| "CORS".to_owned()));
    filters.extend(rule.fault.as_ref().map(|fault| describe::fault(fault, meant)));
    filters.extend(rule.filters.iter().map(describe::filter));
    filters.extend(rule.mirrors.iter().map(describe::mirror));
    RuleAnswer {
        name: rule.name.to_string(),
        place: None,
        filters,
        request_timeout: deadline::length(rule.request_timeout, grpc, &head.headers).map(describe::duration),
        try_timeout: rule.try_timeout.map(describe::duration),
        idle_timeout: rule.idle_timeout.map(describe::duration),
        retry: describe::retry(rule.retry.as_ref()),
        hedge: rule.hedge.map(describe::hedge),
        session: rule.session.as_ref().map(|kept| match in_session {
            Some(endpoint) => format!("{}: at {endpoint}", describe::session(kept)),
            None => format!("{}: the request has none", describe::session(kept)),
        }),
    }
}

/// What comes of requests to these backends, where a share is answered before.
fn outcomes(backends: &[Backend], answered_before: f64) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for backend in backends.iter().filter(|backend| backend.percent > 0.0) {
        let percent = backend.percent * (100.0 - answered_before) / 100.0;
        match outcomes.iter_mut().find(|outcome| outcome.ending == backend.ending) {
            Some(outcome) => outcome.percent += percent,
            None => outcomes.push(Outcome { percent, ending: backend.ending.clone() }),
        }
    }
    outcomes.retain(|outcome| outcome.percent > 0.0);
    outcomes
}

/// The share that a fault aborts comes first; where the rest is one outcome it gets what is left.
fn add_fault(mut outbound: Outbound, fault: Option<&Fault>, aborted: f64) -> Outbound {
    let Some(abort) = fault.and_then(|fault| fault.abort.as_ref()).filter(|_| aborted > 0.0) else { return outbound };
    if outbound.backends.is_empty() {
        outbound.outcomes.iter_mut().for_each(|outcome| outcome.percent = 100.0 - aborted);
        outbound.outcomes.retain(|outcome| outcome.percent > 0.0);
    }
    let cause = Cause::FaultInjected.name().to_owned();
    let status = Some(fault::http_status(abort.status).as_u16());
    outbound.outcomes.insert(0, Outcome { percent: aborted, ending: Ending::Refused { cause, status, because: None } });
    outbound
}

fn answered(by: &str, status: StatusCode, location: Option<String>) -> Ending {
    Ending::Answered { by: by.to_owned(), status: status.as_u16(), location }
}

fn redirect(response: &Response<Body>) -> Ending {
    let location = response.headers().get(header::LOCATION);
    let location = location.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    answered("redirect", response.status(), location)
}

/// The request as `http/request` sends it, without the headers that `begun` names.
fn as_sent(mut head: Parts, version: Version, begun: &[HeaderName]) -> Result<Request, Error> {
    let upgrade = headers::upgrade_wanted(head.version, &head.headers);
    headers::remove_hop_by_hop(&mut head.headers);
    if head.version != http::Version::HTTP_2 {
        headers::to_origin_form(&mut head);
    }
    translate::request(&mut head, version)?;
    if let (Some(protocol), Version::Http1) = (upgrade, version) {
        headers::restore_upgrade(&mut head.headers, protocol);
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let host = head.uri.authority().map(ToString::to_string).or_else(|| head.headers.get(header::HOST).map(text));
    let told = head.headers.iter().filter(|(name, _)| *name != header::HOST && !begun.contains(name));
    Ok(Request {
        protocol: match version {
            Version::Http1 => Speaks::Http1,
            Version::Http2 => Speaks::Http2,
        },
        method: head.method.to_string(),
        host: host.unwrap_or_default(),
        path: head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
        headers: told.map(|(name, value)| (name.to_string(), text(value))).collect(),
    })
}
