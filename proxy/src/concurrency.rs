//! How many requests are let in at once: a limit that follows the latency of the application. Pure: the time goes in.
//!
//! As long as the median latency is what it is without load, and a buffer, the limit grows by its square root; above, it shrinks by
//! as much as the latency has grown (Envoy's gradient controller, `envoy.filters.http.adaptive_concurrency`; Netflix,
//! "Performance Under Load", 2018). The latency without load is that of windows in which few requests were open. Where there are
//! none, the limit goes down to the minimum from time to time, for as few requests as a median needs.

mod histogram;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::histogram::Histogram;

/// Between what the limit stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest requests at once; at least 1.
    pub minimum: u32,
    /// Most; at least `minimum`.
    pub maximum: u32,
    /// By so much latencies may be above the one without load, in percent of it.
    pub buffer_percent: u32,
    /// After so long the latency without load is measured anew.
    pub interval: Duration,
}

/// The limit of one port.
#[derive(Debug)]
pub struct Controller {
    bounds: Bounds,
    limit: AtomicU32,
    open: AtomicU32,
    /// Most that were open in this window.
    peak: AtomicU32,
    /// Nanoseconds of the process; samples of requests that began before are of another window.
    since: AtomicU64,
    latencies: Histogram,
    round: Mutex<Round>,
}

/// What only one at a time may change.
#[derive(Debug, Default)]
struct Round {
    /// Latency without load; `None`: never measured.
    unloaded: Option<Duration>,
    /// When it is to be measured anew.
    measure_at: Duration,
    /// While it is measured: the limit before.
    before: Option<u32>,
}

/// A request that was let in. Dropped without [`Place::done`] it says nothing of latency.
#[derive(Debug)]
pub struct Place {
    controller: Arc<Controller>,
    began: Duration,
}

impl Controller {
    /// Nothing measured yet: the limit is the maximum.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            limit: AtomicU32::new(bounds.maximum),
            open: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            since: AtomicU64::new(0),
            latencies: Histogram::default(),
            round: Mutex::default(),
        }
    }

    /// What it was made with.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Most requests that may be open now.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Requests that are open now.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Lets a request in, at `now` after the process began; `None`: there are too many.
    pub fn enter(self: &Arc<Self>, now: Duration) -> Option<Place> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let place = Place { controller: self.clone(), began: now };
        if before >= self.limit() {
            return None;
        }
        self.peak.fetch_max(before + 1, Ordering::Relaxed);
        Some(place)
    }

    fn note(&self, began: Duration, now: Duration) {
        if nanos(began) < self.since.load(Ordering::Relaxed) {
            return;
        }
        self.latencies.add(now.saturating_sub(began));
        let length = now.saturating_sub(Duration::from_nanos(self.since.load(Ordering::Relaxed)));
        // Who does not get it leaves the step to whoever has it.
        if length >= WINDOW
            && self.latencies.count() >= FEWEST
            && let Ok(mut round) = self.round.try_lock()
        {
            self.step(&mut round, now, length);
        }
    }

    /// The window has ended; another may just have ended it.
    fn step(&self, round: &mut Round, now: Duration, length: Duration) {
        let Some(median) = self.latencies.median() else { return };
        let calm = self.peak.load(Ordering::Relaxed) <= self.bounds.minimum;
        if let Some(before) = round.before {
            if self.latencies.count() < MEASURED && length < PATIENCE {
                return;
            }
            round.before = None;
            self.limit.store(before, Ordering::Relaxed);
            self.measured(round, median, now);
        } else if calm {
            self.measured(round, median, now);
        } else if round.unloaded.is_none() || now >= round.measure_at {
            round.before = Some(self.limit());
            self.limit.store(self.bounds.minimum, Ordering::Relaxed);
        }
        if let (Some(unloaded), None) = (round.unloaded, round.before) {
            self.limit.store(self.followed(unloaded, median), Ordering::Relaxed);
        }
        self.latencies.clear();
        self.peak.store(self.open(), Ordering::Relaxed);
        self.since.store(nanos(now), Ordering::Relaxed);
    }

    fn measured(&self, round: &mut Round, median: Duration, now: Duration) {
        round.unloaded = Some(median);
        round.measure_at = now.saturating_add(self.bounds.interval);
    }

    /// The next limit.
    fn followed(&self, unloaded: Duration, median: Duration) -> u32 {
        let wanted = unloaded.as_secs_f64() * (1.0 + f64::from(self.bounds.buffer_percent) / 100.0);
        let gradient = (wanted / median.as_secs_f64().max(f64::MIN_POSITIVE)).clamp(0.5, 2.0);
        let next = f64::from(self.limit()) * gradient;
        let next = next + next.sqrt();
        // A float as an integer saturates.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let next = next as u32;
        next.clamp(self.bounds.minimum, self.bounds.maximum)
    }
}

impl Place {
    /// The response has ended, at `now` after the process began.
    pub fn done(self, now: Duration) {
        self.controller.note(self.began, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.controller.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Between two steps of the limit, at least. Envoy's `concurrency_update_interval` in its examples.
const WINDOW: Duration = Duration::from_millis(100);
/// Samples of which a median is taken. Chosen: of fewer it jumps.
const FEWEST: u32 = 10;
/// Samples of a measurement at the minimum. Envoy's `request_count`.
const MEASURED: u32 = 50;
/// Longest such measurement. Chosen: an application whose answers take seconds should not be held at the minimum for minutes.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
