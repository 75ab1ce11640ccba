//! A request for as many attempts as it takes: what of it is kept, and until when.

use http::request::Parts;
use http::{Method, Request};
use hyper::body::Body as _;

use super::body::{Broken, Counter, Replay, RequestBody};
use super::client_body::ClientBody;
use super::tee::Feed;
use crate::upstream::Towards;

/// A request that can be sent, and perhaps sent again.
pub struct Source {
    /// Gone once sent, if the request cannot be sent again.
    head: Option<Parts>,
    body: SourceBody,
    /// Grows with what is read of the body.
    pub progress: Counter,
    /// Set by the body.
    pub broken: Broken,
    /// Whether sending it twice is as good as once.
    pub idempotent: bool,
    keep: bool,
}

enum SourceBody {
    Empty,
    /// Gone once sent.
    Once(Option<RequestBody>),
    Replay(Replay),
}

impl Source {
    /// A client's request, its body counted by `counter` and copied to `feeds`, which only requests towards the network have.
    pub fn new(head: Parts, body: ClientBody, towards: Towards, counter: Counter, feeds: Vec<Feed>) -> Self {
        let idempotent = is_idempotent(&head.method);
        // Towards the application only idempotent requests are sent again once they have left; what hyper hands back
        // unsent needs no copy.
        let keep = towards == Towards::Network || idempotent;
        let broken = Broken::default();
        let body = if body.is_end_stream() {
            SourceBody::Empty
        } else if keep {
            SourceBody::Replay(Replay::new(body, counter.clone(), broken.clone(), feeds))
        } else {
            SourceBody::Once(Some(RequestBody::Once(body, counter.clone(), broken.clone())))
        };
        Self { head: Some(head), body, progress: counter, broken, idempotent, keep }
    }

    /// A request of the sidecar's own, or a copy of another; it is sent again only if nothing of it was.
    pub fn own(head: Parts, body: RequestBody) -> Self {
        let body = if let RequestBody::Empty = body { SourceBody::Empty } else { SourceBody::Once(Some(body)) };
        let (progress, broken) = (Counter::default(), Broken::default());
        Self { head: Some(head), body, progress, broken, idempotent: false, keep: false }
    }

    /// Whether it may be made twice at once: it has no body, and twice is as good as once.
    pub fn has_twins(&self) -> bool {
        self.idempotent && self.head.is_some() && matches!(self.body, SourceBody::Empty)
    }

    /// The same request once more; only where it [has](Self::has_twins) one.
    pub fn twin(&self) -> Self {
        let (head, body) = (self.head.clone(), SourceBody::Empty);
        let (progress, broken) = (Counter::default(), Broken::default());
        Self { head, body, progress, broken, idempotent: self.idempotent, keep: true }
    }

    /// The request for one attempt; `None` if it is gone.
    pub fn request(&mut self) -> Option<Request<RequestBody>> {
        let head = if self.keep { self.head.clone() } else { self.head.take() }?;
        let body = match &mut self.body {
            SourceBody::Empty => RequestBody::Empty,
            SourceBody::Once(body) => body.take()?,
            SourceBody::Replay(replay) => replay.reader(),
        };
        Some(Request::from_parts(head, body))
    }

    /// Takes back a request of which nothing was sent.
    pub fn restore(&mut self, unsent: Request<RequestBody>) {
        let (head, body) = unsent.into_parts();
        self.head = Some(head);
        if let SourceBody::Once(gone) = &mut self.body {
            *gone = Some(body);
        }
    }

    /// No further attempt will be made.
    pub fn commit(&mut self) {
        if let SourceBody::Replay(replay) = &self.body {
            replay.commit();
        }
    }

    /// Whether another attempt could be made.
    pub fn can_send_again(&self) -> bool {
        let body = match &self.body {
            SourceBody::Empty => true,
            SourceBody::Once(body) => body.is_some(),
            SourceBody::Replay(replay) => replay.can_replay(),
        };
        body && self.head.is_some()
    }
}

/// RFC 9110 §9.2.2.
fn is_idempotent(method: &Method) -> bool {
    method.is_safe() || matches!(*method, Method::PUT | Method::DELETE)
}
