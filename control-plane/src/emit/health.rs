//! Active health checks, as clusters say them.

use envoy_types::pb::envoy::config::core::v3::HealthCheck as PbHealthCheck;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck, TlsOptions,
};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};

use super::pb;
use crate::model::{HealthCheck, HealthQuestion, UpstreamHttp};

/// Asks endpoints that speak `upstream_http`, with these options of TLS.
pub fn check(check: &HealthCheck, upstream_http: UpstreamHttp, tls_options: Option<TlsOptions>) -> PbHealthCheck {
    PbHealthCheck {
        timeout: Some(pb::duration(check.timeout)),
        interval: Some(pb::duration(check.interval)),
        interval_jitter_percent: JITTER_PERCENT,
        // Before its first request a cluster is asked as often as after it.
        no_traffic_interval: Some(pb::duration(check.interval)),
        unhealthy_threshold: Some(pb::uint32(check.unhealthy_threshold)),
        healthy_threshold: Some(pb::uint32(check.healthy_threshold)),
        health_checker: Some(checker(&check.question, upstream_http)),
        tls_options,
        ..PbHealthCheck::default()
    }
}

fn checker(question: &HealthQuestion, upstream_http: UpstreamHttp) -> HealthChecker {
    match question {
        HealthQuestion::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        HealthQuestion::Http { host, path, codes } => HealthChecker::HttpHealthCheck(HttpHealthCheck {
            host: host.clone(),
            path: path.clone(),
            expected_statuses: expected(codes),
            // All others count towards the threshold; without that one would be enough.
            retriable_statuses: vec![Int64Range { start: 100, end: 600 }],
            codec_client_type: match upstream_http {
                UpstreamHttp::Http2 => CodecClientType::Http2,
                UpstreamHttp::AsDownstream | UpstreamHttp::Http1 => CodecClientType::Http1,
            } as i32,
            ..HttpHealthCheck::default()
        }),
        HealthQuestion::Grpc { authority, service } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.clone(),
            authority: authority.clone(),
            ..GrpcHealthCheck::default()
        }),
    }
}

/// Ranges without their end.
fn expected(codes: &[u16]) -> Vec<Int64Range> {
    if codes.is_empty() {
        return vec![Int64Range { start: 200, end: 400 }];
    }
    codes.iter().map(|code| Int64Range { start: i64::from(*code), end: i64::from(*code) + 1 }).collect()
}

/// By how much intervals vary, so that clients do not ask all at once. Chosen.
const JITTER_PERCENT: u32 = 10;
