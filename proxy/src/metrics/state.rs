//! What is true at the moment of a scrape: open circuit breakers, ejected endpoints, pools, the certificate.
//!
//! Read when asked for, so nothing has to be kept in step while traffic flows.

use std::sync::atomic::Ordering;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, Opts};

use crate::balance::breaker::Kind;
use crate::tables::Cluster;

/// One scrape's view.
pub struct Snapshot {
    open: GaugeVec,
    limits: GaugeVec,
    ejected: GaugeVec,
    unwell: GaugeVec,
    endpoints: GaugeVec,
    pools: GaugeVec,
    certificate: GaugeVec,
    handshakes: GaugeVec,
    concurrency: GaugeVec,
    xds: GaugeVec,
    xds_events: CounterVec,
    xds_responses: CounterVec,
    xds_resources: GaugeVec,
    xds_version: GaugeVec,
}

impl Snapshot {
    /// Nothing yet.
    ///
    /// # Errors
    /// Never in a build that passed its tests: only on an invalid name.
    pub fn new() -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str, labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
        let counter = |name: &str, help: &str, labels: &[&str]| CounterVec::new(Opts::new(name, help), labels);
        Ok(Self {
            open: gauge("heddle_circuit_breaker_open", "What is open towards a cluster now.", &["cluster", "kind"])?,
            limits: gauge("heddle_circuit_breaker_limit", "Most that may be open.", &["cluster", "kind"])?,
            ejected: gauge("heddle_outlier_ejected", "Endpoints of a cluster that are ejected now.", &["cluster"])?,
            unwell: gauge(
                "heddle_health_check_unwell",
                "Endpoints of a cluster that are not well, as they said when asked.",
                &["cluster"],
            )?,
            endpoints: gauge("heddle_cluster_endpoints", "Endpoints of a cluster, by state.", &["cluster", "state"])?,
            pools: gauge("heddle_upstream_pool_connections", "Pooled upstream connections.", &["protocol"])?,
            certificate: gauge(
                "heddle_certificate_expiry_timestamp_seconds",
                "When this workload's certificate expires, in seconds since 1970.",
                &["principal", "serial"],
            )?,
            handshakes: gauge(
                "heddle_certificate_handshakes",
                "Handshakes completed with the certificate in force, in either direction.",
                &["principal", "serial"],
            )?,
            concurrency: gauge(
                "heddle_concurrency_limit",
                "Most requests that a port takes at once now, by its RateLimitPolicy.",
                &["limit", "port"],
            )?,
            xds: gauge("heddle_xds_state", "What is between this sidecar and the control plane now.", &["what"])?,
            xds_events: counter("heddle_xds_events_total", "What happened with the control plane.", &["event"])?,
            xds_responses: counter(
                "heddle_xds_responses_total",
                "Responses of the control plane, accepted (ack) or refused in part (nack).",
                &["type", "outcome"],
            )?,
            xds_resources: gauge("heddle_xds_resources", "Resources held.", &["type"])?,
            xds_version: gauge(
                "heddle_xds_version_hash",
                "A hash over names and versions of all resources held; equal where the same is held.",
                &["type"],
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
        let ejected = cluster.state.ejected.load(Ordering::Relaxed);
        self.ejected.with_label_values(&[&cluster.name]).set(f64::from(ejected));
        if cluster.settings.health_check.is_some() {
            let unwell = cluster.state.unwell.load(Ordering::Relaxed);
            self.unwell.with_label_values(&[&cluster.name]).set(f64::from(unwell));
        }
        let endpoints = cluster.endpoints.load();
        let draining = endpoints.endpoints.len() - endpoints.active().len();
        self.endpoints.with_label_values(&[&*cluster.name, "active"]).set(endpoints.active().len() as f64);
        self.endpoints.with_label_values(&[&*cluster.name, "draining"]).set(draining as f64);
    }

    /// Adds how many requests are let in at once: by `limit`, at `port`.
    pub fn concurrency(&self, limit: &str, port: &str, most: u32) {
        self.concurrency.with_label_values(&[limit, port]).set(f64::from(most));
    }

    /// Adds the pools of all workers.
    pub fn pools(&self, idle_http1: usize, http2: usize) {
        self.pools.with_label_values(&["http1_idle"]).set(idle_http1 as f64);
        self.pools.with_label_values(&["http2"]).set(http2 as f64);
    }

    /// Adds the certificate in force; `expires` in seconds since 1970.
    pub fn certificate(&self, principal: &str, serial: &str, expires: u64, handshakes: u64) {
        self.certificate.with_label_values(&[principal, serial]).set(expires as f64);
        self.handshakes.with_label_values(&[principal, serial]).set(handshakes as f64);
    }

    /// Adds what is now between this sidecar and the control plane: `what` and how much of it.
    pub fn xds_state(&self, what: &str, value: u64) {
        self.xds.with_label_values(&[what]).set(value as f64);
    }

    /// Adds what happened with the control plane, and how often.
    pub fn xds_event(&self, event: &str, count: u64) {
        self.xds_events.with_label_values(&[event]).inc_by(count as f64);
    }

    /// Adds one type of resource: responses accepted and refused, resources held, their version.
    pub fn xds_kind(&self, kind: &str, ack: u64, nack: u64, held: u64, version: u32) {
        self.xds_responses.with_label_values(&[kind, "ack"]).inc_by(ack as f64);
        self.xds_responses.with_label_values(&[kind, "nack"]).inc_by(nack as f64);
        self.xds_resources.with_label_values(&[kind]).set(held as f64);
        self.xds_version.with_label_values(&[kind]).set(f64::from(version));
    }

    /// As Prometheus families.
    pub(super) fn families(self) -> prometheus::Result<Vec<MetricFamily>> {
        let gauges = [
            self.open,
            self.limits,
            self.ejected,
            self.unwell,
            self.endpoints,
            self.pools,
            self.certificate,
            self.handshakes,
            self.concurrency,
            self.xds,
            self.xds_resources,
            self.xds_version,
        ];
        let counters = [self.xds_events, self.xds_responses];
        let gauges = gauges.iter().flat_map(Collector::collect);
        Ok(gauges.chain(counters.iter().flat_map(Collector::collect)).collect())
    }
}
