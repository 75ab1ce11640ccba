#![allow(clippy::indexing_slicing, reason = "a missing entry fails the test")]

use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;

use super::answer::{Ending, Verdict};
use super::*;
use crate::balance::tests::cluster_of;
use crate::concurrency::{Bounds, Controller};
use crate::rate_limit::{Buckets, Rate};
use crate::tables::cluster::{Cluster, Settings};
use crate::tables::listener::{Listener, Opaque, Protocol, ServerNames, Share, Shares};
use crate::tables::policy::{Operation, Policy, PolicySet, Rule as PolicyRule, TextMatch};
use crate::tables::rate_limit::{Concurrency, Counter, LimitBy, Quota, RateLimit, RateLimitService, Unit};
use crate::tables::route::{Abort, AbortStatus, Backend, Fault, PathMatch, Route, RouteMatch, RouteTable, Rule};
use crate::tables::{Answer, Destination, Egress, Mesh, Port, TlsMode};

const VIP: ([u8; 4], u16) = ([10, 96, 0, 1], 80);

fn rule(name: &str, backends: &[(u32, Option<Arc<Cluster>>)]) -> Arc<Rule> {
    let backend = |(weight, cluster): &(u32, Option<Arc<Cluster>>)| Backend {
        weight: *weight,
        cluster: cluster.clone(),
        filters: Vec::new(),
        mirrors: Vec::new(),
    };
    Arc::new(Rule {
        name: name.into(),
        cors: None,
        fault: None,
        filters: Vec::new(),
        mirrors: Vec::new(),
        backends: backends.iter().map(backend).collect(),
        total_weight: backends.iter().map(|(weight, _)| weight).sum(),
        request_timeout: None,
        idle_timeout: None,
        try_timeout: None,
        retry: None,
        hedge: None,
        session: None,
    })
}

fn tables(routes: Vec<Route>, policies: PolicySet) -> Tables {
    let table = RouteTable { name: "shop/api/80".into(), routes, sources: Arc::new([]) };
    let listener = Listener {
        address: VIP.into(),
        protocol: Protocol::Http,
        http: Some(Arc::new(table)),
        tcp: None,
        sources: Arc::new([]),
    };
    let port = Port {
        protocol: Protocol::Http,
        tls: TlsMode::Strict,
        service: None,
        policies,
        rate_limits: Vec::new(),
        concurrency: Vec::new(),
        settings: Settings::default(),
    };
    let inbound = crate::tables::Inbound {
        mesh: Mesh { cidrs: vec!["10.0.0.0/8".parse().unwrap()], egress: Egress::Deny },
        workload: "api".into(),
        namespace: "shop".into(),
        ports: [].into(),
        other_ports: Arc::new(port),
        sources: Arc::new([]),
    };
    let outbound = [(VIP.into(), Destination::from(Answer::Exists(Arc::new(listener))))];
    Tables { inbound: Some(Arc::new(inbound)), outbound: outbound.into(), ..Tables::default() }
}

fn explained(tables: &Tables, url: &str) -> Outbound {
    let (request, _) = Request::of_url(url).unwrap();
    outbound(&sight(tables), VIP.into(), [10, 0, 0, 2].into(), &request).unwrap()
}

fn sight(tables: &Tables) -> Sight<'_> {
    Sight { tables, elapsed: Duration::ZERO, wall: SystemTime::UNIX_EPOCH }
}

fn path(path: &str) -> RouteMatch {
    RouteMatch { path: Some(PathMatch::Prefix(path.into())), ..RouteMatch::default() }
}

