//! Peak EWMA latency of one endpoint as one worker sees it (Finagle's `PeakEwma`): a slower answer counts at once,
//! faster ones bring the average down only with time.

use std::time::{Duration, Instant};

/// Time constant of the decay. Finagle and Linkerd choose 10 s; but then an endpoint whose one answer was a hundred times
/// slower, as a cold start's is, is shunned for three quarters of a minute.
const DECAY: Duration = Duration::from_secs(2);
/// Cost of an endpoint that has requests in flight but has never answered: above any answer that is not a timeout.
const UNKNOWN_NANOS: f64 = 1e9;

/// Load of one endpoint.
#[derive(Debug, Default, Clone, Copy)]
pub struct Load {
    /// Requests begun and not ended.
    pub in_flight: u32,
    average_nanos: f64,
    observed: Option<Instant>,
}

impl Load {
    /// Takes in the latency of one answer.
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        let sample = latency.as_nanos() as f64;
        let decayed = self.decayed(now);
        self.average_nanos = if sample > decayed {
            sample
        } else {
            let keep = self.keep(now);
            self.average_nanos * keep + sample * (1.0 - keep)
        };
        self.observed = Some(now);
    }

    /// Expected wait, in nanoseconds; 0 for an endpoint nothing is known of and nothing was sent to.
    pub fn cost(&self, now: Instant) -> f64 {
        let average = if self.observed.is_some() { self.decayed(now) } else { 0.0 };
        match (self.in_flight, self.observed) {
            (0, _) => average,
            (n, None) => UNKNOWN_NANOS * f64::from(n),
            (n, Some(_)) => average * f64::from(n + 1),
        }
    }

    fn decayed(&self, now: Instant) -> f64 {
        self.average_nanos * self.keep(now)
    }

    fn keep(&self, now: Instant) -> f64 {
        let Some(observed) = self.observed else { return 0.0 };
        let age = now.saturating_duration_since(observed);
        (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_slowly() {
        let start = Instant::now();
        let mut load = Load::default();
        load.observe(Duration::from_millis(1), start);
        load.observe(Duration::from_millis(100), start);
        assert_eq!(load.cost(start), 1e8);
        load.observe(Duration::from_millis(1), start);
        assert!(load.cost(start) > 9.9e7, "one fast answer does not undo it");
        assert!(load.cost(start + 3 * DECAY) < 1e7);
    }

    #[test]
    fn requests_in_flight_multiply_the_cost() {
        let now = Instant::now();
        let mut load = Load::default();
        load.observe(Duration::from_millis(1), now);
        load.in_flight = 3;
        assert_eq!(load.cost(now), 4e6);
    }
}
