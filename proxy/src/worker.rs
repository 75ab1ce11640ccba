//! One single-threaded runtime per worker, and what workers share.
//!
//! A worker owns its listeners (SO_REUSEPORT), its pools and its latency averages, all without locks. What must be
//! true for the whole process — tables, breaker counts, outlier state, metrics — is in [`Shared`] or in the tables.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use crate::applications::Applications;
use crate::balance::{Loads, Millis};
use crate::config::Config;
use crate::metrics::{self, Metrics};
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
    /// How upstream sockets are made.
    pub dialer: Dialer,
    /// Origin of [`Millis`].
    pub started: Instant,
}

impl Shared {
    /// Milliseconds since the process began.
    pub fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

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
    /// Metric series this worker has used lately.
    pub series: RefCell<metrics::SeriesCache>,
}

impl Worker {
    /// The hand-out of a worker's state on its own thread.
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            pools: RefCell::default(),
            loads: RefCell::default(),
            rng: RefCell::new(fastrand::Rng::new()),
            series: RefCell::default(),
        })
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
        LocalSet::new().block_on(&runtime, run(Worker::new(shared), listeners));
    })?;
    Ok(())
}

async fn run(worker: Rc<Worker>, listeners: Listeners) {
    for listener in listeners.outbound {
        tokio::task::spawn_local(listen::outbound(worker.clone(), listener));
    }
    for listener in listeners.inbound {
        tokio::task::spawn_local(listen::inbound(worker.clone(), listener));
    }
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        worker.pools.borrow_mut().sweep(Instant::now());
    }
}