#[test]
fn the_route_that_won_and_those_that_lost_are_told_with_the_reason() {
    let cluster = || Some(Arc::new(cluster_of(Settings::default(), &[1])));
    let put = RouteMatch { method: Some(Method::PUT), ..RouteMatch::default() };
    let routes = vec![
        Route { matches: put, rule: rule("HTTPRoute/shop/a/0", &[(1, cluster())]) },
        Route { matches: path("/cart"), rule: rule("HTTPRoute/shop/a/1", &[(3, cluster()), (1, None)]) },
        Route { matches: RouteMatch::default(), rule: rule("HTTPRoute/shop/a/2", &[(1, cluster())]) },
    ];
    let answer = explained(&tables(routes, PolicySet::default()), "http://api.shop/cart/x");

    let told: Vec<_> = answer.routes.iter().map(|route| (route.verdict, route.missed.as_deref())).collect();
    assert_eq!(told, [(Verdict::Lost, Some("method")), (Verdict::Won, None), (Verdict::Later, None)]);
    let shares: Vec<_> = answer.outcomes.iter().map(|outcome| outcome.percent).collect();
    assert_eq!(shares, [75.0, 25.0]);
    assert!(matches!(&answer.outcomes[1].ending, Ending::Refused { cause, .. } if cause == "invalid_backend"));
    let text = text::outbound(&answer, "");
    assert!(text.contains("lost  HTTPRoute/shop/a/0: method PUT; the method does not match"), "{text}");
    let again: Outbound = serde_json::from_str(&serde_json::to_string(&answer).unwrap()).unwrap();
    assert_eq!(again, answer);
}

#[test]
fn endpoints_that_get_nothing_are_told_with_what_speaks_against_them() {
    let cluster = Arc::new(cluster_of(Settings::default(), &[1, 1, 1]));
    let set = cluster.endpoints.load();
    for _ in 0..5 {
        let failed = crate::balance::outlier::Outcome::NoResponse;
        crate::balance::outlier::note(&cluster, &set.endpoints[0], failed, None, Millis(1));
    }
    crate::balance::leaving::note(&cluster, &set.endpoints[1], Millis(1));
    let routes = vec![Route { matches: RouteMatch::default(), rule: rule("default", &[(1, Some(cluster.clone()))]) }];
    let answer = explained(&tables(routes, PolicySet::default()), "http://api.shop/");

    let endpoints = &answer.backends[0].endpoints;
    let told: Vec<_> = endpoints.iter().map(|one| (one.eligible, one.because.as_deref().unwrap_or(""))).collect();
    assert!(!told[0].0 && told[0].1.starts_with("ejected by outlier detection for 30."), "{told:?}");
    assert!(!told[1].0 && told[1].1.starts_with("leaving"), "{told:?}");
    assert_eq!(told[2], (true, ""));
    assert_eq!(cluster.state.ejected.load(std::sync::atomic::Ordering::Relaxed), 1, "nothing changes by asking");
}

#[test]
fn what_is_not_known_is_refused_or_let_out_as_for_the_data_path() {
    let known = tables(Vec::new(), PolicySet::default());
    let (request, _) = Request::of_url("http://api.shop/").unwrap();
    let ending = |address: SocketAddr| {
        let answer = outbound(&sight(&known), address, [10, 0, 0, 2].into(), &request).unwrap();
        answer.outcomes[0].ending.to_string()
    };
    assert!(ending(([10, 96, 0, 9], 80).into()).contains("config_unavailable"));
    assert!(ending(([192, 0, 2, 1], 80).into()).contains("egress_denied"));
    assert!(ending(VIP.into()).contains("no_route"));
}

#[test]
fn the_rule_that_decides_inbound_is_told_and_why_the_others_did_not_match() {
    let deny = |path: &str| {
        let operation = Operation { paths: vec![TextMatch::Prefix(path.into())], ..Operation::default() };
        PolicyRule { from: Vec::new(), to: vec![operation] }
    };
    let policy = Policy { name: "shop/no".into(), dry_run: false, rules: vec![deny("/a"), deny("/b")] };
    let known = tables(Vec::new(), PolicySet { deny: vec![policy], allow: Vec::new() });
    let (request, _) = Request::of_url("http://api.shop/b").unwrap();
    let principal = Some("spiffe://cluster.local/ns/shop/sa/web".to_owned());
    let mut caller = Caller { principal, ip: [10, 0, 0, 2].into(), opaque: false };

    let answer = inbound(&sight(&known), 8080, &caller, &request).unwrap();

    let decision = answer.decision.as_ref().unwrap();
    assert_eq!((decision.verdict.as_str(), decision.rule.as_deref()), ("deny", Some("AuthorizationPolicy/shop/no/1")));
    assert_eq!(answer.policies[0].rules[0].missed.as_deref(), Some("to"));
    assert!(matches!(&answer.ending, Ending::Refused { cause, status: Some(403), .. } if cause == "denied"));
    caller.principal = None;
    let stranger = inbound(&sight(&known), 8080, &caller, &request).unwrap();
    assert!(matches!(&stranger.ending, Ending::Refused { cause, status: None, .. } if cause == "tls_required"));
}

