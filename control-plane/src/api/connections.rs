//! `TrafficPolicy.connections`: how connections to endpoints are kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, FieldError};

/// How connections to endpoints are kept. A connection whose time or number is over gets no new requests and ends with those it has.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Connections {
    /// How long one without requests is kept; above 0. Default: 30s, below the keep-alive of common servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// After how long one gets no new requests; above 0. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// After how many requests one gets no new ones, at least 1. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_requests: Option<u32>,
    /// Most requests at once on one of HTTP/2, 1 to 100; more of them are made where that is not enough. Default: 100, or what the
    /// endpoint allows if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_streams: Option<u32>,
    /// How it is found out that the other end is gone. Its kernel answers, so a peer that is merely busy is never taken for dead.
    /// Default: as said at its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
}

/// Probes of TCP; what is not acknowledged in the time they take ends a connection too. Whole seconds.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct TcpKeepalive {
    /// Silence before the first probe, at least 1s. Default: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Duration>,
    /// Between two probes, at least 1s. Default: 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How many probes without an answer end a connection, 1 to 100. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub probes: Option<u32>,
}

impl Connections {
    /// What cannot be meant.
    pub(super) fn check(&self, found: &mut Vec<FieldError>) {
        let lengths = [("idleTimeout", self.idle_timeout), ("maxAge", self.max_age)];
        for (field, length) in lengths {
            if let Some(length) = length.filter(|length| length.is_zero()) {
                let remedy = "give a length above 0, or leave the field out";
                found.push(FieldError::new(format!("spec.connections.{field}"), length, remedy));
            }
        }
        if self.max_requests == Some(0) {
            found.push(FieldError::new("spec.connections.maxRequests", 0, "give at least 1, or leave it out"));
        }
        if let Some(streams) = self.max_streams.filter(|streams| !(1..=MAX_STREAMS).contains(streams)) {
            let remedy = format!("give 1 to {MAX_STREAMS}");
            found.push(FieldError::new("spec.connections.maxStreams", streams, remedy));
        }
        let probing = self.tcp_keepalive.clone().unwrap_or_default();
        for (field, length) in [("time", probing.time), ("interval", probing.interval)] {
            if let Some(length) = length.filter(|length| length.get().as_secs() == 0) {
                let field = format!("spec.connections.tcpKeepalive.{field}");
                found.push(FieldError::new(field, length, "give at least 1s: the kernel counts seconds"));
            }
        }
        if let Some(probes) = probing.probes.filter(|probes| !(1..=MAX_PROBES).contains(probes)) {
            let remedy = format!("give 1 to {MAX_PROBES}");
            found.push(FieldError::new("spec.connections.tcpKeepalive.probes", probes, remedy));
        }
    }
}

/// What sidecars share one connection for.
const MAX_STREAMS: u32 = 100;
/// Chosen: below Linux's limit of 127.
const MAX_PROBES: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_that_cannot_be_meant_is_named_by_its_field() {
        let fields = |text: &str| {
            let mut found = Vec::new();
            serde_json::from_str::<Connections>(text).unwrap().check(&mut found);
            found.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        let at = |field: &str| format!("spec.connections.{field}");
        assert_eq!(fields(r#"{"idleTimeout":"0s","maxAge":"0s"}"#), [at("idleTimeout"), at("maxAge")]);
        assert_eq!(fields(r#"{"maxRequests":0,"maxStreams":101}"#), [at("maxRequests"), at("maxStreams")]);
        assert_eq!(
            fields(r#"{"tcpKeepalive":{"time":"999ms","interval":"0s","probes":0}}"#),
            [at("tcpKeepalive.time"), at("tcpKeepalive.interval"), at("tcpKeepalive.probes")]
        );
        assert!(fields(r#"{"idleTimeout":"1s","maxRequests":1,"tcpKeepalive":{}}"#).is_empty());
    }
}
