//! Rate limits in force on a port.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::name::ResourceName;
use super::policy::PolicyRule;
use super::route::HeaderValue;

/// One limit of a RateLimitPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// `<namespace>/<policy>#<index>`.
    pub name: Arc<str>,
    /// Counted, never enforced.
    pub dry_run: bool,
    /// Who counts; `None`: each sidecar by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<RateLimitService>>,
    /// So many requests come back within `per`, evenly; at least 1.
    pub requests: u32,
    /// In nanoseconds where it is written down; above 0.
    #[serde(rename = "perNanos", serialize_with = "super::duration::as_nanos")]
    pub per: Duration,
    /// So many requests at once; at least 1.
    pub burst: u32,
    /// Of what each value has a bucket of its own.
    pub by: LimitBy,
    /// Which requests count.
    pub counts: PolicyRule,
    /// Headers that a request must have to count; names in lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderValue>,
}

impl RateLimit {
    /// The length as a service knows it (`envoy.type.v3.RateLimitUnit`).
    pub fn unit(&self) -> &'static str {
        match self.per.as_secs() {
            0..60 => "SECOND",
            60..3_600 => "MINUTE",
            3_600..86_400 => "HOUR",
            86_400.. => "DAY",
        }
    }
}

/// How many requests are let in at once, found by their latency (`concurrency` of a RateLimitPolicy).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Concurrency {
    /// `<namespace>/<policy>`.
    pub name: Arc<str>,
    /// Counted, never enforced.
    pub dry_run: bool,
    /// Fewest requests at once; at least 1.
    pub minimum: u32,
    /// Most; at least `minimum`.
    pub maximum: u32,
    /// By so much latencies may be above the one without load, in percent of it.
    pub buffer_percent: u32,
    /// After so long the latency without load is measured anew; in nanoseconds where it is written down, above 0.
    #[serde(rename = "intervalNanos", serialize_with = "super::duration::as_nanos")]
    pub interval: Duration,
}

/// A service that counts for all workloads together (`envoy.service.ratelimit.v3`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitService {
    /// Where it is; perhaps no such cluster exists.
    pub cluster: ResourceName,
    /// The host it is asked as.
    pub authority: String,
    /// What it keeps these limits under.
    pub domain: String,
    /// How long a request waits for it; in nanoseconds where it is written down.
    #[serde(rename = "timeoutNanos", serialize_with = "super::duration::as_nanos")]
    pub timeout: Duration,
    /// Whether a request is refused that it did not count.
    pub deny_on_failure: bool,
}

/// Of what each value has a bucket of its own; requests that have no value share one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LimitBy {
    /// One bucket for all.
    Nothing,
    /// The caller's SPIFFE ID.
    Identity,
    /// The caller's address.
    SourceIp,
    /// The header of this name, in lower case.
    Header(String),
}
