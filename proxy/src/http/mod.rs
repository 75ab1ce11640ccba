//! The HTTP path: from a request that hyper read to the response that hyper writes.
//!
//! `serve` glues hyper to one downstream connection; `request` is the path itself; everything else here is called
//! from `request` or `attempt`. Never names protobuf, and knows configuration only as `tables`.

pub mod attempt;
pub mod body;
pub mod client_body;
pub mod cors;
pub mod deadline;
pub mod error;
pub mod fault;
pub mod filter;
pub mod guard;
pub mod hash;
pub mod headers;
pub mod identity;
pub mod idle;
pub mod limit;
pub mod mirror;
pub mod request;
pub mod route;
pub mod serve;
pub mod session;
pub mod source;
pub mod tee;
pub mod trace;
pub mod translate;
pub mod upgrade;

/// Largest request or response head, in octets: start line and all fields. One limit for HTTP/1 and HTTP/2
/// (SETTINGS_MAX_HEADER_LIST_SIZE, RFC 9113 §6.5.2). Chosen: Envoy's default is 60 KiB, Node's 16 KiB.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most that hyper buffers of one HTTP/1 connection: the largest head, and as much again for a body's chunks.
pub const CONNECTION_BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;
/// Flow-control window of one HTTP/2 stream (RFC 9113 §6.9.2 default): what a slow reader can make us hold.
pub const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Flow-control window of an HTTP/2 connection of one client. Chosen: four streams at full window; what a client's own
/// slow reading stops is its own.
pub const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// Flow-control window of an HTTP/2 connection that clients share, between two sidecars or towards an application: each
/// stream's full window, so that nobody's slow reading stops others. With [`CONNECTION_WINDOW_BYTES`] four unread streams
/// stopped everything between two pods (tried).
pub const SHARED_WINDOW_BYTES: u32 = MAX_SHARED_STREAMS * STREAM_WINDOW_BYTES;
/// Streams put on one shared HTTP/2 connection before another is opened. The smallest limit RFC 9113 §6.5.2 recommends to
/// servers, and what most announce.
pub const MAX_SHARED_STREAMS: u32 = 100;

/// Runs hyper's HTTP/2 tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// Most fields in one head. Chosen: twice Envoy's default of 100.
pub const MAX_HEADER_FIELDS: usize = 200;
