//! The graceful end of a sidecar.
//!
//! `heddle-proxy drain`, the pod's preStop hook, begins [`Phase::Draining`]: everything is still served, in both
//! directions, and every connection is told to go elsewhere (`Connection: close`, GOAWAY). SIGTERM begins
//! [`Phase::Terminating`]: nothing new is accepted, what is in flight is finished, then the process ends.

use tokio::sync::watch;

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not ending.
    Serving,
    /// Everything is served, and asked to go elsewhere.
    Draining,
    /// Only what is in flight is finished.
    Terminating,
}

/// The phase, seen by every worker.
#[derive(Debug)]
pub struct Drain(watch::Sender<Phase>);

impl Default for Drain {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Drain {
    /// How far the end has come.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
    }

    /// Waits until `phase` is reached.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        // Fails only when the sender is gone, and `self` is the sender.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }
}
