//! The service that counts for all workloads together.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{Duration, FieldError};

/// A Service that speaks Envoy's rate limit protocol (`envoy.service.ratelimit.v3`) in plain gRPC, or through a sidecar of its own.
/// It must know `domain`; limits are told with each question, so none are written down there.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RateLimitService {
    /// The Service's name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The Service's namespace. Default: the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// The Service's port, 1 to 65535, whose appProtocol is `grpc` or another of HTTP/2.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// What the service keeps these limits under, apart from those of others. Default: `heddle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub domain: Option<String>,
    /// How long a request waits for the service, 1ms to 10s. Default: 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What becomes of a request when the service does not answer. Default: Allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
}

/// What becomes of a request that was not counted. Default: Allow.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[schemars(inline)]
pub enum OnFailure {
    /// It is let in.
    #[default]
    Allow,
    /// It is answered 500 (gRPC: `UNAVAILABLE`).
    Deny,
}

impl RateLimitService {
    /// The domain; [`DEFAULT_DOMAIN`] if none is given.
    pub fn domain(&self) -> &str {
        self.domain.as_deref().unwrap_or(DEFAULT_DOMAIN)
    }

    /// The timeout; [`DEFAULT_TIMEOUT`] if none is given.
    pub fn timeout(&self) -> std::time::Duration {
        self.timeout.map_or(DEFAULT_TIMEOUT, Duration::get)
    }

    pub(super) fn check(&self, at: &str, found: &mut Vec<FieldError>) {
        for (field, name) in [("name", Some(&self.name)), ("namespace", self.namespace.as_ref())] {
            if let Some(name) = name.filter(|name| name.is_empty() || name.len() > MAX_NAME || name.contains('/')) {
                found.push(FieldError::new(format!("{at}.{field}"), name, "give the name of a Service in it"));
            }
        }
        if self.port == 0 {
            found.push(FieldError::new(format!("{at}.port"), self.port, "give one of the Service's ports, as 8081"));
        }
        if let Some(domain) = self.domain.as_ref().filter(|domain| domain.is_empty() || domain.len() > MAX_DOMAIN) {
            found.push(FieldError::new(format!("{at}.domain"), domain, format!("give 1 to {MAX_DOMAIN} characters")));
        }
        if let Some(timeout) = self.timeout.filter(|timeout| !(SHORTEST..=LONGEST).contains(&timeout.get())) {
            found.push(FieldError::new(format!("{at}.timeout"), timeout, "give a length from 1ms to 10s"));
        }
    }
}

/// Chosen: the one in the examples.
const DEFAULT_DOMAIN: &str = "heddle";
/// Chosen: Envoy's 20 ms turn a garbage collection of the service into an uncounted request; a tenth of a second is still less than
/// a user sees.
const DEFAULT_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(100);
/// Chosen: below it no network answers.
const SHORTEST: std::time::Duration = std::time::Duration::from_millis(1);
/// Chosen: above it requests pile up in front of a service that is gone.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(10);
/// RFC 1123 labels.
const MAX_NAME: usize = 63;
/// Chosen: it stands in every question.
const MAX_DOMAIN: usize = 256;
