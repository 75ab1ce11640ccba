//! The client: closed loops (the next request when the answer is there) and open ones (requests at a fixed rate).
//!
//! In an open loop latency counts from the moment a request was due, not from when it could be sent: a peer that
//! stalls pays for every request that was due meanwhile. One thread does everything.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::origin::{BODY, grpc_message};

/// Arrivals a second in open loops. Chosen: what one sidecar carries in a busy service, far from saturation.
pub const RATE: u32 = 2_000;
/// How long a figure is taken, and the closed loops' warm-up before it.
const MEASURED: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(1);
/// Longest wait for a connection or an answer. Chosen: one that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a call's request message. Chosen: a small key.
const REQUEST_MESSAGE: usize = 64;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// GET, 64 connections, one request at a time on each.
    Http1,
    /// Unary calls, 4 connections, 16 at a time on each.
    Grpc,
}

impl Protocol {
    /// Port of the Service and of the origin.
    pub fn port(self) -> u16 {
        match self {
            Self::Http1 => 8080,
            Self::Grpc => 8081,
        }
    }

    /// Connections, and requests at a time on each.
    fn shape(self) -> (usize, usize) {
        match self {
            Self::Http1 => (64, 1),
            Self::Grpc => (4, 16),
        }
    }
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as answers come.
    Closed,
    /// [`RATE`].
    Open,
}

/// What was seen while the figure was taken.
#[derive(Debug)]
pub struct Seen {
    /// How long that was.
    pub lasted: Duration,
    /// Latency of each request, sorted; microseconds.
    pub latencies: Vec<f64>,
}

impl Seen {
    /// The latency that the share `of` of all requests did not exceed; microseconds.
    pub fn quantile(&self, of: f64) -> f64 {
        let rank = (self.latencies.len() as f64 * of) as usize;
        self.latencies.get(rank.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }
}

/// Calls `address` for the time of one figure; `at_start` and `at_end` are called when it begins and ends. Runs in the
/// client's network namespace. Fails if any request does.
pub fn run(
    address: IpAddr,
    protocol: Protocol,
    pace: Pace,
    at_start: impl FnOnce() -> anyhow::Result<()> + 'static,
    at_end: impl FnOnce() -> anyhow::Result<()> + 'static,
) -> anyhow::Result<Seen> {
    let address = SocketAddr::new(address, protocol.port());
    block_on(async move {
        let (connections, concurrency) = protocol.shape();
        let mut senders = Vec::new();
        for _ in 0..connections {
            let sender = Sender::connect(address, protocol).await?;
            match sender {
                Sender::Grpc(sender) => senders.extend((0..concurrency).map(|_| Sender::Grpc(sender.clone()))),
                Sender::Http1(_) => senders.push(sender),
            }
        }
        let shared = Rc::new(Shared::default());
        let tasks: Vec<_> =
            senders.into_iter().map(|sender| tokio::task::spawn_local(shared.clone().worker(sender, pace))).collect();
        if pace == Pace::Closed {
            tokio::time::sleep(WARM_UP).await;
        }
        shared.latencies.borrow_mut().clear();
        at_start()?;
        let began = Instant::now();
        match pace {
            Pace::Closed => tokio::time::sleep(MEASURED).await,
            Pace::Open => shared.arrivals(began).await?,
        }
        let lasted = began.elapsed();
        at_end()?;
        let mut latencies = shared.latencies.take();
        shared.end();
        for task in tasks {
            tokio::time::timeout(PATIENCE, task).await.context("a request got no answer")???;
        }
        latencies.extend(if pace == Pace::Open { shared.latencies.take() } else { vec![] });
        ensure!(!latencies.is_empty(), "no request was answered");
        latencies.sort_by(f64::total_cmp);
        Ok(Seen { lasted, latencies })
    })
}

/// How long `calls` calls to each address take, each on a connection of its own, one after the other; microseconds, from
/// connect to the last byte.
pub fn calls_on_new_connections(addresses: Vec<IpAddr>) -> anyhow::Result<Vec<f64>> {
    block_on(async move {
        let mut took = Vec::new();
        for address in addresses {
            let address = SocketAddr::new(address, Protocol::Http1.port());
            let began = Instant::now();
            Sender::connect(address, Protocol::Http1).await?.request().await?;
            took.push(micros(began.elapsed()));
        }
        Ok(took)
    })
}

/// Opens `count` connections, makes one request on each, and calls `then` while they are idle.
pub fn idle<T: 'static>(
    address: IpAddr,
    count: usize,
    then: impl FnOnce() -> anyhow::Result<T> + 'static,
) -> anyhow::Result<T> {
    block_on(async move {
        let address = SocketAddr::new(address, Protocol::Http1.port());
        let mut held = Vec::with_capacity(count);
        for _ in 0..count {
            let mut sender = Sender::connect(address, Protocol::Http1).await?;
            sender.request().await?;
            held.push(sender);
        }
        tokio::time::sleep(SETTLE).await;
        then()
    })
}

