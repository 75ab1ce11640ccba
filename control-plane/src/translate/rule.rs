//! Route tables: the routes that hold at a Service's port, in order of precedence, for every kind of client.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;

use super::filter::Place;
use super::precedence::Key;
use super::problem::Problem;
use super::service::Port;
use super::traffic::{self, Traffic};
use super::{accept, backend, connections, filter, grpc_route, http_route, server_name, session};
use crate::api::FaultInjection;
use crate::api::traffic_policy::{BACKOFF_GROWTH, DEFAULT_ATTEMPTS, DEFAULT_BACKOFF};
use crate::model::route::{RetryPolicy, Session};
use crate::model::{
    Backend, Filter, Protocol, ResourceName, Route, RouteTable, Rule, ServiceName, SourceRef, TcpRoutes, TcpShare,
};
use crate::objects::route::{RouteFilter, RouteRule, RuleRetry, SessionPersistence};
use crate::objects::{self, Kind, Objects, name_of, namespace_of};
use crate::status::Reason;

/// The route tables of one Service port.
pub(super) struct Tables {
    /// What the port carries: what it declares, or HTTP because a producer's route says so.
    pub(super) protocol: Protocol,
    /// None where the port carries no HTTP; else the producer's, then the consumers'.
    pub(super) tables: Vec<RouteTable>,
    /// Where what is no HTTP goes; `None` where there is none.
    pub(super) tcp: Option<TcpRoutes>,
    /// The objects `tcp` comes from, besides the Service.
    pub(super) tcp_sources: Vec<SourceRef>,
}

/// The tables of `port`.
pub(super) fn tables(objects: &Objects, service: &Service, port: &Port<'_>) -> Tables {
    let name = ServiceName::new(namespace_of(&service.metadata), name_of(&service.metadata));
    let own = ResourceName::service_port(&name, port.number);
    let opaque = connections::InForce::at(objects, &name, port.number);
    let tcp = opaque.routes(objects, &name, own.clone());
    let tcp_sources = opaque.sources().collect();
    if port.declared == Protocol::Tcp || opaque.has_producer() {
        return Tables { protocol: Protocol::Tcp, tables: Vec::new(), tcp: Some(tcp), tcp_sources };
    }
    let mut by_namespace: BTreeMap<&str, Vec<&Arc<objects::Route>>> = BTreeMap::new();
    for route in objects.routes_of(&name.namespace, &name.name).filter(|route| !route.kind.routes_connections()) {
        if accept::holds_at(objects, route, &name.namespace, &name.name, port.number) {
            by_namespace.entry(namespace_of(&route.metadata)).or_default().push(route);
        }
    }
    let producers = by_namespace.remove(&*name.namespace).unwrap_or_default();
    let mut tables = vec![if producers.is_empty() {
        default_table(objects, &name, own)
    } else {
        table(objects, &name, own, &producers)
    }];
    for (namespace, consumers) in &by_namespace {
        let own = ResourceName::consumer(&name, port.number, namespace);
        tables.push(table(objects, &name, own, consumers));
    }
    let protocol = match port.declared {
        Protocol::Detect if producers.iter().any(|route| route.kind == Kind::GrpcRoute) => Protocol::Http2,
        Protocol::Detect if !producers.is_empty() => Protocol::Http,
        declared => declared,
    };
    Tables { protocol, tables, tcp: protocol.may_be_opaque().then_some(tcp), tcp_sources }
}

/// What became of a route's rules.
#[derive(Default)]
pub(super) struct Built {
    pub(super) routes: Vec<(Key, Route)>,
    /// Where connections go, of a TLSRoute or a TCPRoute.
    pub(super) shares: Vec<TcpShare>,
    /// What is not in force as written, a sentence each.
    pub(super) broken: Vec<String>,
    /// The same, by field.
    problems: Vec<RuleProblem>,
    /// Rules that do nothing as written.
    pub(super) useless: usize,
    /// References that could not be followed.
    pub(super) unresolved: Vec<(Reason, String)>,
}

