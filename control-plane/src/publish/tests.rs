//! What a change forgets, and what it keeps.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use heddle_xds::resource::outbound;

use super::*;
use crate::model::{
    Cluster, Direct, DirectPort, Endpoints, HttpRoutes, OutboundListener, Owner, Protocol, ResourceName, Service,
    Settings, Workload,
};

fn service(name: &str, address: &str, consumers: &[&str]) -> Service {
    let name = ServiceName::new("shop", name);
    let cluster = ResourceName::service_port(&name, 80);
    let consumers = consumers.iter().map(|ns| (Arc::from(*ns), ResourceName::consumer(&name, 80, ns))).collect();
    Service {
        listeners: vec![OutboundListener {
            owner: Owner::Service(name.clone()),
            port: 80,
            port_name: None,
            addresses: vec![address.parse().unwrap()],
            protocol: Protocol::Http,
            http: Some(HttpRoutes { table: cluster.clone(), consumers }),
            tcp: None,
            sources: Vec::new(),
        }],
        routes: BTreeMap::new(),
        clusters: BTreeMap::from([(
            cluster.clone(),
            Cluster {
                name: cluster.clone(),
                service: Some(name.clone()),
                settings: Settings::default(),
                identities: Vec::new(),
                sources: Vec::new(),
            },
        )]),
        endpoints: BTreeMap::from([(cluster.clone(), Endpoints { name: cluster, endpoints: Vec::new() })]),
        name,
    }
}

fn workload(name: &str, address: &str) -> Workload {
    let port = DirectPort {
        protocol: Protocol::Tcp,
        mtls: false,
        service: None,
        settings: Settings::default(),
        idle_timeout: None,
        hedge: None,
        request_timeout: None,
        try_timeout: None,
        retry: None,
    };
    Workload {
        name: WorkloadName::new("shop", name),
        controller: None,
        uid: None,
        node: None,
        service_account: "default".into(),
        identity: SpiffeId::new("mesh", "shop", "default"),
        addresses: vec![address.parse().unwrap()],
        host_network: false,
        inbound: None,
        direct: Direct {
            ports: BTreeMap::new(),
            other_ports: Some(port),
            draining: false,
            locality: None,
            sources: Vec::new(),
        },
    }
}

fn translation(services: Vec<Service>, workloads: Vec<Workload>) -> Translation {
    let model = Model {
        services: services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect(),
        workloads: workloads.into_iter().map(|workload| (workload.name.clone(), Arc::new(workload))).collect(),
    };
    Translation { model, ..Translation::default() }
}

fn client() -> WorkloadName {
    WorkloadName::new("shop", "client")
}

fn find(publisher: &Publisher, client: &WorkloadName, kind: Kind, name: &str) -> Option<Published> {
    publisher.heddle(&publisher.snapshot().unwrap(), client, kind, name)
}

fn shared(one: &Published, other: &Published) -> bool {
    one.resource.bytes.as_ptr() == other.resource.bytes.as_ptr()
}

#[test]
fn two_clients_share_the_bytes_of_what_is_the_same_for_both() {
    let publisher = Publisher::default();
    publisher.publish(translation(vec![service("api", "10.0.0.1:80", &["other"])], vec![]), None, Instant::now());
    let name = outbound("10.0.0.1:80".parse().unwrap());
    let (shop, third, other) = (client(), WorkloadName::new("third", "x"), WorkloadName::new("other", "x"));

    let own = find(&publisher, &other, Kind::Listener, &name).unwrap();
    let everybodys = find(&publisher, &shop, Kind::Listener, &name).unwrap();

    assert!(shared(&everybodys, &find(&publisher, &third, Kind::Listener, &name).unwrap()));
    assert!(shared(&own, &find(&publisher, &other, Kind::Listener, &name).unwrap()));
    assert_ne!(own.resource.version, everybodys.resource.version);
}

