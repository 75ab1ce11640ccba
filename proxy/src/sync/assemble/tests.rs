//! The core against hand-made resources: order, patience, state, forgetting.

use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use envoy_types::pb::envoy::config::core::v3::address::Address as AnyAddress;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as PbEndpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener as PbListener, filter};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route as PbRoute, RouteAction, RouteConfiguration, RouteMatch as PbRouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, Rds};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as TcpSpecifier;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::*;
use crate::balance::outlier;
use crate::tables::cluster::{EndpointSet, LoadBalancing, Settings};
use crate::tables::{Cluster, Listener};

const ADDRESS: &str = "10.1.0.1:80";
const LISTENER: &str = "outbound/10.1.0.1:80";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pb_address(text: &str) -> Option<Address> {
    let socket = SocketAddress {
        address: address(text).ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(address(text).port()))),
        ..SocketAddress::default()
    };
    Some(Address { address: Some(AnyAddress::SocketAddress(socket)) })
}

fn listener_with(name: &str, config: &impl Name) -> Vec<u8> {
    let any = Any { type_url: type_url_of(config), value: config.encode_to_vec() };
    let filter = Filter { name: "filter".into(), config_type: Some(filter::ConfigType::TypedConfig(any)) };
    let chain = FilterChain { filters: vec![filter], ..FilterChain::default() };
    let address = pb_address(name.strip_prefix("outbound/").unwrap());
    PbListener { name: name.into(), address, filter_chains: vec![chain], ..PbListener::default() }.encode_to_vec()
}

fn type_url_of<M: Name>(_: &M) -> String {
    M::type_url()
}

fn http_listener(name: &str, routes: &str) -> Vec<u8> {
    let rds = Rds { route_config_name: routes.into(), ..Rds::default() };
    let manager =
        HttpConnectionManager { route_specifier: Some(RouteSpecifier::Rds(rds)), ..HttpConnectionManager::default() };
    listener_with(name, &manager)
}

fn tcp_listener(name: &str, cluster: &str) -> Vec<u8> {
    let specifier = Some(TcpSpecifier::Cluster(cluster.into()));
    listener_with(name, &TcpProxy { cluster_specifier: specifier, ..TcpProxy::default() })
}

fn routes(name: &str, clusters: &[&str]) -> Vec<u8> {
    let route = |cluster: &&str| PbRoute {
        name: format!("to {cluster}"),
        r#match: Some(PbRouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..PbRouteMatch::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster((*cluster).into())),
            ..RouteAction::default()
        })),
        ..PbRoute::default()
    };
    let host = VirtualHost {
        domains: vec!["*".into()],
        routes: clusters.iter().map(route).collect(),
        ..VirtualHost::default()
    };
    RouteConfiguration { name: name.into(), virtual_hosts: vec![host], ..RouteConfiguration::default() }.encode_to_vec()
}

fn cluster_with(name: &str, policy: LbPolicy) -> Vec<u8> {
    PbCluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        lb_policy: policy as i32,
        ..PbCluster::default()
    }
    .encode_to_vec()
}

fn cluster(name: &str) -> Vec<u8> {
    cluster_with(name, LbPolicy::LeastRequest)
}

