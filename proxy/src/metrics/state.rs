//! What is true at the moment of a scrape: open circuit breakers, ejected endpoints, pools, the certificate.
//!
//! Read when asked for, so nothing has to be kept in step while traffic flows.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use crate::balance::breaker::Kind;
use crate::tables::Cluster;

/// One scrape's view.
pub struct Snapshot {
    open: GaugeVec,
    limits: GaugeVec,
    ejected: GaugeVec,
    endpoints: GaugeVec,
    pools: GaugeVec,
    certificate: GaugeVec,
}

impl Snapshot {
    /// Nothing yet.
    ///
    /// # Errors
    /// Never in a build that passed its tests: only on an invalid name.
    pub fn new() -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str, labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
        Ok(Self {
            open: gauge("heddle_circuit_breaker_open", "What is open towards a cluster now.", &["cluster", "kind"])?,
            limits: gauge("heddle_circuit_breaker_limit", "Most that may be open.", &["cluster", "kind"])?,
            ejected: gauge("heddle_outlier_ejected", "Endpoints of a cluster that are ejected now.", &["cluster"])?,
            endpoints: gauge("heddle_cluster_endpoints", "Endpoints of a cluster, by state.", &["cluster", "state"])?,
            pools: gauge("heddle_upstream_pool_connections", "Pooled upstream connections.", &["protocol"])?,
            certificate: gauge(
                "heddle_certificate_expiry_timestamp_seconds",
                "When this workload's certificate expires, in seconds since 1970.",
                &["principal", "serial"],
            )?,
        })
    }

    /// Adds a cluster.
    pub fn cluster(&self, cluster: &Cluster) {
        let limits = &cluster.settings.limits;
        let kinds = [
            (Kind::Connections, limits.connections),
            (Kind::Pending, limits.pending),
            (Kind::Requests, limits.requests),
            (Kind::Retries, limits.retries),
        ];
        for (kind, limit) in kinds {
            let labels = [&*cluster.name, kind.name()];
            self.open.with_label_values(&labels).set(f64::from(cluster.state.breaker.open(kind)));
            self.limits.with_label_values(&labels).set(f64::from(limit));
        }
        let ejected = cluster.state.ejected.load(std::sync::atomic::Ordering::Relaxed);
        self.ejected.with_label_values(&[&cluster.name]).set(f64::from(ejected));
        let endpoints = cluster.endpoints.load();
        let draining = endpoints.endpoints.len() - endpoints.active().len();
        self.endpoints.with_label_values(&[&*cluster.name, "active"]).set(endpoints.active().len() as f64);
        self.endpoints.with_label_values(&[&*cluster.name, "draining"]).set(draining as f64);
    }

    /// Adds the pools of all workers.
    pub fn pools(&self, idle_http1: usize, http2: usize) {
        self.pools.with_label_values(&["http1_idle"]).set(idle_http1 as f64);
        self.pools.with_label_values(&["http2"]).set(http2 as f64);
    }

    /// Adds the certificate in force; `expires` in seconds since 1970.
    pub fn certificate(&self, principal: &str, serial: &str, expires: u64) {
        self.certificate.with_label_values(&[principal, serial]).set(expires as f64);
    }

    /// As Prometheus families.
    pub(super) fn families(self) -> prometheus::Result<Vec<MetricFamily>> {
        let all = [self.open, self.limits, self.ejected, self.endpoints, self.pools, self.certificate];
        Ok(all.iter().flat_map(Collector::collect).collect())
    }
}
