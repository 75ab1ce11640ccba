//! HTTP connections of one worker, by endpoint.
//!
//! HTTP/1 connections are lent to one request at a time and come back when its response has been read whole.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;

use crate::balance::breaker::{self, Kind, Permit};
use crate::http::body::RequestBody;
use crate::http::error::{Cause, Error};
use crate::http::{MAX_HEAD_BYTES, MAX_HEADER_FIELDS};
use crate::tables::cluster::{Cluster, Endpoint};
use crate::worker::Worker;

/// Idle connections of one worker.
#[derive(Default)]
pub struct Pools {
    idle: HashMap<u64, Vec<Idle>>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
    keep: Duration,
}

impl Pools {
    /// The most recently used connection to `endpoint` that is still open.
    fn take(&mut self, endpoint: u64, now: Instant) -> Option<http1::SendRequest<RequestBody>> {
        let idle = self.idle.get_mut(&endpoint)?;
        while let Some(last) = idle.pop() {
            if last.usable(now) {
                return Some(last.sender);
            }
        }
        None
    }

    fn put(&mut self, endpoint: u64, idle: Idle) {
        self.idle.entry(endpoint).or_default().push(idle);
    }

    /// Closes what has been idle too long or was closed by the other side. Called about once a second.
    pub fn sweep(&mut self, now: Instant) {
        self.idle.retain(|_, idle| {
            idle.retain(|one| one.usable(now));
            !idle.is_empty()
        });
    }

    /// How many connections lie idle.
    pub fn idle(&self) -> usize {
        self.idle.values().map(Vec::len).sum()
    }
}

impl Idle {
    fn usable(&self, now: Instant) -> bool {
        !self.sender.is_closed() && now.saturating_duration_since(self.since) < self.keep
    }
}

/// A connection that takes a request.
pub enum Sender {
    /// Lent to one request alone.
    Http1(http1::SendRequest<RequestBody>),
}

impl Sender {
    /// Sends a request; an error gives it back if none of it was sent.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
        }
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
    sender: Option<Sender>,
    request: Option<Permit>,
}

impl Lease {
    /// Holds the request's permit until the response has ended.
    pub fn with_request(mut self, permit: Permit) -> Self {
        self.request = Some(permit);
        self
    }

    /// The connection itself.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        // Proof: `sender` is taken only by `complete`, which consumes the lease.
        #[allow(clippy::expect_used)]
        let sender = self.sender.as_mut().expect("a lease holds its connection");
        sender.send(request).await
    }

    /// The response was read whole: the connection goes back as soon as it is ready.
    pub fn complete(mut self) {
        let Some(Sender::Http1(sender)) = self.sender.take() else { return };
        let (worker, endpoint) = (self.worker.clone(), self.endpoint.id());
        let keep = self.cluster.settings.idle_timeout;
        if sender.is_ready() {
            return give_back(&worker, endpoint, sender, keep);
        }
        let mut sender = sender;
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() {
                give_back(&worker, endpoint, sender, keep);
            }
        });
    }
}

fn give_back(worker: &Worker, endpoint: u64, sender: http1::SendRequest<RequestBody>, keep: Duration) {
    worker.pools.borrow_mut().put(endpoint, Idle { sender, since: Instant::now(), keep });
}

/// A connection to `endpoint`: an idle one, or a new one.
pub async fn lend(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    to_application: bool,
) -> Result<Lease, Error> {
    let idle = worker.pools.borrow_mut().take(endpoint.id(), Instant::now());
    let reused = idle.is_some();
    let sender = match idle {
        Some(sender) => sender,
        None => connect(worker, cluster, &endpoint, to_application).await?,
    };
    Ok(Lease {
        worker: worker.clone(),
        cluster: cluster.clone(),
        endpoint,
        reused,
        sender: Some(Sender::Http1(sender)),
        request: None,
    })
}

async fn connect(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: &Endpoint,
    to_application: bool,
) -> Result<http1::SendRequest<RequestBody>, Error> {
    let permit = breaker::permit(&cluster.state, &cluster.settings, Kind::Connections).ok_or(Cause::Overflow)?;
    let stream = worker.shared.dialer.dial(endpoint, &cluster.settings, to_application).await?;
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(MAX_HEADER_FIELDS)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Error::new(Cause::ConnectRefused, error))?;
    tokio::task::spawn_local(async move {
        // How it ended reaches the request that was on it; an idle connection's end is nobody's failure.
        let _ = connection.with_upgrades().await;
        drop(permit);
    });
    Ok(sender)
}

/// Most that hyper buffers of one connection: the largest head, and as much again for a body's chunks.
const CONNECTION_BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;
