//! HTTP and gRPC requests, by edge: who called what.
//!
//! One [`Record`] lives as long as its request and is counted when dropped, so nothing is counted twice or forgotten.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, StatusCode};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::Direction;
use super::access_log::Line;
use super::edges::{Cache, Edge, Edges, LABELS, Series};
use crate::http::body::Counter;
use crate::http::error::Cause;
use crate::tables::{Endpoint, Millis, ServiceName};
use crate::tls::Peer;
use crate::worker::Worker;

/// Seconds; from half a millisecond, what a sidecar pair adds, to ten seconds, where people stop waiting.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Beyond the edge's.
const RESPONSE_LABELS: [&str; 3] = ["response_code", "grpc_status", "cause"];

/// Outcomes an edge has series of; others are counted by their class, so no server fills memory by making up statuses.
/// Chosen: more than any application of sense has.
const MAX_OUTCOMES: usize = 64;

/// Counts of requests.
pub struct Requests {
    responses: IntCounterVec,
    durations: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    edges: Edges<Handles>,
}

/// The requests one worker has recorded series for.
pub type RequestCache = Cache<Handles>;

/// The series of one edge.
pub struct Handles {
    duration: Histogram,
    request_bytes: IntCounter,
    response_bytes: IntCounter,
    responses: Mutex<HashMap<Outcome, IntCounter>>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Outcome {
    status: StatusCode,
    grpc_status: Option<u16>,
    cause: Option<Cause>,
}

impl Outcome {
    /// The outcome as one of its class: how a client must take a status it does not know (RFC 9110 §15).
    fn class(self) -> Self {
        let class = StatusCode::from_u16(self.status.as_u16() / 100 * 100);
        Self { status: class.unwrap_or(self.status), grpc_status: None, cause: self.cause }
    }

    fn values(self) -> [String; 3] {
        let grpc_status = self.grpc_status.map(|code| code.to_string()).unwrap_or_default();
        [self.status.as_str().to_owned(), grpc_status, self.cause.map_or("", Cause::name).to_owned()]
    }
}

impl Requests {
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
        let help = "From the request's head to the end of its response.";
        let durations = HistogramOpts::new("heddle_request_duration_seconds", help).buckets(DURATION_BUCKETS.to_vec());
        let durations = HistogramVec::new(durations, &LABELS)?;
        registry.register(Box::new(durations.clone()))?;
        let responses = [&LABELS[..], &RESPONSE_LABELS[..]].concat();
        Ok(Self {
            responses: counter("heddle_requests_total", "Requests that ended, by response.", &responses)?,
            durations,
            request_bytes: counter("heddle_request_bytes_total", "Octets of request bodies.", &LABELS)?,
            response_bytes: counter("heddle_response_bytes_total", "Octets of response bodies.", &LABELS)?,
            edges: Edges::default(),
        })
    }

    /// Drops series that have been idle too long.
    pub fn expire(&self, now: Millis) {
        self.edges.expire(now, |series| {
            let labels = series.labels();
            // An error says that the series is gone already.
            let _ = self.durations.remove_label_values(&labels);
            let _ = self.request_bytes.remove_label_values(&labels);
            let _ = self.response_bytes.remove_label_values(&labels);
            let outcomes = series.handles.responses.lock().unwrap_or_else(PoisonError::into_inner);
            for outcome in outcomes.keys() {
                let outcome = outcome.values();
                let labels = [&labels[..], &outcome.each_ref().map(String::as_str)[..]].concat();
                let _ = self.responses.remove_label_values(&labels);
            }
        });
    }

    fn handles(&self, labels: &[&str; 9]) -> Handles {
        Handles {
            duration: self.durations.with_label_values(labels),
            request_bytes: self.request_bytes.with_label_values(labels),
            response_bytes: self.response_bytes.with_label_values(labels),
            responses: Mutex::default(),
        }
    }

    fn count(&self, series: &Series<Handles>, outcome: Outcome) {
        let mut responses = series.handles.responses.lock().unwrap_or_else(PoisonError::into_inner);
        let full = responses.len() >= MAX_OUTCOMES && !responses.contains_key(&outcome);
        let outcome = if full { outcome.class() } else { outcome };
        let response = responses.entry(outcome).or_insert_with(|| {
            let values = outcome.values();
            let labels = [&series.labels()[..], &values.each_ref().map(String::as_str)[..]].concat();
            self.responses.with_label_values(&labels)
        });
        response.inc();
    }
}

/// One request, counted when dropped.
pub struct Record {
    worker: Rc<Worker>,
    started: Instant,
    edge: Edge,
    line: Option<Box<Line>>,
    /// It is gRPC.
    pub grpc: bool,
    /// Of the response.
    pub status: StatusCode,
    grpc_status: Option<u16>,
    /// Why it failed, if it did.
    pub cause: Option<Cause>,
    /// Octets of the request's body so far.
    pub request_bytes: Counter,
    /// Octets of the response's body so far.
    pub response_bytes: u64,
    /// The response ended, or its failure is known; a record dropped before was left by its client.
    pub complete: bool,
}

