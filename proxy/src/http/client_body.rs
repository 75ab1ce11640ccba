//! The body of a client's request, as hyper reads it.
//!
//! A response may be there before the request's body was read: it was refused, or its upstream answered early. An HTTP/1
//! connection that is then closed with octets unread is reset, and the client may never see that response (RFC 9112 §9.6).
//! So what is left of the body is read and thrown away, within limits; HTTP/2 resets only the stream.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::request::Connection;

/// The body of a request on `connection`.
pub struct ClientBody {
    incoming: Option<Incoming>,
    /// Of an HTTP/1 request whose client does not wait to be asked for its body.
    unasked: bool,
    connection: Rc<Connection>,
}

impl ClientBody {
    /// The body that follows `head`.
    pub fn new(incoming: Incoming, head: &Parts, connection: Rc<Connection>) -> Self {
        // A client that got a final answer to its `Expect: 100-continue` sends nothing more (RFC 9110 §10.1.1).
        let unasked = head.version != Version::HTTP_2 && !head.headers.contains_key(header::EXPECT);
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        Self { incoming, unasked, connection }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        if incoming.is_end_stream() || !matches!(frame, Some(Ok(_))) {
            this.incoming = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(rest) = self.incoming.take_if(|_| self.unasked) {
            tokio::task::spawn_local(discard(rest, self.connection.clone()));
        }
    }
}

async fn discard(mut rest: Incoming, connection: Rc<Connection>) {
    let mut over = pin!(tokio::time::sleep(PATIENCE));
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(QUIET, rest.frame()) => frame,
            () = &mut over => break,
        };
        match frame {
            Ok(Some(Ok(_))) => {}
            Ok(_) => return,
            Err(_) => break,
        }
    }
    connection.worker.shared.metrics.connections.body_left_unread(connection.direction);
}

/// Longest that octets nobody wants are read. nginx's `lingering_time`.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for the next of them. nginx's `lingering_timeout`.
const QUIET: Duration = Duration::from_secs(5);
