//! A counter by cluster whose series are bounded: clusters come from the control plane on demand and from whoever calls
//! a port of this pod, so their names have no end.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{IntCounterVec, Opts, Registry};

use super::edges::{MAX_EDGES, OVERFLOW};

/// The label that holds a cluster's name.
const CLUSTER: &str = "cluster";

/// What is counted for each cluster; for rare events, since each takes a lock.
pub struct ByCluster {
    counter: IntCounterVec,
    clusters: Mutex<HashSet<String>>,
}

impl ByCluster {
    /// Registers a counter with the label `cluster` and then `labels`, whose values must be few.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn new(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        let counter = IntCounterVec::new(Opts::new(name, help), &[&[CLUSTER], labels].concat())?;
        registry.register(Box::new(counter.clone()))?;
        Ok(Self { counter, clusters: Mutex::default() })
    }

    /// Counts one event of `cluster`; above [`MAX_EDGES`] clusters all others share one name.
    pub fn count(&self, cluster: &str, values: &[&str]) {
        // A panic while holding the lock leaves the set whole: every change is one insert.
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let known = clusters.contains(cluster) || (clusters.len() < MAX_EDGES && clusters.insert(cluster.to_owned()));
        let cluster = if known { cluster } else { OVERFLOW };
        // Under the lock, so that no series comes to be that `retain` has just forgotten.
        self.counter.with_label_values(&[&[cluster], values].concat()).inc();
    }

    /// Drops the series of clusters that are not in use any more.
    pub fn retain(&self, in_use: impl Fn(&str) -> bool) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.retain(|cluster| in_use(cluster));
        let families = self.counter.collect();
        for metric in families.iter().flat_map(|family| family.get_metric()) {
            let labels = metric.get_label();
            let cluster = labels.iter().find(|label| label.name() == CLUSTER);
            if cluster.is_some_and(|label| label.value() != OVERFLOW && !clusters.contains(label.value())) {
                let labels: HashMap<_, _> = labels.iter().map(|label| (label.name(), label.value())).collect();
                // An error says that the series is gone already.
                let _ = self.counter.remove(&labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> ByCluster {
        ByCluster::new(&Registry::new(), "events_total", "Events.", &["reason"]).unwrap()
    }

    fn series(counter: &ByCluster) -> usize {
        counter.counter.collect().iter().map(|family| family.get_metric().len()).sum()
    }

    #[test]
    fn clusters_above_the_bound_share_one_series() {
        let counter = new();
        for i in 0..MAX_EDGES + 50 {
            counter.count(&format!("inbound/10.0.0.1:{i}"), &["reset"]);
        }
        assert_eq!(series(&counter), MAX_EDGES + 1);
        assert_eq!(counter.counter.with_label_values(&[OVERFLOW, "reset"]).get(), 50);
    }

    #[test]
    fn a_cluster_that_is_gone_takes_its_series_with_it_and_makes_room() {
        let counter = new();
        for i in 0..MAX_EDGES {
            counter.count(&i.to_string(), &["reset"]);
        }
        counter.count("0", &["refused"]);

        counter.retain(|cluster| cluster == "1");

        assert_eq!(series(&counter), 1);
        assert_eq!(counter.counter.with_label_values(&["1", "reset"]).get(), 1);
        counter.count("new", &["reset"]);
        assert_eq!(counter.counter.with_label_values(&["new", "reset"]).get(), 1);
    }
}
