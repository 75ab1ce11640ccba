//! Opaque connections, by edge: who talked to whom, and how much.
//!
//! Octets are counted as they pass, so that long connections are seen while they last.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::Direction;
use super::access_log::Line;
use super::edges::{Cache, Edge, Edges, LABELS, Series};
use crate::http::error::Cause;
use crate::relay::Meter;
use crate::tables::{Endpoint, Millis, ServiceName};
use crate::tls::Peer;
use crate::worker::Worker;
use std::sync::Arc;

/// Counts of opaque connections.
pub struct Tcp {
    opened: IntCounterVec,
    closed: IntCounterVec,
    sent: IntCounterVec,
    received: IntCounterVec,
    edges: Edges<Handles>,
}

/// The edges one worker has recorded series for.
pub type TcpCache = Cache<Handles>;

/// The series of one edge.
pub struct Handles {
    opened: IntCounter,
    sent: IntCounter,
    received: IntCounter,
}

impl Tcp {
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
        let closed = [&LABELS[..], &["cause"]].concat();
        Ok(Self {
            opened: counter("heddle_tcp_connections_opened_total", "Opaque connections that began.", &LABELS)?,
            closed: counter("heddle_tcp_connections_closed_total", "Opaque connections that ended.", &closed)?,
            sent: counter("heddle_tcp_sent_bytes_total", "Octets from clients to servers.", &LABELS)?,
            received: counter("heddle_tcp_received_bytes_total", "Octets from servers to clients.", &LABELS)?,
            edges: Edges::default(),
        })
    }

    /// Drops series that have been idle too long. An open connection's edge is idle while nothing passes; it begins
    /// anew with the next connection.
    pub fn expire(&self, now: Millis) {
        self.edges.expire(now, |series| {
            let labels = series.labels();
            // An error says that the series is gone already.
            let _ = self.opened.remove_label_values(&labels);
            let _ = self.sent.remove_label_values(&labels);
            let _ = self.received.remove_label_values(&labels);
            for cause in std::iter::once("").chain(Cause::ALL.iter().map(|cause| cause.name())) {
                let _ = self.closed.remove_label_values(&[&labels[..], &[cause]].concat());
            }
        });
    }

    fn handles(&self, labels: &[&str; 9]) -> Handles {
        Handles {
            opened: self.opened.with_label_values(labels),
            sent: self.sent.with_label_values(labels),
            received: self.received.with_label_values(labels),
        }
    }
}

/// One opaque connection, counted when dropped.
pub struct TcpRecord {
    worker: Rc<Worker>,
    started: Instant,
    edge: Edge,
    series: std::cell::OnceCell<Arc<Series<Handles>>>,
    cause: Option<Cause>,
    sent: Cell<u64>,
    received: Cell<u64>,
    upstream: Option<std::net::SocketAddr>,
}

impl TcpRecord {
    /// A connection that begins now.
    pub fn new(
        worker: &Rc<Worker>,
        direction: Direction,
        caller: Option<&Peer>,
        service: Option<&ServiceName>,
    ) -> Self {
        let mut edge = Edge::new(direction, "tcp", caller);
        edge.destination(service);
        Self {
            worker: worker.clone(),
            started: Instant::now(),
            edge,
            series: std::cell::OnceCell::new(),
            cause: None,
            sent: Cell::new(0),
            received: Cell::new(0),
            upstream: None,
        }
    }

    /// The worker it runs on.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// It goes to `endpoint`. Called before anything is relayed.
    pub fn endpoint(&mut self, endpoint: &Endpoint) {
        self.edge.endpoint(endpoint);
        self.upstream = Some(endpoint.address);
    }

    /// Octets that came from the server so far.
    pub fn received_bytes(&self) -> u64 {
        self.received.get()
    }

    /// It failed.
    pub fn failed(&mut self, cause: Cause) {
        self.cause = Some(cause);
    }

    fn series(&self) -> &Arc<Series<Handles>> {
        self.series.get_or_init(|| {
            let shared = &self.worker.shared;
            let tcp = &shared.metrics.tcp;
            let mut cache = self.worker.tcp_series.borrow_mut();
            let own = shared.tables.load();
            let own = own.inbound.as_deref();
            let series = tcp.edges.series(&mut cache, &self.edge, own, shared.now(), |labels| tcp.handles(labels));
            series.handles.opened.inc();
            series.clone()
        })
    }
}

impl Meter for TcpRecord {
    fn sent(&self, octets: u64) {
        self.sent.set(self.sent.get() + octets);
        self.series().handles.sent.inc_by(octets);
    }

    fn received(&self, octets: u64) {
        self.received.set(self.received.get() + octets);
        self.series().handles.received.inc_by(octets);
    }
}

impl Drop for TcpRecord {
    fn drop(&mut self) {
        let shared = &self.worker.shared;
        let series = self.series();
        let cause = self.cause.map_or("", Cause::name);
        shared.metrics.tcp.closed.with_label_values(&[&series.labels()[..], &[cause]].concat()).inc();
        if shared.access_log.is_on() {
            let mut line = Line::tcp();
            line.upstream = self.upstream;
            line.cause = self.cause.map(Cause::name);
            line.sent_bytes = self.sent.get();
            line.received_bytes = self.received.get();
            line.edge(&series.labels());
            shared.access_log.write(&mut line, self.started.elapsed());
        }
    }
}
