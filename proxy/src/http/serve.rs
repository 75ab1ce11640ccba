//! hyper on one downstream connection.

use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::request::{self, Connection};
use super::{
    CONNECTION_BUFFER_BYTES, CONNECTION_WINDOW_BYTES, LocalExecutor, MAX_HEAD_BYTES, MAX_HEADER_FIELDS,
    SHARED_WINDOW_BYTES, STREAM_WINDOW_BYTES,
};
use crate::drain::Phase;
use crate::gather::Gather;
use crate::stream::Stream;

/// Longest wait for a request's head once its connection is open or its predecessor is answered; idle keep-alive
/// connections end here. The inbound side must outlast the 30 s after which the outbound side lets go.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(600);
/// Most streams a client may have open on one connection (RFC 9113 §6.5.2). Chosen: Envoy's and Go's order of
/// magnitude; with the windows below it bounds what one connection can make us hold.
const MAX_STREAMS: u32 = 250;

/// Serves HTTP/1 on `stream` until it ends.
pub async fn http1(connection: Rc<Connection>, stream: Stream) {
    let service = service_fn(|request| request::handle(connection.clone(), request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_headers(MAX_HEADER_FIELDS)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    // While draining, `Connection: close` on each response ends it; an idle one is closed when the time is over.
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = connection.worker.shared.drain.reached(Phase::Terminating) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
        () = end_of(connection.ends) => return,
    };
    note_end(&connection, ended);
}

/// Serves HTTP/2 on `stream` until it ends.
pub async fn http2(connection: Rc<Connection>, stream: Stream) {
    let window = if connection.is_from_sidecar() { SHARED_WINDOW_BYTES } else { CONNECTION_WINDOW_BYTES };
    let asked = Notify::new();
    let service = service_fn(|request| {
        asked.notify_one();
        request::handle(connection.clone(), request)
    });
    let served = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(window)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buf_size(STREAM_WINDOW_BYTES as usize)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(Gather::new(stream)), service);
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = told_to_go(&connection, &asked) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
        () = end_of(connection.ends) => return,
    };
    note_end(&connection, ended);
}

/// Draining, and there was a request: a GOAWAY before the first one sends a client away that waits for our SETTINGS before
/// it uses a connection, as clients of gRPC do, and the next connection would be of no more use to it.
async fn told_to_go(connection: &Connection, asked: &Notify) {
    let drain = &connection.worker.shared.drain;
    drain.reached(Phase::Draining).await;
    tokio::select! {
        () = asked.notified() => {}
        () = drain.reached(Phase::Terminating) => {}
    }
}

/// The peer's certificate has long expired.
async fn end_of(ends: Option<Instant>) {
    match ends {
        Some(ends) => tokio::time::sleep_until(ends.into()).await,
        None => std::future::pending().await,
    }
}

fn note_end(connection: &Connection, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        connection.worker.shared.metrics.connections.ended(connection.direction, &error);
    }
}