fn endpoints(name: &str, addresses: &[&str]) -> Vec<u8> {
    let endpoint = |address: &&str| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(PbEndpoint {
            address: pb_address(address),
            ..PbEndpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let locality = LocalityLbEndpoints {
        lb_endpoints: addresses.iter().map(endpoint).collect(),
        ..LocalityLbEndpoints::default()
    };
    ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..ClusterLoadAssignment::default() }
        .encode_to_vec()
}

/// A core, its clock, and what it published last.
struct Bench {
    core: Core,
    counts: Arc<Counts>,
    now: Millis,
    tables: Tables,
    publications: usize,
}

impl Bench {
    fn new() -> Self {
        let counts = Arc::<Counts>::default();
        let mut bench = Self {
            core: Core::new(counts.clone()),
            counts,
            now: Millis(1),
            tables: Tables::default(),
            publications: 0,
        };
        bench.commands();
        bench
    }

    /// One that knows `ADDRESS` as a listener with routes to `clusters`, each with one endpoint.
    fn settled(clusters: &[&str]) -> Self {
        let mut bench = Self::new();
        bench.wish(ADDRESS);
        bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80"));
        bench.told(Kind::Route, "a/b/80", routes("a/b/80", clusters));
        for name in clusters {
            bench.cluster(name);
        }
        bench
    }

    fn cluster(&mut self, name: &str) {
        self.told(Kind::Cluster, name, cluster(name));
        self.told(Kind::Endpoints, name, endpoints(name, &["10.0.0.1:80"]));
    }

    fn commands(&mut self) -> Vec<String> {
        if let Some(tables) = self.core.take_tables() {
            self.tables = tables;
            self.publications += 1;
        }
        let sign = |wanted| if wanted { '+' } else { '-' };
        let commands = self.core.take_commands().into_iter();
        commands.map(|command| format!("{}{} {}", sign(command.wanted), command.kind, command.name)).collect()
    }

    fn wish(&mut self, destination: &str) -> Vec<String> {
        self.core.wish(address(destination), self.now);
        self.commands()
    }

    fn told(&mut self, kind: Kind, name: &str, bytes: Vec<u8>) -> Vec<String> {
        let rejects = self.try_told(kind, name, bytes);
        assert_eq!(rejects, [""; 0]);
        self.commands()
    }

    fn try_told(&mut self, kind: Kind, name: &str, bytes: Vec<u8>) -> Vec<String> {
        let version = heddle_xds::resource::version_of(&bytes);
        let added = vec![Added { name: name.into(), version, bytes: bytes.into() }];
        let rejects = self.core.apply(&Update { kind, added, removed: Vec::new() }, self.now);
        rejects.iter().map(Reject::to_string).collect()
    }

    fn gone(&mut self, kind: Kind, name: &str) -> Vec<String> {
        let update = Update { kind, added: Vec::new(), removed: vec![name.into()] };
        assert_eq!(self.core.apply(&update, self.now), []);
        self.commands()
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now.0 += u64::try_from(time.as_millis()).unwrap();
        self.core.tick(self.now);
        self.commands()
    }

    fn listener(&self, destination: &str) -> Option<Arc<Listener>> {
        match &self.tables.outbound.get(&address(destination))?.answer {
            Answer::Exists(listener) => Some(listener.clone()),
            Answer::DoesNotExist => None,
        }
    }

    /// Names of the rules in force for `ADDRESS`.
    fn rules(&self) -> Vec<String> {
        let Some(listener) = self.listener(ADDRESS) else { return Vec::new() };
        listener.http.iter().flat_map(|table| &table.routes).map(|route| route.rule.name.to_string()).collect()
    }

    /// The cluster of the first route in force for `ADDRESS`.
    fn first_cluster(&self) -> Arc<Cluster> {
        self.listener(ADDRESS).unwrap().http.as_ref().unwrap().routes[0].rule.backends[0].cluster.clone().unwrap()
    }
}

fn get(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn subscriptions_follow_from_listener_to_routes_to_clusters_with_their_endpoints() {
    let mut core = Core::new(Arc::default());
    let command = |kind, name: &str| Command { kind, name: name.into(), wanted: true };
    assert_eq!(core.take_commands(), [command(Kind::Listener, "inbound")]);

    let mut bench = Bench::new();
    assert_eq!(bench.wish(ADDRESS), ["+lds outbound/10.1.0.1:80"]);
    assert_eq!(bench.wish(ADDRESS), [""; 0]);
    assert_eq!(bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80")), ["+rds a/b/80"]);
    let followed = bench.told(Kind::Route, "a/b/80", routes("a/b/80", &["a/b/80", "invalid"]));
    assert_eq!(followed, ["+cds a/b/80", "+eds a/b/80"]);
}

#[test]
fn a_listener_is_published_once_all_it_names_has_arrived_and_not_before() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80"));
    bench.told(Kind::Route, "a/b/80", routes("a/b/80", &["a/b/80"]));
    bench.told(Kind::Cluster, "a/b/80", cluster("a/b/80"));
    assert!(bench.tables.outbound.is_empty());

    bench.told(Kind::Endpoints, "a/b/80", endpoints("a/b/80", &["10.0.0.1:80"]));

    assert_eq!(bench.rules(), ["to a/b/80"]);
    assert_eq!(bench.first_cluster().endpoints.load().active().len(), 1);
    assert_eq!(get(&bench.counts.partial), 0);
}

#[test]
fn a_new_route_table_waits_for_its_new_cluster_while_the_old_one_serves() {
    let mut bench = Bench::settled(&["a/b/80"]);

    let followed = bench.told(Kind::Route, "a/b/80", routes("a/b/80", &["a/c/80"]));
    assert_eq!(followed, ["+cds a/c/80", "+eds a/c/80"]);
    assert_eq!(bench.rules(), ["to a/b/80"]);

    bench.told(Kind::Cluster, "a/c/80", cluster("a/c/80"));
    let followed = bench.told(Kind::Endpoints, "a/c/80", endpoints("a/c/80", &[]));
    assert_eq!(bench.rules(), ["to a/c/80"]);
    assert_eq!(followed, ["-cds a/b/80", "-eds a/b/80"]);
}

#[test]
fn a_listener_that_changes_its_table_keeps_the_old_one_even_if_that_is_removed_meanwhile() {
    let mut bench = Bench::settled(&["a/b/80"]);

    bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80@shop"));
    bench.gone(Kind::Route, "a/b/80");
    assert_eq!(bench.rules(), ["to a/b/80"]);

    let followed = bench.told(Kind::Route, "a/b/80@shop", routes("a/b/80@shop", &["a/b/80", "a/b/80"]));
    assert_eq!(bench.rules(), ["to a/b/80", "to a/b/80"]);
    assert_eq!(followed, ["-rds a/b/80"]);
}

#[test]
fn after_fifteen_seconds_a_listener_serves_with_what_there_is() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80"));
    bench.pass(PATIENCE - Duration::from_millis(1));
    assert!(bench.tables.outbound.is_empty());

    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.rules(), ["unanswered"]);
    assert!(bench.first_cluster().endpoints.load().endpoints.is_empty());
    assert_eq!(get(&bench.counts.partial), 1);

    // What comes late is put in force as soon as it is whole.
    bench.told(Kind::Route, "a/b/80", routes("a/b/80", &["a/b/80"]));
    bench.cluster("a/b/80");
    assert_eq!(bench.rules(), ["to a/b/80"]);
    assert_eq!(bench.first_cluster().endpoints.load().active().len(), 1);
    assert_eq!(get(&bench.counts.partial), 1);
}

