//! Requests sent again.

use prometheus::Registry;

use super::by_cluster::ByCluster;

/// Counts of retries.
pub struct Retries {
    sent: ByCluster,
}

impl Retries {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Requests sent again, by cluster and reason.";
        Ok(Self { sent: ByCluster::new(registry, "heddle_retries_total", help, &["reason"])? })
    }

    /// A request to `cluster` is sent again.
    pub fn record(&self, cluster: &str, reason: &str) {
        self.sent.count(cluster, &[reason]);
    }

    /// Drops series of clusters that are not in use any more.
    pub fn retain(&self, in_use: impl Fn(&str) -> bool) {
        self.sent.retain(in_use);
    }
}
