//! HTTP connections of one worker, by endpoint.
//!
//! HTTP/1 connections are lent to one request at a time and come back when its response has been read whole; HTTP/2
//! connections are shared until their streams are used up. Requests that find none dial; for HTTP/2 one dials and
//! the others wait for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};

use super::connect::{Dialled, Towards};
use super::http::{self, Sender, Streams, Version};
use crate::balance::breaker::{self, Kind, Permit};
use crate::http::MAX_SHARED_STREAMS;
use crate::http::body::RequestBody;
use crate::http::error::{Cause, Error};
use crate::tables::cluster::{Cluster, Endpoint};
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
    keep: Duration,
}

impl Idle {
    fn usable(&self, now: Instant) -> bool {
        !self.sender.is_closed() && now.saturating_duration_since(self.since) < self.keep
    }
}

/// An HTTP/2 connection.
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Streams,
    used: Instant,
    keep: Duration,
}

impl Shared {
    fn usable(&self, now: Instant) -> bool {
        let idle = self.streams.get() == 0 && now.saturating_duration_since(self.used) >= self.keep;
        !self.sender.is_closed() && !idle
    }
}

impl Pools {
    /// The most recently used HTTP/1 connection to `endpoint` that is still open.
    fn take(&mut self, endpoint: u64, now: Instant) -> Option<Sender> {
        let idle = self.idle.get_mut(&endpoint)?;
        while let Some(last) = idle.pop() {
            if last.usable(now) {
                return Some(Sender::Http1(last.sender));
            }
        }
        None
    }

    /// The HTTP/2 connection to `endpoint` with the fewest streams, if it has room.
    fn share(&mut self, endpoint: u64, now: Instant) -> Option<Sender> {
        let shared = self.shared.get_mut(&endpoint)?;
        shared.retain(|one| !one.sender.is_closed());
        let least = shared.iter_mut().min_by_key(|one| one.streams.get())?;
        if least.streams.get() >= MAX_SHARED_STREAMS as usize {
            return None;
        }
        least.used = now;
        Some(Sender::Http2(least.sender.clone(), least.streams.clone()))
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
    cluster: Arc<Cluster>,
    /// Where the request goes.
    pub endpoint: Arc<Endpoint>,
    /// Answers were read on this connection before: the other side may have closed it meanwhile.
    pub reused: bool,
    /// When it was lent.
    pub lent: Instant,
    sender: Option<Sender>,
    request: Option<Permit>,
}

impl Lease {
    /// Holds the request's permit until the response has ended.
    pub fn with_request(mut self, permit: Permit) -> Self {
        self.request = Some(permit);
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
        let Some(Sender::Http1(_)) = &self.sender else { return };
        let Some(Sender::Http1(mut sender)) = self.sender.take() else { return };
        let (worker, endpoint) = (self.worker.clone(), self.endpoint.id());
        let keep = self.cluster.settings.idle_timeout;
        if sender.is_ready() {
            return give_back(&worker, endpoint, sender, keep);
        }
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() {
                give_back(&worker, endpoint, sender, keep);
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

fn give_back(worker: &Worker, endpoint: u64, sender: http1::SendRequest<RequestBody>, keep: Duration) {
    let idle = Idle { sender, since: Instant::now(), keep };
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
    let sender = match (found, version) {
        (Some(sender), _) => sender,
        (None, Version::Http1) => {
            let (dialled, permit) = connect(worker, cluster, &endpoint, version, towards).await?;
            Sender::Http1(http::http1(dialled, permit).await.map_err(broke_at_once)?)
        }
        (None, Version::Http2) => share_or_dial(worker, cluster, &endpoint, towards).await?,
    };
    if let Sender::Http2(_, streams) = &sender {
        streams.set(streams.get() + 1);
    }
    let (worker, cluster) = (worker.clone(), cluster.clone());
    Ok(Lease { worker, cluster, endpoint, reused, lent: Instant::now(), sender: Some(sender), request: None })
}

/// Dials HTTP/2, unless another request does so already: then its connection is shared.
async fn share_or_dial(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: &Endpoint,
    towards: Towards,
) -> Result<Sender, Error> {
    let id = endpoint.id();
    let dialling = worker.pools.borrow_mut().dialling.entry(id).or_default().clone();
    let _turn = dialling.lock().await;
    if let Some(sender) = worker.pools.borrow_mut().share(id, Instant::now()) {
        return Ok(sender);
    }
    let (dialled, permit) = connect(worker, cluster, endpoint, Version::Http2, towards).await?;
    let sender = http::http2(dialled, permit).await.map_err(broke_at_once)?;
    let streams = Rc::new(Cell::new(0));
    let keep = cluster.settings.idle_timeout;
    let shared = Shared { sender: sender.clone(), streams: streams.clone(), used: Instant::now(), keep };
    worker.pools.borrow_mut().shared.entry(id).or_default().push(shared);
    Ok(Sender::Http2(sender, streams))
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
