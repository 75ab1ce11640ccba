//! `Cluster` → settings, service and identities of a [`Cluster`](crate::tables::Cluster); endpoints come by themselves.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, TransportSocketMatch};
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{Http2ProtocolOptions, RoutingPriority};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::{UInt32Value, value};
use serde::Deserialize;

use super::read::{self, Error, Within, at_most};
use super::{balancing, health, outlier};
use crate::balance::breaker;
use crate::http::MAX_SHARED_STREAMS;
use crate::tables::cluster::{
    Connections, DEFAULT_RETRY_BUDGET_FLOOR, DEFAULT_RETRY_BUDGET_PERCENT, KeepAlive, Settings, UpstreamHttp,
};
use crate::tables::{ServiceName, Sources};

/// One cluster, without its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The Service behind it.
    pub service: Option<ServiceName>,
    /// Limits, timeouts, policies.
    pub settings: Settings,
    /// Identities a meshed endpoint may show that names none itself.
    pub identities: Arc<[Arc<str>]>,
    /// What it was made from.
    pub sources: Sources,
}

/// Reads the resource `name`.
///
/// # Errors
/// The first field that is wrong.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Parsed, Error> {
    let message: PbCluster = read::message(bytes)?;
    read::name("name", &message.name, name)?;
    if message.cluster_discovery_type != Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)) {
        return Err(Error::new("type", "must be EDS"));
    }
    let other_name = message.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str()).unwrap_or_default();
    if !other_name.is_empty() && other_name != name {
        let reason = format!("is {other_name:?}, must be empty: endpoints come under the cluster's name");
        return Err(Error::new("eds_cluster_config.service_name", reason));
    }
    let facts: Facts = read::facts(message.metadata.as_ref())?;
    Ok(Parsed {
        service: facts.service.as_deref().map(read::service_name).transpose().within("metadata.service")?,
        settings: settings(&message, &facts)?,
        identities: identities(&message.transport_socket_matches)?,
        sources: read::sources(message.metadata.as_ref())?,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    service: Option<String>,
    outlier_latency_percent: Option<u32>,
}

fn settings(message: &PbCluster, facts: &Facts) -> Result<Settings, Error> {
    let thresholds =
        message.circuit_breakers.as_ref().map(|breakers| breakers.thresholds.as_slice()).unwrap_or_default();
    let thresholds = thresholds.iter().find(|threshold| threshold.priority == RoutingPriority::Default as i32);
    let (retry_budget_percent, retry_budget_floor) =
        retry_budget(thresholds).within("circuit_breakers.thresholds[0].retry_budget")?;
    let panic = message.common_lb_config.as_ref().and_then(|config| config.healthy_panic_threshold.as_ref());
    let panic = panic.map(read::percent).transpose().within("common_lb_config.healthy_panic_threshold")?;
    let outlier = message.outlier_detection.as_ref();
    let outlier = outlier.map(|pb| outlier::read(pb, facts.outlier_latency_percent));
    let (connections, upstream_http) = http_options(message)?;
    Ok(Settings {
        policy: balancing::read(message)?,
        slow_start: balancing::slow_start(message)?,
        connect_timeout: read::positive(message.connect_timeout.as_ref(), ENVOY_CONNECT_TIMEOUT)
            .within("connect_timeout")?,
        connections: Connections { keep_alive: keep_alive(message)?, ..connections },
        limits: limits(thresholds),
        outlier: outlier.transpose().within("outlier_detection")?,
        health_check: health::read(&message.health_checks)?.map(Arc::new),
        panic_percent: panic.unwrap_or(ENVOY_PANIC),
        retry_budget_percent,
        retry_budget_floor,
        upstream_http,
    })
}

fn limits(thresholds: Option<&Thresholds>) -> breaker::Limits {
    let Some(thresholds) = thresholds else { return breaker::Limits::default() };
    breaker::Limits {
        connections: read::uint32(thresholds.max_connections.as_ref(), ENVOY_LIMIT),
        pending: read::uint32(thresholds.max_pending_requests.as_ref(), ENVOY_LIMIT),
        requests: read::uint32(thresholds.max_requests.as_ref(), ENVOY_LIMIT),
        retries: read::uint32(thresholds.max_retries.as_ref(), ENVOY_RETRY_LIMIT),
    }
}

/// Percent of active requests, and how many are always allowed.
fn retry_budget(thresholds: Option<&Thresholds>) -> Result<(u32, u32), Error> {
    let Some(budget) = thresholds.and_then(|thresholds| thresholds.retry_budget.as_ref()) else {
        return Ok((DEFAULT_RETRY_BUDGET_PERCENT, DEFAULT_RETRY_BUDGET_FLOOR));
    };
    let percent = budget.budget_percent.as_ref().map(read::percent).transpose().within("budget_percent")?;
    // Envoy's defaults are these too (`RetryBudget`).
    let floor = read::uint32(budget.min_retry_concurrency.as_ref(), DEFAULT_RETRY_BUDGET_FLOOR);
    Ok((percent.unwrap_or(DEFAULT_RETRY_BUDGET_PERCENT), floor))
}

/// Linux's own defaults where nothing is said, as in Envoy.
fn keep_alive(message: &PbCluster) -> Result<Option<KeepAlive>, Error> {
    let options = message.upstream_connection_options.as_ref();
    let Some(probing) = options.and_then(|options| options.tcp_keepalive.as_ref()) else { return Ok(None) };
    let number = |field: &str, given: Option<&UInt32Value>, default| match read::uint32(given, default) {
        0 => Err(Error::new(field, "is 0, must be at least 1")).within("upstream_connection_options.tcp_keepalive"),
        number => Ok(number),
    };
    Ok(Some(KeepAlive {
        time: Duration::from_secs(number("keepalive_time", probing.keepalive_time.as_ref(), LINUX_TIME)?.into()),
        interval: Duration::from_secs(
            number("keepalive_interval", probing.keepalive_interval.as_ref(), LINUX_INTERVAL)?.into(),
        ),
        probes: number("keepalive_probes", probing.keepalive_probes.as_ref(), LINUX_PROBES)?,
    }))
}

fn http_options(message: &PbCluster) -> Result<(Connections, UpstreamHttp), Error> {
    let Some(any) = message.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        // Envoy speaks HTTP/1.1 where nothing is said.
        let connections = Connections { idle_timeout: ENVOY_IDLE_TIMEOUT, ..Connections::default() };
        return Ok((connections, UpstreamHttp::Http1));
    };
    let field = "typed_extension_protocol_options";
    let options: HttpProtocolOptions = read::unpack(Some(any)).within(field)?;
    let common = options.common_http_protocol_options.as_ref();
    let idle = read::positive(common.and_then(|common| common.idle_timeout.as_ref()), ENVOY_IDLE_TIMEOUT);
    let idle = idle.within("common_http_protocol_options.idle_timeout").within(field)?;
    let age = common.and_then(|common| common.max_connection_duration.as_ref());
    let age = age.map(|age| read::positive(Some(age), Duration::ZERO)).transpose();
    let http2 = http2_options(&options);
    let connections = Connections {
        idle_timeout: idle,
        max_age: age.within("common_http_protocol_options.max_connection_duration").within(field)?,
        max_requests: common
            .and_then(|common| common.max_requests_per_connection.as_ref())
            .map(|most| most.value)
            .filter(|most| *most > 0),
        max_streams: read::uint32(http2.and_then(|http2| http2.max_concurrent_streams.as_ref()), MAX_SHARED_STREAMS)
            .clamp(1, MAX_SHARED_STREAMS),
        keep_alive: None,
    };
    let upstream = match &options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => UpstreamHttp::AsDownstream,
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(_)),
        })) => UpstreamHttp::Http2,
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(_)),
        })) => UpstreamHttp::Http1,
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(_) | UpstreamProtocolOptions::AutoConfig(_)) | None => {
            let reason = "must be use_downstream_protocol_config, or explicit_http_config with HTTP/1 or HTTP/2";
            return Err(Error::new("upstream_protocol_options", reason)).within(field);
        }
    };
    Ok((connections, upstream))
}

