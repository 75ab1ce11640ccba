#![allow(clippy::indexing_slicing, reason = "a missing entry fails the test")]

use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;

use super::answer::Verdict;
use super::*;
use crate::balance::tests::cluster_of;
use crate::tables::cluster::{Cluster, Settings};
use crate::tables::listener::{Listener, Protocol};
use crate::tables::policy::{Operation, Policy, PolicySet, Rule as PolicyRule, TextMatch};
use crate::tables::route::{Backend, PathMatch, Route, RouteMatch, RouteTable, Rule};
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
    Tables { inbound: Some(Arc::new(inbound)), outbound: outbound.into() }
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
