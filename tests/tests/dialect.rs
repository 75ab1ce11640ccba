//! The dialect between control plane and sidecar: every field of the model, through the encoding of one half and the
//! reading of the other, arrives in the tables.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use heddle_control_plane::emit::{Index, heddle};
use heddle_control_plane::model::cluster::{KeepAlive, Limits, RetryBudget, Settings, Statistics};
use heddle_control_plane::model::rate_limit::{Concurrency, LimitBy, RateLimit, RateLimitService};
use heddle_control_plane::model::route::{
    Abort, AbortStatus, Cors, Delay, Fault, HeaderChanges, HeaderMatch, HeaderValue, Hedge, Mirror, Origin, PathChange,
    PathMatch, QueryMatch, Redirect, RetryPolicy, Rewrite, RouteMatch, Scheme, StringMatch,
};
use heddle_control_plane::model::{self, SourceRef, SpiffeId, TextMatch};
use heddle_proxy::balance::health;
use heddle_proxy::concurrency::Bounds;
use heddle_proxy::rate_limit::Rate;
use heddle_proxy::sync;
use heddle_proxy::tables::cluster::{EndpointSet, EndpointTls};
use heddle_proxy::tables::rate_limit::{Counter, Quota, Unit};
use heddle_proxy::tables::{self, Cluster};
use heddle_xds::resource::{Kind, Resource};
use http::StatusCode;

#[test]
fn a_listener_s_protocol_and_what_it_leads_to_arrive() {
    use model::Protocol as From;
    use tables::Protocol as To;
    for (from, to) in
        [(From::Detect, To::Detect), (From::Http, To::Http), (From::Http2, To::Http2), (From::Tcp, To::Tcp)]
    {
        let resource = heddle::listener(&listener(from), address("10.1.0.1:80"), "elsewhere");

        let parsed = sync::listener::parse("outbound/10.1.0.1:80", &resource.bytes).unwrap();

        assert_eq!(&*resource.name, "outbound/10.1.0.1:80");
        assert_eq!(parsed.protocol, to);
        assert_eq!(parsed.routes.as_deref(), from.may_be_http().then_some("shop/cart/80"), "{from:?}");
        let clusters: Vec<_> = parsed.tcp_clusters().map(|name| &**name).collect();
        assert_eq!(clusters, if from.may_be_opaque() { vec!["shop/cart/80"] } else { vec![] }, "{from:?}");
        assert_eq!(resource.sources[..], ["Service/shop/cart".into()]);
    }
}

#[test]
fn shares_of_opaque_connections_arrive_with_their_weights_and_the_invalid_one_as_none() {
    let share = |weight, name: Option<&str>| model::TcpShare { weight, cluster: name.map(port_of) };
    let several = vec![share(90, Some("cart")), share(0, Some("old")), share(5, None)];
    let brought = BTreeMap::from([(Arc::from("team"), model::Opaque::Shares(vec![share(1, None)]))]);
    let given = model::OutboundListener {
        tcp: Some(model::TcpRoutes { everyone: model::Opaque::Shares(several), consumers: brought }),
        ..listener(model::Protocol::Detect)
    };
    let arrived = |client| {
        let resource = heddle::listener(&given, address("10.1.0.1:80"), client);
        let parsed = sync::listener::parse("outbound/10.1.0.1:80", &resource.bytes).unwrap();
        let shares = match parsed.tcp {
            None => Vec::new(),
            Some(sync::listener::Opaque::Shares(shares)) => said(&shares),
            Some(named) => panic!("{named:?}"),
        };
        (parsed.protocol, shares)
    };
    let others = vec![(Some("shop/cart/80".to_owned()), 90), (None, 5)];
    assert_eq!(arrived("elsewhere"), (tables::Protocol::Detect, others));
    // It has routes for HTTP of its own too, which are more specific.
    assert_eq!(arrived("team"), (tables::Protocol::Http, vec![]));
}

fn said(shares: &[sync::listener::Share]) -> Vec<(Option<String>, u32)> {
    shares.iter().map(|share| (share.cluster.as_deref().map(str::to_owned), share.weight)).collect()
}

#[test]
fn server_names_arrive_with_the_shares_of_each() {
    let share = |weight, name: Option<&str>| model::TcpShare { weight, cluster: name.map(port_of) };
    let names =
        [("db.example", vec![share(3, Some("cart")), share(1, Some("old"))]), ("*.example", vec![share(1, None)])];
    let names = names.map(|(name, shares)| (Arc::from(name), shares));
    let tcp = model::TcpRoutes { everyone: model::Opaque::ServerNames(names.into()), consumers: BTreeMap::new() };
    let given = model::OutboundListener { tcp: Some(tcp), ..listener(model::Protocol::Tcp) };

    let resource = heddle::listener(&given, address("10.1.0.1:80"), "elsewhere");
    let parsed = sync::listener::parse("outbound/10.1.0.1:80", &resource.bytes).unwrap();

    let Some(sync::listener::Opaque::ServerNames(arrived)) = &parsed.tcp else { panic!("{parsed:?}") };
    let arrived: Vec<_> = arrived.iter().map(|(name, shares)| (&**name, said(shares))).collect();
    let cluster = |name: &str| Some(format!("shop/{name}/80"));
    let expected = [("*.example", vec![(None, 1)]), ("db.example", vec![(cluster("cart"), 3), (cluster("old"), 1)])];
    assert_eq!((parsed.protocol, arrived), (tables::Protocol::Tcp, expected.to_vec()));
    assert_eq!(parsed.tcp_clusters().count(), 2);
}

#[test]
fn a_client_gets_the_routes_its_namespace_brought_itself() {
    let resource = heddle::listener(&listener(model::Protocol::Http), address("[2001:db8::1]:80"), "team");

    let parsed = sync::listener::parse("outbound/[2001:db8::1]:80", &resource.bytes).unwrap();

    assert_eq!(parsed.routes.as_deref(), Some("shop/cart/80@team"));
}