fn http2_options(options: &HttpProtocolOptions) -> Option<&Http2ProtocolOptions> {
    match options.upstream_protocol_options.as_ref()? {
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(config) => config.http2_protocol_options.as_ref(),
        UpstreamProtocolOptions::ExplicitHttpConfig(config) => match config.protocol_config.as_ref()? {
            ProtocolConfig::Http2ProtocolOptions(http2) => Some(http2),
            ProtocolConfig::HttpProtocolOptions(_) | ProtocolConfig::Http3ProtocolOptions(_) => None,
        },
        UpstreamProtocolOptions::AutoConfig(_) => None,
    }
}

/// Identities of the endpoints marked `heddle: mtls`.
fn identities(matches: &[TransportSocketMatch]) -> Result<Arc<[Arc<str>]>, Error> {
    let mtls = matches.iter().enumerate().find(|(_, entry)| is_mtls(entry));
    let Some((index, entry)) = mtls else { return Ok(Arc::new([])) };
    names(entry).nth("transport_socket_matches", index)
}

fn is_mtls(entry: &TransportSocketMatch) -> bool {
    let wanted = entry.r#match.as_ref().and_then(|wanted| wanted.fields.get("heddle")).and_then(|v| v.kind.as_ref());
    matches!(wanted, Some(value::Kind::StringValue(text)) if text == "mtls")
}

