//! HTTP connections of one worker, by endpoint.
//!
//! HTTP/1 connections are lent to one request at a time and come back when its response has been read whole; HTTP/2
//! connections are shared until their streams are used up. Requests that find none dial; for HTTP/2 one dials and
//! the others wait for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};

use super::connect::{Dialled, Towards};
use super::http::{self, Sender, Streams, Version};
use crate::balance::breaker::{self, Kind, Permit};
use crate::concurrency::Place;
use crate::http::body::RequestBody;
use crate::http::error::{Cause, Error};
use crate::tables::cluster::{Cluster, Connections, Endpoint};
use crate::worker::Worker;

/// Connections of one worker.
#[derive(Default)]
pub struct Pools {
    idle: HashMap<u64, Vec<Idle>>,
    shared: HashMap<u64, Vec<Shared>>,
    /// Held by whoever dials HTTP/2 to an endpoint.
    dialling: HashMap<u64, Rc<tokio::sync::Mutex<()>>>,
}

/// An HTTP/1 connection that nobody uses.
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
    life: Life,
}

impl Idle {
    fn usable(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.since) >= self.life.kept.idle_timeout;
        !self.sender.is_closed() && !idle && !self.life.is_over(now)
    }
}

/// How much of its life a connection has behind it.
#[derive(Clone, Copy)]
struct Life {
    began: Instant,
    requests: u32,
    /// As its cluster was configured when it began.
    kept: Connections,
}

impl Life {
    /// Of a connection that is just made, for a first request.
    fn begin(kept: Connections) -> Self {
        Self { began: Instant::now(), requests: 1, kept }
    }

    /// Whether it takes no further request.
    fn is_over(&self, now: Instant) -> bool {
        let old = self.kept.max_age.is_some_and(|age| now.saturating_duration_since(self.began) >= age);
        old || self.kept.max_requests.is_some_and(|most| self.requests >= most)
    }
}

/// An HTTP/2 connection.
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Streams,
    used: Instant,
    life: Life,
}

impl Shared {
    fn usable(&self, now: Instant) -> bool {
        let idle = self.streams.get() == 0 && now.saturating_duration_since(self.used) >= self.life.kept.idle_timeout;
        !self.sender.is_closed() && !idle && !self.life.is_over(now)
    }
}

impl Pools {
    /// The most recently used HTTP/1 connection to `endpoint` that is still open.
    fn take(&mut self, endpoint: u64, now: Instant) -> Option<(Sender, Life)> {
        let idle = self.idle.get_mut(&endpoint)?;
        while let Some(mut last) = idle.pop() {
            if last.usable(now) {
                last.life.requests = last.life.requests.saturating_add(1);
                return Some((Sender::Http1(last.sender), last.life));
            }
        }
        None
    }

    /// The HTTP/2 connection to `endpoint` with the fewest streams, if it has room.
    fn share(&mut self, endpoint: u64, now: Instant) -> Option<(Sender, Life)> {
        let shared = self.shared.get_mut(&endpoint)?;
        // What is let go of ends with the last of its requests.
        shared.retain(|one| !one.sender.is_closed() && !one.life.is_over(now));
        let least = shared.iter_mut().min_by_key(|one| one.streams.get())?;
        if least.streams.get() >= least.life.kept.max_streams as usize {
            return None;
        }
        least.used = now;
        least.life.requests = least.life.requests.saturating_add(1);
        Some((Sender::Http2(least.sender.clone(), least.streams.clone()), least.life))
    }

    /// Closes what has been idle too long or was closed by the other side. Called about once a second.
    pub fn sweep(&mut self, now: Instant) {
        self.idle.retain(|_, idle| {
            idle.retain(|one| one.usable(now));
            !idle.is_empty()
        });
        self.shared.retain(|_, shared| {
            shared.retain(|one| one.usable(now));
            !shared.is_empty()
        });
        self.dialling.retain(|_, lock| Rc::strong_count(lock) > 1);
    }

    /// How many HTTP/1 connections lie idle, and how many HTTP/2 connections are open.
    pub fn sizes(&self) -> (usize, usize) {
        let count = |len: usize, sum: usize| len + sum;
        let idle = self.idle.values().map(Vec::len).fold(0, count);
        (idle, self.shared.values().map(Vec::len).fold(0, count))
    }
}

/// A connection lent to one request.
pub struct Lease {
    worker: Rc<Worker>,
    /// Where the request goes.
    pub endpoint: Arc<Endpoint>,
    /// Answers were read on this connection before: the other side may have closed it meanwhile.
    pub reused: bool,
    /// When it was lent.
    pub lent: Instant,
    sender: Option<Sender>,
    life: Life,
    request: Option<Permit>,
    /// What the request was let in by.
    places: Vec<Place>,
}

impl Lease {
    /// Holds the request's permit until the response has ended.
    pub fn with_request(mut self, permit: Permit) -> Self {
        self.request = Some(permit);
        self
    }

