//! `Cluster`: how one port of a Service, or one workload, is talked to.
//!
//! `lb_policy` `LEAST_REQUEST` alone stands for the sidecar's own default, P2C with peak EWMA: Envoy's is the better of two random
//! endpoints too, by requests in flight alone. `max_retries` and `retry_budget` both count in the sidecar; Envoy takes
//! the budget where there is one. Facts: service, the latency that ejects, sources.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, TransportSocketMatch,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster as PbCluster};
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonHttpOptions, TransportSocket,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, UpstreamTlsContext,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use heddle_xds::resource::Resource;
use serde::Serialize;

use crate::emit::{balancing, health, outlier, pb};
use crate::model::cluster::Settings;
use crate::model::{Cluster, ServiceName, SourceRef, SpiffeId, UpstreamHttp};

/// A cluster whose endpoints come under its own name.
pub fn cluster(cluster: &Cluster) -> Resource {
    let settings = &cluster.settings;
    let message = PbCluster {
        name: cluster.name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(pb::ads()), service_name: String::new() }),
        connect_timeout: Some(pb::duration(settings.connect_timeout)),
        circuit_breakers: Some(circuit_breakers(settings)),
        upstream_connection_options: Some(pb::keep_alive(&settings.connections.keep_alive)),
        outlier_detection: settings.outlier.map(outlier::detection),
        health_checks: settings
            .health_check
            .iter()
            .map(|check| health::check(check, settings.upstream_http, None))
            .collect(),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(pb::percent(settings.panic_percent)),
            ..CommonLbConfig::default()
        }),
        typed_extension_protocol_options: HashMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pb::any(&http_options(settings)),
        )]),
        transport_socket_matches: mutual_tls(&cluster.identities).into_iter().collect(),
        metadata: Some(pb::facts(&Facts {
            service: cluster.service.as_ref(),
            outlier_latency_percent: settings.outlier.and_then(|outlier| outlier.statistics?.latency_percent),
            sources: &cluster.sources,
        })),
        ..balancing::balanced(settings)
    };
    Resource::encode(cluster.name.shared(), &message, pb::sources(&cluster.sources))
}

/// What Envoy has no field for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts<'m> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'m ServiceName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outlier_latency_percent: Option<u32>,
    sources: &'m [SourceRef],
}

fn circuit_breakers(settings: &Settings) -> CircuitBreakers {
    let limits = &settings.limits;
    let threshold = Thresholds {
        max_connections: Some(pb::uint32(limits.connections)),
        max_pending_requests: Some(pb::uint32(limits.pending)),
        max_requests: Some(pb::uint32(limits.requests)),
        max_retries: Some(pb::uint32(limits.retries)),
        retry_budget: Some(RetryBudget {
            budget_percent: Some(pb::percent(settings.retry_budget.percent)),
            min_retry_concurrency: Some(pb::uint32(settings.retry_budget.floor)),
            ..RetryBudget::default()
        }),
        ..Thresholds::default()
    };
    CircuitBreakers { thresholds: vec![threshold], ..CircuitBreakers::default() }
}

fn http_options(settings: &Settings) -> HttpProtocolOptions {
    let kept = &settings.connections;
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: kept.max_streams.map(pb::uint32),
        ..Http2ProtocolOptions::default()
    };
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let upstream = match settings.upstream_http {
        UpstreamHttp::AsDownstream => UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(Http1ProtocolOptions::default()),
            http2_protocol_options: Some(http2),
            ..UseDownstreamHttpConfig::default()
        }),
        UpstreamHttp::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())),
        UpstreamHttp::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
    };
    HttpProtocolOptions {
        common_http_protocol_options: Some(CommonHttpOptions {
            idle_timeout: Some(pb::duration(kept.idle_timeout)),
            max_connection_duration: kept.max_age.map(pb::duration),
            max_requests_per_connection: kept.max_requests.map(pb::uint32),
            ..CommonHttpOptions::default()
        }),
        upstream_protocol_options: Some(upstream),
        ..HttpProtocolOptions::default()
    }
}

/// For endpoints marked `heddle: mtls`: the identities one of which must be shown. Certificates and roots are the
/// sidecar's own and never travel here.
fn mutual_tls(identities: &[SpiffeId]) -> Option<TransportSocketMatch> {
    if identities.is_empty() {
        return None;
    }
    let names = identities.iter().map(|identity| SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(pb::text(MatchPattern::Exact(identity.to_string()))),
        ..SubjectAltNameMatcher::default()
    });
    let validation = CertificateValidationContext {
        match_typed_subject_alt_names: names.collect(),
        ..CertificateValidationContext::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    Some(TransportSocketMatch {
        name: pb::MATCH_MTLS.to_owned(),
        r#match: Some(pb::single(pb::MATCH_KEY, pb::MATCH_MTLS)),
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(ConfigType::TypedConfig(pb::any(&context))),
        }),
    })
}