/// What is wrong with a rule by itself, whatever else there is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleProblem {
    /// Where in the route: `spec.rules[1]`, `spec.hostnames`.
    pub field: String,
    /// A sentence with the value and what would be right.
    pub text: String,
    /// Whether it cannot be meant at all, by nobody.
    pub impossible: bool,
}

/// What is wrong with the rules of `route` by themselves.
pub fn problems(route: &objects::Route) -> Vec<RuleProblem> {
    let nowhere = ServiceName::new(namespace_of(&route.metadata), "");
    build(&Objects::default(), route, &nowhere).problems
}

/// The rules of `route` as they hold for clients of `service`.
pub(super) fn build(objects: &Objects, route: &objects::Route, service: &ServiceName) -> Built {
    let everything = [RouteRule::default()];
    let rules = route.spec.rules.as_deref().unwrap_or(&everything);
    let traffic = traffic::for_route(objects, route, service);
    let mut built = Built::default();
    for (index, rule) in rules.iter().enumerate() {
        one(objects, route, service, &traffic, index, rule, &mut built);
    }
    built
}

impl Built {
    fn note(&mut self, rule: usize, problem: &Problem) {
        self.note_at(format!("spec.rules[{rule}]"), problem);
    }

    fn note_at(&mut self, field: String, problem: &Problem) {
        let impossible = matches!(problem, Problem::Impossible(_));
        self.problems.push(RuleProblem { field, text: problem.to_string(), impossible });
    }
}

/// How many rules a route has, the one it has by default included.
pub(super) fn rule_count(route: &objects::Route) -> usize {
    route.spec.rules.as_ref().map_or(1, Vec::len)
}

fn one(
    objects: &Objects,
    route: &objects::Route,
    service: &ServiceName,
    traffic: &Traffic,
    index: usize,
    rule: &RouteRule,
    built: &mut Built,
) {
    let at = rule.name.clone().unwrap_or_else(|| index.to_string());
    let matches = match route.kind {
        Kind::GrpcRoute => grpc_route::matches(route, index, rule),
        Kind::TlsRoute | Kind::TcpRoute => return connections(objects, route, service, index, rule, built),
        _ => http_route::matches(route, index, rule),
    };
    let matches = match matches {
        Ok(matches) => matches,
        Err(problem) => {
            built.broken.push(format!("rule {at}: {problem}; the rule is left out"));
            built.note(index, &problem);
            built.useless += 1;
            return;
        }
    };
    let prefix_only = route.kind == Kind::HttpRoute && http_route::prefix_only(rule);
    let mut backends = Vec::new();
    let filters = match filters_of(objects, route, service, &rule.filters, Place::Rule { prefix_only }, &at, built) {
        Ok(filters) => {
            for given in &rule.backend_refs {
                let (backend, problem) = backend_of(objects, route, service, given, prefix_only, &at, built);
                problem.iter().for_each(|problem| built.note(index, problem));
                backends.push(backend);
            }
            filters
        }
        Err(Problem::Unresolved(text)) => {
            built.unresolved.push((Reason::FilterNotFound, format!("rule {at}: {text}")));
            Vec::new()
        }
        Err(problem) => {
            built.broken.push(format!("rule {at}: {problem}"));
            built.note(index, &problem);
            built.useless += 1;
            Vec::new()
        }
    };
    if filters.iter().any(|filter| filter.redirect().is_some()) {
        backends.clear();
    }
    let session = rule.session_persistence.as_ref().and_then(|given| session_of(route, given, index, &at, built));
    let mut timeout = |text: Option<&String>, fallback: Option<Duration>| match text.map(|text| (text, duration(text)))
    {
        None => fallback,
        Some((_, Some(length))) => (!length.is_zero()).then_some(length),
        Some((text, None)) => {
            let problem = format!("timeout `{text}` is no duration (GEP-2257); the rule holds without it");
            built.broken.push(format!("rule {at}: {problem}"));
            built.note(index, &Problem::Impossible(problem));
            fallback
        }
    };
    let given = rule.timeouts.clone().unwrap_or_default();
    let request_timeout = timeout(given.request.as_ref(), traffic.request_timeout());
    let try_timeout = timeout(given.backend_request.as_ref(), traffic.try_timeout());
    let rule = Arc::new(Rule {
        name: format!("{}/{}/{}/{at}", route.kind, namespace_of(&route.metadata), name_of(&route.metadata)).into(),
        filters,
        backends,
        request_timeout,
        idle_timeout: traffic.idle_timeout(),
        try_timeout,
        retry: rule.retry.as_ref().map_or_else(|| traffic.retry(), |given| Some(retry(given))),
        hedge: traffic.hedge(),
        session,
    });
    built.routes.extend(matches.into_iter().map(|(key, matches)| (key, Route { matches, rule: rule.clone() })));
}

