//! Probes that the sidecar does for the kubelet.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Counts of probes. Cheap to clone: all clones count together.
#[derive(Clone)]
pub struct Probes {
    total: IntCounterVec,
    refused: IntCounter,
}

impl Probes {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let total = IntCounterVec::new(
            Opts::new("heddle_probes_total", "Probes and hooks done for the kubelet, by outcome."),
            &["probe", "outcome"],
        )?;
        let refused = IntCounter::new(
            "heddle_metrics_port_connections_refused_total",
            "Connections to the port of metrics and probes closed at once: too many were open.",
        )?;
        registry.register(Box::new(total.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { total, refused })
    }

    /// A probe of this kind ended.
    pub fn ended(&self, probe: &str, outcome: &str) {
        self.total.with_label_values(&[probe, outcome]).inc();
    }

    /// A connection to the port was closed for want of a place.
    pub fn connection_refused(&self) {
        self.refused.inc();
    }
}
