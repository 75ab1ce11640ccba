//! Outlier detection: an endpoint that keeps failing is left out for a while.
//!
//! State belongs to the process: every worker reports, every worker sees the ejection. Pure in `now`.

mod statistics;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;

pub use statistics::Statistics;

use crate::tables::Millis;
use crate::tables::cluster::{Cluster, Endpoint};

/// When an endpoint is ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row (5xx, connection failures, timeouts) that eject; 0: none do.
    pub consecutive_failures: u32,
    /// Gateway errors in a row (502, 503, 504, connection failures, timeouts) that eject; 0: none do.
    pub consecutive_gateway_errors: u32,
    /// Failures without a response in a row that eject, and then count for nothing else; 0: they count as failures.
    pub consecutive_local_origin_failures: u32,
    /// How an endpoint is told by comparison; `None`: it is not.
    pub statistics: Option<Statistics>,
    /// Length of the first ejection; the n-th in a row is n times as long.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// Most endpoints out at once, in percent of those that take requests.
    pub max_ejected_percent: u32,
}

/// Envoy's and Istio's counts and times; half the endpoints may go (Envoy: 10 %, which for three endpoints is none).
impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            consecutive_gateway_errors: 0,
            consecutive_local_origin_failures: 0,
            statistics: None,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
        }
    }
}

/// What became of a request or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer that is no failure.
    Good,
    /// 5xx, but no gateway error.
    ServerError,
    /// 502, 503 or 504.
    GatewayError,
    /// None: the connection could not be made or broke, or time was over.
    NoResponse,
}

impl Outcome {
    /// Of a response.
    pub fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Self::GatewayError
            }
            _ if status.is_server_error() => Self::ServerError,
            _ => Self::Good,
        }
    }
}

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detector {
    /// Failures in a row.
    ConsecutiveFailures,
    /// Gateway errors in a row.
    GatewayErrors,
    /// Failures without a response in a row.
    LocalOriginFailures,
    /// Fewer good answers than others.
    SuccessRate,
    /// Slower answers than others.
    Latency,
}

impl Detector {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::GatewayErrors => "gateway_errors",
            Self::LocalOriginFailures => "local_origin_failures",
            Self::SuccessRate => "success_rate",
            Self::Latency => "latency",
        }
    }
}

/// An endpoint that has just been ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    /// Which.
    pub endpoint: SocketAddr,
    /// Why.
    pub detector: Detector,
}

/// What is known of one endpoint's failures.
#[derive(Debug, Default)]
pub struct State {
    failures: AtomicU32,
    gateway_errors: AtomicU32,
    local_origin_failures: AtomicU32,
    ejections: AtomicU32,
    /// [`Millis`]; 0: not ejected.
    ejected_until: AtomicU64,
    window: statistics::Window,
}

impl State {
    /// Whether the endpoint is ejected now.
    pub fn ejected(&self, now: Millis) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now.0
    }

    /// How long it still is.
    pub fn ejected_for(&self, now: Millis) -> Duration {
        Duration::from_millis(self.ejected_until.load(Ordering::Relaxed).saturating_sub(now.0))
    }
}

/// What became of a request at `endpoint`, and how long its answer took; returns who is ejected now.
pub fn note(
    cluster: &Cluster,
    endpoint: &Endpoint,
    outcome: Outcome,
    latency: Option<Duration>,
    now: Millis,
) -> Vec<Ejected> {
    let Some(settings) = &cluster.settings.outlier else { return Vec::new() };
    let consecutive = in_a_row(settings, &endpoint.state.outlier, outcome);
    let consecutive = consecutive.filter(|_| eject(cluster, settings, endpoint, now));
    let mut ejected: Vec<_> =
        consecutive.map(|detector| Ejected { endpoint: endpoint.address, detector }).into_iter().collect();
    if let Some(statistics) = &settings.statistics {
        if outcome != Outcome::NoResponse || settings.consecutive_local_origin_failures == 0 {
            endpoint.state.outlier.window.note(outcome == Outcome::Good, latency);
        }
        ejected.extend(statistics::evaluate(cluster, settings, statistics, now));
    }
    ejected
}

