//! Envoy's `RetryPolicy` → [`RetryPolicy`] and the timeout of one attempt.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, RetryPolicy as PbRetryPolicy};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use http::StatusCode;

use super::read::{self, Error, Within, at_most};
use crate::tables::route::RetryPolicy;

/// The timeout of one attempt, and when it is made again. Without a condition in `retry_on` there is no policy.
pub(super) fn policy(pb: Option<&PbRetryPolicy>) -> Result<(Option<Duration>, Option<RetryPolicy>), Error> {
    let Some(pb) = pb else { return Ok((None, None)) };
    let try_timeout = pb.per_try_timeout.as_ref().map(read::duration).transpose().within("per_try_timeout")?;
    let try_timeout = try_timeout.filter(|timeout| !timeout.is_zero());
    if pb.retry_on.is_empty() {
        return Ok((try_timeout, None));
    }
    let retries = read::uint32(pb.num_retries.as_ref(), ENVOY_RETRIES);
    if retries > MAX_RETRIES {
        return Err(Error::new("num_retries", format!("is {retries}, must be at most {MAX_RETRIES}")));
    }
    let (backoff_base, backoff_max) = back_off(pb).within("retry_back_off")?;
    let mut policy = RetryPolicy {
        retries,
        codes: Vec::new(),
        grpc_codes: Vec::new(),
        connection_failures: false,
        backoff_base,
        backoff_max,
    };
    at_most("retriable_status_codes", &pb.retriable_status_codes, MAX_CODES)?;
    at_most("retriable_headers", &pb.retriable_headers, MAX_CODES)?;
    for word in pb.retry_on.split(',').map(str::trim) {
        match word {
            "connect-failure" | "reset" => policy.connection_failures = true,
            "retriable-status-codes" => policy.codes = codes(&pb.retriable_status_codes)?,
            "retriable-headers" => policy.grpc_codes.extend(grpc_codes(&pb.retriable_headers)?),
            "cancelled" => policy.grpc_codes.push(1),
            "deadline-exceeded" => policy.grpc_codes.push(4),
            "resource-exhausted" => policy.grpc_codes.push(8),
            "internal" => policy.grpc_codes.push(13),
            "unavailable" => policy.grpc_codes.push(14),
            _ => return Err(Error::new("retry_on", format!("has {word:?}, must be one of {WORDS}"))),
        }
    }
    policy.grpc_codes.sort_unstable();
    policy.grpc_codes.dedup();
    Ok((try_timeout, Some(policy)))
}

/// Base and maximum; Envoy's maximum is ten times the base where it is absent.
fn back_off(pb: &PbRetryPolicy) -> Result<(Duration, Duration), Error> {
    let Some(back_off) = &pb.retry_back_off else { return Ok((ENVOY_BASE, ENVOY_BASE * 10)) };
    let base = back_off.base_interval.as_ref().map(read::duration).transpose().within("base_interval")?;
    let base = base.unwrap_or(ENVOY_BASE);
    let most = back_off.max_interval.as_ref().map(read::duration).transpose().within("max_interval")?;
    let most = most.unwrap_or_else(|| base.saturating_mul(10));
    if most < base {
        return Err(Error::new("max_interval", format!("is {most:?}, must be at least base_interval, {base:?}")));
    }
    Ok((base, most))
}

fn codes(pb: &[u32]) -> Result<Vec<StatusCode>, Error> {
    let code = |code: &u32| u16::try_from(*code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    pb.iter()
        .enumerate()
        .map(|(index, number)| {
            let found = code(number).ok_or_else(|| Error::new("", format!("is {number}, must be a status code")));
            found.nth("retriable_status_codes", index)
        })
        .collect()
}

fn grpc_codes(pb: &[HeaderMatcher]) -> Result<Vec<u16>, Error> {
    let code = |matcher: &HeaderMatcher| match &matcher.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(text)) if matcher.name == "grpc-status" => match &text.match_pattern {
            Some(MatchPattern::Exact(code)) => code.parse().ok(),
            _ => None,
        },
        _ => None,
    };
    pb.iter()
        .enumerate()
        .map(|(index, matcher)| {
            let found = code(matcher).ok_or_else(|| Error::new("", "must be grpc-status with an exact number"));
            found.nth("retriable_headers", index)
        })
        .collect()
}

/// Conditions this sidecar knows (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
const WORDS: &str = "connect-failure, reset, retriable-status-codes, retriable-headers, cancelled, deadline-exceeded, \
                     resource-exhausted, internal, unavailable";
/// Envoy's default (`RetryPolicy.num_retries`).
const ENVOY_RETRIES: u32 = 1;
/// Envoy's default (`RetryBackOff.base_interval`).
const ENVOY_BASE: Duration = Duration::from_millis(25);
/// Retries of one request. Chosen: more than any policy means; the budget and the timeouts bound them besides.
const MAX_RETRIES: u32 = 100;
/// Codes of one policy. Chosen: there are no more than 500 between 100 and 599.
const MAX_CODES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_nobody_knows_is_refused() {
        let pb = PbRetryPolicy { retry_on: "reset,5xx".into(), ..PbRetryPolicy::default() };
        let error = policy(Some(&pb)).unwrap_err();
        assert_eq!(error.field, "retry_on");
        assert!(error.reason.starts_with("has \"5xx\", must be one of connect-failure, "));
    }

    #[test]
    fn without_a_condition_there_is_a_timeout_but_no_policy() {
        let pb = PbRetryPolicy { per_try_timeout: Some(pb_duration(2)), ..PbRetryPolicy::default() };
        let (timeout, policy) = policy(Some(&pb)).unwrap();
        assert_eq!(timeout, Some(Duration::from_secs(2)));
        assert!(policy.is_none());
    }

    #[test]
    fn envoy_s_defaults_hold_where_nothing_is_said() {
        let pb = PbRetryPolicy { retry_on: "reset".into(), ..PbRetryPolicy::default() };
        let policy = policy(Some(&pb)).unwrap().1.unwrap();
        assert_eq!(policy.retries, 1);
        assert_eq!(policy.backoff_base, Duration::from_millis(25));
        assert_eq!(policy.backoff_max, Duration::from_millis(250));
    }

    #[test]
    fn a_code_out_of_range_is_refused_with_its_place() {
        let pb = PbRetryPolicy {
            retry_on: "retriable-status-codes".into(),
            retriable_status_codes: vec![503, 99],
            ..PbRetryPolicy::default()
        };
        assert_eq!(policy(Some(&pb)).unwrap_err().field, "retriable_status_codes[1]");
    }

    fn pb_duration(seconds: i64) -> envoy_types::pb::google::protobuf::Duration {
        envoy_types::pb::google::protobuf::Duration { seconds, nanos: 0 }
    }
}
