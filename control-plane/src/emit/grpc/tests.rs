//! Translation for gRPC clients.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster as PbCluster, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType as SocketConfig;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route as PbRoute, RouteConfiguration};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use heddle_xds::resource::Kind;
use prost::Message;

use super::{Client, cluster, endpoints, resource, server};
use crate::emit::envoy::sample::model;
use crate::model::cluster::{Settings, Statistics};
use crate::model::{
    Cluster, Endpoint, Endpoints, HashOn, Hints, LoadBalancing, Locality, Model, Outlier, Place, ResourceName,
    ServiceName, WorkloadName,
};

fn plaintext(namespace: &str) -> Client {
    Client { namespace: namespace.into(), ..Client::default() }
}

fn with_certificates() -> Client {
    Client { certificate_provider: Some(super::CERTIFICATE_PROVIDER.into()), ..plaintext("shop") }
}

fn decoded<M: Message + Default>(client: &Client, kind: Kind, name: &str) -> M {
    let found = resource(&model(), client, kind, name).unwrap_or_else(|| panic!("no {kind} {name}"));
    assert_eq!(&*found.name, name);
    M::decode(found.bytes).unwrap()
}

fn manager(client: &Client, target: &str) -> HttpConnectionManager {
    let listener: Listener = decoded(client, Kind::Listener, target);
    assert_eq!(listener.name, target);
    let api = listener.api_listener.unwrap().api_listener.unwrap();
    HttpConnectionManager::decode(&*api.value).unwrap()
}

fn table_of(client: &Client, target: &str) -> String {
    match manager(client, target).route_specifier {
        Some(RouteSpecifier::Rds(rds)) => rds.route_config_name,
        other => panic!("{other:?}"),
    }
}

fn routes(client: &Client, name: &str) -> Vec<PbRoute> {
    let mut table: RouteConfiguration = decoded(client, Kind::Route, name);
    let host = table.virtual_hosts.remove(0);
    assert_eq!(host.domains, ["*"]);
    host.routes
}

#[test]
fn a_listener_is_named_as_the_target_was_written_and_ends_with_the_router() {
    for target in ["grpc.shop:7070", "grpc.shop.svc.cluster.local:7070"] {
        let manager = manager(&plaintext("shop"), target);
        assert_eq!(manager.http_filters.last().unwrap().name, "envoy.filters.http.router");
        assert_eq!(table_of(&plaintext("shop"), target), "shop/grpc/7070");
    }
}

#[test]
fn what_no_object_speaks_of_does_not_exist() {
    let client = plaintext("shop");
    for (kind, name) in [
        (Kind::Listener, "grpc.shop:1"),
        (Kind::Listener, "grpc.other:7070"),
        (Kind::Listener, "db.shop:5432"),
        (Kind::Listener, "inbound"),
        (Kind::Route, "shop/grpc/07070"),
        (Kind::Route, "shop/web/80@nobody"),
        (Kind::Route, "shop/grpc"),
        (Kind::Cluster, "shop/grpc/1"),
        (Kind::Cluster, "shop/grpc/07070"),
        (Kind::Cluster, "shop/workload/web-1/10.0.0.1:8080"),
        (Kind::Endpoints, "grpc"),
    ] {
        assert_eq!(resource(&model(), &client, kind, name), None, "{kind} {name}");
    }
}

#[test]
fn a_namespace_with_routes_of_its_own_gets_those() {
    assert_eq!(table_of(&plaintext("guest"), "web.shop:80"), "shop/web/80@guest");
    assert_eq!(table_of(&plaintext("shop"), "web.shop:80"), "shop/web/80");
    assert_eq!(routes(&plaintext("guest"), "shop/web/80@guest").len(), 1);
    assert_eq!(resource(&model(), &plaintext("shop"), Kind::Route, "shop/web/80@guest"), None);
}

#[test]
fn a_headless_service_is_found_by_name() {
    assert_eq!(table_of(&plaintext("shop"), "headless.shop:80"), "shop/headless/80");
}