#[test]
fn a_change_forgets_what_was_made_of_it_and_nothing_else() {
    let publisher = Publisher::default();
    publisher.publish(
        translation(vec![service("api", "10.0.0.1:80", &[]), service("web", "10.0.0.2:80", &[])], vec![]),
        None,
        Instant::now(),
    );
    let kept = find(&publisher, &client(), Kind::Cluster, "shop/api/80").unwrap();
    let listener = find(&publisher, &client(), Kind::Listener, "outbound/10.0.0.2:80").unwrap();

    let mut changed = service("web", "10.0.0.2:80", &[]);
    changed.listeners[0].protocol = Protocol::Http2;
    let api = publisher.snapshot().unwrap().model().services[&ServiceName::new("shop", "api")].clone();
    let mut next = translation(vec![changed], vec![]);
    next.model.services.insert(api.name.clone(), api);
    let touched = Touched { services: next.model.services.keys().cloned().collect(), ..Touched::default() };
    assert!(publisher.publish(next, Some(&touched), Instant::now()));

    assert!(shared(&kept, &find(&publisher, &client(), Kind::Cluster, "shop/api/80").unwrap()));
    let newer = find(&publisher, &client(), Kind::Listener, "outbound/10.0.0.2:80").unwrap();
    assert_ne!(newer.resource.version, listener.resource.version);
    assert!(newer.since > listener.since);
}

#[test]
fn an_address_that_changes_hands_answers_for_its_new_owner() {
    let publisher = Publisher::default();
    let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
    publisher.publish(translation(vec![], vec![workload("a", "10.0.0.1")]), None, Instant::now());
    let direct = find(&publisher, &client(), Kind::Listener, &outbound(address)).unwrap();

    publisher.publish(
        translation(vec![service("api", "10.0.0.1:80", &[])], vec![workload("a", "10.0.0.1")]),
        None,
        Instant::now(),
    );
    let service = find(&publisher, &client(), Kind::Listener, &outbound(address)).unwrap();
    publisher.publish(translation(vec![], vec![]), None, Instant::now());

    assert_ne!(direct.resource.version, service.resource.version);
    assert_eq!(find(&publisher, &client(), Kind::Listener, &outbound(address)), None);
    assert_eq!(find(&publisher, &client(), Kind::Cluster, "shop/workload/a/10.0.0.1:80"), None);
}

#[test]
fn a_workload_that_changes_forgets_all_its_ports_in_both_families() {
    for ip in ["10.0.0.1", "2001:db8::1"] {
        let publisher = Publisher::default();
        publisher.publish(translation(vec![], vec![workload("a", ip)]), None, Instant::now());
        let name = outbound(SocketAddr::new(ip.parse().unwrap(), 7000));
        let before = find(&publisher, &client(), Kind::Listener, &name).unwrap();

        let mut changed = workload("a", ip);
        changed.direct.other_ports.as_mut().unwrap().protocol = Protocol::Detect;
        publisher.publish(translation(vec![], vec![changed]), None, Instant::now());

        let after = find(&publisher, &client(), Kind::Listener, &name).unwrap();
        assert_ne!(before.resource.version, after.resource.version, "{ip}");
    }
}

#[test]
fn an_equal_state_wakes_nobody() {
    let publisher = Publisher::default();
    let state = || translation(vec![service("api", "10.0.0.1:80", &[])], vec![workload("a", "10.0.0.9")]);
    publisher.publish(state(), None, Instant::now());
    let mut changes = publisher.changes();
    changes.mark_unchanged();

    assert!(!publisher.publish(state(), None, Instant::now()));
    assert!(!changes.has_changed().unwrap());
    assert!(publisher.publish(translation(vec![], vec![]), None, Instant::now()));
    assert!(changes.has_changed().unwrap());
}

#[test]
fn what_was_made_of_an_older_state_is_not_kept_for_the_new_one() {
    let publisher = Publisher::default();
    publisher.publish(translation(vec![service("api", "10.0.0.1:80", &[])], vec![]), None, Instant::now());
    let old = publisher.snapshot().unwrap();
    publisher.publish(translation(vec![], vec![]), None, Instant::now());

    assert!(publisher.heddle(&old, &client(), Kind::Cluster, "shop/api/80").is_some());

    assert_eq!(find(&publisher, &client(), Kind::Cluster, "shop/api/80"), None);
}

#[test]
fn a_client_that_asks_for_every_port_does_not_fill_the_memory() {
    let publisher = Publisher::default();
    publisher.publish(
        translation(vec![], vec![workload("a", "10.0.0.1"), workload("b", "10.0.0.2")]),
        None,
        Instant::now(),
    );
    for ip in ["10.0.0.1", "10.0.0.2"] {
        for port in 1..=40_000 {
            let name = outbound(SocketAddr::new(ip.parse().unwrap(), port));
            assert!(find(&publisher, &client(), Kind::Listener, &name).is_some());
        }
    }
    assert!(publisher.cache().entries() <= cache::MAX_ENTRIES);
}
