//! Latencies by their size, added to by many at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Counts by microseconds: exact below 16, then sixteen classes for each doubling, so a class is 6 % wide at most.
#[derive(Debug)]
pub(super) struct Histogram {
    classes: Box<[AtomicU32]>,
    count: AtomicU32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { classes: (0..CLASSES).map(|_| AtomicU32::new(0)).collect(), count: AtomicU32::new(0) }
    }
}

impl Histogram {
    /// Adds one; what is longer than the last class is of it.
    pub(super) fn add(&self, latency: Duration) {
        let class = class_of(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        if let Some(count) = self.classes.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were added.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// The least of the class in which the middle one is; at least a microsecond. `None`: there are none.
    pub(super) fn median(&self) -> Option<Duration> {
        let counts: Vec<u32> = self.classes.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let mut before = 0;
        let class = counts.iter().position(|count| {
            before += u64::from(*count);
            before * 2 > all
        })?;
        Some(Duration::from_micros(least_of(class).max(1)))
    }

    /// None were added. What is added meanwhile may be lost.
    pub(super) fn clear(&self) {
        self.classes.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        self.count.store(0, Ordering::Relaxed);
    }
}

fn class_of(micros: u32) -> usize {
    let doubling = micros.checked_ilog2().unwrap_or(0).saturating_sub(PRECISION);
    let within = micros >> doubling;
    (doubling << PRECISION).saturating_add(within) as usize
}

fn least_of(class: usize) -> u64 {
    let (class, exact) = (class as u64, 1 << PRECISION);
    if class < 2 * exact { class } else { (class % exact + exact) << (class / exact - 1) }
}

/// Bits of a number that tell its class.
const PRECISION: u32 = 4;
/// Of 32 bits.
const CLASSES: usize = (32 - PRECISION as usize + 1) << PRECISION;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_begins_where_its_least_is_and_is_narrow() {
        for micros in (0..2_000).chain([4_095, 4_096, 1_000_000, u32::MAX / 2, u32::MAX]) {
            let least = least_of(class_of(micros));
            assert!(least <= u64::from(micros), "{micros}");
            assert!(u64::from(micros) - least <= u64::from(micros) / 16, "{micros} is far from {least}");
            assert!(class_of(micros) < CLASSES);
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        let histogram = Histogram::default();
        assert_eq!(histogram.median(), None);
        for micros in [1, 2, 9, 9, 3_000_000_000] {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.median(), Some(Duration::from_micros(9)));
        histogram.clear();
        assert_eq!((histogram.count(), histogram.median()), (0, None));
    }
}
