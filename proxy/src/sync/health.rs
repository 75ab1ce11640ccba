//! `HealthCheck` → how endpoints are asked. One of a cluster counts.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HealthCheck;
use envoy_types::pb::envoy::config::core::v3::health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use envoy_types::pb::google::protobuf::UInt32Value;

use super::read::{self, Error, Within, at_most};
use crate::balance::health::{Check, Question};

/// Reads what a cluster says.
pub(super) fn read(checks: &[HealthCheck]) -> Result<Option<Check>, Error> {
    at_most("health_checks", checks, 1)?;
    checks.first().map(check).transpose().nth("health_checks", 0)
}

fn check(pb: &HealthCheck) -> Result<Check, Error> {
    let length = |field: &str, given: Option<&_>| {
        let given = given.ok_or_else(|| Error::new(field, "is missing"))?;
        read::positive(Some(given), Duration::ZERO).within(field)
    };
    let interval = length("interval", pb.interval.as_ref())?;
    if interval < LEAST_INTERVAL {
        return Err(Error::new("interval", format!("is {interval:?}, must be at least {LEAST_INTERVAL:?}")));
    }
    let question = match &pb.health_checker {
        Some(HealthChecker::TcpHealthCheck(tcp)) if tcp.send.is_none() && tcp.receive.is_empty() => Question::Tcp,
        Some(HealthChecker::HttpHealthCheck(http)) => self::http(http).within("http_health_check")?,
        Some(HealthChecker::GrpcHealthCheck(grpc)) => self::grpc(grpc).within("grpc_health_check")?,
        Some(HealthChecker::TcpHealthCheck(_)) => {
            return Err(Error::new("tcp_health_check", "must be empty: only the connection is checked"));
        }
        Some(HealthChecker::CustomHealthCheck(_)) | None => {
            return Err(Error::new("health_checker", "must be TCP, HTTP or gRPC"));
        }
    };
    Ok(Check {
        question,
        interval,
        timeout: length("timeout", pb.timeout.as_ref())?,
        unhealthy_threshold: threshold("unhealthy_threshold", pb.unhealthy_threshold.as_ref())?,
        healthy_threshold: threshold("healthy_threshold", pb.healthy_threshold.as_ref())?,
    })
}

fn threshold(field: &str, given: Option<&UInt32Value>) -> Result<u32, Error> {
    match given {
        Some(given) if given.value > 0 => Ok(given.value),
        Some(_) => Err(Error::new(field, "is 0, must be at least 1")),
        None => Err(Error::new(field, "is missing")),
    }
}

fn http(pb: &HttpHealthCheck) -> Result<Question, Error> {
    if !pb.path.starts_with('/') {
        return Err(Error::new("path", format!("is {:?}, must begin with /", pb.path)));
    }
    at_most("expected_statuses", &pb.expected_statuses, MAX_RANGES)?;
    let expected = pb.expected_statuses.iter().enumerate();
    let expected = expected.map(|(index, range)| self::range(range).nth("expected_statuses", index));
    let mut expected = expected.collect::<Result<Vec<_>, _>>()?;
    if expected.is_empty() {
        // Envoy's default.
        expected.push((200, 200));
    }
    Ok(Question::Http {
        authority: authority("host", &pb.host)?,
        path: pb.path.parse().map_err(|error| Error::new("path", format!("is {:?}: {error}", pb.path)))?,
        expected,
        http2: pb.codec_client_type == CodecClientType::Http2 as i32,
    })
}

fn grpc(pb: &GrpcHealthCheck) -> Result<Question, Error> {
    Ok(Question::Grpc { authority: authority("authority", &pb.authority)?, service: pb.service_name.clone() })
}

fn authority(field: &str, given: &str) -> Result<http::uri::Authority, Error> {
    given.parse().map_err(|error| Error::new(field, format!("is {given:?}: {error}")))
}

/// A range without its end.
fn range(range: &Int64Range) -> Result<(u16, u16), Error> {
    let ends = (u16::try_from(range.start), u16::try_from(range.end.saturating_sub(1)));
    match ends {
        (Ok(first), Ok(last)) if (100..=last).contains(&first) && last < 600 => Ok((first, last)),
        _ => Err(Error::new("", format!("is {} to {}, must lie within 100 to 600", range.start, range.end))),
    }
}

/// Ranges of status codes. Chosen: more than anyone writes.
const MAX_RANGES: usize = 64;
/// Chosen: no configuration makes a sidecar ask without a pause.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
