//! Outlier detection.

use prometheus::Registry;

use super::by_cluster::ByCluster;
use crate::balance::outlier::Ejected;

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
        let help = "Endpoints ejected, by cluster and by what told them.";
        Ok(Self { ejections: ByCluster::new(registry, "heddle_outlier_ejections_total", help, &["detector"])? })
    }

    /// Endpoints of `cluster` were ejected.
    pub fn ejected(&self, cluster: &str, ejected: &[Ejected]) {
        for Ejected { endpoint, detector } in ejected {
            tracing::info!(cluster, %endpoint, detector = detector.name(), "endpoint ejected");
            self.ejections.count(cluster, &[detector.name()]);
        }
    }

    /// Drops series of clusters that are not in use any more.
    pub fn retain(&self, in_use: impl Fn(&str) -> bool) {
        self.ejections.retain(in_use);
    }
}
