//! Questions to a rate limit service and its answers, as bytes (`envoy.service.ratelimit.v3`, each as one message of gRPC).

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use envoy_types::pb::envoy::r#type::v3::RateLimitUnit;
use prost::Message;

use crate::http::error::BoxError;
use crate::tables::rate_limit::{Quota, Unit};

/// One limit that a request counts for.
#[derive(Debug)]
pub struct Limit<'l> {
    /// Its name, which all workloads share.
    pub name: &'l str,
    /// What has a bucket of its own.
    pub value: Value<'l>,
    /// What it allows.
    pub quota: Quota,
}

/// What has a bucket of its own.
#[derive(Debug, Clone, Copy)]
pub enum Value<'l> {
    /// There is one bucket for all.
    Nothing,
    /// This; what is not UTF-8 in it is told as U+FFFD.
    Is(&'l [u8]),
    /// The request has no value.
    None,
}

/// The question whether a request may come in, which counts it. Entries are as Envoys of the mesh send them, so that all count
/// together.
pub fn question<'l>(domain: &str, limits: impl Iterator<Item = Limit<'l>>) -> Bytes {
    let question = RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: limits.map(descriptor).collect(),
        ..RateLimitRequest::default()
    };
    let length = question.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    // Not compressed, and its length (gRPC `PROTOCOL-HTTP2.md`, Length-Prefixed-Message).
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Fails only for want of room, and a `BytesMut` grows.
    let _ = question.encode(&mut bytes);
    bytes.freeze()
}

fn descriptor(limit: Limit<'_>) -> RateLimitDescriptor {
    let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
    let mut entries = vec![entry("limit", limit.name)];
    match limit.value {
        Value::Nothing => {}
        Value::Is(value) => entries.push(entry("value", &String::from_utf8_lossy(value))),
        Value::None => entries.push(entry("none", "yes")),
    }
    let unit = match limit.quota.unit {
        Unit::Second => RateLimitUnit::Second,
        Unit::Minute => RateLimitUnit::Minute,
        Unit::Hour => RateLimitUnit::Hour,
        Unit::Day => RateLimitUnit::Day,
    };
    let told = RateLimitOverride { requests_per_unit: limit.quota.requests, unit: unit as i32 };
    RateLimitDescriptor { entries, limit: Some(told), ..RateLimitDescriptor::default() }
}

/// What a service says.
#[derive(Debug)]
pub struct Answer(RateLimitResponse);

/// Reads the one message of an answer.
///
/// # Errors
/// If it is compressed, cut off, more than one, or no answer.
pub fn answer(bytes: &[u8]) -> Result<Answer, BoxError> {
    match bytes.split_at_checked(PREFIX) {
        Some(([0, length @ ..], message)) if u32::from_be_bytes(length.try_into()?) as usize == message.len() => {
            Ok(Answer(RateLimitResponse::decode(message)?))
        }
        _ => Err("is not one message".into()),
    }
}

impl Answer {
    /// After how long there will be room at the limit with this place in the question; `None`: there is. A second at least, also
    /// if the service does not say.
    pub fn over(&self, place: usize) -> Option<Duration> {
        let status = self.0.statuses.get(place);
        let code = status.map_or(self.0.overall_code, |status| status.code);
        (code == Code::OverLimit as i32).then(|| until_reset(status))
    }
}

fn until_reset(status: Option<&DescriptorStatus>) -> Duration {
    let told = status.and_then(|status| status.duration_until_reset.as_ref()).map(|told| told.seconds);
    Duration::from_secs(told.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default().max(1))
}

/// Bytes before each message of gRPC.
const PREFIX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(response: &RateLimitResponse) -> Vec<u8> {
        let body = response.encode_to_vec();
        [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), &body].concat()
    }

    #[test]
    fn each_limit_has_its_own_answer_and_without_one_that_of_all() {
        let over = DescriptorStatus { code: Code::OverLimit as i32, ..DescriptorStatus::default() };
        let ok = DescriptorStatus { code: Code::Ok as i32, ..DescriptorStatus::default() };
        let response = RateLimitResponse {
            overall_code: Code::OverLimit as i32,
            statuses: vec![ok, over],
            ..RateLimitResponse::default()
        };
        let answer = answer(&message(&response)).unwrap();
        let found = [0, 1, 2].map(|place| answer.over(place));
        assert_eq!(found, [None, Some(Duration::from_secs(1)), Some(Duration::from_secs(1))]);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let whole = message(&RateLimitResponse { overall_code: 1, ..RateLimitResponse::default() });
        assert!(answer(&whole).is_ok());
        let compressed = [&[1][..], &whole[1..]].concat();
        for bad in [&whole[..whole.len() - 1], &whole[..3], &[], &compressed, &[&whole[..], &whole[..]].concat()] {
            assert!(answer(bad).is_err(), "{bad:?}");
        }
    }
}
