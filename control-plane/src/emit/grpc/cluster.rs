//! Clusters for calls: endpoints by EDS, in plaintext or, where client and cluster can, over mutual TLS (gRFC A29).

use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster as PbCluster, LoadBalancingPolicy, OutlierDetection,
};
use envoy_types::pb::envoy::config::core::v3::TransportSocket;
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::ring_hash::HashFunction;
use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use envoy_types::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use heddle_xds::resource::Resource;
use prost::Name;

use super::{Client, tls};
use crate::emit::balancing::{LEAST_REQUEST, RING_HASH, policy};
use crate::emit::{envoy, pb};
use crate::model::{Cluster, Endpoint, Endpoints, LoadBalancing, Outlier, SpiffeId};

/// A cluster as `client` gets it, whose endpoints are `endpoints`.
pub fn cluster(cluster: &Cluster, endpoints: &Endpoints, client: &Client) -> Resource {
    let settings = &cluster.settings;
    let thresholds = Thresholds { max_requests: Some(pb::uint32(settings.limits.requests)), ..Thresholds::default() };
    let message = PbCluster {
        name: cluster.name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(pb::ads()), service_name: String::new() }),
        lb_policy: LbPolicy::RoundRobin as i32,
        load_balancing_policy: match &settings.load_balancing {
            LoadBalancing::P2cEwma | LoadBalancing::LeastRequest => {
                Some(picking(LEAST_REQUEST, &LeastRequest::default()))
            }
            // gRPC has no policy that picks at random; one after another is spread no worse.
            LoadBalancing::RoundRobin | LoadBalancing::Random => None,
            // Nor Maglev's, whose promise the ring keeps too.
            LoadBalancing::RingHash(_) | LoadBalancing::Maglev(_) => Some(ring_hash()),
        },
        circuit_breakers: Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() }),
        outlier_detection: settings.outlier.map(outlier),
        lrs_server: client.counts_by_load.then(pb::same_server),
        transport_socket: mutual_tls(endpoints, client).map(|instance| transport_socket(instance, endpoints)),
        ..PbCluster::default()
    };
    Resource::encode(cluster.name.shared(), &message, pb::sources(&cluster.sources))
}

/// The cluster of invalid backends. A name that does not exist would hold up every call of the route table until gRPC
/// believes it (15 s); this one exists and has no endpoints.
pub fn nowhere() -> Resource {
    let message = PbCluster {
        name: envoy::NO_CLUSTER.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(pb::ads()), service_name: String::new() }),
        lb_policy: LbPolicy::RoundRobin as i32,
        ..PbCluster::default()
    };
    Resource::encode(envoy::NO_CLUSTER, &message, [])
}

/// The certificate provider by which `client` speaks mutual TLS to some of `endpoints`, if it has one and they take it.
pub fn mutual_tls<'c>(endpoints: &Endpoints, client: &'c Client) -> Option<&'c str> {
    client.certificate_provider.as_deref().filter(|_| endpoints.endpoints.iter().any(takes_mutual_tls))
}

/// Whether it takes mutual TLS of gRPC, and nothing else. A sidecar does not: gRPC offers ALPN `h2` and no name of ours, so
/// its TLS would be relayed as the application's own, or refused.
pub fn takes_mutual_tls(endpoint: &Endpoint) -> bool {
    endpoint.proxyless && endpoint.mtls.is_some()
}

/// On a ring, by what routes say is hashed (gRFC A42); it takes localities as one.
fn ring_hash() -> LoadBalancingPolicy {
    let ring = RingHash { hash_function: HashFunction::XxHash as i32, ..RingHash::default() };
    LoadBalancingPolicy { policies: vec![policy(RING_HASH, &ring)] }
}

/// By the policy `name` where the client knows it, else round robin: gRPC takes the first policy it knows (A52), and an
/// older one reads `lb_policy`.
fn picking(name: &str, config: &impl Name) -> LoadBalancingPolicy {
    let picking = LoadBalancingPolicy {
        policies: vec![
            policy(name, config),
            policy("envoy.load_balancing_policies.round_robin", &RoundRobin::default()),
        ],
    };
    let locality = WrrLocality { endpoint_picking_policy: Some(picking) };
    LoadBalancingPolicy { policies: vec![policy("envoy.load_balancing_policies.wrr_locality", &locality)] }
}

/// gRPC counts no failures in a row (A50). Nearest: all calls of an interval failed, and there were as many. With its
/// default of 100 for what is unset, a detector that is not wanted has to be switched off.
fn outlier(outlier: Outlier) -> OutlierDetection {
    let in_a_row =
        [outlier.consecutive_failures, outlier.consecutive_gateway_errors, outlier.consecutive_local_origin_failures];
    let all_failed = in_a_row.into_iter().filter(|failures| *failures > 0).min();
    let statistics = outlier.statistics;
    let success_rate = statistics.and_then(|statistics| statistics.success_rate_stdev_factor);
    let enforced = |on: bool| Some(pb::uint32(if on { 100 } else { 0 }));
    OutlierDetection {
        interval: Some(pb::duration(statistics.map_or(INTERVAL, |statistics| statistics.interval))),
        base_ejection_time: Some(pb::duration(outlier.base_ejection)),
        max_ejection_time: Some(pb::duration(outlier.max_ejection.max(outlier.base_ejection))),
        max_ejection_percent: Some(pb::uint32(outlier.max_ejected_percent.min(100))),
        enforcing_success_rate: enforced(success_rate.is_some()),
        success_rate_stdev_factor: success_rate.map(pb::uint32),
        success_rate_minimum_hosts: statistics.map(|statistics| pb::uint32(statistics.minimum_hosts)),
        success_rate_request_volume: statistics.map(|statistics| pb::uint32(statistics.request_volume)),
        enforcing_failure_percentage: enforced(all_failed.is_some()),
        failure_percentage_threshold: Some(pb::uint32(ALL_FAILED)),
        failure_percentage_minimum_hosts: Some(pb::uint32(2)),
        failure_percentage_request_volume: all_failed.map(pb::uint32),
        ..OutlierDetection::default()
    }
}

/// The peer must show an identity of one of them.
fn transport_socket(instance: &str, endpoints: &Endpoints) -> TransportSocket {
    let taking = endpoints.endpoints.iter().filter(|endpoint| takes_mutual_tls(endpoint));
    let identities: BTreeSet<&SpiffeId> = taking.filter_map(|endpoint| endpoint.mtls.as_ref()).collect();
    envoy::tls::socket(&UpstreamTlsContext {
        common_tls_context: Some(tls::by(instance, &identities)),
        ..UpstreamTlsContext::default()
    })
}

/// Over which calls are counted where nothing is compared: gRFC A50's default.
const INTERVAL: Duration = Duration::from_secs(10);
/// Percent: an address is ejected when more than this failed.
const ALL_FAILED: u32 = 99;
