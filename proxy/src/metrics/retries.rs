//! Requests sent again.

use prometheus::{IntCounterVec, Opts, Registry};

/// Counts of retries.
pub struct Retries {
    sent: IntCounterVec,
}

impl Retries {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let sent = IntCounterVec::new(
            Opts::new("heddle_retries_total", "Requests sent again, by cluster and reason."),
            &["cluster", "reason"],
        )?;
        registry.register(Box::new(sent.clone()))?;
        Ok(Self { sent })
    }

    /// A request to `cluster` is sent again.
    pub fn record(&self, cluster: &str, reason: &str) {
        self.sent.with_label_values(&[cluster, reason]).inc();
    }
}
