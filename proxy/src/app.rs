//! Builds a sidecar once, in order, top to bottom.

use std::sync::Arc;
use std::time::Instant;

use crate::applications::Applications;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::tables::{self, Tables};
use crate::upstream::Dialer;
use crate::worker::{self, Listeners, Shared};
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
}

/// Starts workers and admin server in the network namespace of the calling thread, with `tables` in force.
///
/// # Errors
/// If a port is taken or a thread cannot be made.
pub fn start(config: Config, tables: Tables) -> Result<Arc<Shared>, Error> {
    let shared = Arc::new(Shared {
        dialer: Dialer { mark: config.mark },
        tables: tables::Store::new(tables),
        metrics: Metrics::new()?,
        applications: Applications::default(),
        started: Instant::now(),
        config,
    });
    for index in 0..shared.config.worker_count() {
        let listeners =
            Listeners { outbound: bind(shared.config.outbound_port)?, inbound: bind(shared.config.inbound_port)? };
        worker::start(index, shared.clone(), listeners)?;
    }
    admin::start(shared.clone())?;
    Ok(shared)
}

fn bind(port: u16) -> Result<Vec<std::net::TcpListener>, Error> {
    listen::bind(port).map_err(|source| Error::Bind { port, source })
}