#[test]
fn a_circuit_breaker_at_its_limit_and_a_fault_take_their_shares() {
    let limits = crate::balance::breaker::Limits { requests: 0, ..Default::default() };
    let full = Arc::new(cluster_of(Settings { limits, ..Settings::default() }, &[1]));
    let mut faulty = Arc::into_inner(rule("HTTPRoute/shop/a/0", &[(1, Some(full))])).unwrap();
    let abort = Abort { status: AbortStatus::Http(http::StatusCode::IM_A_TEAPOT), per_million: 250_000 };
    faulty.fault = Some(Box::new(Fault { delay: None, abort: Some(abort), headers: Vec::new() }));
    let routes = vec![Route { matches: RouteMatch::default(), rule: Arc::new(faulty) }];

    let answer = explained(&tables(routes, PolicySet::default()), "http://api.shop/");

    let told: Vec<_> = answer.outcomes.iter().map(|outcome| (outcome.percent, outcome.ending.to_string())).collect();
    let overflow = "answered 503, cause overflow: requests are at their limit".to_owned();
    assert_eq!(told, [(25.0, "answered 418, cause fault_injected".to_owned()), (75.0, overflow)]);
    assert_eq!(answer.rule.unwrap().filters, ["fault: abort with status 418 for 25%"]);
}

#[test]
fn opaque_connections_go_by_weight_and_tls_by_the_name_it_asks_for() {
    let share = |weight, cluster| Share { weight, cluster };
    let cluster = || Some(Arc::new(cluster_of(Settings::default(), &[1])));
    let opaque = |tcp: Opaque| {
        let mut known = tables(Vec::new(), PolicySet::default());
        let (address, sources) = (VIP.into(), Arc::new([]));
        let listener = Listener { address, protocol: Protocol::Tcp, http: None, tcp: Some(tcp), sources };
        known.outbound.insert(VIP.into(), Destination::from(Answer::Exists(Arc::new(listener))));
        known
    };
    let told = |known: &Tables, url: &str| {
        let answer = explained(known, url);
        let reading = answer.listener.unwrap().reading;
        let outcomes = answer.outcomes.iter().map(|outcome| format!("{}% {}", outcome.percent, outcome.ending));
        (reading, outcomes.collect::<Vec<_>>().join("; "))
    };
    let shared = opaque(Opaque::Shares(Shares::new(vec![share(3, cluster()), share(1, None)])));
    let by_weight = "75% sent to an endpoint of shop/api/80; 25% closed, cause invalid_backend";
    assert_eq!(told(&shared, "tcp://api:80"), ("opaque".into(), by_weight.into()));
    let mut names = ServerNames::default();
    names.add("*.example.com", Shares::new(vec![share(1, cluster())]));
    let named = opaque(Opaque::ServerNames(names));
    let ending = |url: &str| told(&named, url).1;
    assert_eq!(ending("tls://a.example.com"), "100% sent to an endpoint of shop/api/80");
    assert_eq!(ending("tls://example.org"), "100% closed, cause no_route");
    assert_eq!(ending("http://a.example.com"), "100% closed, cause protocol_mismatch");
}

#[test]
fn a_rate_limit_without_room_is_told_and_asking_takes_none() {
    let buckets = Arc::new(Buckets::new(Rate::new(1, Duration::from_secs(10), 1)));
    let limit = RateLimit {
        name: "shop/few#0".into(),
        dry_run: false,
        by: LimitBy::Nothing,
        counts: PolicyRule::default(),
        headers: Vec::new(),
        counter: Counter::Local(buckets.clone()),
    };
    let mut known = tables(Vec::new(), PolicySet::default());
    let in_force = Arc::get_mut(known.inbound.as_mut().unwrap()).unwrap();
    Arc::get_mut(&mut in_force.other_ports).unwrap().rate_limits.push(limit);
    let (request, _) = Request::of_url("http://api.shop/").unwrap();
    let principal = Some("spiffe://cluster.local/ns/shop/sa/web".to_owned());
    let caller = Caller { principal, ip: [10, 0, 0, 2].into(), opaque: false };
    let ending = || inbound(&sight(&known), 8080, &caller, &request).unwrap().ending.to_string();

    assert_eq!([ending(), ending()], ["delivered to the application", "delivered to the application"]);
    buckets.take(None, Duration::ZERO);

    let because = "RateLimitPolicy shop/few#0 has no room for 10s";
    assert_eq!(ending(), format!("answered 429, cause rate_limited: {because}"));
}

