//! hyper's client on one dialled connection, HTTP/1 or HTTP/2.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::connect::Dialled;
use crate::balance::breaker::Permit;
use crate::gather::Gather;
use crate::http::body::RequestBody;
use crate::http::{self, CONNECTION_BUFFER_BYTES, LocalExecutor, MAX_HEAD_BYTES, MAX_HEADER_FIELDS};
use crate::tls::Alpn;

/// The version a request leaves in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// What a TLS handshake offers for it.
    pub fn alpn(self) -> Alpn {
        match self {
            Self::Http1 => Alpn::Http1,
            Self::Http2 => Alpn::Http2,
        }
    }
}

/// A connection that takes requests.
pub enum Sender {
    /// Lent to one request at a time.
    Http1(http1::SendRequest<RequestBody>),
    /// Shared by as many as its streams allow.
    Http2(http2::SendRequest<RequestBody>, Streams),
}

/// Requests under way on one HTTP/2 connection.
pub type Streams = Rc<Cell<usize>>;

impl Sender {
    /// Sends a request; an error gives it back if none of it was sent.
    ///
    /// # Errors
    /// If the connection broke, or the request was refused.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender, _) => sender.try_send_request(request).await,
        }
    }
}

/// Begins HTTP/1 on a connection.
///
/// # Errors
/// If it broke meanwhile.
pub async fn http1(dialled: Dialled, permit: Permit) -> hyper::Result<http1::SendRequest<RequestBody>> {
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(MAX_HEADER_FIELDS)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        .handshake(TokioIo::new(dialled.stream))
        .await?;
    drive(connection.with_upgrades(), dialled.ends, permit);
    Ok(sender)
}

/// Begins HTTP/2 on a connection.
///
/// # Errors
/// If it broke meanwhile.
pub async fn http2(dialled: Dialled, permit: Permit) -> hyper::Result<http2::SendRequest<RequestBody>> {
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(http::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(http::SHARED_WINDOW_BYTES)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buf_size(http::STREAM_WINDOW_BYTES as usize)
        .handshake(TokioIo::new(Gather::new(dialled.stream)))
        .await?;
    drive(connection, dialled.ends, permit);
    Ok(sender)
}

/// Runs a connection to its end. How it ended reaches the requests that were on it; an idle connection's end is
/// nobody's failure.
fn drive<E>(connection: impl Future<Output = Result<(), E>> + 'static, ends: Option<Instant>, permit: Permit) {
    tokio::task::spawn_local(async move {
        let _ = match ends {
            None => connection.await.is_ok(),
            Some(ends) => tokio::time::timeout_at(ends.into(), connection).await.is_ok(),
        };
        drop(permit);
    });
}
