//! `TrafficPolicy.healthCheck`: how endpoints are asked whether they are well.

use std::time::Duration as StdDuration;

use http::uri::{Authority, PathAndQuery};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, FieldError};

/// Every client asks every endpoint of what it uses, as its own identity: policies of the servers must let it. Exactly one
/// of `http`, `grpc` and `tcp` says what. Proxyless gRPC clients ask nothing.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct HealthCheck {
    /// `GET` of a path. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHealthCheck>,
    /// `grpc.health.v1.Health/Check`, which must answer SERVING. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcHealthCheck>,
    /// For a connection, between sidecars with its TLS handshake, which the server's completes when the application takes it;
    /// `{}`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpHealthCheck>,
    /// From one answer to the next question, at least 100ms; varied by a tenth, so that clients do not ask all at once. Default:
    /// 10s (the kubelet's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long an answer may take, connection included; above 0. Default: 1s (the kubelet's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Failures in a row after which an endpoint gets no requests; of the very first question one. At least 1. Default: 3 (the
    /// kubelet's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row after which it gets requests again. At least 1. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub healthy_threshold: Option<u32>,
}

/// What is asked over HTTP, in the version the Service's port declares, else HTTP/1.1.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct HttpHealthCheck {
    /// Path and query, from `/` on.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
    /// The request's host. Default: `<service>.<namespace>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// Status codes that say that the endpoint is well, 100 to 599. Default: 200 to 399 (the kubelet's).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 100, max = 599)))]
    pub codes: Vec<u16>,
}

/// What is asked over gRPC.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct GrpcHealthCheck {
    /// The gRPC service that is asked for. Default: none, which asks for the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service: Option<String>,
}

/// A connection alone.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[schemars(inline)]
pub struct TcpHealthCheck {}

impl HealthCheck {
    /// What cannot be meant.
    pub(super) fn check(&self, found: &mut Vec<FieldError>) {
        let given = [("http", self.http.is_some()), ("grpc", self.grpc.is_some()), ("tcp", self.tcp.is_some())];
        let given: Vec<_> = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        if given.len() != 1 {
            let remedy = "give exactly one of http, grpc and tcp";
            found.push(FieldError::new("spec.healthCheck", format!("[{}]", given.join(", ")), remedy));
        }
        if let Some(interval) = self.interval.filter(|interval| interval.get() < LEAST_INTERVAL) {
            let remedy = "give at least 100ms: every client asks every endpoint so often";
            found.push(FieldError::new("spec.healthCheck.interval", interval, remedy));
        }
        if let Some(timeout) = self.timeout.filter(|timeout| timeout.is_zero()) {
            found.push(FieldError::new("spec.healthCheck.timeout", timeout, "give a length above 0"));
        }
        let thresholds = [
            ("spec.healthCheck.unhealthyThreshold", self.unhealthy_threshold),
            ("spec.healthCheck.healthyThreshold", self.healthy_threshold),
        ];
        for (field, threshold) in thresholds {
            if threshold == Some(0) {
                found.push(FieldError::new(field, 0, "give at least 1"));
            }
        }
        self.http.iter().for_each(|http| http.check(found));
    }
}

impl HttpHealthCheck {
    fn check(&self, found: &mut Vec<FieldError>) {
        if !self.path.starts_with('/') || PathAndQuery::try_from(&self.path).is_err() {
            let remedy = "give a path from `/` on, and what no path holds as %XX (RFC 3986 §3.3)";
            found.push(FieldError::new("spec.healthCheck.http.path", &self.path, remedy));
        }
        if let Some(host) = self.host.as_ref().filter(|host| Authority::try_from(host.as_str()).is_err()) {
            let remedy = "give a host name, with `:` and a port if need be";
            found.push(FieldError::new("spec.healthCheck.http.host", host, remedy));
        }
        for (index, code) in self.codes.iter().enumerate().filter(|(_, code)| !(100..=599).contains(*code)) {
            let field = format!("spec.healthCheck.http.codes[{index}]");
            found.push(FieldError::new(field, code, "give a status code from 100 to 599"));
        }
    }
}

/// Chosen: a hundred clients of ten endpoints then ask ten thousand times a second together, and no more.
const LEAST_INTERVAL: StdDuration = StdDuration::from_millis(100);
/// The kubelet's `periodSeconds`.
pub const DEFAULT_INTERVAL: StdDuration = StdDuration::from_secs(10);
/// The kubelet's `timeoutSeconds`.
pub const DEFAULT_TIMEOUT: StdDuration = StdDuration::from_secs(1);
/// The kubelet's `failureThreshold`.
pub const DEFAULT_UNHEALTHY_THRESHOLD: u32 = 3;
/// Chosen: one good answer between bad ones is no recovery.
pub const DEFAULT_HEALTHY_THRESHOLD: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(check: &HealthCheck) -> Vec<String> {
        let mut found = Vec::new();
        check.check(&mut found);
        found.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn each_value_that_cannot_be_meant_is_named_by_its_field() {
        let http = HttpHealthCheck { path: "/up now".into(), host: Some("a b".into()), codes: vec![200, 600] };
        let wrong = HealthCheck {
            http: Some(http),
            tcp: Some(TcpHealthCheck {}),
            interval: Some("99ms".parse().unwrap()),
            timeout: Some("0s".parse().unwrap()),
            unhealthy_threshold: Some(0),
            ..HealthCheck::default()
        };
        let fields = [
            "spec.healthCheck",
            "spec.healthCheck.interval",
            "spec.healthCheck.timeout",
            "spec.healthCheck.unhealthyThreshold",
            "spec.healthCheck.http.path",
            "spec.healthCheck.http.host",
            "spec.healthCheck.http.codes[1]",
        ];
        assert_eq!(errors(&wrong), fields);
        assert_eq!(errors(&HealthCheck::default()), ["spec.healthCheck"]);
        let http = HttpHealthCheck { path: "/up?deep=1".into(), host: Some("api.shop:80".into()), codes: vec![204] };
        assert!(errors(&HealthCheck { http: Some(http), ..HealthCheck::default() }).is_empty());
    }
}
