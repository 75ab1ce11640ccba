//! What this sidecar counts, by area; exposed in Prometheus text format on `:15020/metrics`.
//!
//! Names carry their unit and end in `_total` where they only grow. Series that grow with traffic are bounded in
//! number ([`requests::MAX_EDGES`]) and expire when idle.

mod connections;
mod requests;
mod retries;

pub use connections::{Connections, Open};
use prometheus::{Encoder, Registry, TextEncoder};
pub use requests::{Record, Requests, SeriesCache};
pub use retries::Retries;

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
    /// Requests sent again.
    pub retries: Retries,
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
            retries: Retries::new(&registry)?,
            registry,
        })
    }

    /// The exposition, text format 0.0.4.
    ///
    /// # Errors
    /// Never in practice: only on a metric without a name.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_metrics_share_a_name() {
        Metrics::new().unwrap().text().unwrap();
    }
}