/// A rule of a route of connections. All match everything, so only the first can ever be asked.
fn connections(
    objects: &Objects,
    route: &objects::Route,
    service: &ServiceName,
    index: usize,
    rule: &RouteRule,
    built: &mut Built,
) {
    if index > 0 {
        let problem = Problem::Impossible(format!(
            "a {} has one rule, because nothing tells its connections apart: write one",
            route.kind
        ));
        built.broken.push(format!("rule {index}: {problem}; the rule is left out"));
        built.note(index, &problem);
        built.useless += 1;
        return;
    }
    if route.kind == Kind::TlsRoute {
        let problems = server_name::problems(route);
        built.useless += usize::from(problems.len() >= route.spec.hostnames.len().max(1));
        for problem in problems {
            built.broken.push(problem.to_string());
            built.note_at("spec.hostnames".into(), &problem);
        }
    }
    for given in &rule.backend_refs {
        let (Backend { weight, cluster, .. }, _) = backend_of(objects, route, service, given, false, "0", built);
        built.shares.push(TcpShare { weight, cluster });
    }
}

/// A session that cannot be meant is left out, and the rule holds without it.
fn session_of(
    route: &objects::Route,
    given: &SessionPersistence,
    index: usize,
    at: &str,
    built: &mut Built,
) -> Option<Session> {
    let own = format!("session-{}-{}-{at}", namespace_of(&route.metadata), name_of(&route.metadata));
    let (session, problems) = match session::session(given, &own) {
        Ok((session, problems)) => (Some(session), problems),
        Err(problem) => (None, vec![problem]),
    };
    for problem in problems {
        built.broken.push(format!("rule {at}: {problem}"));
        built.note(index, &problem);
    }
    session
}

fn filters_of(
    objects: &Objects,
    route: &objects::Route,
    service: &ServiceName,
    given: &[RouteFilter],
    place: Place,
    at: &str,
    built: &mut Built,
) -> Result<Vec<Filter>, Problem> {
    filter::filters(given, place, &mut References { objects, route, service, at, built })
}

/// What filters of a rule may name, and where it is noted that something is not there.
struct References<'r> {
    objects: &'r Objects,
    route: &'r objects::Route,
    service: &'r ServiceName,
    at: &'r str,
    built: &'r mut Built,
}

impl filter::Follow for References<'_> {
    fn mirror(&mut self, to: &objects::route::BackendRef) -> Option<ResourceName> {
        let resolved = backend::resolve(self.objects, self.route, Some(self.service), to);
        resolved
            .map_err(|(reason, problem)| {
                self.built.unresolved.push((reason, format!("rule {}, mirror: {problem}", self.at)));
            })
            .ok()
    }

    fn fault(&mut self, name: &str) -> Option<Arc<FaultInjection>> {
        self.objects.fault_injections.get(namespace_of(&self.route.metadata), name).cloned()
    }
}

