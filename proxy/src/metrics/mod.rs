//! What this sidecar counts, by area; exposed in Prometheus text format on `:15020/metrics`.
//!
//! Names carry their unit and end in `_total` where they only grow. Series that grow with traffic are bounded in
//! number ([`edges::MAX_EDGES`]) and expire when idle.

mod access_log;
mod authorization;
mod by_cluster;
mod connections;
mod edges;
mod faults;
mod handshakes;
mod health;
mod mirrors;
mod outliers;
mod probes;
mod rate_limits;
mod requests;
mod retries;
mod state;
mod tcp;

pub use access_log::{AccessLog, Format as AccessLogFormat, Line as AccessLogLine, StartError};
pub use authorization::Authorization;
pub use connections::{Connections, Open};
pub use faults::Faults;
pub use handshakes::Handshakes;
use health::Health;
use mirrors::Mirrors;
use outliers::Outliers;
pub use probes::Probes;
use prometheus::{Encoder, Registry, TextEncoder};
pub use rate_limits::RateLimits;
pub use requests::{Record, RequestCache, Requests};
pub use retries::Retries;
pub use state::Snapshot;
pub use tcp::{Tcp, TcpCache, TcpRecord};

use crate::tables::Millis;

/// Which way a connection or request goes, seen from the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

impl Direction {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    /// Downstream connections.
    pub connections: Connections,
    /// HTTP and gRPC requests.
    pub requests: Requests,
    /// Opaque connections.
    pub tcp: Tcp,
    /// Requests sent again.
    pub retries: Retries,
    /// Copies of requests.
    pub mirrors: Mirrors,
    /// What went wrong on purpose.
    pub faults: Faults,
    /// Endpoints taken out.
    pub outliers: Outliers,
    /// Endpoints asked whether they are well.
    pub health: Health,
    /// Policies' decisions.
    pub authorization: Authorization,
    /// Rate limits.
    pub rate_limits: RateLimits,
    /// TLS handshakes.
    pub handshakes: Handshakes,
    /// Probes done for the kubelet.
    pub probes: Probes,
}

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// Never in a build that passed its tests: only on two metrics of one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        Ok(Self {
            connections: Connections::new(&registry)?,
            requests: Requests::new(&registry)?,
            tcp: Tcp::new(&registry)?,
            retries: Retries::new(&registry)?,
            mirrors: Mirrors::new(&registry)?,
            faults: Faults::new(&registry)?,
            outliers: Outliers::new(&registry)?,
            health: Health::new(&registry)?,
            authorization: Authorization::new(&registry)?,
            rate_limits: RateLimits::new(&registry)?,
            handshakes: Handshakes::new(&registry)?,
            probes: Probes::new(&registry)?,
            registry,
        })
    }

    /// Where further metrics are registered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Drops series that have been idle too long, and those of clusters that are not in use any more.
    pub fn expire(&self, now: Millis, in_use: impl Fn(&str) -> bool) {
        self.requests.expire(now);
        self.tcp.expire(now);
        self.retries.retain(&in_use);
        self.mirrors.retain(&in_use);
        self.outliers.retain(&in_use);
        self.health.retain(&in_use);
    }

    /// The exposition, text format 0.0.4; `state` is read from the tables for it.
    ///
    /// # Errors
    /// Never in practice: only on a metric without a name.
    pub fn text(&self, state: Snapshot) -> prometheus::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        families.extend(state.families()?);
        families.retain(|family| !family.get_metric().is_empty());
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_metrics_share_a_name() {
        Metrics::new().unwrap().text(Snapshot::new().unwrap()).unwrap();
    }
}
