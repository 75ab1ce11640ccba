//! Bodies on both sides of the proxy.
//!
//! [`Body`] goes downstream: the mesh's own short answers, or an upstream's body with what must happen at its end
//! (the connection goes back to its pool, the request is recorded). [`RequestBody`] goes upstream: streamed, and
//! kept up to a limit where the request may have to be sent again.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::client_body::ClientBody;
use super::error::{self, BoxError, Cause, Error};
use super::idle::Watch;
use super::tee::{Feed, Tap};
use crate::metrics::Record;
use crate::upstream::Lease;

/// Most of a request body that is kept for another attempt. Chosen: covers nearly every JSON and gRPC request;
/// a request above it is sent once.
pub const MAX_REPLAY_BYTES: usize = 64 * 1024;

/// A body on its way to the client.
pub struct Body(Inner);

enum Inner {
    Empty,
    Full(Option<Bytes>),
    Upstream(Box<Upstream>),
}

/// An upstream's response body and what it holds until its end.
struct Upstream {
    incoming: Incoming,
    lease: Option<Lease>,
    record: Record,
    deadline: Option<Pin<Box<Sleep>>>,
    idle: Option<Watch>,
    failure: Failure,
}

/// How a client learns that a response ends before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Its stream is reset, or its connection closed.
    Reset,
    /// gRPC: by a status in trailers, as it would learn of a lost connection of its own. A reset by the application itself
    /// stays one.
    GrpcStatus,
    /// By a status, which was sent.
    Told,
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// A body that is there as a whole.
    pub fn full(bytes: Bytes) -> Self {
        Self(Inner::Full(Some(bytes)))
    }

    /// The body of an upstream's response. `deadline` ends it with [`Cause::RequestTimeout`], a silence of `idle` with
    /// [`Cause::IdleTimeout`].
    pub fn upstream(
        incoming: Incoming,
        lease: Lease,
        record: Record,
        deadline: Option<Sleep>,
        idle: Option<Duration>,
        failure: Failure,
    ) -> Self {
        let (lease, deadline) = (Some(lease), deadline.map(Box::pin));
        let idle = idle.map(|idle| Watch::begin(idle, &record.request_bytes));
        Self(Inner::Upstream(Box::new(Upstream { incoming, lease, record, deadline, idle, failure })))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Upstream(upstream) => upstream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Upstream(upstream) => upstream.failure == Failure::Told || upstream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Inner::Upstream(upstream) => upstream.incoming.size_hint(),
        }
    }
}

impl Upstream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.failure == Failure::Told {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            return Poll::Ready(match frame {
                Some(Ok(frame)) => {
                    self.note(&frame);
                    Some(Ok(frame))
                }
                Some(Err(error)) => Some(self.fail(Error::new(Cause::ResetAfterResponse, error))),
                None => {
                    self.complete();
                    None
                }
            });
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(self.fail(Cause::RequestTimeout.into())));
        }
        if let Some(idle) = &mut self.idle {
            ready!(idle.poll_over(&self.record.request_bytes, cx));
            return Poll::Ready(Some(self.fail(Cause::IdleTimeout.into())));
        }
        Poll::Pending
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        if let Some(idle) = &mut self.idle {
            idle.came();
        }
        if let Some(data) = frame.data_ref() {
            self.record.response_bytes += data.len() as u64;
        } else if let Some(trailers) = frame.trailers_ref() {
            self.record.note_grpc_status(trailers);
        }
        if self.incoming.is_end_stream() {
            self.complete();
        }
    }

    fn complete(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.complete();
        }
        self.record.complete = true;
    }

    fn fail(&mut self, error: Error) -> Result<Frame<Bytes>, BoxError> {
        tracing::debug!(cause = error.cause.name(), source = ?error.source, "response breaks off");
        self.record.cause = Some(error.cause);
        self.record.complete = true;
        // Dropped, not completed: a connection with half a response on it is never used again.
        self.lease = None;
        if self.failure == Failure::Reset || is_reset_by_the_application(&error) {
            return Err(error.into());
        }
        self.failure = Failure::Told;
        let trailers = error::grpc_trailers(error.cause);
        self.record.note_grpc_status(&trailers);
        Ok(Frame::trailers(trailers))
    }
}

fn is_reset_by_the_application(error: &Error) -> bool {
    let seen = error.source.as_deref().and_then(|seen| seen.downcast_ref::<hyper::Error>());
    let h2 = seen.and_then(std::error::Error::source).and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| error.is_reset() && error.is_remote())
}

impl Drop for Upstream {
    /// hyper never polls a body that ended with its head.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.complete();
        }
    }
}

/// A body on its way upstream.
pub enum RequestBody {
    /// No body.
    Empty,
    /// Sent once.
    Once(ClientBody, Counter, Broken),
    /// Kept for another attempt as far as [`MAX_REPLAY_BYTES`] go.
    Replay(ReplayReader),
    /// A copy of another request's.
    Copy(Tap),
    /// Of the sidecar's own, there as a whole.
    Full(Option<Bytes>),
}