#[test]
fn an_overdue_listener_takes_its_routes_along_and_a_late_cluster_gets_its_endpoints() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80"));
    bench.pass(Duration::from_secs(10));
    bench.told(Kind::Route, "a/b/80", routes("a/b/80", &["a/b/80"]));
    bench.told(Kind::Endpoints, "a/b/80", endpoints("a/b/80", &["10.0.0.1:80"]));

    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.rules(), ["to a/b/80"]);
    let stand_in = bench.first_cluster();
    assert_eq!(stand_in.settings, Settings::default());
    assert_eq!(stand_in.endpoints.load().endpoints.len(), 1);

    bench.told(Kind::Cluster, "a/b/80", cluster_with("a/b/80", LbPolicy::RoundRobin));
    let real = bench.first_cluster();
    assert_eq!(real.settings.policy, LoadBalancing::RoundRobin);
    assert_eq!(real.endpoints.load().endpoints[0].id(), stand_in.endpoints.load().endpoints[0].id());
}

#[test]
fn an_opaque_listener_leads_to_its_cluster() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    let followed = bench.told(Kind::Listener, LISTENER, tcp_listener(LISTENER, "a/db/5432"));
    assert_eq!(followed, ["+cds a/db/5432", "+eds a/db/5432"]);
    bench.cluster("a/db/5432");

    let listener = bench.listener(ADDRESS).unwrap();
    let clusters: Vec<_> = listener.tcp.as_ref().unwrap().clusters().map(|cluster| &*cluster.name).collect();
    assert_eq!(clusters, ["a/db/5432"]);
    assert!(listener.http.is_none());
}

