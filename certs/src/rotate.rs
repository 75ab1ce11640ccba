//! When to renew a certificate, and when to try again after a failure. Pure arithmetic on the times passed in.
//!
//! Called by the sidecar's identity task, the agent, and the control plane for its own certificate.

use std::time::{Duration, SystemTime};

use crate::profile::BACKDATE;

/// When to ask for the next certificate: between half and two thirds of the life of the current one, `jitter` (0..1,
/// clamped) choosing where, so that sidecars started together do not ask together.
///
/// Life begins [`BACKDATE`] after `not_before`, when the certificate was really made: counted from `not_before`, half
/// the life of a 60-second leaf would already be over.
pub fn renew_at(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let made = (not_before + BACKDATE).min(not_after);
    let life = not_after.duration_since(made).unwrap_or_default();
    made + life.mul_f64(RENEW_FROM + (RENEW_UNTIL - RENEW_FROM) * unit(jitter))
}

/// How long to wait before try number `failures` + 1: exponential from one second to five minutes with full jitter
/// (0..1, clamped), and never more than a tenth of the time the certificate still has, so that a short-lived one gets
/// enough tries. Never under 100 ms.
pub fn retry_after(failures: u32, jitter: f64, now: SystemTime, not_after: SystemTime) -> Duration {
    let left = not_after.duration_since(now).unwrap_or_default();
    let ceiling = RETRY_FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(RETRY_MAX);
    let ceiling = if left.is_zero() { ceiling } else { ceiling.min(left / 10) };
    ceiling.mul_f64(unit(jitter)).max(RETRY_MIN)
}

/// NaN counts as 0, the earliest.
fn unit(jitter: f64) -> f64 {
    if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) }
}

/// Share of life at which renewal may begin. Chosen: leaves half the life for a control plane that is away.
const RENEW_FROM: f64 = 1.0 / 2.0;

/// Share of life at which renewal must have begun. Chosen: a third of the life remains for tries.
const RENEW_UNTIL: f64 = 2.0 / 3.0;

/// Upper end of the first wait. Chosen: a control plane that restarts is back within seconds.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Upper end of every wait. Chosen: a thousand sidecars then ask about seven times a second.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Lower end of every wait. Chosen: full jitter may come out as zero, and nobody should spin.
const RETRY_MIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_day_long_leaf_is_renewed_between_twelve_and_sixteen_hours() {
        let (made, end) = (1_000_000, 1_000_000 + 24 * 3600);
        assert_eq!(renew_at(at(made - 60), at(end), 0.0), at(made + 12 * 3600));
        let latest = renew_at(at(made - 60), at(end), 1.0).duration_since(at(made)).unwrap();
        assert_eq!(latest.as_secs_f64().round(), 16.0 * 3600.0);
    }

    #[test]
    fn a_sixty_second_leaf_is_not_renewed_at_once() {
        assert_eq!(renew_at(at(940), at(1060), 0.0), at(1030));
        assert!(renew_at(at(940), at(1060), 1.0) <= at(1041));
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        let far = at(10_000_000);
        let waits: Vec<u64> = (1..=10).map(|n| retry_after(n, 1.0, at(0), far).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(retry_after(u32::MAX, 1.0, at(0), far), RETRY_MAX);
    }

    #[test]
    fn waits_shrink_with_the_time_that_is_left() {
        assert_eq!(retry_after(9, 1.0, at(0), at(20)), Duration::from_secs(2));
        assert_eq!(retry_after(9, 1.0, at(21), at(20)), Duration::from_secs(256));
        assert_eq!(retry_after(1, f64::NAN, at(0), at(20)), RETRY_MIN);
    }

    proptest! {
        #[test]
        fn renewal_is_always_inside_the_life(begin in 0_u64..4_000_000_000, life in 0_u64..400_000_000, jitter: f64) {
            let (not_before, not_after) = (at(begin), at(begin + life));
            let renew = renew_at(not_before, not_after, jitter);
            prop_assert!(not_before <= renew && renew <= not_after);
        }
    }
}