#[test]
fn every_condition_of_a_route_arrives() {
    let header = |name: &str, value| HeaderMatch { name: name.into(), value };
    let query = |name: &str, value| QueryMatch { name: name.into(), value };
    let matches = [
        RouteMatch::default(),
        RouteMatch { path: Some(PathMatch::Exact("/a/b".into())), ..RouteMatch::default() },
        RouteMatch { path: Some(PathMatch::Prefix("/a".into())), ..RouteMatch::default() },
        RouteMatch { path: Some(PathMatch::Prefix(String::new())), ..RouteMatch::default() },
        RouteMatch { path: Some(PathMatch::Regex("/a|/b.*".into())), ..RouteMatch::default() },
        RouteMatch {
            headers: vec![
                header("x-one", StringMatch::Exact("1".into())),
                header("x-two", StringMatch::Regex("[0-9]+".into())),
            ],
            query: vec![query("Q", StringMatch::Exact(String::new())), query("r", StringMatch::Regex("x?".into()))],
            method: Some("PATCH".into()),
            ..RouteMatch::default()
        },
    ];

    let table = through(&matches.map(|matches| route(matches, rule(Vec::new()))));

    let found: Vec<String> = table.routes.iter().map(|route| format!("{:?}", route.matches)).collect();
    let anything = r#"RouteMatch { path: None, headers: [], query: [], method: None }"#;
    let with_path = |path: &str| anything.replacen("None", &format!("Some({path})"), 1);
    assert_eq!(
        found,
        [
            anything.to_owned(),
            with_path(r#"Exact("/a/b")"#),
            with_path(r#"Prefix("/a")"#),
            anything.to_owned(),
            with_path(r#"Regex(Regex("\\A(?:/a|/b.*)\\z"))"#),
            r#"RouteMatch { path: None, headers: [("x-one", Exact("1")), ("x-two", Regex(Regex("\\A(?:[0-9]+)\\z")))], query: [("Q", Exact("")), ("r", Regex(Regex("\\A(?:x?)\\z")))], method: Some(PATCH) }"#.to_owned(),
        ]
    );
}

#[test]
fn mirrors_arrive_with_their_share() {
    let mirror = |name: &str, per_million| model::Filter::Mirror(Mirror { cluster: port_of(name), per_million });
    let backends = vec![
        backend(1, Some("cart"), vec![mirror("audit", 1)]),
        backend(
            1,
            Some("canary"),
            vec![mirror("audit", 2), model::Filter::Rewrite(Rewrite { hostname: Some("canary".into()), path: None })],
        ),
    ];
    let filters = vec![mirror("shadow", 1_000_000), mirror("shadow", 50_000)];

    let table = through(&[route(RouteMatch::default(), model::Rule { backends, ..rule(filters) })]);

    let rule = &table.routes[0].rule;
    let shares = |mirrors: &[tables::route::Mirror]| -> Vec<(String, u32)> {
        mirrors.iter().map(|mirror| (mirror.cluster.name.to_string(), mirror.per_million)).collect()
    };
    assert_eq!(shares(&rule.mirrors), [("shop/shadow/80".into(), 1_000_000), ("shop/shadow/80".into(), 50_000)]);
    assert_eq!(shares(&rule.backends[0].mirrors), [("shop/audit/80".into(), 1)]);
    assert_eq!(shares(&rule.backends[1].mirrors), [("shop/audit/80".into(), 2)]);
    assert_eq!(rule.backends[1].filters.len(), 1);
}

#[test]
fn faults_arrive_whole() {
    let header = HeaderValue { name: "x-test".into(), value: "1".into() };
    let length = Duration::from_millis(1_500);
    for (status, expected) in [
        (AbortStatus::Http(418), tables::route::AbortStatus::Http(StatusCode::IM_A_TEAPOT)),
        (AbortStatus::Grpc(15), tables::route::AbortStatus::Grpc(15)),
    ] {
        let fault = Fault {
            delay: Some(Delay { length, per_million: 1 }),
            abort: Some(Abort { status, per_million: 250_000 }),
            headers: vec![header.clone()],
        };
        let table = through(&[route(RouteMatch::default(), rule(vec![model::Filter::Fault(fault)]))]);
        let fault = table.routes[0].rule.fault.as_ref().unwrap();
        let (delay, abort) = (fault.delay.as_ref().unwrap(), fault.abort.as_ref().unwrap());
        assert_eq!((delay.length, delay.per_million), (length, 1));
        assert_eq!((abort.status, abort.per_million), (expected, 250_000));
        assert_eq!(shown(&fault.headers), [r#"("x-test", Exact("1"))"#]);
    }
    assert!(through(&[route(RouteMatch::default(), rule(vec![]))]).routes[0].rule.fault.is_none());
}

#[test]
fn cors_arrives_whole() {
    let cors = Cors {
        origins: vec![
            Origin::Any,
            Origin::Exact("https://shop.example".into()),
            Origin::Wildcard("https://".into(), ".example".into()),
        ],
        credentials: true,
        methods: vec!["GET".into(), "PUT".into()],
        headers: vec!["*".into()],
        exposed: Vec::new(),
        max_age: 600,
    };

    let table = through(&[route(RouteMatch::default(), rule(vec![model::Filter::Cors(cors)]))]);

    assert_eq!(
        format!("{:?}", table.routes[0].rule.cors.as_ref().unwrap()),
        r#"Cors { origins: [Exact("*"), Exact("https://shop.example"), Regex(Regex("\\A(?:https\\:\\/\\/.+\\.example)\\z"))], credentials: true, methods: These(Some("GET, PUT")), headers: Any, exposed: These(None), max_age: "600" }"#
    );
}

#[test]
fn sessions_arrive_beside_cors() {
    let cors = Cors { origins: vec![Origin::Any], max_age: 5, ..Cors::default() };
    let cookie = |lifetime| Some(model::route::Session::Cookie { name: "Cart".into(), lifetime });
    for (session, arrived) in [
        (None, "None"),
        (cookie(None), r#"Some(Cookie { name: "Cart", lifetime: None })"#),
        (cookie(Some(Duration::from_secs(60))), r#"Some(Cookie { name: "Cart", lifetime: Some(60s) })"#),
        (Some(model::route::Session::Header { name: "x-cart".into() }), r#"Some(Header("x-cart"))"#),
    ] {
        let rule = model::Rule { session, ..rule(vec![model::Filter::Cors(cors.clone())]) };
        let table = through(&[route(RouteMatch::default(), rule)]);
        assert_eq!(format!("{:?}", table.routes[0].rule.session), arrived);
        assert!(table.routes[0].rule.cors.is_some());
    }
}

#[test]
fn backends_arrive_with_weight_filters_and_the_invalid_one_as_none() {
    let backends = vec![
        backend(90, Some("cart"), Vec::new()),
        backend(0, None, Vec::new()),
        backend(
            10,
            Some("canary"),
            vec![
                model::Filter::RequestHeaders(changes(&["x-canary=1"], &[], &[])),
                model::Filter::Rewrite(Rewrite { hostname: Some("canary".into()), path: None }),
                model::Filter::ResponseHeaders(changes(&[], &["x-from=canary"], &["server"])),
            ],
        ),
        backend(1, Some("moved"), vec![model::Filter::Redirect(Redirect { hostname: Some("b".into()), ..redirect() })]),
    ];

    let table = through(&[route(RouteMatch::default(), model::Rule { backends, ..rule(Vec::new()) })]);

    let rule = &table.routes[0].rule;
    let clusters: Vec<_> = rule.backends.iter().map(|b| (b.weight, b.cluster.as_ref().map(|c| &*c.name))).collect();
    let expected = [(90, Some("shop/cart/80")), (0, None), (10, Some("shop/canary/80")), (1, Some("shop/moved/80"))];
    assert_eq!(clusters, expected);
    assert_eq!(rule.total_weight, 101);
    assert_eq!(
        shown(&rule.backends[2].filters),
        [
            r#"RequestHeaders(HeaderChanges { set: [("x-canary", "1")], add: [], remove: [] })"#,
            r#"Rewrite(Rewrite { hostname: Some("canary"), path: None })"#,
            r#"ResponseHeaders(HeaderChanges { set: [], add: [("x-from", "canary")], remove: ["server"] })"#,
        ]
    );
    assert_eq!(
        shown(&rule.backends[3].filters),
        [r#"Redirect(Redirect { scheme: None, hostname: Some("b"), path: None, port: None, status: 302 })"#]
    );
}

#[test]
fn header_changes_arrive_in_the_order_set_add_remove() {
    let all = changes(&["a=1", "b=2", "c=3"], &["a=4", "d="], &["c", "e"]);
    let filters = vec![model::Filter::ResponseHeaders(all.clone()), model::Filter::RequestHeaders(all)];

    let table = through(&[route(RouteMatch::default(), rule(filters))]);

    // `c` is set and then removed: only the removal is left.
    let kept = r#"HeaderChanges { set: [("a", "1"), ("b", "2")], add: [("a", "4"), ("d", "")], remove: ["c", "e"] }"#;
    assert_eq!(
        shown(&table.routes[0].rule.filters),
        [format!("RequestHeaders({kept})"), format!("ResponseHeaders({kept})")]
    );
}

#[test]
fn every_change_of_path_arrives() {
    let full = PathChange::Full(r"/x\1 y".into());
    let replace = |text: &str| PathChange::Prefix(text.into());
    let prefix = |text: &str| Some(PathMatch::Prefix(text.into()));
    let cases = [
        (prefix("/a"), full, r#"Full("/x\\1 y")"#),
        (prefix("/a.b"), replace("/c"), r#"Prefix { matched: "/a.b", replacement: "/c" }"#),
        (prefix("/a.b"), replace("/c/"), r#"Prefix { matched: "/a.b", replacement: "/c" }"#),
        (prefix("/a.b(c"), replace("/"), r#"Prefix { matched: "/a.b(c", replacement: "" }"#),
        (prefix("/a"), replace(""), r#"Prefix { matched: "/a", replacement: "" }"#),
        (prefix(""), replace("/c"), r#"Prefix { matched: "", replacement: "/c" }"#),
        (prefix(""), replace("/"), r#"Prefix { matched: "", replacement: "" }"#),
        (None, replace("/c"), r#"Prefix { matched: "", replacement: "/c" }"#),
        (Some(PathMatch::Exact("/a".into())), replace("/c"), r#"Prefix { matched: "/a", replacement: "/c" }"#),
    ];
    for (path, change, expected) in cases {
        let rewrite = model::Filter::Rewrite(Rewrite { hostname: Some("h".into()), path: Some(change.clone()) });
        let redirect = model::Filter::Redirect(Redirect { path: Some(change), ..redirect() });
        let matches = RouteMatch { path, ..RouteMatch::default() };

        let table = through(&[route(matches.clone(), rule(vec![rewrite])), route(matches, rule(vec![redirect]))]);

        let [rewrite, redirect] = [0, 1].map(|index: usize| shown(&table.routes[index].rule.filters));
        assert_eq!(rewrite, [format!(r#"Rewrite(Rewrite {{ hostname: Some("h"), path: Some({expected}) }})"#)]);
        assert!(redirect[0].contains(&format!("path: Some({expected})")), "{redirect:?}");
    }
}

#[test]
fn every_part_of_a_redirect_arrives_and_nothing_is_sent_upstream() {
    for status in [301, 302, 303, 307, 308] {
        for (scheme, expected) in [(Scheme::Http, "http"), (Scheme::Https, "https")] {
            let hostname = Some("b.example".into());
            let redirect = Redirect { scheme: Some(scheme), hostname, path: None, port: Some(8443), status };
            let table = through(&[route(RouteMatch::default(), rule(vec![model::Filter::Redirect(redirect)]))]);

            let rule = &table.routes[0].rule;
            assert!(rule.backends.is_empty());
            let expected = format!(
                r#"Redirect(Redirect {{ scheme: Some("{expected}"), hostname: Some("b.example"), path: None, port: Some(8443), status: {status} }})"#
            );
            assert_eq!(shown(&rule.filters), [expected]);
        }
    }
}

#[test]
fn timeouts_and_retries_arrive() {
    let retry = RetryPolicy {
        retries: 3,
        codes: vec![500, 503],
        grpc_codes: vec![1, 2, 4, 8, 10, 13, 14],
        connection_failures: true,
        backoff_base: Duration::from_millis(20),
        backoff_max: Duration::from_millis(333),
    };
    let bounded = model::Rule {
        idle_timeout: Some(Duration::from_millis(2_500)),
        hedge: Some(Hedge { delay: Duration::from_micros(12_500), attempts: 2 }),
        request_timeout: Some(Duration::from_millis(1_500)),
        try_timeout: Some(Duration::from_micros(250_500)),
        retry: Some(retry),
        ..rule(Vec::new())
    };
    let only_try = model::Rule { try_timeout: Some(Duration::from_secs(1)), ..rule(Vec::new()) };

    let table = through(&[bounded, only_try, rule(Vec::new())].map(|rule| route(RouteMatch::default(), rule)));

    let found = |index: usize| {
        let rule = &table.routes[index].rule;
        (rule.request_timeout, rule.try_timeout, rule.retry.as_ref())
    };
    let (request, attempt, retry) = found(0);
    assert_eq!(request, Some(Duration::from_millis(1_500)));
    let idle: Vec<_> = table.routes.iter().map(|route| route.rule.idle_timeout).collect();
    assert_eq!(idle, [Some(Duration::from_millis(2_500)), None, None]);
    let hedge = tables::route::Hedge { delay: Duration::from_micros(12_500), attempts: 2 };
    let hedges: Vec<_> = table.routes.iter().map(|route| route.rule.hedge).collect();
    assert_eq!(hedges, [Some(hedge), None, None]);
    assert_eq!(attempt, Some(Duration::from_micros(250_500)));
    assert_eq!(
        format!("{:?}", retry.unwrap()),
        "RetryPolicy { retries: 3, codes: [500, 503], grpc_codes: [1, 2, 4, 8, 10, 13, 14], \
         connection_failures: true, backoff_base: 20ms, backoff_max: 333ms }"
    );
    assert_eq!(&*table.routes[0].rule.name, "HTTPRoute/shop/cart/0");
    let (request, attempt, retry) = found(1);
    assert_eq!((request, attempt, retry.is_none()), (None, Some(Duration::from_secs(1)), true));
    let (request, attempt, retry) = found(2);
    assert_eq!((request, attempt, retry.is_none()), (None, None, true));
}

#[test]
fn a_rule_without_backends_answers_500() {
    let table = through(&[route(RouteMatch::default(), model::Rule { backends: Vec::new(), ..rule(Vec::new()) })]);

    assert!(table.routes[0].rule.backends.is_empty());
    assert_eq!(table.routes[0].rule.total_weight, 0);
}

#[test]
fn every_setting_of_a_cluster_arrives() {
    let balanced = balancings().into_iter().map(|load_balancing| Settings { load_balancing, ..settings() });
    let asked = questions().into_iter().map(|question| Settings {
        health_check: settings().health_check.map(|check| model::HealthCheck { question, ..check }),
        ..settings()
    });
    for settings in balanced.chain(asked).chain([Settings::default()]) {
        let cluster = model::Cluster { settings: settings.clone(), ..cluster() };

        let resource = heddle::cluster(&cluster);
        let parsed = sync::cluster::parse("shop/cart/80", &resource.bytes).unwrap();

        assert_eq!(parsed.settings, expected_settings(&settings));
        assert_eq!(parsed.service, Some(service_name("shop", "cart")));
        assert_eq!(parsed.identities[..], [Arc::from(CART), Arc::from(OTHER)]);
    }
    for (from, to) in [
        (model::UpstreamHttp::AsDownstream, tables::cluster::UpstreamHttp::AsDownstream),
        (model::UpstreamHttp::Http1, tables::cluster::UpstreamHttp::Http1),
        (model::UpstreamHttp::Http2, tables::cluster::UpstreamHttp::Http2),
    ] {
        let settings = Settings { upstream_http: from, ..Settings::default() };
        let resource =
            heddle::cluster(&model::Cluster { settings, service: None, identities: Vec::new(), ..cluster() });
        let parsed = sync::cluster::parse("shop/cart/80", &resource.bytes).unwrap();
        assert_eq!(parsed.settings.upstream_http, to);
        assert_eq!(parsed.service, None);
        assert!(parsed.identities.is_empty());
    }
}

#[test]
fn every_part_of_an_endpoint_arrives() {
    let all = endpoints();
    let split = |endpoint: &&model::Endpoint| endpoint.weight != 3;
    let (near, far) = all.endpoints.iter().partition(split);
    let resource = heddle::endpoints(&model::ForClient { name: &all.name, near, far });

    let parsed = sync::endpoints::parse("shop/cart/80", &resource.bytes).unwrap();
    let none: Arc<[Arc<str>]> = Arc::new([]);
    let set = sync::endpoints::set(&parsed, &none, None);

    let found: BTreeMap<_, _> = set
        .endpoints
        .iter()
        .map(|e| (e.address, (e.tls.clone(), e.weight, e.draining, e.workload.to_string())))
        .collect();
    let mtls = |identity: &str| EndpointTls::Mtls(Arc::new([identity.into()]));
    let expected = BTreeMap::from([
        (address("10.0.0.1:8080"), (mtls(CART), 1, false, "shop/cart-0".to_owned())),
        (address("10.0.0.2:8080"), (mtls(OTHER), 7, true, "shop/cart-1".to_owned())),
        (address("10.0.0.3:8080"), (EndpointTls::Plaintext, 3, false, String::new())),
        (address("[2001:db8::4]:8080"), (EndpointTls::Plaintext, 1, false, "shop/vm".to_owned())),
    ]);
    assert_eq!(found, expected);
    assert_eq!(set.active, 3);
    assert_eq!(set.far().iter().map(|e| e.address).collect::<Vec<_>>(), [address("10.0.0.3:8080")]);
}

#[test]
fn a_workload_s_inbound_side_arrives() {
    let resource = heddle::inbound(&workload()).unwrap();

    let inbound = sync::inbound::parse("inbound", &resource.bytes).unwrap();

    assert_eq!((&*inbound.namespace, &*inbound.workload), ("shop", "cart-0"));
    assert_eq!(inbound.mesh.cidrs, ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
    assert_eq!(inbound.mesh.egress, tables::Egress::Deny);
    assert_eq!(inbound.ports.len(), 2);
    let port = inbound.port(8080);
    assert_eq!((port.protocol, port.tls), (tables::Protocol::Http, tables::TlsMode::Strict));
    assert_eq!(port.service, Some(service_name("shop", "cart")));
    // There is one application: nothing to choose, and none to take out.
    let told = expected_settings(&settings());
    let expected = tables::cluster::Settings {
        connect_timeout: told.connect_timeout,
        connections: tables::cluster::Connections {
            idle_timeout: told.connections.idle_timeout,
            ..tables::cluster::Connections::default()
        },
        limits: told.limits,
        outlier: None,
        retry_budget_percent: told.retry_budget_percent,
        retry_budget_floor: told.retry_budget_floor,
        upstream_http: told.upstream_http,
        ..tables::cluster::Settings::default()
    };
    assert_eq!(port.settings, expected);
    let port = inbound.port(9090);
    assert_eq!((port.protocol, port.tls), (tables::Protocol::Tcp, tables::TlsMode::Disable));
    let other = inbound.port(1);
    assert_eq!((other.protocol, other.tls), (tables::Protocol::Detect, tables::TlsMode::Permissive));
    assert_eq!(other.service, None);
    assert!(other.policies.is_empty());
    let application = tables::cluster::Settings { outlier: None, ..tables::cluster::Settings::default() };
    assert_eq!(other.settings, application);
}

#[test]
fn every_condition_of_a_policy_arrives() {
    let resource = heddle::inbound(&workload()).unwrap();

    let inbound = sync::inbound::parse("inbound", &resource.bytes).unwrap();

    let policies = &inbound.port(8080).policies;
    assert_eq!(policies_shown(&policies.deny), policies_shown_of(&policy_set().deny));
    assert_eq!(policies_shown(&policies.allow), policies_shown_of(&policy_set().allow));
}

#[test]
fn rate_limits_arrive_whole() {
    let limit = |service: Option<&Arc<RateLimitService>>, by: LimitBy| {
        let headers = vec![HeaderValue { name: "x-plan".into(), value: "free".into() }];
        let counts = policy_set().deny[0].rules[0].clone();
        let (name, service) = ("shop/limit#0".into(), service.cloned());
        let per = Duration::from_secs(60);
        Arc::new(RateLimit { name, dry_run: true, service, requests: 7, per, burst: 9, by, counts, headers })
    };
    let service = Arc::new(RateLimitService {
        cluster: model::ResourceName::service_port(&model::ServiceName::new("limits", "ratelimit"), 8081),
        authority: "ratelimit.limits".into(),
        domain: "shop".into(),
        timeout: Duration::from_millis(50),
        deny_on_failure: true,
    });
    let mut workload = workload();
    let port = &mut workload.inbound.as_mut().unwrap().other_ports;
    port.rate_limits = vec![
        limit(None, LimitBy::Nothing),
        limit(None, LimitBy::Identity),
        limit(None, LimitBy::SourceIp),
        limit(Some(&service), LimitBy::Header("x-user".into())),
    ];
    port.concurrency = vec![Concurrency {
        name: "shop/limit".into(),
        dry_run: true,
        minimum: 2,
        maximum: 30,
        buffer_percent: 40,
        interval: Duration::from_secs(50),
    }];
    let resource = heddle::inbound(&workload).unwrap();

    let inbound = sync::inbound::parse("inbound", &resource.bytes).unwrap();

    let [concurrency] = &*inbound.other_ports.concurrency else { panic!("{inbound:?}") };
    assert_eq!((&*concurrency.name, concurrency.dry_run), ("shop/limit", true));
    let bounds = Bounds { minimum: 2, maximum: 30, buffer_percent: 40, interval: Duration::from_secs(50) };
    assert_eq!(concurrency.controller.bounds(), bounds);
    let arrived = &inbound.other_ports.rate_limits;
    let by: Vec<_> = arrived.iter().map(|limit| limit.by.clone()).collect();
    let user = http::HeaderName::from_static("x-user");
    let expected = [
        tables::rate_limit::LimitBy::Nothing,
        tables::rate_limit::LimitBy::Identity,
        tables::rate_limit::LimitBy::SourceIp,
        tables::rate_limit::LimitBy::Header(user),
    ];
    assert_eq!(by, expected);
    for limit in arrived {
        assert_eq!((&*limit.name, limit.dry_run), ("shop/limit#0", true));
        assert_eq!(format!("{:?}", limit.headers), r#"[("x-plan", Exact("free"))]"#);
        let sent = &policy_set().deny[0].rules[0];
        assert_eq!((limit.counts.from.len(), limit.counts.to.len()), (sent.from.len(), sent.to.len()));
    }
    let Counter::Local(buckets) = &arrived[0].counter else { panic!("{arrived:?}") };
    assert_eq!(buckets.rate(), Rate::new(7, Duration::from_secs(60), 9));
    let Counter::Service(service, quota) = &arrived[3].counter else { panic!("{arrived:?}") };
    assert_eq!(*quota, Quota { requests: 7, unit: Unit::Minute });
    let expected = tables::rate_limit::RateLimitService {
        cluster: "limits/ratelimit/8081".into(),
        authority: "ratelimit.limits".into(),
        domain: "shop".into(),
        timeout: Duration::from_millis(50),
        deny_on_failure: true,
    };
    assert_eq!(**service, expected);
    assert_eq!(inbound.clusters().map(|name| &**name).collect::<Vec<_>>(), ["limits/ratelimit/8081"]);
}

#[test]
fn a_policy_without_rules_matches_nothing_and_one_with_an_empty_rule_anything() {
    let resource = heddle::inbound(&workload()).unwrap();

    let inbound = sync::inbound::parse("inbound", &resource.bytes).unwrap();

    let allow = &inbound.port(9090).policies.allow;
    let found: Vec<_> = allow.iter().map(|policy| (&*policy.name, policy.dry_run, policy.rules.len())).collect();
    assert_eq!(found, [("shop/anyone", false, 1), ("shop/nobody", false, 0)]);
    assert!(allow[0].rules[0].from.is_empty() && allow[0].rules[0].to.is_empty());
}

#[test]
fn a_sidecar_finds_by_name_what_each_resource_leads_to() {
    let (model, index) = mesh();
    let client = model::WorkloadName::new("team", "client");
    let find = |kind, name: &str| heddle::lookup(&model, &index, &client, kind, name);

    let listener = find(Kind::Listener, "outbound/10.1.0.1:80").unwrap();
    let parsed = sync::listener::parse(&listener.name, &listener.bytes).unwrap();
    let routes = find(Kind::Route, parsed.routes.as_deref().unwrap()).unwrap();
    let clusters = sync::route::clusters(&routes.name, &routes.bytes).unwrap();

    assert_eq!(&*routes.name, "shop/cart/80@team");
    assert_eq!(clusters.iter().map(|name| &**name).collect::<Vec<_>>(), ["shop/cart/80"]);
    for cluster in &clusters {
        assert_eq!(&find(Kind::Cluster, cluster).unwrap().name, cluster);
        assert_eq!(&find(Kind::Endpoints, cluster).unwrap().name, cluster);
    }
    let own = heddle::lookup(&model, &index, &model::WorkloadName::new("shop", "cart-0"), Kind::Listener, "inbound");
    assert!(own.is_some());
    assert!(find(Kind::Listener, "inbound").is_none(), "the client is no workload of the mesh");
}

#[test]
fn a_workload_s_own_address_leads_to_that_workload_alone() {
    let (model, index) = mesh();
    let client = model::WorkloadName::new("team", "client");
    let find = |kind, name: &str| heddle::lookup(&model, &index, &client, kind, name);

    for (destination, name) in [
        ("outbound/10.0.0.1:8080", "shop/workload/cart-0/10.0.0.1:8080"),
        ("outbound/[2001:db8::10]:7", "shop/workload/cart-0/[2001:db8::10]:7"),
    ] {
        let listener = find(Kind::Listener, destination).unwrap();
        let parsed = sync::listener::parse(destination, &listener.bytes).unwrap();
        assert_eq!(parsed.routes.as_deref(), Some(name));
        let routes = find(Kind::Route, name).unwrap();
        assert_eq!(sync::route::clusters(name, &routes.bytes).unwrap().len(), 1);
        let cluster = sync::cluster::parse(name, &find(Kind::Cluster, name).unwrap().bytes).unwrap();
        assert_eq!(cluster.identities[..], [Arc::from(CART)]);
        let endpoints = sync::endpoints::parse(name, &find(Kind::Endpoints, name).unwrap().bytes).unwrap();
        assert_eq!(endpoints.len(), 1);
    }
}

#[test]
fn a_name_nobody_has_or_a_second_spelling_of_one_finds_nothing() {
    let (model, index) = mesh();
    let client = model::WorkloadName::new("team", "client");
    for (kind, name) in [
        (Kind::Listener, "outbound/10.1.0.1:81"),
        (Kind::Listener, "outbound/10.9.9.9:80"),
        (Kind::Listener, "10.1.0.1:80"),
        (Kind::Route, "shop/cart/080"),
        (Kind::Route, "shop/cart/81"),
        (Kind::Route, "shop/cart/80@nobody"),
        (Kind::Route, "shop/cart"),
        (Kind::Cluster, "shop/cart/80@team"),
        (Kind::Cluster, "shop/workload/cart-0/10.0.0.2:8080"),
        (Kind::Cluster, "shop/workload/cart-0/[2001:db8:0::10]:7"),
        (Kind::Endpoints, "invalid"),
    ] {
        assert_eq!(heddle::lookup(&model, &index, &client, kind, name), None, "{kind} {name}");
    }
}

#[test]
fn the_index_kept_step_by_step_is_the_one_made_from_the_whole() {
    let (model, index) = mesh();
    let service = model.services.values().next().unwrap();
    let workload = model.workloads.values().next().unwrap();
    let moved = model::Workload { addresses: vec!["10.0.0.9".parse().unwrap()], ..(**workload).clone() };
    let mut stepwise = Index::default();

    stepwise.replace_workload(None, Some(&moved));
    stepwise.replace_service(None, Some(service));
    stepwise.replace_workload(Some(&moved), Some(workload));
    assert_eq!(stepwise, index);

    stepwise.replace_service(Some(service), None);
    stepwise.replace_workload(Some(workload), None);
    assert_eq!(stepwise, Index::default());
}

#[test]
fn two_processes_make_the_same_versions() {
    let here = all_resources().map(|resource| resource.version.to_string()).join(" ");
    if let Ok(path) = std::env::var(CHILD) {
        std::fs::write(path, here).unwrap();
        return;
    }
    for round in 0..4 {
        let path = std::env::temp_dir().join(format!("heddle-dialect-{}-{round}", std::process::id()));
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "two_processes_make_the_same_versions"])
            .env(CHILD, &path)
            .status()
            .unwrap();
        let there = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(status.success());
        assert_eq!(here, there);
    }
}

/// Set for the second process: the file it writes its versions to.
const CHILD: &str = "HEDDLE_DIALECT_VERSIONS";
const CART: &str = "spiffe://mesh/ns/shop/sa/cart";
const OTHER: &str = "spiffe://mesh/ns/shop/sa/other";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn cart() -> model::ServiceName {
    model::ServiceName::new("shop", "cart")
}

fn port_of(service: &str) -> model::ResourceName {
    model::ResourceName::service_port(&model::ServiceName::new("shop", service), 80)
}

fn sources() -> Vec<SourceRef> {
    vec![SourceRef::new("Service", "shop", "cart")]
}

fn service_name(namespace: &str, name: &str) -> tables::ServiceName {
    tables::ServiceName { namespace: namespace.into(), name: name.into() }
}

fn listener(protocol: model::Protocol) -> model::OutboundListener {
    let consumers = BTreeMap::from([(Arc::from("team"), model::ResourceName::consumer(&cart(), 80, "team"))]);
    model::OutboundListener {
        owner: model::Owner::Service(cart()),
        port: 80,
        port_name: Some("web".into()),
        addresses: vec![address("10.1.0.1:80"), address("[2001:db8::1]:80")],
        protocol,
        http: protocol.may_be_http().then(|| model::HttpRoutes { table: port_of("cart"), consumers }),
        tcp: protocol.may_be_opaque().then(|| model::TcpRoutes::all_to(port_of("cart"))),
        sources: sources(),
    }
}

fn rule(filters: Vec<model::Filter>) -> model::Rule {
    model::Rule {
        name: "HTTPRoute/shop/cart/0".into(),
        filters,
        backends: vec![backend(1, Some("cart"), Vec::new())],
        idle_timeout: None,
        hedge: None,
        request_timeout: None,
        try_timeout: None,
        retry: None,
        session: None,
    }
}

fn backend(weight: u32, service: Option<&str>, filters: Vec<model::Filter>) -> model::Backend {
    model::Backend { weight, cluster: service.map(port_of), filters }
}

fn route(matches: RouteMatch, rule: model::Rule) -> model::Route {
    model::Route { matches, rule: Arc::new(rule) }
}

fn route_table(name: model::ResourceName, routes: &[model::Route]) -> model::RouteTable {
    model::RouteTable { name, service: Some(cart()), routes: routes.to_vec(), sources: sources() }
}

/// A route table through both halves; every cluster it names exists.
fn through(routes: &[model::Route]) -> tables::RouteTable {
    let resource = heddle::route_table(&route_table(port_of("cart"), routes));
    let mut clusters: HashMap<String, Arc<Cluster>> = HashMap::new();
    let mut resolve = |name: &str| Some(clusters.entry(name.to_owned()).or_insert_with(|| named(name)).clone());
    let table = sync::route::parse("shop/cart/80", &resource.bytes, &mut resolve).unwrap();
    assert!(!clusters.contains_key("invalid"));
    table
}

fn named(name: &str) -> Arc<Cluster> {
    Arc::new(Cluster {
        name: name.into(),
        service: None,
        settings: tables::cluster::Settings::default(),
        identities: Arc::new([]),
        sources: Arc::new([]),
        endpoints: EndpointSet::default().into_swap(),
        state: Arc::default(),
    })
}

fn changes(set: &[&str], add: &[&str], remove: &[&str]) -> HeaderChanges {
    let headers = |all: &[&str]| {
        let pairs = all.iter().map(|text| text.split_once('=').unwrap());
        pairs.map(|(name, value)| HeaderValue { name: name.into(), value: value.into() }).collect()
    };
    HeaderChanges { set: headers(set), add: headers(add), remove: remove.iter().map(|name| (*name).into()).collect() }
}

fn redirect() -> Redirect {
    Redirect { scheme: None, hostname: None, path: None, port: None, status: 302 }
}

fn shown(values: &[impl Debug]) -> Vec<String> {
    values.iter().map(|value| format!("{value:?}")).collect()
}

/// Every value another one than the default.
fn settings() -> Settings {
    Settings {
        load_balancing: model::LoadBalancing::RoundRobin,
        slow_start: Some(Duration::from_secs(45)),
        connect_timeout: Duration::from_millis(1_250),
        connections: model::Connections {
            idle_timeout: Duration::from_millis(31_500),
            max_age: Some(Duration::from_secs(300)),
            max_requests: Some(1_000),
            max_streams: Some(50),
            keep_alive: KeepAlive { time: Duration::from_secs(33), interval: Duration::from_secs(9), probes: 5 },
        },
        limits: Limits { connections: 1, pending: 2, requests: 3, retries: 4 },
        outlier: Some(model::Outlier {
            consecutive_failures: 6,
            consecutive_gateway_errors: 3,
            consecutive_local_origin_failures: 4,
            statistics: Some(Statistics {
                interval: Duration::from_secs(11),
                minimum_hosts: 3,
                request_volume: 20,
                success_rate_stdev_factor: Some(1_500),
                latency_percent: Some(250),
            }),
            base_ejection: Duration::from_secs(7),
            max_ejection: Duration::from_secs(80),
            max_ejected_percent: 90,
        }),
        health_check: Some(model::HealthCheck {
            question: model::HealthQuestion::Tcp,
            interval: Duration::from_secs(12),
            timeout: Duration::from_secs(2),
            unhealthy_threshold: 4,
            healthy_threshold: 5,
        }),
        panic_percent: 10,
        retry_budget: RetryBudget { percent: 11, floor: 12 },
        upstream_http: model::UpstreamHttp::Http2,
    }
}

fn hash_on(from: &[model::HashOn]) -> Arc<[tables::cluster::HashOn]> {
    let one = |from: &model::HashOn| match from {
        model::HashOn::Header(name) => tables::cluster::HashOn::Header(name.parse().unwrap()),
        model::HashOn::Cookie(name) => tables::cluster::HashOn::Cookie(name.as_str().into()),
        model::HashOn::QueryParam(name) => tables::cluster::HashOn::QueryParam(name.as_str().into()),
        model::HashOn::SourceIp => tables::cluster::HashOn::SourceIp,
        model::HashOn::Path => tables::cluster::HashOn::Path,
    };
    from.iter().map(one).collect()
}

/// Every way to choose an endpoint.
fn balancings() -> Vec<model::LoadBalancing> {
    use model::{HashOn, LoadBalancing};
    let all = vec![
        HashOn::Header("x-user".into()),
        HashOn::Cookie("Cart".into()),
        HashOn::QueryParam("User".into()),
        HashOn::SourceIp,
        HashOn::Path,
    ];
    vec![
        LoadBalancing::P2cEwma,
        LoadBalancing::LeastRequest,
        LoadBalancing::RoundRobin,
        LoadBalancing::Random,
        LoadBalancing::RingHash(all.clone()),
        LoadBalancing::Maglev(all),
    ]
}

/// Where endpoints are only spoken to in HTTP/1 there are none to be told.
fn expected_streams(from: &Settings) -> u32 {
    let told = from.connections.max_streams.filter(|_| from.upstream_http != model::UpstreamHttp::Http1);
    told.unwrap_or(tables::cluster::Connections::default().max_streams)
}

fn expected_settings(from: &Settings) -> tables::cluster::Settings {
    tables::cluster::Settings {
        policy: match &from.load_balancing {
            model::LoadBalancing::P2cEwma => tables::cluster::LoadBalancing::P2cEwma,
            model::LoadBalancing::LeastRequest => tables::cluster::LoadBalancing::LeastRequest,
            model::LoadBalancing::RoundRobin => tables::cluster::LoadBalancing::RoundRobin,
            model::LoadBalancing::Random => tables::cluster::LoadBalancing::Random,
            model::LoadBalancing::RingHash(on) => tables::cluster::LoadBalancing::RingHash(hash_on(on)),
            model::LoadBalancing::Maglev(on) => tables::cluster::LoadBalancing::Maglev(hash_on(on)),
        },
        slow_start: from.slow_start.filter(|_| {
            use model::LoadBalancing::{LeastRequest, P2cEwma, RoundRobin};
            matches!(from.load_balancing, P2cEwma | LeastRequest | RoundRobin)
        }),
        connect_timeout: from.connect_timeout,
        connections: tables::cluster::Connections {
            idle_timeout: from.connections.idle_timeout,
            max_age: from.connections.max_age,
            max_requests: from.connections.max_requests,
            max_streams: expected_streams(from),
            keep_alive: Some(tables::cluster::KeepAlive {
                time: from.connections.keep_alive.time,
                interval: from.connections.keep_alive.interval,
                probes: from.connections.keep_alive.probes,
            }),
        },
        limits: heddle_proxy::balance::breaker::Limits {
            connections: from.limits.connections,
            pending: from.limits.pending,
            requests: from.limits.requests,
            retries: from.limits.retries,
        },
        outlier: from.outlier.map(|outlier| heddle_proxy::balance::outlier::Settings {
            consecutive_failures: outlier.consecutive_failures,
            consecutive_gateway_errors: outlier.consecutive_gateway_errors,
            consecutive_local_origin_failures: outlier.consecutive_local_origin_failures,
            statistics: outlier.statistics.map(|from| heddle_proxy::balance::outlier::Statistics {
                interval: from.interval,
                minimum_hosts: from.minimum_hosts,
                request_volume: from.request_volume,
                success_rate_stdev_factor: from.success_rate_stdev_factor,
                latency_percent: from.latency_percent,
            }),
            base_ejection: outlier.base_ejection,
            max_ejection: outlier.max_ejection,
            max_ejected_percent: outlier.max_ejected_percent,
        }),
        health_check: from.health_check.as_ref().map(|check| Arc::new(expected_check(check, from.upstream_http))),
        panic_percent: from.panic_percent,
        retry_budget_percent: from.retry_budget.percent,
        retry_budget_floor: from.retry_budget.floor,
        upstream_http: match from.upstream_http {
            model::UpstreamHttp::AsDownstream => tables::cluster::UpstreamHttp::AsDownstream,
            model::UpstreamHttp::Http1 => tables::cluster::UpstreamHttp::Http1,
            model::UpstreamHttp::Http2 => tables::cluster::UpstreamHttp::Http2,
        },
    }
}

fn expected_check(from: &model::HealthCheck, upstream_http: model::UpstreamHttp) -> health::Check {
    let question = match &from.question {
        model::HealthQuestion::Tcp => health::Question::Tcp,
        model::HealthQuestion::Http { host, path, codes } => health::Question::Http {
            authority: host.parse().unwrap(),
            path: path.parse().unwrap(),
            expected: match codes.as_slice() {
                [] => vec![(200, 399)],
                codes => codes.iter().map(|code| (*code, *code)).collect(),
            },
            http2: upstream_http == model::UpstreamHttp::Http2,
        },
        model::HealthQuestion::Grpc { authority, service } => {
            health::Question::Grpc { authority: authority.parse().unwrap(), service: service.clone() }
        }
    };
    health::Check {
        question,
        interval: from.interval,
        timeout: from.timeout,
        unhealthy_threshold: from.unhealthy_threshold,
        healthy_threshold: from.healthy_threshold,
    }
}

/// Every question.
fn questions() -> Vec<model::HealthQuestion> {
    use model::HealthQuestion::{Grpc, Http, Tcp};
    let http = |codes| Http { host: "cart.shop".into(), path: "/up?deep=1".into(), codes };
    let grpc = Grpc { authority: "cart.shop".into(), service: "shop.Cart".into() };
    vec![Tcp, http(vec![]), http(vec![200, 204]), grpc]
}

fn cluster() -> model::Cluster {
    model::Cluster {
        name: port_of("cart"),
        service: Some(cart()),
        settings: settings(),
        identities: vec![SpiffeId::new("mesh", "shop", "cart"), SpiffeId::new("mesh", "shop", "other")],
        sources: sources(),
    }
}

fn endpoints() -> model::Endpoints {
    let endpoint = |text: &str, account: Option<&str>, workload: Option<&str>| model::Endpoint {
        address: address(text),
        mtls: account.map(|account| SpiffeId::new("mesh", "shop", account)),
        proxyless: false,
        weight: 1,
        draining: false,
        workload: workload.map(|name| model::WorkloadName::new("shop", name)),
        locality: None,
        hints: model::Hints::default(),
    };
    let zone = |zone: &str| Some(model::Locality { region: Some("r".into()), zone: Some(zone.into()) });
    model::Endpoints {
        name: port_of("cart"),
        endpoints: vec![
            endpoint("10.0.0.1:8080", Some("cart"), Some("cart-0")),
            model::Endpoint {
                weight: 7,
                draining: true,
                locality: zone("b"),
                ..endpoint("10.0.0.2:8080", Some("other"), Some("cart-1"))
            },
            model::Endpoint { weight: 3, locality: zone("a"), ..endpoint("10.0.0.3:8080", None, None) },
            endpoint("[2001:db8::4]:8080", None, Some("vm")),
        ],
    }
}

fn policy(name: &str, dry_run: bool, rules: Vec<model::PolicyRule>) -> Arc<model::Policy> {
    Arc::new(model::Policy { name: name.into(), dry_run, rules })
}

fn policy_set() -> model::PolicySet {
    let texts = |letter: &str| {
        vec![
            TextMatch::Exact(format!("{letter}.x")),
            TextMatch::Prefix(format!("{letter}-p")),
            TextMatch::Suffix(format!("{letter}-s")),
            TextMatch::Present,
        ]
    };
    let full = model::PolicyRule {
        from: vec![
            model::Principals {
                principals: texts("a"),
                not_principals: texts("b"),
                namespaces: texts("c"),
                not_namespaces: texts("d"),
                ip_blocks: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
                not_ip_blocks: vec!["10.1.0.0/16".parse().unwrap()],
            },
            model::Principals { namespaces: texts("e"), ..model::Principals::default() },
        ],
        to: vec![
            model::Operation {
                ports: vec![80, 8080],
                not_ports: vec![81],
                methods: texts("f"),
                not_methods: texts("g"),
                paths: texts("/h"),
                not_paths: texts("/i"),
                hosts: texts("j"),
                not_hosts: texts("k"),
            },
            model::Operation { ports: vec![1], ..model::Operation::default() },
        ],
    };
    let only_from = model::PolicyRule {
        from: vec![model::Principals { principals: texts("l"), ..model::Principals::default() }],
        ..model::PolicyRule::default()
    };
    let only_to = model::PolicyRule {
        to: vec![model::Operation { methods: texts("m"), ..model::Operation::default() }],
        ..model::PolicyRule::default()
    };
    // More rules than ten, so that their order is seen to be one of numbers.
    let many = (0..12).map(|port| model::PolicyRule {
        to: vec![model::Operation { ports: vec![port], ..model::Operation::default() }],
        ..model::PolicyRule::default()
    });
    model::PolicySet {
        deny: vec![policy("shop/a", false, vec![full.clone(), only_from]), policy("shop/b", true, vec![only_to])],
        allow: vec![policy("shop/c", false, vec![full]), policy("shop/d", false, many.collect())],
    }
}

/// Both kinds of policies in one form. Policies on dry run come last, as they do in the tables.
fn policies_shown(policies: &[tables::policy::Policy]) -> Vec<String> {
    policies.iter().map(|policy| format!("{:?} {:?} {:?}", policy.name, policy.dry_run, policy.rules)).collect()
}

fn policies_shown_of(policies: &[Arc<model::Policy>]) -> Vec<String> {
    let shown = policies.iter().map(|policy| format!("{:?} {:?} {:?}", policy.name, policy.dry_run, policy.rules));
    shown.map(|text| text.replace("PolicyRule {", "Rule {").replace("Principals {", "Source {")).collect()
}

fn inbound_port(protocol: model::Protocol, tls: model::TlsMode) -> model::InboundPort {
    model::InboundPort {
        protocol,
        tls,
        service: None,
        policies: model::PolicySet::default(),
        rate_limits: Vec::new(),
        concurrency: Vec::new(),
        settings: Settings::default(),
    }
}

fn workload() -> model::Workload {
    let web = model::InboundPort {
        service: Some(cart()),
        policies: policy_set(),
        settings: settings(),
        ..inbound_port(model::Protocol::Http, model::TlsMode::Strict)
    };
    let opaque = model::InboundPort {
        policies: model::PolicySet {
            allow: vec![
                policy("shop/anyone", false, vec![model::PolicyRule::default()]),
                policy("shop/nobody", false, Vec::new()),
            ],
            ..model::PolicySet::default()
        },
        ..inbound_port(model::Protocol::Tcp, model::TlsMode::Disable)
    };
    let direct = |protocol, mtls| model::DirectPort {
        protocol,
        mtls,
        service: None,
        settings: Settings::default(),
        idle_timeout: None,
        hedge: None,
        request_timeout: None,
        try_timeout: None,
        retry: None,
    };
    model::Workload {
        name: model::WorkloadName::new("shop", "cart-0"),
        controller: None,
        uid: Some("4f2d".into()),
        node: Some("node1".into()),
        service_account: "cart".into(),
        identity: SpiffeId::new("mesh", "shop", "cart"),
        addresses: vec!["10.0.0.1".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        host_network: false,
        inbound: Some(model::Inbound {
            mesh: model::Mesh {
                cidrs: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
                egress: model::Egress::Deny,
            },
            ports: BTreeMap::from([(8080, web), (9090, opaque)]),
            other_ports: inbound_port(model::Protocol::Detect, model::TlsMode::Permissive),
            sources: vec![SourceRef::new("Pod", "shop", "cart-0")],
        }),
        direct: model::Direct {
            ports: BTreeMap::from([(8080, direct(model::Protocol::Http, true))]),
            other_ports: Some(direct(model::Protocol::Detect, true)),
            draining: false,
            locality: None,
            sources: vec![SourceRef::new("Pod", "shop", "cart-0")],
        },
    }
}

fn mesh() -> (model::Model, Index) {
    let table = |name| route_table(name, &[route(RouteMatch::default(), rule(Vec::new()))]);
    let tables = [table(port_of("cart")), table(model::ResourceName::consumer(&cart(), 80, "team"))];
    let service = model::Service {
        name: cart(),
        listeners: vec![listener(model::Protocol::Detect)],
        routes: tables.into_iter().map(|table| (table.name.clone(), table)).collect(),
        clusters: BTreeMap::from([(port_of("cart"), cluster())]),
        endpoints: BTreeMap::from([(port_of("cart"), endpoints())]),
    };
    let model = model::Model {
        services: BTreeMap::from([(cart(), Arc::new(service))]),
        workloads: BTreeMap::from([(workload().name, Arc::new(workload()))]),
    };
    let index = Index::new(&model);
    (model, index)
}

fn all_resources() -> [Resource; 5] {
    let filters = vec![model::Filter::RequestHeaders(changes(&["a=1"], &["b=2"], &["c"]))];
    let table = route_table(port_of("cart"), &[route(RouteMatch::default(), rule(filters))]);
    [
        heddle::listener(&listener(model::Protocol::Detect), address("10.1.0.1:80"), "team"),
        heddle::route_table(&table),
        heddle::cluster(&cluster()),
        heddle::endpoints(&endpoints().for_everybody()),
        heddle::inbound(&workload()).unwrap(),
    ]
}
