//! Outlier detection.

use prometheus::Registry;

use super::by_cluster::ByCluster;

/// Counts of ejections; how many endpoints are out now is read from the tables at each scrape.
pub struct Outliers {
    ejections: ByCluster,
}

impl Outliers {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Endpoints ejected, by cluster.";
        Ok(Self { ejections: ByCluster::new(registry, "heddle_outlier_ejections_total", help, &[])? })
    }

    /// An endpoint of `cluster` was ejected.
    pub fn ejected(&self, cluster: &str) {
        self.ejections.count(cluster, &[]);
    }

    /// Drops series of clusters that are not in use any more.
    pub fn retain(&self, in_use: impl Fn(&str) -> bool) {
        self.ejections.retain(in_use);
    }
}
