//! A small mesh with one of everything that is translated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::listener::HttpRoutes;
use crate::model::route::{
    HeaderChanges, HeaderMatch, HeaderValue, PathChange, PathMatch, QueryMatch, Redirect, RetryPolicy, Rewrite,
    RouteMatch, Scheme, StringMatch,
};
use crate::model::*;

pub fn service(name: &str) -> ServiceName {
    ServiceName::new("shop", name)
}

pub fn port(name: &str, port: u16) -> ResourceName {
    ResourceName::service_port(&service(name), port)
}

pub fn identity(account: &str) -> SpiffeId {
    SpiffeId::new("mesh.example", "shop", account)
}

/// Services `web` (HTTP with routes of every kind), `grpc` (HTTP/2), `db` (opaque), `any` (undeclared, endpoints speak
/// HTTP/2) and `headless`; workloads `web-1` with a sidecar and `old-1` without.
pub fn model() -> Model {
    let services = [
        routed(&port("web", 80)),
        plain("grpc", "10.96.0.2:7070", Protocol::Http2, &[]),
        plain("db", "10.96.0.3:5432", Protocol::Tcp, &[]),
        plain("any", "[fd00::4]:9000", Protocol::Detect, &[identity("any")]),
        headless(),
    ];
    let workloads = [web_1(), old_1()];
    Model {
        services: services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect(),
        workloads: workloads.into_iter().map(|workload| (workload.name.clone(), Arc::new(workload))).collect(),
    }
}

pub fn web_1() -> Workload {
    let inbound = |protocol, tls, policies| InboundPort {
        protocol,
        tls,
        service: None,
        policies,
        rate_limits: Vec::new(),
        concurrency: Vec::new(),
        settings: Settings { outlier: None, ..Settings::default() },
    };
    let ports = BTreeMap::from([
        (8080, inbound(Protocol::Http, TlsMode::Permissive, policies())),
        (7070, inbound(Protocol::Http2, TlsMode::Strict, PolicySet::default())),
        (5432, inbound(Protocol::Tcp, TlsMode::Permissive, policies())),
        (9000, inbound(Protocol::Detect, TlsMode::Permissive, policies())),
        (9100, inbound(Protocol::Detect, TlsMode::Disable, PolicySet::default())),
    ]);
    Workload {
        name: WorkloadName::new("shop", "web-1"),
        controller: None,
        uid: None,
        node: None,
        service_account: "web".into(),
        identity: identity("web"),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1:1".parse().unwrap()],
        host_network: false,
        inbound: Some(Inbound {
            mesh: Mesh { cidrs: vec!["10.0.0.0/8".parse().unwrap()], egress: Egress::Allow },
            ports,
            other_ports: inbound(Protocol::Detect, TlsMode::Permissive, PolicySet::default()),
            sources: vec![],
        }),
        direct: Direct {
            ports: BTreeMap::from([(8080, direct(Protocol::Http, true))]),
            other_ports: Some(direct(Protocol::Detect, true)),
            draining: false,
            locality: None,
            sources: vec![],
        },
    }
}

fn direct(protocol: Protocol, mtls: bool) -> DirectPort {
    DirectPort {
        protocol,
        mtls,
        service: None,
        settings: Settings::default(),
        idle_timeout: None,
        hedge: None,
        request_timeout: None,
        try_timeout: None,
        retry: None,
    }
}

fn old_1() -> Workload {
    Workload {
        name: WorkloadName::new("shop", "old-1"),
        controller: None,
        uid: None,
        node: None,
        service_account: "old".into(),
        identity: identity("old"),
        addresses: vec!["10.0.0.9".parse().unwrap()],
        host_network: false,
        inbound: None,
        direct: Direct {
            ports: BTreeMap::new(),
            other_ports: Some(direct(Protocol::Detect, false)),
            draining: false,
            locality: None,
            sources: vec![],
        },
    }
}

fn policies() -> PolicySet {
    let text = |text: &str| TextMatch::Exact(text.to_owned());
    let rule = |path: &str| PolicyRule {
        from: vec![Principals {
            principals: vec![text("spiffe://mesh.example/ns/shop/sa/web"), TextMatch::Prefix("spiffe://m".into())],
            not_namespaces: vec![text("other")],
            ip_blocks: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..Principals::default()
        }],
        to: vec![Operation {
            ports: vec![8080, 9000],
            methods: vec![text("GET")],
            paths: vec![TextMatch::Prefix(path.to_owned()), TextMatch::Present],
            hosts: vec![TextMatch::Suffix(".shop".into())],
            ..Operation::default()
        }],
    };
    let policy = |name: &str, dry_run: bool| {
        Arc::new(Policy { name: name.into(), dry_run, rules: vec![rule("/a"), rule("/b"), PolicyRule::default()] })
    };
    PolicySet {
        deny: vec![policy("shop/no", false), policy("shop/no-dry", true)],
        allow: vec![policy("shop/yes", false), policy("shop/yes-dry", true)],
    }
}

fn routed(name: &ResourceName) -> Service {
    let consumer = ResourceName::consumer(&service("web"), 80, "guest");
    let table = |name: &ResourceName, routes| RouteTable {
        name: name.clone(),
        service: Some(service("web")),
        routes,
        sources: vec![SourceRef::new("HTTPRoute", "shop", "web")],
    };
    let mut web = plain("web", "10.96.0.1:80", Protocol::Http, &[identity("web"), identity("web-canary")]);
    let guests = table(&consumer, vec![Route::default_to(name.clone())]);
    web.routes = BTreeMap::from([(name.clone(), table(name, routes())), (consumer.clone(), guests)]);
    web.listeners[0].http =
        Some(HttpRoutes { table: name.clone(), consumers: BTreeMap::from([("guest".into(), consumer)]) });
    web
}