#[test]
fn endpoints_are_replaced_in_place_without_a_publication_and_keep_their_state() {
    let mut bench = Bench::settled(&["a/b/80"]);
    let (cluster, publications) = (bench.first_cluster(), bench.publications);
    let id = cluster.endpoints.load().endpoints[0].id();

    bench.told(Kind::Endpoints, "a/b/80", endpoints("a/b/80", &["10.0.0.2:80", "10.0.0.1:80"]));

    assert_eq!(bench.publications, publications);
    let after = cluster.endpoints.load();
    assert_eq!(after.endpoints.len(), 2);
    let kept = after.endpoints.iter().find(|endpoint| endpoint.address == address("10.0.0.1:80")).unwrap();
    assert_eq!(kept.id(), id);
}

#[test]
fn an_ejected_endpoint_that_leaves_is_not_counted_any_more() {
    let mut bench = Bench::settled(&["a/b/80"]);
    bench.told(Kind::Endpoints, "a/b/80", endpoints("a/b/80", &["10.0.0.1:80", "10.0.0.2:80"]));
    let cluster = bench.first_cluster();
    let settings = outlier::Settings::default();
    let cluster = Cluster {
        name: cluster.name.clone(),
        service: None,
        settings: Settings { outlier: Some(settings), ..Settings::default() },
        identities: Arc::new([]),
        sources: Arc::new([]),
        endpoints: EndpointSet::new(cluster.endpoints.load().endpoints.clone()).into_swap(),
        state: cluster.state.clone(),
    };
    let failing = cluster.endpoints.load().endpoints[0].clone();
    for _ in 0..settings.consecutive_failures {
        outlier::note(&cluster, &failing, outlier::Outcome::NoResponse, None, Millis(5));
    }
    assert_eq!(cluster.state.ejected.load(Ordering::Relaxed), 1);

    bench.told(Kind::Endpoints, "a/b/80", endpoints("a/b/80", &["10.0.0.2:80"]));

    assert_eq!(cluster.state.ejected.load(Ordering::Relaxed), 0);
}

#[test]
fn new_settings_make_a_new_cluster_with_the_state_and_endpoints_of_the_old() {
    let mut bench = Bench::settled(&["a/b/80"]);
    let before = bench.first_cluster();

    bench.told(Kind::Cluster, "a/b/80", cluster_with("a/b/80", LbPolicy::RoundRobin));

    let after = bench.first_cluster();
    assert_eq!(after.settings.policy, LoadBalancing::RoundRobin);
    assert!(Arc::ptr_eq(&after.state, &before.state));
    assert!(Arc::ptr_eq(&after.endpoints.load().endpoints[0], &before.endpoints.load().endpoints[0]));
}

#[test]
fn a_cluster_told_again_without_a_change_stays_as_it_is() {
    let mut bench = Bench::settled(&["a/b/80"]);
    let (before, publications) = (bench.first_cluster(), bench.publications);

    bench.told(Kind::Cluster, "a/b/80", cluster("a/b/80"));

    assert!(Arc::ptr_eq(&bench.first_cluster(), &before));
    assert_eq!(bench.publications, publications);
}