#[test]
fn routes_no_call_can_match_are_left_out() {
    // The one with a method and a query.
    let routes = routes(&plaintext("shop"), "shop/web/80");
    assert_eq!(routes.len(), 5);
    assert_eq!(routes[0].r#match.as_ref().unwrap().path_specifier, Some(PathSpecifier::Prefix("/old/".into())));
    assert_eq!(routes[4].r#match.as_ref().unwrap().path_specifier, Some(PathSpecifier::Prefix(String::new())));
}

#[test]
fn weights_are_kept_and_an_invalid_backend_keeps_its_share() {
    let routes = routes(&plaintext("shop"), "shop/web/80");
    let Some(Action::Route(action)) = &routes[2].action else { panic!("route") };
    let Some(ClusterSpecifier::WeightedClusters(weights)) = &action.cluster_specifier else { panic!("weights") };
    let shares: Vec<_> =
        weights.clusters.iter().map(|share| (share.name.as_str(), share.weight.unwrap().value)).collect();
    assert_eq!(shares, [("shop/web/80", 90), ("shop/any/9000", 10), ("invalid-backend", 5)]);
    assert!(matches!(routes[0].action, Some(Action::DirectResponse(_))), "a redirect fails");
}

#[test]
fn the_cluster_of_invalid_backends_exists_and_has_no_endpoints() {
    let cluster: PbCluster = decoded(&plaintext("shop"), Kind::Cluster, "invalid-backend");
    assert!(cluster.eds_cluster_config.is_some());
    let assignment: ClusterLoadAssignment = decoded(&plaintext("shop"), Kind::Endpoints, "invalid-backend");
    assert!(assignment.endpoints.is_empty());
}

#[test]
fn every_group_of_endpoints_has_locality_and_weight() {
    let assignment: ClusterLoadAssignment = decoded(&plaintext("shop"), Kind::Endpoints, "shop/grpc/7070");
    assert!(!assignment.endpoints.is_empty());
    assert!(assignment.endpoints.iter().all(|group| group.locality.is_some() && group.load_balancing_weight.is_some()));
}

#[test]
fn mutual_tls_takes_a_client_with_certificates_and_a_proxyless_endpoint() {
    let cluster = |client: &Client, name: &str| decoded::<PbCluster>(client, Kind::Cluster, name).transport_socket;
    let count = |client: &Client| {
        let assignment: ClusterLoadAssignment = decoded(client, Kind::Endpoints, "shop/web/80");
        assignment.endpoints.iter().map(|group| group.lb_endpoints.len()).sum::<usize>()
    };
    assert!(cluster(&plaintext("shop"), "shop/web/80").is_none());
    assert!(cluster(&with_certificates(), "shop/grpc/7070").is_none());
    let socket = format!("{:?}", cluster(&with_certificates(), "shop/web/80").unwrap());
    assert!(socket.starts_with(r#"TransportSocket { name: "envoy.transport_sockets.tls""#), "{socket}");
    // One of three is proxyless itself, one has a sidecar, one is not meshed.
    assert_eq!((count(&plaintext("shop")), count(&with_certificates())), (2, 1));
}

#[test]
fn least_request_is_offered_before_round_robin() {
    let cluster = |name: &str| decoded::<PbCluster>(&plaintext("shop"), Kind::Cluster, name);
    assert!(cluster("shop/grpc/7070").load_balancing_policy.is_none());
    let policy = format!("{:?}", cluster("shop/web/80").load_balancing_policy.unwrap());
    assert!(policy.contains("WrrLocality"), "{policy}");
}

/// What the sample's workload is told of a port it listens at.
fn served(port: u16) -> Listener {
    let model: Model = model();
    let inbound = model.workloads[&WorkloadName::new("shop", "web-1")].inbound.as_ref().unwrap();
    let name = format!("{}0.0.0.0:{port}", server::TEMPLATE);
    let address = server::listening(&name).unwrap();
    Listener::decode(server::listener(&name, address, inbound, &with_certificates()).bytes).unwrap()
}

#[test]
fn a_server_takes_mutual_tls_only_unless_its_port_takes_none() {
    let takes = |port| served(port).filter_chains[0].transport_socket.is_some();
    assert_eq!([takes(7070), takes(8080), takes(9100)], [true, true, false], "STRICT, PERMISSIVE, DISABLE");
}

#[test]
fn a_servers_filters_have_names_of_their_own_and_end_with_the_router() {
    let mut chain = served(8080).filter_chains.remove(0);
    let Some(ConfigType::TypedConfig(manager)) = chain.filters.remove(0).config_type else { panic!("a manager") };
    let manager = HttpConnectionManager::decode(&*manager.value).unwrap();
    let names: Vec<_> = manager.http_filters.iter().map(|filter| filter.name.as_str()).collect();
    let rbac = ["envoy.filters.http.rbac-0", "envoy.filters.http.rbac-1"];
    assert_eq!(names, [rbac[0], rbac[1], "envoy.filters.http.router"]);
}

#[test]
#[expect(deprecated, reason = "gRPC reads it")]
fn identities_are_said_in_the_field_that_every_implementation_reads() {
    let socket = decoded::<PbCluster>(&with_certificates(), Kind::Cluster, "shop/web/80").transport_socket.unwrap();
    let Some(SocketConfig::TypedConfig(any)) = socket.config_type else { panic!("typed") };
    let common = UpstreamTlsContext::decode(&*any.value).unwrap().common_tls_context.unwrap();
    let Some(ValidationContextType::ValidationContext(validation)) = common.validation_context_type else {
        panic!("a context")
    };
    let typed = validation.match_typed_subject_alt_names.into_iter().map(|name| name.matcher.unwrap());
    assert!(!validation.match_subject_alt_names.is_empty());
    assert!(typed.eq(validation.match_subject_alt_names));
}

fn with(settings: Settings, zones: &[&str]) -> (Cluster, Endpoints) {
    let name = ResourceName::service_port(&ServiceName::new("shop", "api"), 80);
    let endpoint = |(number, zone): (usize, &&str)| Endpoint {
        address: format!("10.0.0.{number}:80").parse().unwrap(),
        mtls: None,
        proxyless: false,
        weight: 1,
        draining: false,
        workload: None,
        locality: Some(Locality { region: None, zone: Some((*zone).into()) }),
        hints: Hints { zones: vec![(*zone).into()], nodes: Vec::new() },
    };
    let endpoints = zones.iter().enumerate().map(endpoint).collect();
    let cluster = Cluster { name: name.clone(), service: None, settings, identities: Vec::new(), sources: Vec::new() };
    (cluster, Endpoints { name, endpoints })
}

/// Priority, zone and weight of each group, as a client in zone `a` gets them.
fn groups(settings: Settings, zones: &[&str]) -> Vec<(u32, String, u32)> {
    let (cluster, all) = with(settings, zones);
    let client = Client { place: Place { zone: Some("a".into()), node: None }, ..plaintext("shop") };
    let message = ClusterLoadAssignment::decode(endpoints::resource(&cluster, &all, &client).bytes).unwrap();
    let group = |group: LocalityLbEndpoints| {
        (group.priority, group.locality.unwrap().zone, group.load_balancing_weight.unwrap().value)
    };
    message.endpoints.into_iter().map(group).collect()
}

#[test]
fn far_endpoints_are_of_the_next_priority() {
    let (near, far) = ((0, "a".to_owned(), 1), (1, "b".to_owned(), 2));
    assert_eq!(groups(Settings::default(), &["a", "b", "b"]), [near, far]);
    let nobodys = [(0, "b".to_owned(), 1), (0, "c".to_owned(), 1)];
    assert_eq!(groups(Settings::default(), &["b", "c"]), nobodys, "none is meant for the client");
}

#[test]
fn a_ring_has_no_localities() {
    let ring = || Settings { load_balancing: LoadBalancing::RingHash(vec![HashOn::Path]), ..Settings::default() };
    assert_eq!(groups(ring(), &["b", "c", "c"]), [(0, String::new(), 3)]);
    assert_eq!(groups(ring(), &["a", "c", "c"]), [(0, String::new(), 1), (1, String::new(), 2)]);
}

#[test]
fn a_detector_that_is_off_is_off_and_success_rates_are_compared_as_said() {
    let detection = |outlier: Outlier| {
        let (cluster, all) = with(Settings { outlier: Some(outlier), ..Settings::default() }, &["a"]);
        let made = cluster::cluster(&cluster, &all, &plaintext("shop"));
        PbCluster::decode(made.bytes).unwrap().outlier_detection.unwrap()
    };
    let in_a_row = detection(Outlier { consecutive_failures: 7, consecutive_gateway_errors: 3, ..Outlier::default() });
    let read = |detection: &OutlierDetection| {
        [detection.enforcing_failure_percentage, detection.enforcing_success_rate].map(|value| value.unwrap().value)
    };
    assert_eq!(read(&in_a_row), [100, 0]);
    assert_eq!(in_a_row.failure_percentage_request_volume.unwrap().value, 3);
    let statistics = Statistics {
        interval: Duration::from_secs(3),
        minimum_hosts: 4,
        request_volume: 50,
        success_rate_stdev_factor: Some(1_500),
        latency_percent: None,
    };
    let compared = detection(Outlier { consecutive_failures: 0, statistics: Some(statistics), ..Outlier::default() });
    assert_eq!(read(&compared), [0, 100]);
    assert_eq!(compared.interval.unwrap().seconds, 3);
    let numbers =
        [compared.success_rate_stdev_factor, compared.success_rate_minimum_hosts, compared.success_rate_request_volume];
    assert_eq!(numbers.map(|number| number.unwrap().value), [1_500, 4, 50]);
}

#[test]
fn only_a_client_that_counts_by_load_is_told_to_report_it() {
    let lrs = |counts_by_load| {
        let client = Client { counts_by_load, ..plaintext("shop") };
        decoded::<PbCluster>(&client, Kind::Cluster, "shop/web/80").lrs_server
    };
    assert_eq!([lrs(false).is_some(), lrs(true).is_some()], [false, true]);
}