fn names(entry: &TransportSocketMatch) -> Result<Arc<[Arc<str>]>, Error> {
    let any = entry.transport_socket.as_ref().and_then(|socket| socket.config_type.as_ref());
    let any = any.map(|ConfigType::TypedConfig(any)| any);
    let context: UpstreamTlsContext = read::unpack(any).within("transport_socket")?;
    let validation = context.common_tls_context.and_then(|common| common.validation_context_type);
    let Some(ValidationContextType::ValidationContext(validation)) = validation else {
        return Err(Error::new("transport_socket.typed_config.common_tls_context.validation_context", "is missing"));
    };
    let field = "transport_socket.typed_config.common_tls_context.validation_context.match_typed_subject_alt_names";
    at_most(field, &validation.match_typed_subject_alt_names, MAX_IDENTITIES)?;
    let name = |(index, matcher): (usize, &_)| {
        exact_uri(matcher).ok_or_else(|| Error::new("", "must be an exact URI").within_list(field, index))
    };
    validation.match_typed_subject_alt_names.iter().enumerate().map(name).collect()
}

fn exact_uri(
    matcher: &envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::SubjectAltNameMatcher,
) -> Option<Arc<str>> {
    let uri = matcher.san_type == SanType::Uri as i32;
    match matcher.matcher.as_ref().and_then(|text| text.match_pattern.as_ref()) {
        Some(MatchPattern::Exact(name)) if uri => Some(name.as_str().into()),
        _ => None,
    }
}

/// The key of the HTTP options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Service accounts behind one cluster. Chosen: a Service with more of them has no identity left.
const MAX_IDENTITIES: usize = 1_024;
/// Envoy's default (`Cluster.connect_timeout`).
const ENVOY_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's default (`HttpProtocolOptions.idle_timeout`).
const ENVOY_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Envoy's default for connections, pending requests and requests (`CircuitBreakers.Thresholds`).
const ENVOY_LIMIT: u32 = 1024;
/// Envoy's default for retries (`CircuitBreakers.Thresholds.max_retries`).
const ENVOY_RETRY_LIMIT: u32 = 3;
/// Linux's defaults, in seconds and probes (tcp(7)).
const LINUX_TIME: u32 = 7200;
const LINUX_INTERVAL: u32 = 75;
const LINUX_PROBES: u32 = 9;
/// Envoy's default, in percent (`CommonLbConfig.healthy_panic_threshold`).
const ENVOY_PANIC: u32 = 50;

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::OutlierDetection;
    use prost::Message;

    use envoy_types::pb::envoy::config::cluster::v3::cluster::LbPolicy;

    use super::*;
    use crate::tables::cluster::LoadBalancing;

    fn eds(name: &str) -> PbCluster {
        PbCluster {
            name: name.into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
            ..PbCluster::default()
        }
    }

    #[test]
    fn where_nothing_is_said_envoy_s_meaning_holds() {
        let parsed = parse("a/b/80", &eds("a/b/80").encode_to_vec()).unwrap();

        assert_eq!(parsed.settings.policy, LoadBalancing::RoundRobin);
        assert_eq!(parsed.settings.connect_timeout, Duration::from_secs(5));
        assert_eq!(parsed.settings.connections.idle_timeout, Duration::from_secs(3600));
        assert_eq!(parsed.settings.outlier, None);
        assert_eq!(parsed.settings.upstream_http, UpstreamHttp::Http1);
        assert_eq!(parsed.service, None);
        assert!(parsed.identities.is_empty());
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_field() {
        let field = |change: fn(&mut PbCluster)| {
            let mut cluster = eds("a/b/80");
            change(&mut cluster);
            parse("a/b/80", &cluster.encode_to_vec()).unwrap_err().field
        };
        assert_eq!(field(|c| c.name = "other".into()), "name");
        assert_eq!(field(|c| c.cluster_discovery_type = None), "type");
        assert_eq!(field(|c| c.lb_policy = LbPolicy::Maglev as i32), "lb_policy");
        assert_eq!(
            field(|c| c.connect_timeout = Some(envoy_types::pb::google::protobuf::Duration { seconds: -1, nanos: 0 })),
            "connect_timeout"
        );
        assert_eq!(
            field(|c| {
                let consecutive_5xx = Some(UInt32Value { value: 0 });
                c.outlier_detection = Some(OutlierDetection { consecutive_5xx, ..OutlierDetection::default() });
            }),
            "outlier_detection.consecutive_5xx"
        );
    }
}