/// How long memory is left to settle before it is looked at. Chosen: buffers are let go within milliseconds.
const SETTLE: Duration = Duration::from_secs(1);

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// What the tasks of one figure share.
#[derive(Default)]
struct Shared {
    latencies: RefCell<Vec<f64>>,
    /// When requests are due that nobody has taken; open loop only.
    due: RefCell<VecDeque<Instant>>,
    arrived: Notify,
    ended: Cell<bool>,
}

impl Shared {
    async fn worker(self: Rc<Self>, mut sender: Sender, pace: Pace) -> anyhow::Result<()> {
        while let Some(due) = self.next(pace).await {
            sender.request().await?;
            self.latencies.borrow_mut().push(micros(due.elapsed()));
        }
        Ok(())
    }

    /// When the next request is or was due; nothing at the end.
    async fn next(&self, pace: Pace) -> Option<Instant> {
        loop {
            if pace == Pace::Closed {
                return (!self.ended.get()).then(Instant::now);
            }
            let due = self.due.borrow_mut().pop_front();
            if due.is_some() || self.ended.get() {
                return due;
            }
            self.arrived.notified().await;
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.arrived.notify_waiters();
    }

    /// Lets requests become due at [`RATE`] for [`MEASURED`]. By a timer of the kernel's: tokio's tick is 1 ms.
    async fn arrivals(&self, began: Instant) -> anyhow::Result<()> {
        let interval = Duration::from_secs(1) / RATE;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(Expiration::Interval(TimeSpec::from_duration(interval)), TimerSetTimeFlags::empty())?;
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd keeps what that asks for")]
        let timer = AsyncFd::new(OwnedFd::from(timer))?;
        let total = MEASURED.as_nanos() / interval.as_nanos();
        let mut sent = 0;
        while sent < total {
            let mut ready = timer.readable().await?;
            let mut expirations = [0; 8];
            let read = ready.try_io(|timer| Ok(nix::unistd::read(timer.get_ref(), &mut expirations)?));
            if read.is_err() {
                continue; // not due after all
            }
            for _ in 0..u64::from_ne_bytes(expirations) {
                sent += 1;
                // Below 2^32: two seconds' worth.
                self.due.borrow_mut().push_back(began + interval * sent as u32);
                self.arrived.notify_one();
            }
        }
        Ok(())
    }
}

/// One connection, or one of those who share it.
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Grpc(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn connect(address: SocketAddr, protocol: Protocol) -> anyhow::Result<Self> {
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await.context("connecting")??;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::task::spawn_local(connection);
                Ok(Self::Http1(sender))
            }
            Protocol::Grpc => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::task::spawn_local(connection);
                Ok(Self::Grpc(sender))
            }
        }
    }

    /// One request and its whole answer, which must be the right one.
    async fn request(&mut self) -> anyhow::Result<()> {
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                let request = Request::get("/").header("host", "origin.bench").body(Full::default())?;
                sender.send_request(request).await?
            }
            Self::Grpc(sender) => {
                let request = Request::builder()
                    .method(Method::POST)
                    .uri("http://origin.bench/bench.Origin/Call")
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(Full::from(grpc_message(REQUEST_MESSAGE)))?;
                sender.send_request(request).await?
            }
        };
        let status = response.status();
        let cause = response.headers().get("x-heddle-error").cloned();
        let body = response.into_body().collect().await?;
        let grpc_status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        let len = body.to_bytes().len();
        ensure!(status == StatusCode::OK, "status {status} ({cause:?})");
        match self {
            Self::Http1(_) => ensure!(len == BODY, "{len} bytes"),
            Self::Grpc(_) => {
                ensure!(len == BODY + 5 && grpc_status.as_ref().is_some_and(|code| code == "0"), "{grpc_status:?}");
            }
        }
        Ok(())
    }
}