#[test]
fn a_refused_resource_changes_nothing_and_says_where() {
    let mut bench = Bench::settled(&["a/b/80"]);
    let mut bad = RouteConfiguration::decode(&*routes("a/b/80", &["a/c/80"])).unwrap();
    bad.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().path_specifier =
        Some(PathSpecifier::Prefix("/half".into()));

    let rejects = bench.try_told(Kind::Route, "a/b/80", bad.encode_to_vec());

    let expected = "a/b/80: virtual_hosts[0].routes[0].match.prefix: is \"/half\", must be \"/\"; \
                    path_separated_prefix for any other";
    assert_eq!(rejects, [expected]);
    assert_eq!(bench.rules(), ["to a/b/80"]);
    assert_eq!(get(&bench.counts.of(Kind::Route).ack), 1);
    assert_eq!(get(&bench.counts.of(Kind::Route).nack), 1);
    assert_eq!(bench.try_told(Kind::Cluster, "a/b/80", vec![0xff])[0].split(": ").nth(1), Some("resource"));
}

#[test]
fn a_destination_that_does_not_exist_is_known_as_such_and_may_come_to_exist() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    bench.gone(Kind::Listener, LISTENER);
    assert!(matches!(bench.tables.outbound[&address(ADDRESS)].answer, Answer::DoesNotExist));

    bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80"));
    bench.told(Kind::Route, "a/b/80", routes("a/b/80", &["a/b/80"]));
    bench.cluster("a/b/80");
    assert_eq!(bench.rules(), ["to a/b/80"]);

    let followed = bench.gone(Kind::Listener, LISTENER);
    assert!(matches!(bench.tables.outbound[&address(ADDRESS)].answer, Answer::DoesNotExist));
    assert_eq!(followed, ["-cds a/b/80", "-eds a/b/80", "-rds a/b/80"]);
}

#[test]
fn a_route_table_that_does_not_exist_has_no_routes() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80"));

    bench.gone(Kind::Route, "a/b/80");

    assert!(bench.listener(ADDRESS).unwrap().http.as_ref().unwrap().routes.is_empty());
}

#[test]
fn a_cluster_that_does_not_exist_is_an_invalid_backend() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    bench.told(Kind::Listener, LISTENER, http_listener(LISTENER, "a/b/80"));
    bench.told(Kind::Route, "a/b/80", routes("a/b/80", &["a/b/80"]));

    bench.gone(Kind::Cluster, "a/b/80");

    let listener = bench.listener(ADDRESS).unwrap();
    assert!(listener.http.as_ref().unwrap().routes[0].rule.backends[0].cluster.is_none());
}

#[test]
fn two_addresses_of_one_service_share_its_cluster() {
    let mut bench = Bench::settled(&["a/b/80"]);
    let other = "outbound/[2001:db8::1]:80";
    bench.wish("[2001:db8::1]:80");

    let followed = bench.told(Kind::Listener, other, http_listener(other, "a/b/80"));

    assert_eq!(followed, [""; 0]);
    let (one, two) = (bench.listener(ADDRESS).unwrap(), bench.listener("[2001:db8::1]:80").unwrap());
    assert!(Arc::ptr_eq(one.http.as_ref().unwrap(), two.http.as_ref().unwrap()));
}

#[test]
fn a_known_destination_is_given_up_after_ten_minutes_without_use() {
    let mut bench = Bench::settled(&["a/b/80"]);
    bench.pass(Duration::from_secs(300));
    bench.tables.outbound[&address(ADDRESS)].seen.touch(bench.now);
    assert_eq!(bench.pass(UNUSED_KNOWN - Duration::from_millis(1)), [""; 0]);

    let followed = bench.pass(Duration::from_millis(1));

    assert_eq!(followed, ["-lds outbound/10.1.0.1:80", "-cds a/b/80", "-eds a/b/80", "-rds a/b/80"]);
    assert!(bench.tables.outbound.is_empty());
    assert_eq!(get(&bench.counts.unused), 1);
    assert_eq!(get(&bench.counts.destinations), 0);
    assert_eq!(get(&bench.counts.of(Kind::Route).held), 0);
}

