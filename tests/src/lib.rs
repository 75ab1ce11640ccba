//! What the end-to-end tests share: pods on a fabric, sidecars with hand-written tables, origins and raw clients.
//!
//! Everything runs in this process; each pod's threads and sockets are in its own network namespace, and everything
//! is gone when the test ends. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a failed set-up fails the test"
)]

pub mod ads;
pub mod chart;
pub mod clients;
pub mod cluster;
pub mod envoy;
pub mod gate;
pub mod go;
pub mod h2c;
pub mod installed;
pub mod live;
pub mod meshed;
pub mod metrics;
pub mod origin;
pub mod pods;
pub mod programs;
pub mod pypi;
pub mod replica;
pub mod service;
pub mod stdout;
pub mod tables;
pub mod talk;
pub mod wire;

use std::time::{Duration, Instant};

/// How long a test waits for what must happen. Generous: only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until `found` finds something, or the test fails saying `what` did not happen.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "did not happen within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}