#[test]
fn who_counts_and_how_many_are_let_in_at_once_is_told() {
    let service = RateLimitService {
        cluster: "shop/ratelimit/8081".into(),
        authority: "ratelimit.shop".into(),
        domain: "heddle".into(),
        timeout: Duration::from_secs(1),
        deny_on_failure: true,
    };
    let limit = RateLimit {
        name: "shop/few#0".into(),
        dry_run: false,
        by: LimitBy::Nothing,
        counts: PolicyRule::default(),
        headers: Vec::new(),
        counter: Counter::Service(Arc::new(service), Quota { requests: 1, unit: Unit::Day }),
    };
    let bounds = Bounds { minimum: 1, maximum: 1, buffer_percent: 25, interval: Duration::from_secs(60) };
    let controller = Arc::new(Controller::new(bounds));
    let mut known = tables(Vec::new(), PolicySet::default());
    let in_force = Arc::get_mut(known.inbound.as_mut().unwrap()).unwrap();
    let port = Arc::get_mut(&mut in_force.other_ports).unwrap();
    port.rate_limits.push(limit);
    port.concurrency.push(Concurrency { name: "shop/few".into(), dry_run: false, controller: controller.clone() });
    let (request, _) = Request::of_url("http://api.shop/").unwrap();
    let principal = Some("spiffe://cluster.local/ns/shop/sa/web".to_owned());
    let caller = Caller { principal, ip: [10, 0, 0, 2].into(), opaque: false };
    let told = || inbound(&sight(&known), 8080, &caller, &request).unwrap();

    assert_eq!(told().rate_limits[0].service.as_deref(), Some("shop/ratelimit/8081"));
    assert_eq!((told().concurrency[0].open, told().ending), (0, Ending::Delivered));
    let _place = controller.enter(Duration::ZERO);

    let because = "RateLimitPolicy shop/few lets in 1 at once";
    assert_eq!(told().ending.to_string(), format!("answered 503, cause concurrency_limited: {because}"));
}

#[test]
fn what_cannot_be_sent_is_refused_with_what_would_be_right() {
    let wrong = |url: &str| Request::of_url(url).unwrap_err().to_string();
    assert!(wrong("api.shop/cart").starts_with("URL `api.shop/cart`: must begin with http://"));
    assert!(wrong("http://").starts_with("destination ``: must be a host"));
    assert!(wrong("http://api.shop:http/").starts_with("destination `api.shop:http`"));
    assert!(wrong("tcp://api.shop").starts_with("destination `api.shop`"), "there is no port for it");
    let (mut request, target) = Request::of_url("http://[fd00::1]:8080?x=1#y").unwrap();
    assert_eq!((target.to_string(), request.path.as_str()), ("[fd00::1]:8080".into(), "/?x=1"));
    assert!(request.add_header("no colon").unwrap_err().to_string().starts_with("header `no colon`"));
    assert!(request.add_header("a b: c").is_err());
    request.method = "G T".into();
    assert_eq!(request.head().unwrap_err().to_string(), "method `G T`: must be a token, as GET (RFC 9110 §9.1)");
    assert!(read_query("path=/x").unwrap_err().to_string().starts_with("destination ``: must be there"));
    assert!(read_query("destination=a:80&color=red").unwrap_err().to_string().starts_with("parameter `color`"));
}

#[test]
fn a_service_is_found_by_any_of_its_names() {
    let known = tables(Vec::new(), PolicySet::default());
    let find = |host: &str| find(&known, &host.parse().unwrap());
    for name in ["api", "api.shop", "api.shop.svc", "API.shop.svc.cluster.local.", "10.96.0.1"] {
        assert_eq!(find(name), Some(VIP.into()), "{name}");
    }
    for name in ["api:81", "api.other", "api.shop.example.com", "ap"] {
        assert_eq!(find(name), None, "{name}");
    }
}
