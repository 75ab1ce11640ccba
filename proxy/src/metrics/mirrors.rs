//! Copies of requests.

use prometheus::Registry;

use super::by_cluster::ByCluster;

/// Counts of copies.
pub struct Mirrors {
    sent: ByCluster,
}

impl Mirrors {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Copies of requests, by the cluster they go to and what came of them: answered, or a cause.";
        Ok(Self { sent: ByCluster::new(registry, "heddle_mirrored_requests_total", help, &["outcome"])? })
    }

    /// A copy to `cluster` has ended.
    pub fn record(&self, cluster: &str, outcome: &str) {
        self.sent.count(cluster, &[outcome]);
    }

    /// Drops series of clusters that are not in use any more.
    pub fn retain(&self, in_use: impl Fn(&str) -> bool) {
        self.sent.retain(in_use);
    }
}
