//! hyper on one downstream connection.

use std::rc::Rc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::request::{self, Connection};
use super::{MAX_HEAD_BYTES, MAX_HEADER_FIELDS};
use crate::upstream::Io;

/// Longest wait for a request's head once its connection is open or its predecessor is answered; idle keep-alive
/// connections end here. The inbound side must outlast the 30 s after which the outbound side lets go.
const HEAD_TIMEOUT: Duration = Duration::from_secs(600);
/// Most that hyper buffers of one connection: the largest head, and as much again for a body's chunks.
const CONNECTION_BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;

/// Serves HTTP/1 on `io` until it ends.
pub async fn http1(connection: Rc<Connection>, io: impl Io) {
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
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        connection.worker.shared.metrics.connections.ended(connection.direction, &error);
    }
}
