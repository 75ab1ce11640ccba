//! How many requests are let in. Pure: the time goes in, and whether there is room comes out.
//!
//! A bucket is one number, the time at which it is full again (ATM Forum TM 4.0, generic cell rate algorithm): requests come back
//! evenly, nothing is to be filled at times, and what belongs to the whole process needs no more than an atomic.

pub mod wire;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How much room a bucket has and how fast it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds after which one more request has room.
    interval: u64,
    /// Nanoseconds that a bucket may be away from full, and still take one more.
    tolerance: u64,
}

/// Whether there is room for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There was; it is taken.
    Taken,
    /// After so long there will be.
    After(Duration),
}

/// The buckets of one limit.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    /// Of requests without a value, or of all.
    common: Bucket,
    /// Of values for which there is no place among `by_value`.
    rest: Bucket,
    by_value: Mutex<ByValue>,
    hasher: RandomState,
}

/// When it is full again, in nanoseconds since the process began.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

/// By the hash of a value, because values are as long as clients like; an absent bucket is a full one.
#[derive(Debug, Default)]
struct ByValue {
    full_at: HashMap<u64, u64>,
    swept: u64,
}

impl Rate {
    /// `requests` within `per`, `burst` of them at once; a bucket for 0 requests takes none after its first ones.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Self {
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let interval = per.checked_div(requests.into()).unwrap_or(u64::MAX);
        Self { interval, tolerance: interval.saturating_mul(burst.saturating_sub(1).into()) }
    }

    /// When a bucket is full again if it gives room `now`, or how many nanoseconds that takes.
    fn take(self, full_at: u64, now: u64) -> Result<u64, u64> {
        let full_at = full_at.max(now);
        let missing = full_at - now;
        if missing > self.tolerance { Err(missing - self.tolerance) } else { Ok(full_at.saturating_add(self.interval)) }
    }
}

impl Bucket {
    fn take(&self, rate: Rate, now: u64) -> Result<u64, u64> {
        let mut full_at = self.0.load(Ordering::Relaxed);
        loop {
            let next = rate.take(full_at, now)?;
            match self.0.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(next),
                Err(changed) => full_at = changed,
            }
        }
    }
}

impl Buckets {
    /// All full.
    pub fn new(rate: Rate) -> Self {
        let (common, rest) = (Bucket::default(), Bucket::default());
        Self { rate, common, rest, by_value: Mutex::default(), hasher: RandomState::new() }
    }

    /// The rate of each.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes room for one request with `value`, at `now` after the process began. True if so many values are about that this one
    /// shares a bucket with others.
    pub fn take(&self, value: Option<&[u8]>, now: Duration) -> (Room, bool) {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let (taken, crowded) = match value {
            None => (self.common.take(self.rate, now), false),
            Some(value) => match self.of_value(self.hasher.hash_one(value), now) {
                Some(taken) => (taken, false),
                None => (self.rest.take(self.rate, now), true),
            },
        };
        let room = match taken {
            Ok(_) => Room::Taken,
            Err(wait) => Room::After(Duration::from_nanos(wait)),
        };
        (room, crowded)
    }

    /// How long a request with `value` would have to wait at `now`; `None`: there is room. Takes nothing.
    pub fn wait(&self, value: Option<&[u8]>, now: Duration) -> Option<Duration> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let full_at = match value {
            None => self.common.0.load(Ordering::Relaxed),
            Some(value) => {
                let by_value = self.by_value.lock().unwrap_or_else(PoisonError::into_inner);
                match by_value.full_at.get(&self.hasher.hash_one(value)) {
                    Some(full_at) => *full_at,
                    None if by_value.full_at.len() < MAX_VALUES => 0,
                    None => self.rest.0.load(Ordering::Relaxed),
                }
            }
        };
        self.rate.take(full_at, now).err().map(Duration::from_nanos)
    }

    /// `None`: there is no place for one more value.
    fn of_value(&self, value: u64, now: u64) -> Option<Result<u64, u64>> {
        let mut by_value = self.by_value.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(full_at) = by_value.full_at.get_mut(&value) {
            let taken = self.rate.take(*full_at, now);
            *full_at = taken.unwrap_or(*full_at);
            return Some(taken);
        }
        if by_value.full_at.len() >= MAX_VALUES && by_value.swept.saturating_add(SWEEP_EVERY) <= now {
            by_value.swept = now;
            by_value.full_at.retain(|_, full_at| *full_at > now);
        }
        if by_value.full_at.len() >= MAX_VALUES {
            return None;
        }
        let taken = self.rate.take(0, now);
        by_value.full_at.insert(value, taken.unwrap_or_default());
        Some(taken)
    }
}

/// Values of one limit that are not full, at a time. Chosen: some 0.5 MiB; a client that invents values gets no new bucket for each.
const MAX_VALUES: usize = 16_384;
/// Nanoseconds between walks over all values of a limit that has no place. Chosen: they take a tenth of a millisecond.
const SWEEP_EVERY: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn taken(buckets: &Buckets, value: Option<&[u8]>, now: Duration) -> bool {
        buckets.take(value, now).0 == Room::Taken
    }

    #[test]
    fn a_burst_is_taken_at_once_and_comes_back_evenly() {
        let buckets = Buckets::new(Rate::new(10, SECOND, 3));
        let now = Duration::from_secs(50);
        assert_eq!((0..5).filter(|_| taken(&buckets, None, now)).count(), 3);
        assert_eq!(buckets.take(None, now).0, Room::After(SECOND / 10));
        assert_eq!(buckets.wait(None, now), Some(SECOND / 10));
        assert_eq!(buckets.wait(None, now + SECOND / 10), None);
        assert!(taken(&buckets, None, now + SECOND / 10));
        assert!(!taken(&buckets, None, now + SECOND / 10));
        assert_eq!((0..9).filter(|_| taken(&buckets, None, now + SECOND)).count(), 3, "no more than the burst");
    }

    #[test]
    fn each_value_has_a_bucket_and_those_without_share_one() {
        let buckets = Buckets::new(Rate::new(1, SECOND, 1));
        for value in [Some(&b"a"[..]), Some(b"b"), None] {
            assert!(taken(&buckets, value, SECOND));
            assert!(!taken(&buckets, value, SECOND));
        }
    }

    #[test]
    fn who_invents_values_gets_no_new_bucket_for_each() {
        let buckets = Buckets::new(Rate::new(1, SECOND, 1));
        for value in 0..MAX_VALUES {
            assert_eq!(buckets.take(Some(&value.to_be_bytes()), SECOND), (Room::Taken, false));
        }
        assert_eq!(buckets.take(Some(b"one more"), SECOND), (Room::Taken, true));
        assert!(!taken(&buckets, Some(b"and another"), SECOND));
        assert_eq!(buckets.take(Some(b"later"), SECOND * 3), (Room::Taken, false), "full buckets made room");
    }

    #[test]
    fn a_limit_holds_however_many_take_at_once() {
        let buckets = Buckets::new(Rate::new(1, Duration::from_secs(3600), 1_000));
        let count = || (0..1_000).filter(|_| taken(&buckets, None, SECOND)).count();
        let all: usize = std::thread::scope(|scope| {
            let takers = [(); 4].map(|()| scope.spawn(count));
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!(all, 1_000);
    }
}
