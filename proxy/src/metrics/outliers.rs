//! Outlier detection.

use prometheus::{IntCounterVec, Opts, Registry};

/// Counts of ejections; how many endpoints are out now is read from the tables at each scrape.
pub struct Outliers {
    ejections: IntCounterVec,
}

impl Outliers {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let ejections = Opts::new("heddle_outlier_ejections_total", "Endpoints ejected, by cluster.");
        let ejections = IntCounterVec::new(ejections, &["cluster"])?;
        registry.register(Box::new(ejections.clone()))?;
        Ok(Self { ejections })
    }

    /// An endpoint of `cluster` was ejected.
    pub fn ejected(&self, cluster: &str) {
        self.ejections.with_label_values(&[cluster]).inc();
    }
}
