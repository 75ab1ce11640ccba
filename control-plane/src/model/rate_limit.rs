//! Rate limits in force on a port.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

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
