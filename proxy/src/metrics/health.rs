//! Endpoints that are asked whether they are well.

use prometheus::{IntGaugeVec, Opts, Registry};

use super::by_cluster::ByCluster;
use crate::health::Failure;

/// Counts of questions; how many endpoints are not well is read from the tables at each scrape.
pub struct Health {
    asked: ByCluster,
    endpoints: IntGaugeVec,
}

impl Health {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Questions to endpoints whether they are well, by cluster and answer.";
        let asked = ByCluster::new(registry, "heddle_health_checks_total", help, &["outcome"])?;
        let help = "Endpoints that are asked whether they are well, and those above the limit, which are not.";
        let endpoints = IntGaugeVec::new(Opts::new("heddle_health_check_endpoints", help), &["state"])?;
        registry.register(Box::new(endpoints.clone()))?;
        Ok(Self { asked, endpoints })
    }

    /// An endpoint of `cluster` was asked.
    pub fn asked(&self, cluster: &str, failure: Option<&Failure>) {
        self.asked.count(cluster, &[failure.map_or("success", Failure::name)]);
    }

    /// So many are asked now, and so many are not because of the limit.
    pub fn endpoints(&self, asked: usize, left_out: usize) {
        self.endpoints.with_label_values(&["asked"]).set(asked as i64);
        self.endpoints.with_label_values(&["over_limit"]).set(left_out as i64);
    }

    /// Drops series of clusters that are not in use any more.
    pub fn retain(&self, in_use: impl Fn(&str) -> bool) {
        self.asked.retain(in_use);
    }
}
