//! What a whole sample mesh becomes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule as Predicate;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route as PbRoute, RouteConfiguration};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as TcpCluster;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use heddle_xds::resource::{Kind, Resource};
use prost::Message;

use super::sample::{self, model, web_1};
use super::{Settings, resources};
use crate::emit::pb;
use crate::model::{Egress, Model, Workload};

type All = BTreeMap<Kind, Vec<Resource>>;

fn all() -> All {
    resources(&model(), &web_1(), &Settings::default())
}

fn decoded<M: Message + Default>(all: &All, kind: Kind) -> BTreeMap<String, M> {
    let decode = |resource: &Resource| (resource.name.to_string(), M::decode(resource.bytes.clone()).unwrap());
    all[&kind].iter().map(decode).collect()
}

fn listeners(all: &All) -> BTreeMap<String, Listener> {
    decoded(all, Kind::Listener)
}

fn routes(all: &All) -> BTreeMap<String, RouteConfiguration> {
    decoded(all, Kind::Route)
}

fn clusters(all: &All) -> BTreeMap<String, PbCluster> {
    decoded(all, Kind::Cluster)
}

fn chains(listener: &Listener) -> impl Iterator<Item = &FilterChain> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain)
}

/// The last filter of a chain, which says where bytes go.
fn terminal<M: Message + Default>(chain: &FilterChain, name: &str) -> Option<M> {
    let last = chain.filters.last()?;
    let Some(filter::ConfigType::TypedConfig(any)) = &last.config_type else { panic!("{last:?}") };
    last.name.ends_with(name).then(|| M::decode(&*any.value).unwrap())
}

fn relayed_to(chain: &FilterChain) -> Option<String> {
    match terminal::<TcpProxy>(chain, "tcp_proxy")?.cluster_specifier {
        Some(TcpCluster::Cluster(name)) => Some(name),
        other => panic!("{other:?}"),
    }
}

fn names(listener: &Listener) -> Vec<&str> {
    chains(listener).map(|chain| chain.name.as_str()).collect()
}

fn route<'t>(tables: &'t BTreeMap<String, RouteConfiguration>, table: &str, index: usize) -> &'t PbRoute {
    &tables[table].virtual_hosts[0].routes[index]
}

#[test]
fn every_resource_decodes_under_its_own_name_once() {
    let all = all();
    let mut named: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
    for (kind, resources) in &all {
        for resource in resources {
            let inside = match kind {
                Kind::Listener => Listener::decode(resource.bytes.clone()).unwrap().name,
                Kind::Route => RouteConfiguration::decode(resource.bytes.clone()).unwrap().name,
                Kind::Cluster => PbCluster::decode(resource.bytes.clone()).unwrap().name,
                Kind::Endpoints => ClusterLoadAssignment::decode(resource.bytes.clone()).unwrap().cluster_name,
            };
            assert_eq!(*inside, *resource.name);
            named.entry(*kind).or_default().push(inside);
        }
    }
    for (kind, names) in named {
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{kind}: {names:?}");
    }
}