/// Counts, and says which count has reached its limit.
fn in_a_row(settings: &Settings, state: &State, outcome: Outcome) -> Option<Detector> {
    let split = settings.consecutive_local_origin_failures > 0;
    if outcome == Outcome::NoResponse && split {
        let full = one_more(&state.local_origin_failures, settings.consecutive_local_origin_failures);
        return full.then_some(Detector::LocalOriginFailures);
    }
    clear(&state.local_origin_failures);
    if outcome == Outcome::Good {
        clear(&state.failures);
        clear(&state.gateway_errors);
        if state.ejections.load(Ordering::Relaxed) != 0 && state.ejected_until.load(Ordering::Relaxed) == 0 {
            state.ejections.store(0, Ordering::Relaxed);
        }
        return None;
    }
    let gateway = match outcome {
        Outcome::ServerError => {
            clear(&state.gateway_errors);
            false
        }
        _ => one_more(&state.gateway_errors, settings.consecutive_gateway_errors),
    };
    let any = one_more(&state.failures, settings.consecutive_failures);
    if gateway { Some(Detector::GatewayErrors) } else { any.then_some(Detector::ConsecutiveFailures) }
}

fn one_more(count: &AtomicU32, limit: u32) -> bool {
    limit > 0 && count.fetch_add(1, Ordering::Relaxed) + 1 >= limit
}

/// Written only if it changes: most requests are good, and all workers share it.
fn clear(count: &AtomicU32) {
    if count.load(Ordering::Relaxed) != 0 {
        count.store(0, Ordering::Relaxed);
    }
}

/// Ejects `endpoint`; false if that would be too many, or it is out already.
fn eject(cluster: &Cluster, settings: &Settings, endpoint: &Endpoint, now: Millis) -> bool {
    if !may_eject(cluster, settings) {
        return false;
    }
    let state = &endpoint.state.outlier;
    let times = state.ejections.load(Ordering::Relaxed).saturating_add(1);
    let length = settings.base_ejection.saturating_mul(times).min(settings.max_ejection);
    let until = now.0.saturating_add(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)).max(1);
    // Only the worker that changes it from 0 ejects, so that the count stays true.
    if state.ejected_until.compare_exchange(0, until, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return false;
    }
    for count in [&state.failures, &state.gateway_errors, &state.local_origin_failures] {
        clear(count);
    }
    state.ejections.store(times, Ordering::Relaxed);
    cluster.state.ejected.fetch_add(1, Ordering::Relaxed);
    true
}

fn may_eject(cluster: &Cluster, settings: &Settings) -> bool {
    let active = cluster.endpoints.load().active().len() as u64;
    let after = u64::from(cluster.state.ejected.load(Ordering::Relaxed)) + 1;
    after * 100 <= active * u64::from(settings.max_ejected_percent)
}

/// Whether the endpoint is ejected. Ends an ejection whose time is over.
pub(super) fn still_ejected(cluster: &Cluster, endpoint: &Endpoint, now: Millis) -> bool {
    let until = &endpoint.state.outlier.ejected_until;
    let value = until.load(Ordering::Relaxed);
    if value == 0 {
        return false;
    }
    if value > now.0 {
        return true;
    }
    if until.compare_exchange(value, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        forget_ejection(cluster);
    }
    false
}