impl Record {
    /// A request that begins now; `caller` is known inbound, over mutual TLS.
    pub fn new(worker: &Rc<Worker>, direction: Direction, caller: Option<&Rc<Peer>>, grpc: bool) -> Self {
        let protocol = if grpc { GRPC } else { "http" };
        Self {
            worker: worker.clone(),
            started: Instant::now(),
            edge: Edge::new(direction, protocol, caller.map(|caller| &**caller)),
            line: None,
            grpc,
            status: client_closed(),
            grpc_status: None,
            cause: None,
            request_bytes: Rc::new(Cell::new(0)),
            response_bytes: 0,
            complete: false,
        }
    }

    /// Begins a line of the access log, if it is on.
    pub fn log(&mut self, head: &Parts, peer: SocketAddr, original_dst: SocketAddr) {
        if self.worker.shared.access_log.is_on() {
            self.line = Some(Box::new(Line::request(head, peer, original_dst)));
        }
    }

    /// The request takes the rule of this name.
    pub fn route(&mut self, rule: &Arc<str>) {
        if let Some(line) = &mut self.line {
            line.route = Some(rule.clone());
        }
    }

    /// The request goes to `service`.
    pub fn destination(&mut self, service: Option<&ServiceName>) {
        self.edge.destination(service);
    }

    /// The request is sent to `endpoint`; the last one counts.
    pub fn endpoint(&mut self, endpoint: &Endpoint) {
        self.edge.endpoint(endpoint);
        if let Some(line) = &mut self.line {
            line.upstream = Some(endpoint.address);
        }
    }

    /// Takes the gRPC status out of trailers or of a response's only header block.
    pub fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if self.edge.protocol() == GRPC
            && let Some(status) = headers.get("grpc-status")
        {
            // Codes above 16 do not exist; one label for whatever else a server writes.
            let code = status.to_str().ok().and_then(|text| text.parse().ok()).filter(|code| *code <= 16);
            self.grpc_status = Some(code.unwrap_or(GRPC_UNKNOWN));
        }
    }

    /// The request ended with an answer of our own.
    pub fn end(mut self, status: StatusCode, cause: Option<Cause>) {
        self.status = status;
        self.cause = cause;
        self.complete = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let cause = if self.complete { self.cause } else { Some(Cause::DownstreamClosed) };
        let outcome = Outcome { status: self.status, grpc_status: self.grpc_status, cause };
        let shared = &self.worker.shared;
        let requests = &shared.metrics.requests;
        let duration = self.started.elapsed();
        let mut cache = self.worker.request_series.borrow_mut();
        let own = shared.tables.load();
        let own = own.inbound.as_deref();
        let series =
            requests.edges.series(&mut cache, &self.edge, own, shared.now(), |labels| requests.handles(labels));
        series.handles.duration.observe(duration.as_secs_f64());
        series.handles.request_bytes.inc_by(self.request_bytes.get());
        series.handles.response_bytes.inc_by(self.response_bytes);
        requests.count(series, outcome);
        if let Some(mut line) = self.line.take() {
            line.status = Some(self.status.as_u16());
            line.grpc_status = self.grpc_status;
            line.cause = cause.map(Cause::name);
            line.sent_bytes = self.request_bytes.get();
            line.received_bytes = self.response_bytes;
            line.edge(&series.labels());
            shared.access_log.write(&mut line, duration);
        }
    }
}

/// What a request is counted under whose client left before there was a status: nginx's 499.
fn client_closed() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

/// Value of the `protocol` label.
const GRPC: &str = "grpc";
/// gRPC status UNKNOWN.
const GRPC_UNKNOWN: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::edges::Edges;

    #[test]
    fn made_up_statuses_are_counted_by_class_above_the_bound() {
        let requests = Requests::new(&Registry::new()).unwrap();
        let (edges, mut cache) = (Edges::default(), Cache::default());
        let edge = Edge::new(Direction::Outbound, "http", None);
        let series = edges.series(&mut cache, &edge, None, Millis(0), |labels| requests.handles(labels));
        let outcome =
            |status| Outcome { status: StatusCode::from_u16(status).unwrap(), grpc_status: None, cause: None };

        (600..900).for_each(|status| requests.count(series, outcome(status)));

        let counted = series.handles.responses.lock().unwrap();
        assert_eq!(counted.values().map(IntCounter::get).sum::<u64>(), 300, "none is lost");
        assert_eq!(counted.len(), MAX_OUTCOMES + 2, "600 to 663 each, then 700 and 800");
    }
}