#[test]
fn what_is_named_is_there() {
    let all = all();
    let (clusters, tables) = (clusters(&all), routes(&all));
    for listener in listeners(&all).values() {
        for chain in chains(listener) {
            if let Some(cluster) = relayed_to(chain) {
                assert!(clusters.contains_key(&cluster), "{}: {cluster}", chain.name);
            }
            if let Some(manager) = terminal::<HttpConnectionManager>(chain, "http_connection_manager") {
                use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
                match manager.route_specifier {
                    Some(RouteSpecifier::Rds(rds)) => assert!(tables.contains_key(&rds.route_config_name)),
                    Some(RouteSpecifier::RouteConfig(table)) => assert!(clusters.contains_key(&table.name)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn two_processes_give_every_resource_the_same_version() {
    let versions: Vec<_> = all().values().flatten().map(|r| format!("{} {}\n", r.name, r.version)).collect();
    if let Ok(path) = std::env::var(CHILD) {
        std::fs::write(path, versions.concat()).unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("versions");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "emit::envoy::tests::two_processes_give_every_resource_the_same_version"])
        .env(CHILD, &path)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(std::fs::read_to_string(path).unwrap(), versions.concat());
}

#[test]
fn every_address_has_a_listener_and_a_headless_service_has_none() {
    let listeners = listeners(&all());
    let names: Vec<_> = listeners.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "inbound",
            "inbound-ipv6",
            "outbound",
            "outbound-ipv6",
            "outbound/10.0.0.1:8080",
            "outbound/10.96.0.1:80",
            "outbound/10.96.0.2:7070",
            "outbound/10.96.0.3:5432",
            "outbound/[fd00::1:1]:8080",
            "outbound/[fd00::4]:9000",
        ]
    );
    let bound = |name: &str| listeners[name].bind_to_port.is_none_or(|bind| bind.value);
    assert!(bound("outbound") && bound("inbound-ipv6"));
    assert!(!bound("outbound/10.96.0.1:80"));
}

#[test]
fn a_destination_is_read_by_its_protocol() {
    let listeners = listeners(&all());
    assert_eq!(names(&listeners["outbound/10.96.0.1:80"]), ["http2", "default"]);
    assert_eq!(names(&listeners["outbound/10.96.0.2:7070"]), ["default"]);
    assert_eq!(names(&listeners["outbound/[fd00::4]:9000"]), ["http1", "http2", "default"]);
    let opaque = listeners["outbound/10.96.0.3:5432"].default_filter_chain.as_ref().unwrap();
    assert_eq!(relayed_to(opaque).as_deref(), Some("shop/db/5432"));
}

#[test]
fn a_namespace_with_routes_of_its_own_gets_those() {
    let guest = Workload { name: crate::model::WorkloadName::new("guest", "g"), ..web_1() };
    let all = resources(&model(), &guest, &Settings::default());
    let tables = routes(&all);
    assert!(tables.contains_key("shop/web/80@guest"));
    assert!(!tables.contains_key("shop/web/80"));
}

#[test]
fn unknown_destinations_follow_the_egress_default_and_known_workloads_their_identity() {
    let relays = |workload: &Workload| {
        let all = resources(&model(), workload, &Settings::default());
        let listener = listeners(&all).remove("outbound").unwrap();
        chains(&listener).map(|chain| (chain.name.clone(), relayed_to(chain).unwrap())).collect::<Vec<_>>()
    };
    let pair = |name: &str, cluster: &str| (name.to_owned(), cluster.to_owned());
    let meshed = "identity/spiffe://mesh.example/ns/shop/sa/web";
    let known = [pair("loop", "nowhere"), pair("passthrough", "passthrough"), pair(meshed, meshed)];

    let mut denied = web_1();
    denied.inbound.as_mut().unwrap().mesh.egress = Egress::Deny;

    assert_eq!(relays(&web_1()), [known.as_slice(), &[pair("default", "passthrough")]].concat());
    assert_eq!(relays(&denied), [known.as_slice(), &[pair("default", "nowhere")]].concat());
    let cluster = clusters(&all()).remove(meshed).unwrap();
    assert_eq!(cluster.transport_socket.unwrap().name, "envoy.transport_sockets.tls");
}

#[test]
fn strict_ports_have_no_chain_for_plaintext_and_disabled_ones_none_for_sidecars() {
    let listeners = listeners(&all());
    let of_port = |port: u32| {
        let chains = listeners["inbound"]
            .filter_chains
            .iter()
            .filter(move |chain| chain.filter_chain_match.as_ref().unwrap().destination_port == Some(pb::uint32(port)));
        chains.map(|chain| (chain.name.rsplit('/').next().unwrap().to_owned(), chain.transport_socket.is_some()))
    };
    let strict: Vec<_> = of_port(7070).collect();
    assert_eq!(strict, [("mtls".to_owned(), true)]);
    let disabled: Vec<_> = of_port(9100).collect();
    assert!(disabled.iter().all(|(_, tls)| !tls));
    assert_eq!(
        disabled.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["raw-http1", "raw-http2", "raw", "tls"]
    );
    let permissive: Vec<_> = of_port(9000).map(|(name, _)| name).collect();
    assert_eq!(permissive, ["mtls-http1", "mtls-http2", "mtls-tcp", "raw-http1", "raw-http2", "raw", "tls"]);
}

#[test]
fn chains_of_one_port_never_take_the_same_connection() {
    for listener in listeners(&all()).values() {
        let mut seen = BTreeSet::new();
        for chain in &listener.filter_chains {
            let matches = chain.filter_chain_match.as_ref().unwrap();
            let protocols: Vec<_> = match matches.application_protocols.as_slice() {
                [] => vec![""],
                some => some.iter().map(String::as_str).collect(),
            };
            for protocol in protocols {
                let port = matches.destination_port.map(|port| port.value);
                let key = format!("{port:?} {:?} {} {protocol}", matches.prefix_ranges, matches.transport_protocol);
                assert!(seen.insert(key.clone()), "{}: {key}", listener.name);
            }
        }
    }
}

#[test]
fn sidecars_are_told_by_what_they_offer_and_must_show_a_certificate_of_the_trust_domain() {
    use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
    let listeners = listeners(&all());
    let chain =
        listeners["inbound"].filter_chains.iter().find(|chain| chain.name == "inbound/8080/mtls-http2").unwrap();
    assert_eq!(chain.filter_chain_match.as_ref().unwrap().application_protocols, ["heddle-h2"]);
    let Some(ConfigType::TypedConfig(any)) = &chain.transport_socket.as_ref().unwrap().config_type else { panic!() };
    let context = DownstreamTlsContext::decode(&*any.value).unwrap();
    assert_eq!(context.require_client_certificate, Some(pb::boolean(true)));
    let common = context.common_tls_context.unwrap();
    assert!(common.alpn_protocols.iter().all(|name| !name.starts_with("heddle-") || name == "heddle-tcp"));
    assert!(format!("{common:?}").contains("spiffe://mesh.example/"));
}

#[test]
fn only_undeclared_ports_that_take_plaintext_wait_for_their_first_bytes() {
    let listeners = listeners(&all());
    let inspector = listeners["inbound"].listener_filters.iter().find(|f| f.name.ends_with("http_inspector")).unwrap();
    // Other ports are undeclared, so it is on, and off for the ports that need none.
    let Some(Predicate::OrMatch(set)) = &inspector.filter_disabled.as_ref().unwrap().rule else { panic!() };
    let off = set.rules.iter().map(|rule| match &rule.rule {
        Some(Predicate::DestinationPortRange(range)) => (range.start, range.end),
        other => panic!("{other:?}"),
    });
    assert_eq!(off.collect::<Vec<_>>(), [(5432, 5433), (7070, 7071), (8080, 8081)]);
}

#[test]
fn one_undeclared_port_among_declared_ones_is_the_only_one_that_waits() {
    let mut workload = web_1();
    let inbound = workload.inbound.as_mut().unwrap();
    inbound.other_ports.protocol = crate::model::Protocol::Tcp;
    inbound.ports.remove(&9100);
    let listeners = listeners(&resources(&model(), &workload, &Settings::default()));
    let inspector = listeners["inbound"].listener_filters.iter().find(|f| f.name.ends_with("http_inspector")).unwrap();
    let Some(Predicate::NotMatch(on)) = &inspector.filter_disabled.as_ref().unwrap().rule else { panic!() };
    assert!(matches!(&on.rule, Some(Predicate::DestinationPortRange(range)) if range.start == 9000));
}

#[test]
fn paths_are_normalised_exactly_where_a_policy_reads_them() {
    let listeners = listeners(&all());
    let manager = |name: &str| {
        let chain = listeners["inbound"].filter_chains.iter().find(|chain| chain.name == name).unwrap();
        terminal::<HttpConnectionManager>(chain, "http_connection_manager").unwrap()
    };
    let with = manager("inbound/8080/raw");
    assert_eq!(with.normalize_path, Some(pb::boolean(true)));
    assert!(with.merge_slashes);
    let names: Vec<_> = with.http_filters.iter().map(|filter| filter.name.as_str()).collect();
    assert_eq!(names, ["envoy.filters.http.rbac", "envoy.filters.http.rbac", "envoy.filters.http.router"]);
    let without = manager("inbound/9100/raw-http1");
    assert_eq!(without.normalize_path, Some(pb::boolean(false)));
    assert_eq!(without.http_filters.len(), 1);
}

#[test]
fn a_share_of_an_invalid_backend_names_no_cluster_and_a_share_of_zero_is_left_out() {
    let tables = routes(&all());
    let Some(Action::Route(action)) = &route(&tables, "shop/web/80", 2).action else { panic!("route") };
    let Some(ClusterSpecifier::WeightedClusters(clusters)) = &action.cluster_specifier else { panic!("weights") };
    let shares: Vec<_> =
        clusters.clusters.iter().map(|share| (share.name.as_str(), share.weight.unwrap().value)).collect();
    assert_eq!(shares, [("shop/web/80", 90), ("shop/any/9000", 10), ("invalid-backend", 5)]);
    // INTERNAL_SERVER_ERROR.
    assert_eq!(action.cluster_not_found_response_code, 2);
    let canary = &clusters.clusters[1];
    assert_eq!(canary.request_headers_to_add.len(), 2);
    assert_eq!(canary.request_headers_to_remove, ["x-c"]);
    // Its endpoints are always spoken to in HTTP/2, whatever came.
    assert_eq!(canary.typed_per_filter_config.len(), 1);
    assert!(clusters.clusters[0].typed_per_filter_config.is_empty());
}

#[test]
fn a_rule_without_a_valid_backend_goes_to_no_cluster() {
    let tables = routes(&all());
    let Some(Action::Route(action)) = &route(&tables, "shop/web/80", 3).action else { panic!("route") };
    assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster("invalid-backend".to_owned())));
    // INTERNAL_SERVER_ERROR.
    assert_eq!(action.cluster_not_found_response_code, 2);
}

#[test]
fn a_rule_without_timeout_has_none() {
    let tables = routes(&all());
    let timeout = |index: usize| match &route(&tables, "shop/web/80", index).action {
        Some(Action::Route(action)) => action.timeout.unwrap().seconds,
        other => panic!("{other:?}"),
    };
    assert_eq!([timeout(4), timeout(5)], [5, 0]);
}

#[test]
fn a_redirect_and_a_rewrite_keep_what_follows_the_prefix() {
    let tables = routes(&all());
    let Some(Action::Redirect(redirect)) = &route(&tables, "shop/web/80", 0).action else { panic!("redirect") };
    assert!(format!("{redirect:?}").contains(r#"substitution: "/new\\1""#), "{redirect:?}");
    let Some(Action::Route(rewrite)) = &route(&tables, "shop/web/80", 1).action else { panic!("route") };
    assert_eq!(rewrite.regex_rewrite.as_ref().unwrap().substitution, r"/\1");
    assert!(format!("{:?}", rewrite.host_rewrite_specifier).contains("inner"));
    assert_eq!(route(&tables, "shop/web/80", 1).response_headers_to_add.len(), 1);
}

#[test]
fn only_a_cluster_with_identities_knows_mutual_tls_and_it_expects_exactly_those() {
    let clusters = clusters(&all());
    assert!(clusters["shop/db/5432"].transport_socket_matches.is_empty());
    let [matched] = clusters["shop/web/80"].transport_socket_matches.as_slice() else { panic!("one") };
    assert_eq!(matched.r#match, Some(pb::single("heddle", "mtls")));
    let socket = format!("{:?}", matched.transport_socket);
    assert!(clusters["shop/web/80"].transport_socket.is_none(), "{socket}");
}

#[test]
fn endpoints_come_again_with_a_cluster_that_changes_and_only_then() {
    let mut changed = model();
    let service = changed.services.values_mut().find(|service| !service.endpoints.is_empty()).unwrap();
    let name = service.endpoints.keys().next().unwrap().clone();
    let cluster = Arc::make_mut(service).clusters.get_mut(&name).unwrap();
    cluster.settings.connect_timeout *= 2;
    let versions = |model: &Model| {
        let all = resources(model, &web_1(), &Settings::default());
        let versions = all[&Kind::Endpoints].iter().map(|resource| (resource.name.clone(), resource.version.clone()));
        versions.collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (versions(&model()), versions(&changed));
    let other: Vec<_> = before.iter().filter(|(name, version)| after[*name] != **version).collect();
    assert_eq!(other.len(), 1);
    assert_eq!(&**other[0].0, name.as_str());
}

#[test]
fn the_application_is_dialled_from_the_address_capture_lets_pass() {
    let bind = clusters(&all()).remove("inbound/8080").unwrap().upstream_bind_config.unwrap();
    assert_eq!(bind.source_address.unwrap().address, "127.0.0.6");
    assert_eq!(bind.extra_source_addresses[0].address.as_ref().unwrap().address, "::6");
}

#[test]
fn a_workload_without_sidecar_objects_is_told_of_the_mesh_only() {
    let mut workload = web_1();
    workload.inbound = None;
    let listeners = listeners(&resources(&Model::default(), &workload, &Settings::default()));
    assert_eq!(listeners.keys().collect::<Vec<_>>(), ["outbound", "outbound-ipv6"]);
}

#[test]
fn two_owners_of_one_address_are_one_listener() {
    let mut model = model();
    let mut twin = (*model.services[&sample::service("db")]).clone();
    twin.name = sample::service("twin");
    model.services.insert(twin.name.clone(), twin.into());
    let all = resources(&model, &web_1(), &Settings::default());
    assert_eq!(all[&Kind::Listener].iter().filter(|resource| &*resource.name == "outbound/10.96.0.3:5432").count(), 1);
}

/// Set for the second process: the file it writes its versions to.
const CHILD: &str = "HEDDLE_ENVOY_VERSIONS_FILE";