/// Octets of a request body that were read, shared with the request's record.
pub type Counter = Rc<Cell<u64>>;
/// Why the client did not send its body whole, once it is known: then neither endpoint nor network failed.
pub type Broken = Rc<Cell<Option<Cause>>>;

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Once(incoming, counter, broken) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                note(&frame, counter, broken);
                Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
            }
            Self::Replay(reader) => reader.poll_frame(cx),
            Self::Copy(tap) => Pin::new(tap).poll_frame(cx),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(incoming, ..) => incoming.is_end_stream(),
            Self::Replay(reader) => reader.is_end_stream(),
            Self::Copy(tap) => tap.is_end_stream(),
            Self::Full(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(incoming, ..) => incoming.size_hint(),
            Self::Replay(reader) => reader.replay.borrow().size_hint,
            Self::Copy(tap) => tap.size_hint(),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}

fn note(frame: &Option<Result<Frame<Bytes>, hyper::Error>>, counter: &Counter, broken: &Broken) {
    match frame {
        Some(Ok(frame)) => {
            let len = frame.data_ref().map_or(0, Bytes::len);
            counter.set(counter.get() + len as u64);
        }
        Some(Err(error)) => broken.set(Some(clients_fault(error))),
        None => {}
    }
}

/// The client's body is framed wrongly, or the client is gone.
fn clients_fault(error: &hyper::Error) -> Cause {
    let Some(source) = std::error::Error::source(error) else { return Cause::DownstreamClosed };
    let malformed = match (source.downcast_ref::<io::Error>(), source.downcast_ref::<h2::Error>()) {
        (Some(io), _) => matches!(io.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData),
        (_, Some(h2)) => !h2.is_remote() && !h2.is_io(),
        (None, None) => false,
    };
    if malformed { Cause::ProtocolError } else { Cause::DownstreamClosed }
}

/// A request body that several attempts may read, one after the other.
pub struct Replay(Rc<RefCell<Kept>>);

struct Kept {
    incoming: ClientBody,
    counter: Counter,
    broken: Broken,
    /// Copies of it.
    feeds: Vec<Feed>,
    size_hint: SizeHint,
    frames: Vec<KeptFrame>,
    bytes: usize,
    ended: bool,
    /// More came than may be kept, or reading failed: no further attempt can be made.
    spent: bool,
    /// The reader that may poll `incoming`: the newest.
    reader: u32,
}

/// A frame that can be had more than once.
pub enum KeptFrame {
    /// Octets.
    Data(Bytes),
    /// Fields at the end.
    Trailers(http::HeaderMap),
}

impl KeptFrame {
    /// A frame as it is kept.
    pub fn of(frame: &Frame<Bytes>) -> Option<Self> {
        let data = frame.data_ref().map(|data| Self::Data(data.clone()));
        data.or_else(|| frame.trailers_ref().map(|trailers| Self::Trailers(trailers.clone())))
    }

    /// Octets of its data.
    pub fn bytes(&self) -> usize {
        if let Self::Data(data) = self { data.len() } else { 0 }
    }

    /// The frame.
    pub fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers(trailers.clone()),
        }
    }
}

impl Replay {
    /// Keeps `incoming` as it is read, and copies it to `feeds`.
    pub fn new(incoming: ClientBody, counter: Counter, broken: Broken, feeds: Vec<Feed>) -> Self {
        let size_hint = incoming.size_hint();
        Self(Rc::new(RefCell::new(Kept {
            incoming,
            counter,
            broken,
            feeds,
            size_hint,
            frames: Vec::new(),
            bytes: 0,
            ended: false,
            spent: false,
            reader: 0,
        })))
    }

    /// Whether the whole body can still be sent again.
    pub fn can_replay(&self) -> bool {
        !self.0.borrow().spent
    }

    /// No further attempt will be made: what the last one has read need not be kept.
    pub fn commit(&self) {
        self.0.borrow_mut().spent = true;
    }

    /// The body for one more attempt, from its beginning; readers made before it end with an error.
    pub fn reader(&self) -> RequestBody {
        let mut kept = self.0.borrow_mut();
        kept.reader += 1;
        RequestBody::Replay(ReplayReader { replay: self.0.clone(), next: 0, reader: kept.reader })
    }
}

/// One attempt's view of a [`Replay`].
pub struct ReplayReader {
    replay: Rc<RefCell<Kept>>,
    next: usize,
    reader: u32,
}

impl ReplayReader {
    fn is_end_stream(&self) -> bool {
        let kept = self.replay.borrow();
        kept.ended && self.next >= kept.frames.len()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let kept = &mut *self.replay.borrow_mut();
        if kept.reader != self.reader {
            return Poll::Ready(Some(Err("another attempt has begun".into())));
        }
        if let Some(frame) = kept.frames.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(frame.frame())));
        }
        if kept.spent {
            kept.frames.clear();
            self.next = 0;
        }
        if kept.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut kept.incoming).poll_frame(cx));
        note(&frame, &kept.counter, &kept.broken);
        match &frame {
            Some(Ok(frame)) => {
                kept.feeds.iter().for_each(|feed| feed.push(frame));
                kept.keep(frame);
                self.next = kept.frames.len();
            }
            Some(Err(_)) => {
                kept.feeds.clear();
                kept.spent = true;
            }
            None => {}
        }
        kept.ended = frame.is_none() || kept.incoming.is_end_stream();
        if kept.ended {
            kept.feeds.drain(..).for_each(Feed::end);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }
}

impl Kept {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.spent {
            return;
        }
        let frame = KeptFrame::of(frame);
        self.bytes += frame.as_ref().map_or(0, KeptFrame::bytes);
        self.frames.extend(frame);
        if self.bytes > MAX_REPLAY_BYTES {
            self.spent = true;
            self.frames.clear();
        }
    }
}