#[test]
fn a_destination_that_does_not_exist_or_was_never_answered_is_given_up_after_a_minute() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    bench.wish("10.1.0.2:80");
    bench.gone(Kind::Listener, LISTENER);
    assert_eq!(bench.pass(UNUSED_UNKNOWN - Duration::from_millis(1)), [""; 0]);

    let followed = bench.pass(Duration::from_millis(1));

    assert_eq!(followed, ["-lds outbound/10.1.0.1:80", "-lds outbound/10.1.0.2:80"]);
}

#[test]
fn a_full_list_gives_up_what_does_not_exist_before_it_refuses() {
    let mut bench = Bench::settled(&["a/b/80"]);
    for port in 1..MAX_DESTINATIONS {
        let destination = SocketAddr::new("10.2.0.1".parse().unwrap(), u16::try_from(port).unwrap());
        bench.now.0 += 1;
        bench.core.wish(destination, bench.now);
    }
    bench.commands();
    assert_eq!(get(&bench.counts.destinations), 4096);
    assert_eq!(get(&bench.counts.limit_hits), 0);

    let followed = bench.wish("10.3.0.1:80");

    assert_eq!(followed, ["-lds outbound/10.2.0.1:1", "+lds outbound/10.3.0.1:80"]);
    assert_eq!(get(&bench.counts.limit_hits), 1);
    assert_eq!(get(&bench.counts.destinations), 4096);
    assert_eq!(bench.rules(), ["to a/b/80"]);
}

#[test]
fn a_destination_given_up_and_wished_for_at_once_is_asked_for_anew() {
    let mut bench = Bench::new();
    bench.wish(ADDRESS);
    bench.now.0 += 120_000;
    bench.core.tick(bench.now);
    bench.core.wish(address(ADDRESS), bench.now);

    assert_eq!(bench.commands(), ["-lds outbound/10.1.0.1:80", "+lds outbound/10.1.0.1:80"]);
}

#[test]
fn an_answer_about_what_nobody_wants_any_more_is_left_alone() {
    let mut bench = Bench::new();
    assert_eq!(bench.told(Kind::Route, "a/b/80", routes("a/b/80", &["a/b/80"])), [""; 0]);
    assert!(bench.core.routes.is_empty());
    assert_eq!(get(&bench.counts.of(Kind::Route).held), 0);
}

#[test]
fn the_version_says_what_is_held_whatever_came_in_between() {
    let version = |bench: &Bench| bench.counts.of(Kind::Cluster).version.load(Ordering::Relaxed);
    let mut detour = Bench::settled(&["a/b/80"]);
    detour.told(Kind::Cluster, "a/b/80", cluster_with("a/b/80", LbPolicy::RoundRobin));
    let other = version(&detour);
    detour.told(Kind::Cluster, "a/b/80", cluster("a/b/80"));

    assert_eq!(version(&detour), version(&Bench::settled(&["a/b/80"])));
    assert_ne!(version(&detour), other);
}

#[test]
fn inbound_stays_when_the_control_plane_forgets_the_workload() {
    let mut bench = Bench::new();
    bench.told(Kind::Listener, "inbound", inbound::tests::resource("shop/cart-0"));
    assert_eq!(&*bench.tables.inbound.as_ref().unwrap().workload, "cart-0");

    bench.gone(Kind::Listener, "inbound");
    bench.wish(ADDRESS);
    bench.gone(Kind::Listener, LISTENER);

    assert_eq!(&*bench.tables.inbound.as_ref().unwrap().workload, "cart-0");
}

#[test]
fn a_refused_inbound_leaves_the_last_one_in_force() {
    let mut bench = Bench::new();
    bench.told(Kind::Listener, "inbound", inbound::tests::resource("shop/cart-0"));

    let rejects = bench.try_told(Kind::Listener, "inbound", inbound::tests::resource("nonsense"));
    bench.commands();

    assert_eq!(rejects, ["inbound: metadata.workload: is \"nonsense\", must be <namespace>/<name>"]);
    assert_eq!(&*bench.tables.inbound.as_ref().unwrap().workload, "cart-0");
}