/// An ejected endpoint left the cluster, or its ejection ended.
pub fn forget_ejection(cluster: &Cluster) {
    let ejected = &cluster.state.ejected;
    // Never below zero, whatever order endpoints and counts change in.
    let _ = ejected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(1)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::healthy;
    use crate::balance::tests::cluster_of;
    use crate::tables::cluster;

    fn cluster(endpoints: u16) -> Cluster {
        cluster_with(endpoints, Settings::default())
    }

    fn cluster_with(endpoints: u16, outlier: Settings) -> Cluster {
        let settings = cluster::Settings { outlier: Some(outlier), ..cluster::Settings::default() };
        cluster_of(settings, &vec![1; usize::from(endpoints)])
    }

    fn report(cluster: &Cluster, index: usize, outcome: Outcome, now: u64) -> Vec<Ejected> {
        note(cluster, &cluster.endpoints.load().endpoints[index], outcome, None, Millis(now))
    }

    fn fail(cluster: &Cluster, index: usize, times: usize, now: u64) -> Vec<bool> {
        (0..times).map(|_| !report(cluster, index, Outcome::ServerError, now).is_empty()).collect()
    }

    fn healthy_at(cluster: &Cluster, now: u64) -> usize {
        let ejected = |endpoint: &Endpoint| still_ejected(cluster, endpoint, Millis(now));
        healthy(cluster, cluster.endpoints.load().active(), ejected).len()
    }

    #[test]
    fn five_failures_in_a_row_eject_and_a_success_between_them_does_not() {
        let cluster = cluster(2);
        assert_eq!(fail(&cluster, 0, 4, 1), [false; 4]);
        report(&cluster, 0, Outcome::Good, 1);
        assert_eq!(fail(&cluster, 0, 5, 1), [false, false, false, false, true]);
        assert_eq!(healthy_at(&cluster, 2), 1);
    }

    #[test]
    fn the_second_ejection_lasts_twice_as_long() {
        let cluster = cluster(2);
        fail(&cluster, 0, 5, 0);
        assert_eq!(healthy_at(&cluster, 29_999), 1);
        assert_eq!(healthy_at(&cluster, 30_000), 2);
        fail(&cluster, 0, 5, 30_000);
        assert_eq!(healthy_at(&cluster, 89_999), 1);
        assert_eq!(healthy_at(&cluster, 90_000), 2);
    }

    #[test]
    fn no_more_than_half_are_ejected_and_the_only_one_never() {
        let three = cluster(3);
        assert!(fail(&three, 0, 5, 0)[4]);
        assert!(!fail(&three, 1, 5, 0)[4]);
        assert!(!fail(&cluster(1), 0, 5, 0)[4]);
    }

    #[test]
    fn gateway_errors_and_failures_without_a_response_have_counts_of_their_own() {
        let settings = Settings {
            consecutive_failures: 0,
            consecutive_gateway_errors: 3,
            consecutive_local_origin_failures: 2,
            max_ejected_percent: 100,
            ..Settings::default()
        };
        let cluster = cluster_with(2, settings);
        let detectors = |index, outcomes: &[Outcome]| {
            let ejected = outcomes.iter().flat_map(|outcome| report(&cluster, index, *outcome, 1));
            ejected.map(|ejected| ejected.detector).collect::<Vec<_>>()
        };
        use Outcome::{GatewayError, Good, NoResponse, ServerError};
        assert_eq!(detectors(0, &[ServerError, ServerError, ServerError, ServerError, ServerError, ServerError]), []);
        assert_eq!(detectors(0, &[GatewayError, GatewayError, ServerError, GatewayError, GatewayError]), []);
        assert_eq!(
            detectors(0, &[NoResponse, GatewayError]),
            [Detector::GatewayErrors],
            "no response counts for itself"
        );
        assert_eq!(detectors(1, &[NoResponse, Good, NoResponse]), []);
        assert_eq!(detectors(1, &[NoResponse]), [Detector::LocalOriginFailures]);
    }

    fn compared(success_rate_stdev_factor: Option<u32>, latency_percent: Option<u32>) -> Cluster {
        let statistics = Statistics {
            interval: Duration::from_secs(10),
            minimum_hosts: 4,
            request_volume: 10,
            success_rate_stdev_factor,
            latency_percent,
        };
        cluster_with(5, Settings { consecutive_failures: 0, statistics: Some(statistics), ..Settings::default() })
    }

    /// Ten requests to each of so many endpoints in the first interval, and one after it.
    fn interval(cluster: &Cluster, endpoints: usize, of: impl Fn(usize, u64) -> (Outcome, u64)) -> Vec<Ejected> {
        let set = cluster.endpoints.load();
        let mut ejected = Vec::new();
        for (index, endpoint) in set.endpoints.iter().take(endpoints).enumerate() {
            for request in 0..10 {
                let (outcome, millis) = of(index, request);
                ejected.extend(note(cluster, endpoint, outcome, Some(Duration::from_millis(millis)), Millis(1)));
            }
        }
        assert_eq!(ejected, []);
        note(cluster, &set.endpoints[0], Outcome::Good, None, Millis(10_001))
    }

    #[test]
    fn who_fails_far_more_often_than_others_is_ejected_at_the_end_of_the_interval() {
        let some = |index: usize, request| {
            let failing = request < if index == 3 { 6 } else { index as u64 % 2 };
            (if failing { Outcome::ServerError } else { Outcome::Good }, 1)
        };
        let ejected = interval(&compared(Some(1900), None), 5, some);
        let expected = Ejected { endpoint: ([10, 0, 0, 1], 4).into(), detector: Detector::SuccessRate };
        assert_eq!(ejected, [expected]);
        assert_eq!(interval(&compared(Some(1900), None), 3, some), [], "too few to compare");
        assert_eq!(interval(&compared(Some(1900), None), 5, |_, _| (Outcome::ServerError, 1)), [], "all fail alike");
    }

    #[test]
    fn who_is_slower_than_the_median_by_the_factor_is_ejected() {
        let millis = |index: usize, _| (Outcome::Good, [10, 12, 37, 9, 35][index]);
        let ejected = interval(&compared(None, Some(300)), 5, millis);
        let expected = Ejected { endpoint: ([10, 0, 0, 1], 3).into(), detector: Detector::Latency };
        assert_eq!(ejected, [expected]);
    }
}
