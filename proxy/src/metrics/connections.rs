//! Downstream connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::Direction;
use crate::detect::Limit;
use crate::http::error::Cause;

/// Counts of downstream connections.
pub struct Connections {
    open: IntGaugeVec,
    accepted: IntCounterVec,
    refused: IntCounterVec,
    accept_failures: IntCounterVec,
    broken: IntCounterVec,
    detection_limits: IntCounterVec,
    bodies_left_unread: IntCounterVec,
    count: Arc<AtomicUsize>,
}

/// An open connection; counted as such until dropped.
pub struct Open {
    gauge: prometheus::IntGauge,
    count: Arc<AtomicUsize>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let open = IntGaugeVec::new(
            Opts::new("heddle_downstream_connections", "Downstream connections open now."),
            &["direction"],
        )?;
        registry.register(Box::new(open.clone()))?;
        Ok(Self {
            open,
            accepted: counter(
                "heddle_downstream_connections_total",
                "Downstream connections that were served.",
                &["direction"],
            )?,
            refused: counter(
                "heddle_downstream_connections_refused_total",
                "Downstream connections that were closed before anything was served, by cause.",
                &["direction", "cause"],
            )?,
            accept_failures: counter(
                "heddle_accept_failures_total",
                "Failures to accept a connection, mostly for want of file descriptors.",
                &["direction"],
            )?,
            broken: counter(
                "heddle_downstream_connections_broken_total",
                "Downstream HTTP connections that ended with an error of the connection, by kind.",
                &["direction", "kind"],
            )?,
            detection_limits: counter(
                "heddle_detection_limits_total",
                "Connections taken for opaque because a limit of protocol detection was reached.",
                &["direction", "limit"],
            )?,
            bodies_left_unread: counter(
                "heddle_bodies_left_unread_total",
                "Request bodies that came after their response, for longer than they are read.",
                &["direction"],
            )?,
            count: Arc::default(),
        })
    }

    /// One more connection is open, or `None` at `limit` over both directions.
    pub fn open(&self, direction: Direction, limit: usize) -> Option<Open> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= limit {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        self.accepted.with_label_values(&[direction.name()]).inc();
        let gauge = self.open.with_label_values(&[direction.name()]);
        gauge.inc();
        Some(Open { gauge, count: self.count.clone() })
    }

    /// Whether any connection is open.
    pub fn are_open(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// A connection was closed unserved.
    pub fn refused(&self, direction: Direction, cause: Cause) {
        tracing::debug!(direction = direction.name(), %cause, "connection refused");
        self.refused.with_label_values(&[direction.name(), cause.name()]).inc();
    }

    /// Detection reached a limit.
    pub fn detection_limited(&self, direction: Direction, limit: Limit) {
        self.detection_limits.with_label_values(&[direction.name(), limit.name()]).inc();
    }

    /// A body that nobody waits for any more was not read to its end.
    pub fn body_left_unread(&self, direction: Direction) {
        self.bodies_left_unread.with_label_values(&[direction.name()]).inc();
    }

    /// accept(2) failed.
    pub fn accept_failed(&self, direction: Direction) {
        self.accept_failures.with_label_values(&[direction.name()]).inc();
    }

    /// A downstream HTTP connection ended with an error.
    pub fn ended(&self, direction: Direction, error: &hyper::Error) {
        let kind = if error.is_parse() {
            "parse"
        } else if error.is_timeout() {
            "timeout"
        } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            "closed"
        } else if error.is_user() {
            "aborted"
        } else {
            "io"
        };
        tracing::debug!(direction = direction.name(), kind, %error, "connection broken");
        self.broken.with_label_values(&[direction.name(), kind]).inc();
    }
}
