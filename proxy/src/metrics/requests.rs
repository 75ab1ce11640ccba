//! HTTP and gRPC requests, by edge: who called what.
//!
//! One [`Record`] lives as long as its request and is counted when dropped, so nothing is counted twice or
//! forgotten. Workers keep the series they use, so a request costs no look-up by label.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use http::{HeaderMap, StatusCode};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::Direction;
use crate::http::body::Counter;
use crate::http::error::Cause;
use crate::tables::{Cluster, ServiceName};
use crate::worker::Worker;

/// Most edges one sidecar keeps; requests of further ones are counted under the destination `overflow`. Chosen:
/// at about 4 KiB an edge this is 4 MiB, and more destinations than a workload of any sense calls.
pub const MAX_EDGES: usize = 1_000;

/// Seconds; from half a millisecond, what a sidecar pair adds, to ten seconds, where people stop waiting.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const EDGE_LABELS: [&str; 4] = ["direction", "protocol", "destination_namespace", "destination_service"];
const RESPONSE_LABELS: [&str; 7] =
    ["direction", "protocol", "destination_namespace", "destination_service", "response_code", "grpc_status", "cause"];

/// Counts of requests.
pub struct Requests {
    responses: IntCounterVec,
    durations: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
}

impl Requests {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let responses = IntCounterVec::new(
            Opts::new("heddle_requests_total", "Requests that ended, by response."),
            &RESPONSE_LABELS,
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "heddle_request_duration_seconds",
                "From the request's head to the end of its response.",
            )
            .buckets(DURATION_BUCKETS.to_vec()),
            &EDGE_LABELS,
        )?;
        let request_bytes =
            IntCounterVec::new(Opts::new("heddle_request_bytes_total", "Octets of request bodies."), &EDGE_LABELS)?;
        let response_bytes =
            IntCounterVec::new(Opts::new("heddle_response_bytes_total", "Octets of response bodies."), &EDGE_LABELS)?;
        registry.register(Box::new(responses.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(request_bytes.clone()))?;
        registry.register(Box::new(response_bytes.clone()))?;
        Ok(Self { responses, durations, request_bytes, response_bytes })
    }

    fn edge(&self, edge: &Edge) -> EdgeSeries {
        let labels = edge.labels();
        EdgeSeries {
            duration: self.durations.with_label_values(&labels),
            request_bytes: self.request_bytes.with_label_values(&labels),
            response_bytes: self.response_bytes.with_label_values(&labels),
            responses: HashMap::new(),
        }
    }

    fn response(&self, edge: &Edge, outcome: Outcome) -> IntCounter {
        let [direction, protocol, namespace, service] = edge.labels();
        let status = outcome.status.as_str();
        let grpc_status = outcome.grpc_status.map(|code| code.to_string()).unwrap_or_default();
        let cause = outcome.cause.map_or("", Cause::name);
        self.responses.with_label_values(&[direction, protocol, namespace, service, status, &grpc_status, cause])
    }
}

/// Who called what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Edge {
    direction: Direction,
    grpc: bool,
    destination: Option<ServiceName>,
}

impl Edge {
    fn labels(&self) -> [&str; 4] {
        let protocol = if self.grpc { "grpc" } else { "http" };
        let (namespace, service) = match &self.destination {
            Some(service) => (&*service.namespace, &*service.name),
            None => ("", ""),
        };
        [self.direction.name(), protocol, namespace, service]
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Outcome {
    status: StatusCode,
    grpc_status: Option<u16>,
    cause: Option<Cause>,
}

struct EdgeSeries {
    duration: Histogram,
    request_bytes: IntCounter,
    response_bytes: IntCounter,
    responses: HashMap<Outcome, IntCounter>,
}

/// The series one worker has used.
#[derive(Default)]
pub struct SeriesCache {
    edges: HashMap<Edge, EdgeSeries>,
}

/// One request, counted when dropped.
pub struct Record {
    worker: Rc<Worker>,
    started: Instant,
    edge: Edge,
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
    /// A request that begins now.
    pub fn new(worker: Rc<Worker>, direction: Direction, grpc: bool) -> Self {
        Self {
            worker,
            started: Instant::now(),
            edge: Edge { direction, grpc, destination: None },
            status: client_closed(),
            grpc_status: None,
            cause: None,
            request_bytes: Rc::new(Cell::new(0)),
            response_bytes: 0,
            complete: false,
        }
    }

    /// The request goes to `cluster`.
    pub fn destination(&mut self, cluster: &Cluster) {
        self.edge.destination = cluster.service.clone();
    }

    /// Takes the gRPC status out of trailers or of a response's only header block.
    pub fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if self.edge.grpc
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
        let requests = &self.worker.shared.metrics.requests;
        let mut cache = self.worker.series.borrow_mut();
        if !cache.edges.contains_key(&self.edge) && cache.edges.len() >= MAX_EDGES {
            self.edge.destination = Some(ServiceName { namespace: OVERFLOW.into(), name: OVERFLOW.into() });
        }
        let series = cache.edges.entry(self.edge.clone()).or_insert_with(|| requests.edge(&self.edge));
        series.duration.observe(self.started.elapsed().as_secs_f64());
        series.request_bytes.inc_by(self.request_bytes.get());
        series.response_bytes.inc_by(self.response_bytes);
        let response = series.responses.entry(outcome);
        response.or_insert_with(|| requests.response(&self.edge, outcome)).inc();
    }
}

/// What a request is counted under whose client left before there was a status: nginx's 499.
fn client_closed() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}
/// gRPC status UNKNOWN.
const GRPC_UNKNOWN: u16 = 2;
const OVERFLOW: &str = "overflow";
