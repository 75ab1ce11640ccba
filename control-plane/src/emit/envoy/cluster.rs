//! Clusters: a Service's port or a workload's address by EDS, and those that dial the original destination.
//!
//! An endpoint whose metadata say `{heddle: mtls}` is spoken to over mutual TLS, any other in plaintext; one never
//! becomes the other because a handshake failed.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy, TransportSocketMatch,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster as PbCluster};
use envoy_types::pb::envoy::config::core::v3::health_check::TlsOptions;
use envoy_types::pb::envoy::config::core::v3::{
    BindConfig, HealthCheck, Http2ProtocolOptions, HttpProtocolOptions as CommonHttpOptions,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};
use envoy_types::pb::google::protobuf::Any;
use heddle_xds::resource::Resource;

use super::{Settings as EnvoySettings, http, tls};
use crate::emit::{balancing, health, outlier, pb};
use crate::model::{Cluster, HealthQuestion, Settings, SpiffeId, UpstreamHttp};

/// A cluster whose endpoints are asked for by its name.
pub fn eds(cluster: &Cluster, settings: &EnvoySettings) -> Resource {
    let message = PbCluster {
        cluster_discovery_type: discovery(DiscoveryType::Eds),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(pb::ads()), service_name: String::new() }),
        transport_socket_matches: mutual_tls(cluster, settings),
        outlier_detection: cluster.settings.outlier.map(outlier::detection),
        upstream_connection_options: Some(pb::keep_alive(&cluster.settings.connections.keep_alive)),
        health_checks: health_checks(&cluster.settings),
        // An endpoint that is gone is gone, whatever it last answered.
        ignore_health_on_host_removal: true,
        common_lb_config: Some(panic_threshold(&cluster.settings)),
        ..base(cluster.name.as_str(), &cluster.settings, balancing::balanced(&cluster.settings))
    };
    Resource::encode(cluster.name.shared(), &message, pb::sources(&cluster.sources))
}

/// A cluster that dials whatever address the client dialled; over mutual TLS if the identity there is known.
pub fn original_dst(
    name: &str,
    settings: &Settings,
    bind: Option<BindConfig>,
    peer: Option<(&SpiffeId, &EnvoySettings)>,
) -> PbCluster {
    let transport_socket =
        peer.map(|(identity, settings)| tls::upstream(settings, std::slice::from_ref(identity), &tls::OFFER_TCP));
    PbCluster {
        cluster_discovery_type: discovery(DiscoveryType::OriginalDst),
        lb_policy: LbPolicy::ClusterProvided as i32,
        upstream_bind_config: bind,
        transport_socket,
        ..base(name, settings, PbCluster::default())
    }
}

/// A cluster without endpoints: what is sent there is closed.
pub fn nowhere(name: &str) -> PbCluster {
    PbCluster {
        name: name.to_owned(),
        cluster_discovery_type: discovery(DiscoveryType::Static),
        ..PbCluster::default()
    }
}

/// The HTTP version endpoints are spoken to in, if it does not follow the request's.
pub fn fixed_alpn(upstream_http: UpstreamHttp) -> Option<&'static [&'static str]> {
    match upstream_http {
        UpstreamHttp::AsDownstream => None,
        UpstreamHttp::Http1 => Some(&tls::OFFER_HTTP1),
        UpstreamHttp::Http2 => Some(&tls::OFFER_HTTP2),
    }
}

/// A cluster that chooses endpoints as `balanced` does.
fn base(name: &str, settings: &Settings, balanced: PbCluster) -> PbCluster {
    let limits = settings.limits;
    let thresholds = Thresholds {
        max_connections: Some(pb::uint32(limits.connections)),
        max_pending_requests: Some(pb::uint32(limits.pending)),
        max_requests: Some(pb::uint32(limits.requests)),
        max_retries: Some(pb::uint32(limits.retries)),
        retry_budget: Some(RetryBudget {
            budget_percent: Some(pb::percent(settings.retry_budget.percent.min(100))),
            min_retry_concurrency: Some(pb::uint32(settings.retry_budget.floor)),
            ..RetryBudget::default()
        }),
        ..Thresholds::default()
    };
    PbCluster {
        name: name.to_owned(),
        connect_timeout: Some(pb::duration(settings.connect_timeout)),
        circuit_breakers: Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() }),
        // One entry, so the encoding has one order.
        typed_extension_protocol_options: HashMap::from([(PROTOCOL_OPTIONS.to_owned(), protocol(settings))]),
        ..balanced
    }
}

/// Over a meshed endpoint's mutual TLS they offer what they speak, as requests do.
fn health_checks(settings: &Settings) -> Vec<HealthCheck> {
    let Some(check) = &settings.health_check else { return Vec::new() };
    let alpn: &[&str] = match (&check.question, settings.upstream_http) {
        (HealthQuestion::Tcp, _) => &tls::OFFER_TCP,
        (HealthQuestion::Grpc { .. }, _) | (HealthQuestion::Http { .. }, UpstreamHttp::Http2) => &tls::OFFER_HTTP2,
        (HealthQuestion::Http { .. }, UpstreamHttp::AsDownstream | UpstreamHttp::Http1) => &tls::OFFER_HTTP1,
    };
    let alpn_protocols = alpn.iter().map(|name| (*name).to_owned()).collect();
    vec![health::check(check, settings.upstream_http, Some(TlsOptions { alpn_protocols }))]
}

/// The ALPN here is for copies of requests, which come without what listeners say is offered.
fn mutual_tls(cluster: &Cluster, settings: &EnvoySettings) -> Vec<TransportSocketMatch> {
    if cluster.identities.is_empty() {
        return Vec::new();
    }
    let alpn = fixed_alpn(cluster.settings.upstream_http).unwrap_or(&tls::OFFER_HTTP1);
    vec![TransportSocketMatch {
        name: pb::MATCH_MTLS.to_owned(),
        r#match: Some(pb::single(pb::MATCH_KEY, pb::MATCH_MTLS)),
        transport_socket: Some(tls::upstream(settings, &cluster.identities, alpn)),
    }]
}

fn protocol(settings: &Settings) -> Any {
    let kept = &settings.connections;
    let http2 = || Http2ProtocolOptions { max_concurrent_streams: kept.max_streams.map(pb::uint32), ..http::http2() };
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let upstream = match settings.upstream_http {
        UpstreamHttp::AsDownstream => UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(http::http1()),
            http2_protocol_options: Some(http2()),
            ..UseDownstreamHttpConfig::default()
        }),
        UpstreamHttp::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(http::http1())),
        UpstreamHttp::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2())),
    };
    pb::any(&HttpProtocolOptions {
        common_http_protocol_options: Some(CommonHttpOptions {
            max_connection_duration: kept.max_age.map(pb::duration),
            max_requests_per_connection: kept.max_requests.map(pb::uint32),
            ..http::common(kept.idle_timeout)
        }),
        upstream_protocol_options: Some(upstream),
        ..HttpProtocolOptions::default()
    })
}

/// Without ejection nothing is ignored: Envoy's default of 50 % would send requests to draining endpoints.
fn panic_threshold(settings: &Settings) -> CommonLbConfig {
    let told = settings.outlier.is_some() || settings.health_check.is_some();
    let percent = if told { settings.panic_percent } else { 0 };
    CommonLbConfig { healthy_panic_threshold: Some(pb::percent(percent)), ..CommonLbConfig::default() }
}

fn discovery(kind: DiscoveryType) -> Option<ClusterDiscoveryType> {
    Some(ClusterDiscoveryType::Type(kind as i32))
}

/// Where Envoy looks for a cluster's HTTP options.
const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