fn backend_of(
    objects: &Objects,
    route: &objects::Route,
    service: &ServiceName,
    given: &objects::route::BackendRef,
    prefix_only: bool,
    at: &str,
    built: &mut Built,
) -> (Backend, Option<Problem>) {
    let weight = u32::try_from(given.weight.unwrap_or(1)).unwrap_or(0).min(MAX_WEIGHT);
    let mut cluster = match backend::resolve(objects, route, Some(service), given) {
        Ok(cluster) => Some(cluster),
        Err((reason, problem)) => {
            built.unresolved.push((reason, format!("rule {at}: {problem}")));
            None
        }
    };
    let mut problem = None;
    let place = Place::Backend { prefix_only };
    let filters = filters_of(objects, route, service, &given.filters, place, at, built).unwrap_or_else(|found| {
        built.broken.push(format!("rule {at}, backend {}: {found}", given.name));
        problem = Some(found);
        cluster = None;
        Vec::new()
    });
    (Backend { weight, cluster, filters }, problem)
}

/// GEP-1731; connections that broke are tried again as well.
fn retry(given: &RuleRetry) -> RetryPolicy {
    let base =
        given.backoff.as_deref().and_then(duration).filter(|length| !length.is_zero()).unwrap_or(DEFAULT_BACKOFF);
    let codes: BTreeSet<u16> = given.codes.iter().filter_map(|code| u16::try_from(*code).ok()).collect();
    let attempts = given.attempts.map_or(DEFAULT_ATTEMPTS, |attempts| u32::try_from(attempts).unwrap_or(0));
    RetryPolicy {
        retries: attempts.min(MAX_RETRIES),
        codes: codes.into_iter().filter(|code| (400..=599).contains(code)).collect(),
        grpc_codes: Vec::new(),
        connection_failures: true,
        backoff_base: base,
        backoff_max: base.saturating_mul(BACKOFF_GROWTH),
    }
}

fn duration(text: &str) -> Option<Duration> {
    crate::api::Duration::from_str(text).ok().map(crate::api::Duration::get)
}

fn table(objects: &Objects, service: &ServiceName, name: ResourceName, routes: &[&Arc<objects::Route>]) -> RouteTable {
    let mut sources = BTreeSet::from([SourceRef::new("Service", &service.namespace, &service.name)]);
    let mut all = Vec::new();
    for route in routes {
        sources.insert(SourceRef::new(route.kind.name(), namespace_of(&route.metadata), name_of(&route.metadata)));
        sources.extend(traffic::for_route(objects, route, service).sources());
        let faults =
            route.faults().filter(|name| objects.fault_injections.get(namespace_of(&route.metadata), name).is_some());
        sources.extend(faults.map(|name| SourceRef::new("FaultInjection", namespace_of(&route.metadata), name)));
        all.extend(build(objects, route, service).routes);
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    RouteTable {
        name,
        service: Some(service.clone()),
        routes: all.into_iter().map(|(_, route)| route).collect(),
        sources: sources.into_iter().collect(),
    }
}

/// No route object speaks: everything goes to the Service, by its TrafficPolicy.
fn default_table(objects: &Objects, service: &ServiceName, name: ResourceName) -> RouteTable {
    let traffic = traffic::for_service(objects, service);
    let mut route = Route::default_to(name.clone());
    let rule = Arc::make_mut(&mut route.rule);
    rule.request_timeout = traffic.request_timeout();
    rule.idle_timeout = traffic.idle_timeout();
    rule.try_timeout = traffic.try_timeout();
    rule.retry = traffic.retry();
    rule.hedge = traffic.hedge();
    let mut sources = BTreeSet::from([SourceRef::new("Service", &service.namespace, &service.name)]);
    sources.extend(traffic.sources());
    RouteTable { name, service: Some(service.clone()), routes: vec![route], sources: sources.into_iter().collect() }
}

/// Gateway API, `BackendRef.weight`.
const MAX_WEIGHT: u32 = 1_000_000;
/// As TrafficPolicy allows.
const MAX_RETRIES: u32 = 10;
