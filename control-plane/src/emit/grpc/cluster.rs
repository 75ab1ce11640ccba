//! Clusters for calls: endpoints by EDS, in plaintext or, where client and cluster can, over mutual TLS (gRFC A29).

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
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use heddle_xds::resource::Resource;
use prost::Name;

use super::Client;
use crate::emit::balancing::{LEAST_REQUEST, RING_HASH, policy};
use crate::emit::{envoy, pb};
use crate::model::{Cluster, LoadBalancing, Outlier, SpiffeId};

/// A cluster as `client` gets it.
pub fn cluster(cluster: &Cluster, client: &Client) -> Resource {
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
        transport_socket: mutual_tls(cluster, client).map(|instance| transport_socket(instance, &cluster.identities)),
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

/// The certificate provider by which `client` speaks mutual TLS to `cluster`, if both can.
pub fn mutual_tls<'c>(cluster: &Cluster, client: &'c Client) -> Option<&'c str> {
    client.certificate_provider.as_deref().filter(|_| !cluster.identities.is_empty())
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
/// default of 100 for what is unset, the other detector has to be switched off.
fn outlier(outlier: Outlier) -> OutlierDetection {
    OutlierDetection {
        interval: Some(pb::duration(INTERVAL)),
        base_ejection_time: Some(pb::duration(outlier.base_ejection)),
        max_ejection_time: Some(pb::duration(outlier.max_ejection.max(outlier.base_ejection))),
        max_ejection_percent: Some(pb::uint32(outlier.max_ejected_percent.min(100))),
        enforcing_success_rate: Some(pb::uint32(0)),
        enforcing_failure_percentage: Some(pb::uint32(100)),
        failure_percentage_threshold: Some(pb::uint32(ALL_FAILED)),
        failure_percentage_minimum_hosts: Some(pb::uint32(2)),
        failure_percentage_request_volume: Some(pb::uint32(outlier.consecutive_failures.max(1))),
        ..OutlierDetection::default()
    }
}

/// Certificates and roots of the client's own bootstrap; the peer must show one of `identities`.
fn transport_socket(instance: &str, identities: &[SpiffeId]) -> TransportSocket {
    let provider = || CertificateProviderPluginInstance { instance_name: instance.to_owned(), ..Default::default() };
    let exact = |id: &SpiffeId| envoy::tls::uri(MatchPattern::Exact(id.to_string()));
    let validation = CertificateValidationContext {
        ca_certificate_provider_instance: Some(provider()),
        match_typed_subject_alt_names: identities.iter().map(exact).collect(),
        ..CertificateValidationContext::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(provider()),
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    envoy::tls::socket(&context)
}

/// Over which calls are counted: gRFC A50's default.
const INTERVAL: Duration = Duration::from_secs(10);
/// Percent: an address is ejected when more than this failed.
const ALL_FAILED: u32 = 99;
