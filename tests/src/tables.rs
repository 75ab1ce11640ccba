//! Tables written by hand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use heddle_proxy::tables::cluster::{Cluster, Endpoint, EndpointSet, EndpointTls, Settings};
use heddle_proxy::tables::listener::{Listener, Opaque, Protocol, Share, Shares};
use heddle_proxy::tables::policy::PolicySet;
use heddle_proxy::tables::route::{Backend, Route, RouteMatch, RouteTable, Rule};
use heddle_proxy::tables::{Answer, Destination, Egress, Inbound, Mesh, Port, ServiceName, Tables, TlsMode};

/// What is known to a workload that nobody calls.
pub fn nothing(workload: &str) -> Tables {
    inbound(workload, port(Protocol::Detect, TlsMode::Permissive))
}

/// What is known to a workload all of whose ports are `port`.
pub fn inbound(workload: &str, port: Port) -> Tables {
    let inbound = Inbound {
        mesh: Mesh { cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], egress: Egress::Allow },
        workload: workload.into(),
        namespace: "shop".into(),
        ports: HashMap::new(),
        other_ports: Arc::new(port),
        sources: Arc::new([]),
    };
    Tables { inbound: Some(Arc::new(inbound)), outbound: HashMap::new(), asked: HashMap::new() }
}

/// A port without policies.
pub fn port(protocol: Protocol, tls: TlsMode) -> Port {
    Port {
        protocol,
        tls,
        service: Some(service("api")),
        policies: PolicySet::default(),
        rate_limits: Vec::new(),
        concurrency: Vec::new(),
        settings: Settings::default(),
    }
}

/// The Service `name` in the namespace `shop`.
pub fn service(name: &str) -> ServiceName {
    ServiceName { namespace: "shop".into(), name: name.into() }
}

/// A plaintext endpoint.
pub fn plain(address: SocketAddr) -> Endpoint {
    Endpoint {
        address,
        tls: EndpointTls::Plaintext,
        weight: 1,
        draining: false,
        far: false,
        workload: format!("shop/at-{address}").into(),
        state: Arc::default(),
    }
}

/// An endpoint that must show `identity`.
pub fn meshed(address: SocketAddr, identity: &str) -> Endpoint {
    Endpoint { tls: EndpointTls::Mtls(Arc::new([identity.into()])), ..plain(address) }
}

/// The Service `name` with these endpoints.
pub fn cluster(name: &str, endpoints: Vec<Endpoint>, settings: Settings) -> Arc<Cluster> {
    Arc::new(Cluster {
        name: format!("shop/{name}/80").into(),
        service: Some(service(name)),
        settings,
        identities: Arc::new([]),
        sources: Arc::new([]),
        endpoints: EndpointSet::new(endpoints.into_iter().map(Arc::new).collect()).into_swap(),
        state: Arc::default(),
    })
}

/// A rule without anything but backends.
pub fn rule(backends: Vec<(u32, Arc<Cluster>)>) -> Rule {
    Rule {
        name: "HTTPRoute/shop/test/0".into(),
        cors: None,
        fault: None,
        filters: vec![],
        mirrors: vec![],
        total_weight: backends.iter().map(|(weight, _)| weight).sum(),
        backends: backends
            .into_iter()
            .map(|(weight, cluster)| Backend { weight, cluster: Some(cluster), filters: vec![], mirrors: vec![] })
            .collect(),
        request_timeout: None,
        idle_timeout: None,
        try_timeout: None,
        retry: None,
        hedge: None,
        session: None,
    }
}

/// Adds a destination all of whose requests take `rule`, and whose opaque connections go to its first backend.
pub fn destination(tables: &mut Tables, address: SocketAddr, protocol: Protocol, rule: Rule) {
    let tcp = rule.backends.first().and_then(|backend| backend.cluster.clone());
    let routes = vec![Route { matches: RouteMatch::default(), rule: Arc::new(rule) }];
    destination_with(tables, address, protocol, routes, tcp);
}

/// Adds a destination with these routes.
pub fn destination_with(
    tables: &mut Tables,
    address: SocketAddr,
    protocol: Protocol,
    routes: Vec<Route>,
    tcp: Option<Arc<Cluster>>,
) {
    let http = (protocol != Protocol::Tcp)
        .then(|| Arc::new(RouteTable { name: "shop/api/80".into(), routes, sources: Arc::new([]) }));
    let tcp = tcp.map(|cluster| Opaque::Shares(Shares::new(vec![Share { weight: 1, cluster: Some(cluster) }])));
    let listener = Listener { address, protocol, http, tcp, sources: Arc::new([]) };
    tables.outbound.insert(address, Destination::from(Answer::Exists(Arc::new(listener))));
}