/// In this order: redirect, rewrites with header changes, weights with an invalid share, no valid backend, conditions with
/// retries and timeouts, everything else.
pub fn routes() -> Vec<Route> {
    let to = |cluster: Option<ResourceName>, weight: u32| Backend { weight, cluster, filters: vec![] };
    let base = Rule {
        name: "HTTPRoute/shop/web/0".into(),
        filters: vec![],
        backends: vec![to(Some(port("web", 80)), 1)],
        idle_timeout: None,
        hedge: None,
        request_timeout: None,
        try_timeout: None,
        retry: None,
        session: None,
    };
    let at = |prefix: &str| RouteMatch { path: Some(PathMatch::Prefix(prefix.into())), ..RouteMatch::default() };
    let route = |matches, rule: Rule| Route { matches, rule: Arc::new(rule) };
    let value = |name: &str, value: &str| HeaderValue { name: name.into(), value: value.into() };
    let redirect = Filter::Redirect(Redirect {
        scheme: Some(Scheme::Https),
        hostname: None,
        path: Some(PathChange::Prefix("/new".into())),
        port: None,
        status: 301,
    });
    let rewrite =
        Filter::Rewrite(Rewrite { hostname: Some("inner".into()), path: Some(PathChange::Prefix("/".into())) });
    let change = Filter::RequestHeaders(HeaderChanges {
        set: vec![value("x-a", "50%")],
        add: vec![value("x-b", "2")],
        remove: vec!["x-c".into()],
    });
    let respond = Filter::ResponseHeaders(HeaderChanges { set: vec![value("x-r", "1")], ..HeaderChanges::default() });
    let canary = Backend { filters: vec![change.clone()], ..to(Some(port("any", 9000)), 10) };
    let conditions = RouteMatch {
        path: Some(PathMatch::Regex("/v[0-9]+/.*".into())),
        headers: vec![
            HeaderMatch { name: "host".into(), value: StringMatch::Exact("web".into()) },
            HeaderMatch { name: "x-version".into(), value: StringMatch::Regex("2.*".into()) },
        ],
        query: vec![QueryMatch { name: "q".into(), value: StringMatch::Exact("1".into()) }],
        method: Some("GET".into()),
    };
    let retry = RetryPolicy {
        retries: 3,
        codes: vec![503],
        grpc_codes: vec![14],
        connection_failures: true,
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
    };
    vec![
        route(at("/old"), Rule { filters: vec![redirect], backends: vec![], ..base.clone() }),
        route(at("/strip"), Rule { filters: vec![rewrite, change, respond], ..base.clone() }),
        route(
            at("/split"),
            Rule {
                backends: vec![to(Some(port("web", 80)), 90), canary, to(None, 5), to(Some(port("db", 5432)), 0)],
                ..base.clone()
            },
        ),
        route(at("/broken"), Rule { backends: vec![to(None, 1)], ..base.clone() }),
        route(
            conditions,
            Rule {
                idle_timeout: None,
                hedge: None,
                request_timeout: Some(Duration::from_secs(5)),
                try_timeout: Some(Duration::from_secs(1)),
                retry: Some(retry),
                ..base.clone()
            },
        ),
        route(RouteMatch::default(), base),
    ]
}

fn plain(name: &str, address: &str, protocol: Protocol, identities: &[SpiffeId]) -> Service {
    let address: std::net::SocketAddr = address.parse().unwrap();
    let cluster = port(name, address.port());
    let http = protocol.may_be_http();
    let table = RouteTable {
        name: cluster.clone(),
        service: Some(service(name)),
        routes: vec![Route::default_to(cluster.clone())],
        sources: vec![],
    };
    let settings = match name {
        "any" => Settings { upstream_http: UpstreamHttp::Http2, outlier: None, ..Settings::default() },
        "grpc" => Settings { load_balancing: LoadBalancing::RoundRobin, ..Settings::default() },
        _ => Settings::default(),
    };
    Service {
        name: service(name),
        listeners: vec![OutboundListener {
            owner: Owner::Service(service(name)),
            port: address.port(),
            port_name: None,
            addresses: vec![address],
            protocol,
            http: http.then(|| HttpRoutes { table: cluster.clone(), consumers: BTreeMap::new() }),
            tcp: protocol.may_be_opaque().then(|| TcpRoutes::all_to(cluster.clone())),
            sources: vec![SourceRef::new("Service", "shop", name)],
        }],
        routes: http.then(|| (cluster.clone(), table)).into_iter().collect(),
        clusters: BTreeMap::from([(
            cluster.clone(),
            Cluster {
                name: cluster.clone(),
                service: Some(service(name)),
                settings,
                identities: identities.to_vec(),
                sources: vec![SourceRef::new("Service", "shop", name)],
            },
        )]),
        endpoints: BTreeMap::from([(cluster.clone(), Endpoints { name: cluster, endpoints: endpoints(identities) })]),
    }
}

/// One meshed endpoint for each identity, the first of them without a sidecar, and one that is not meshed.
fn endpoints(identities: &[SpiffeId]) -> Vec<Endpoint> {
    let all = identities.iter().map(Some).chain([None]).enumerate();
    let endpoints = all.map(|(index, mtls)| Endpoint {
        address: format!("10.0.0.{}:8080", index + 1).parse().unwrap(),
        mtls: mtls.cloned(),
        proxyless: index == 0,
        weight: 1,
        draining: index == 1,
        workload: None,
        locality: None,
        hints: Hints::default(),
    });
    endpoints.collect()
}

fn headless() -> Service {
    let mut service = plain("headless", "10.96.0.5:80", Protocol::Http, &[]);
    service.listeners[0].addresses.clear();
    service
}
