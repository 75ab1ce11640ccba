//! One single-threaded runtime per worker, and what workers share.
//!
//! A worker owns its listeners (SO_REUSEPORT), its pools and its latency averages, all without locks. What must be
//! true for the whole process — tables, breaker counts, outlier state, metrics — is in [`Shared`] or in the tables.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use crate::applications::Applications;
use crate::balance::Loads;
use crate::config::Config;
use crate::drain::{Drain, Phase};
use crate::http::error::Cause;
use crate::metrics::{AccessLog, AccessLogLine, Direction, Metrics, RequestCache, TcpCache};
use crate::probes::Probes;
use crate::tables::{Destination, Tables};
use crate::upstream::{Dialer, Pools};
use crate::{listen, tables};

/// How often a worker closes idle upstream connections whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What all workers share.
pub struct Shared {
    /// The bootstrap.
    pub config: Config,
    /// Written by the control thread, read by every request.
    pub tables: tables::Store,
    /// Recorded by workers, exposed by the control thread.
    pub metrics: Metrics,
    /// Clusters of the application's own ports.
    pub applications: Applications,
    /// How upstream sockets are made, and as whom.
    pub dialer: Dialer,
    /// Wishes for destinations that are not known yet.
    pub demand: tables::Demand,
    /// What happened between the control plane and this sidecar.
    pub xds: Arc<crate::sync::Counts>,
    /// How far the end has come.
    pub drain: Drain,
    /// Off by default.
    pub access_log: AccessLog,
    /// What the kubelet asks of the application through this sidecar.
    pub probes: Probes,
    /// Pool sizes by worker, for metrics.
    pub pool_sizes: Vec<PoolSizes>,
    /// Origin of [`tables::Millis`].
    pub started: Instant,
}

/// What one worker last said about its pools.
#[derive(Debug, Default)]
pub struct PoolSizes {
    /// HTTP/1 connections that lie idle.
    pub idle_http1: AtomicUsize,
    /// Open HTTP/2 connections.
    pub http2: AtomicUsize,
}

impl Shared {
    /// Milliseconds since the process began.
    pub fn now(&self) -> tables::Millis {
        tables::Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

impl Shared {
    /// A connection of `peer` to `original_dst`, if it is known, was closed unserved.
    pub fn refused(&self, direction: Direction, peer: SocketAddr, original_dst: Option<SocketAddr>, cause: Cause) {
        self.metrics.connections.refused(direction, cause);
        if self.access_log.is_on() {
            let mut line = AccessLogLine::refused(direction, peer, original_dst, cause);
            self.access_log.write(&mut line, Duration::ZERO);
        }
    }

    /// What is known of an original destination; asks the control plane if nobody has yet, and all that ask share the
    /// wait. `None`: there was no answer in time.
    pub async fn destination(&self, original_dst: SocketAddr) -> Option<Destination> {
        let find = |tables: &Tables| tables.outbound.get(&original_dst).cloned();
        if let Some(known) = find(&self.tables.load()) {
            return Some(known);
        }
        if !self.demand.ask(original_dst) {
            return None;
        }
        tokio::time::timeout(ANSWER_WAIT, self.tables.wait_for(find)).await.ok()
    }
}

/// How long a connection or request waits for the control plane's answer about its destination. Chosen: several round
/// trips and a reconnect; longer than that an application is better told.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// What belongs to one worker alone.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Idle upstream connections.
    pub pools: RefCell<Pools>,
    /// Latency and requests in flight, as this worker sees them.
    pub loads: RefCell<Loads>,
    /// For balancing, weights and jitter.
    pub rng: RefCell<fastrand::Rng>,
    /// Series of requests this worker has used lately.
    pub request_series: RefCell<RequestCache>,
    /// Series of opaque connections this worker has used lately.
    pub tcp_series: RefCell<TcpCache>,
}

impl Worker {
    /// The hand-out of a worker's state on its own thread.
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            pools: RefCell::default(),
            loads: RefCell::default(),
            rng: RefCell::new(fastrand::Rng::new()),
            request_series: RefCell::default(),
            tcp_series: RefCell::default(),
        })
    }

    /// Waits until only what is in flight is to be finished: a connection on which nothing was ever said is not.
    pub async fn ending(&self) {
        self.shared.drain.reached(Phase::Terminating).await;
    }
}

/// The listening sockets of one worker.
pub struct Listeners {
    /// Port 15001, both families.
    pub outbound: Vec<TcpListener>,
    /// Port 15006, both families.
    pub inbound: Vec<TcpListener>,
}

/// Starts a worker's thread. It runs until the process ends.
///
/// # Errors
/// If the thread or its runtime cannot be made.
pub fn start(index: usize, shared: Arc<Shared>, listeners: Listeners) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        LocalSet::new().block_on(&runtime, run(index, Worker::new(shared), listeners));
    })?;
    Ok(())
}

async fn run(index: usize, worker: Rc<Worker>, listeners: Listeners) {
    for listener in listeners.outbound {
        tokio::task::spawn_local(listen::outbound(worker.clone(), listener));
    }
    for listener in listeners.inbound {
        tokio::task::spawn_local(listen::inbound(worker.clone(), listener));
    }
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        sweep(index, &worker);
    }
}

fn sweep(index: usize, worker: &Worker) {
    let mut pools = worker.pools.borrow_mut();
    pools.sweep(Instant::now());
    if let Some(sizes) = worker.shared.pool_sizes.get(index) {
        let (idle_http1, http2) = pools.sizes();
        sizes.idle_http1.store(idle_http1, Ordering::Relaxed);
        sizes.http2.store(http2, Ordering::Relaxed);
    }
    let mut loads = worker.loads.borrow_mut();
    if loads.len() > MAX_IDLE_LOADS {
        // Averages of endpoints that nothing is sent to just now; they are learnt again.
        loads.retain(|_| false);
    }
}

/// Endpoints whose latency a worker remembers. Chosen: 64 octets each, and more endpoints than a workload calls.
const MAX_IDLE_LOADS: usize = 10_000;
