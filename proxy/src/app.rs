//! Builds a sidecar once, in order, top to bottom.

use std::sync::Arc;
use std::time::Instant;

use crate::applications::Applications;
use crate::config::Config;
use crate::drain::Drain;
use crate::metrics::{AccessLog, Metrics, StartError};
use crate::probes::Probes;
use crate::tables::demand::Wishes;
use crate::tables::{self, Demand, Tables};
use crate::tls;
use crate::upstream::Dialer;
use crate::worker::{self, Listeners, PoolSizes, Shared};
use crate::{admin, listen};

/// Why a sidecar cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listening port is not to be had.
    #[error("cannot listen on port {port}: {source}; is another sidecar running in this network namespace?")]
    Bind {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A thread or its runtime cannot be made.
    #[error("cannot start a thread: {0}; is the limit of processes reached?")]
    Thread(#[from] std::io::Error),
    /// Two metrics of one name.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The access log cannot begin.
    #[error("cannot start the access log: {0}")]
    AccessLog(#[from] StartError),
}

/// A sidecar that runs.
pub struct Sidecar {
    /// What its parts share.
    pub shared: Arc<Shared>,
    /// Destinations that workers ask for; whoever fills the tables takes them.
    pub wishes: Wishes,
}

/// Starts workers and admin server in the network namespace of the calling thread, with `tables` in force.
///
/// # Errors
/// If a port is taken or a thread cannot be made.
pub fn start(config: Config, tables: Tables) -> Result<Sidecar, Error> {
    let metrics = Metrics::new()?;
    let (demand, wishes) = Demand::new();
    let workers = config.worker_count();
    let shared = Arc::new(Shared {
        dialer: Dialer { mark: config.mark, identity: tls::Current::default(), handshakes: metrics.handshakes.clone() },
        tables: tables::Store::new(tables),
        demand,
        xds: Arc::default(),
        drain: Drain::default(),
        access_log: AccessLog::start(config.access_log, metrics.registry())?,
        probes: Probes::new(config.probes.clone(), metrics.probes.clone()),
        metrics,
        applications: Applications::default(),
        pool_sizes: (0..workers).map(|_| PoolSizes::default()).collect(),
        started: Instant::now(),
        config,
    });
    for index in 0..workers {
        let listeners =
            Listeners { outbound: bind(shared.config.outbound_port)?, inbound: bind(shared.config.inbound_port)? };
        worker::start(index, shared.clone(), listeners)?;
    }
    admin::start(shared.clone())?;
    Ok(Sidecar { shared, wishes })
}

fn bind(port: u16) -> Result<Vec<std::net::TcpListener>, Error> {
    listen::bind(port).map_err(|source| Error::Bind { port, source })
}
