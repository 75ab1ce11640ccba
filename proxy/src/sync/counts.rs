//! What happened between the control plane and this sidecar, as plain numbers that metrics read. Written by
//! [`super::assemble`] and [`super::driver`] only.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use heddle_xds::resource::Kind;

/// Counters begin at 0 with the process; gauges say what is now.
#[derive(Debug, Default)]
pub struct Counts {
    kinds: [KindCounts; 4],
    /// Gauge: original destinations subscribed to.
    pub destinations: AtomicU64,
    /// Counter: new destinations that met a full list; the least used one that does not exist made room, or the new one
    /// was left unasked.
    pub limit_hits: AtomicU64,
    /// Counter: destinations unsubscribed because nobody used them.
    pub unused: AtomicU64,
    /// Counter: listeners and route tables put in force before everything they name had arrived.
    pub partial: AtomicU64,
    /// Gauge: whether a stream to a control plane is open.
    pub connected: AtomicBool,
    /// Counter: streams and attempts that failed.
    pub disconnects: AtomicU64,
}

/// Counts of one kind of resource.
#[derive(Debug, Default)]
pub struct KindCounts {
    /// Counter: responses accepted whole.
    pub ack: AtomicU64,
    /// Counter: responses of which something was refused.
    pub nack: AtomicU64,
    /// Gauge: resources held.
    pub held: AtomicU64,
    /// Gauge: a hash over names and versions of all that is held; equal in two sidecars that hold the same.
    pub version: AtomicU32,
}

impl Counts {
    /// The counts of one kind.
    pub fn of(&self, kind: Kind) -> &KindCounts {
        match kind {
            Kind::Cluster => &self.kinds[0],
            Kind::Endpoints => &self.kinds[1],
            Kind::Listener => &self.kinds[2],
            Kind::Route => &self.kinds[3],
        }
    }
}

/// One more of what a counter counts.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
