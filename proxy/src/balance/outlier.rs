//! Outlier detection: an endpoint that keeps failing is left out for a while.
//!
//! State belongs to the process: every worker reports, every worker sees the ejection. Pure in `now`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::tables::Millis;
use crate::tables::cluster::{Cluster, Endpoint};

/// When an endpoint is ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row (5xx, connection failures, timeouts) that eject.
    pub consecutive_failures: u32,
    /// Length of the first ejection; the n-th in a row is n times as long.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// Most endpoints out at once, in percent of those that take requests.
    pub max_ejected_percent: u32,
    /// Below this share of healthy endpoints, in percent, ejections are ignored: rather all than a crowd on few.
    pub panic_percent: u32,
}

/// Envoy's and Istio's counts and times; half the endpoints may go (Envoy: 10 %, which for three endpoints is none).
impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
            panic_percent: 30,
        }
    }
}

/// What is known of one endpoint's failures.
#[derive(Debug, Default)]
pub struct State {
    failures: AtomicU32,
    ejections: AtomicU32,
    /// [`Millis`]; 0: not ejected.
    ejected_until: AtomicU64,
}

impl State {
    /// Whether the endpoint is ejected now.
    pub fn ejected(&self, now: Millis) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now.0
    }
}

/// An answer that was no failure.
pub fn success(endpoint: &Endpoint) {
    let state = &endpoint.state.outlier;
    if state.failures.load(Ordering::Relaxed) != 0 {
        state.failures.store(0, Ordering::Relaxed);
    }
    if state.ejections.load(Ordering::Relaxed) != 0 && state.ejected_until.load(Ordering::Relaxed) == 0 {
        state.ejections.store(0, Ordering::Relaxed);
    }
}

/// A failure of `endpoint`; true if it is ejected by this one.
pub fn failure(cluster: &Cluster, endpoint: &Endpoint, now: Millis) -> bool {
    let Some(settings) = &cluster.settings.outlier else { return false };
    let state = &endpoint.state.outlier;
    let failures = state.failures.fetch_add(1, Ordering::Relaxed) + 1;
    if failures < settings.consecutive_failures || !may_eject(cluster, settings) {
        return false;
    }
    let times = state.ejections.load(Ordering::Relaxed).saturating_add(1);
    let length = settings.base_ejection.saturating_mul(times).min(settings.max_ejection);
    let until = now.0.saturating_add(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)).max(1);
    // Only the worker that changes it from 0 ejects, so that the count stays true.
    if state.ejected_until.compare_exchange(0, until, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return false;
    }
    state.failures.store(0, Ordering::Relaxed);
    state.ejections.store(times, Ordering::Relaxed);
    cluster.state.ejected.fetch_add(1, Ordering::Relaxed);
    true
}

fn may_eject(cluster: &Cluster, settings: &Settings) -> bool {
    let active = cluster.endpoints.load().active().len() as u64;
    let after = u64::from(cluster.state.ejected.load(Ordering::Relaxed)) + 1;
    after * 100 <= active * u64::from(settings.max_ejected_percent)
}

/// The endpoints among `active` that may be picked now. Ends ejections whose time is over.
pub fn healthy(cluster: &Cluster, active: &[Arc<Endpoint>], now: Millis) -> Vec<Arc<Endpoint>> {
    let healthy: Vec<_> = active.iter().filter(|e| !still_ejected(cluster, e, now)).cloned().collect();
    let panic_percent = cluster.settings.outlier.map_or(0, |settings| settings.panic_percent) as usize;
    if healthy.len() * 100 < active.len() * panic_percent { active.to_vec() } else { healthy }
}

fn still_ejected(cluster: &Cluster, endpoint: &Endpoint, now: Millis) -> bool {
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
    use crate::tables::cluster::{self, EndpointSet, EndpointTls};

    fn cluster(endpoints: u16) -> Cluster {
        let endpoints = (1..=endpoints).map(|port| {
            Arc::new(Endpoint {
                address: ([10, 0, 0, 1], port).into(),
                tls: EndpointTls::Plaintext,
                weight: 1,
                draining: false,
                workload: "".into(),
                state: Arc::default(),
            })
        });
        Cluster {
            name: "shop/api/80".into(),
            service: None,
            settings: cluster::Settings::default(),
            identities: Arc::new([]),
            endpoints: EndpointSet::new(endpoints.collect()).into_swap(),
            state: Arc::default(),
        }
    }

    fn fail(cluster: &Cluster, index: usize, times: usize, now: u64) -> Vec<bool> {
        let set = cluster.endpoints.load();
        (0..times).map(|_| failure(cluster, &set.endpoints[index], Millis(now))).collect()
    }

    fn healthy_at(cluster: &Cluster, now: u64) -> usize {
        healthy(cluster, cluster.endpoints.load().active(), Millis(now)).len()
    }

    #[test]
    fn five_failures_in_a_row_eject_and_a_success_between_them_does_not() {
        let cluster = cluster(2);
        assert_eq!(fail(&cluster, 0, 4, 1), [false; 4]);
        success(&cluster.endpoints.load().endpoints[0]);
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
}