    /// Holds what the request was let in by until the response has ended.
    pub fn with_places(mut self, places: Vec<Place>) -> Self {
        self.places = places;
        self
    }

    /// The version requests leave in.
    pub fn version(&self) -> Version {
        match self.sender {
            Some(Sender::Http2(..)) => Version::Http2,
            Some(Sender::Http1(_)) | None => Version::Http1,
        }
    }

    /// Sends a request; an error gives it back if none of it was sent.
    ///
    /// # Errors
    /// If the connection broke, or the request was refused.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        // Proof: `sender` is taken only by `complete` and `drop`, which end the lease.
        #[allow(clippy::expect_used)]
        let sender = self.sender.as_mut().expect("a lease holds its connection");
        sender.send(request).await
    }

    /// The response was read whole: an HTTP/1 connection goes back as soon as it is ready.
    pub fn complete(mut self) {
        for place in std::mem::take(&mut self.places) {
            place.done(self.worker.shared.started.elapsed());
        }
        let Some(Sender::Http1(_)) = &self.sender else { return };
        let Some(Sender::Http1(mut sender)) = self.sender.take() else { return };
        let (worker, endpoint, life) = (self.worker.clone(), self.endpoint.id(), self.life);
        if life.is_over(Instant::now()) {
            return;
        }
        if sender.is_ready() {
            return give_back(&worker, endpoint, sender, life);
        }
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() {
                give_back(&worker, endpoint, sender, life);
            }
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(Sender::Http2(_, streams)) = &self.sender {
            streams.set(streams.get().saturating_sub(1));
        }
    }
}

fn give_back(worker: &Worker, endpoint: u64, sender: http1::SendRequest<RequestBody>, life: Life) {
    let idle = Idle { sender, since: Instant::now(), life };
    worker.pools.borrow_mut().idle.entry(endpoint).or_default().push(idle);
}

/// A connection to `endpoint` for `version`: one that is open, or a new one.
///
/// # Errors
/// If none can be made, or a circuit breaker is open.
pub async fn lend(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    version: Version,
    towards: Towards,
) -> Result<Lease, Error> {
    let id = endpoint.id();
    let found = match version {
        Version::Http1 => worker.pools.borrow_mut().take(id, Instant::now()),
        Version::Http2 => worker.pools.borrow_mut().share(id, Instant::now()),
    };
    let reused = found.is_some();
    let (sender, life) = match (found, version) {
        (Some(found), _) => found,
        (None, Version::Http1) => {
            let (dialled, permit) = connect(worker, cluster, &endpoint, version, towards).await?;
            let sender = http::http1(dialled, permit).await.map_err(broke_at_once)?;
            (Sender::Http1(sender), Life::begin(cluster.settings.connections))
        }
        (None, Version::Http2) => share_or_dial(worker, cluster, &endpoint, towards).await?,
    };
    if let Sender::Http2(_, streams) = &sender {
        streams.set(streams.get() + 1);
    }
    let worker = worker.clone();
    Ok(Lease {
        worker,
        endpoint,
        reused,
        lent: Instant::now(),
        sender: Some(sender),
        life,
        request: None,
        places: Vec::new(),
    })
}

/// Dials HTTP/2, unless another request does so already: then its connection is shared.
async fn share_or_dial(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: &Endpoint,
    towards: Towards,
) -> Result<(Sender, Life), Error> {
    let id = endpoint.id();
    let dialling = worker.pools.borrow_mut().dialling.entry(id).or_default().clone();
    let _turn = dialling.lock().await;
    if let Some(found) = worker.pools.borrow_mut().share(id, Instant::now()) {
        return Ok(found);
    }
    let (dialled, permit) = connect(worker, cluster, endpoint, Version::Http2, towards).await?;
    let sender = http::http2(dialled, permit).await.map_err(broke_at_once)?;
    let streams = Rc::new(Cell::new(0));
    let life = Life::begin(cluster.settings.connections);
    let shared = Shared { sender: sender.clone(), streams: streams.clone(), used: Instant::now(), life };
    worker.pools.borrow_mut().shared.entry(id).or_default().push(shared);
    Ok((Sender::Http2(sender, streams), life))
}

async fn connect(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    endpoint: &Endpoint,
    version: Version,
    towards: Towards,
) -> Result<(Dialled, Permit), Error> {
    let permit = |kind| breaker::permit(&cluster.state, &cluster.settings, kind).ok_or(Cause::Overflow);
    let connection = permit(Kind::Connections)?;
    let _pending = permit(Kind::Pending)?;
    let dialled = worker.shared.dialer.dial(endpoint, &cluster.settings, version.alpn(), towards).await?;
    Ok((dialled, connection))
}

fn broke_at_once(error: hyper::Error) -> Error {
    Error::new(Cause::ConnectRefused, error)
}
