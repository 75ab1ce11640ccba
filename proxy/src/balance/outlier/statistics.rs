//! Endpoints told by comparison with the others of their cluster, over intervals.
//!
//! The worker whose request ends first after an interval looks at what all have counted in it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::{Detector, Ejected, Settings, eject};
use crate::tables::Millis;
use crate::tables::cluster::{Cluster, Endpoint};

/// How endpoints are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Over how long requests are counted.
    pub interval: Duration,
    /// Endpoints with enough requests without which nothing is compared.
    pub minimum_hosts: u32,
    /// Requests of one interval without which an endpoint is not compared.
    pub request_volume: u32,
    /// Ejected if its success rate is lower than the mean by so many thousandths of a standard deviation; `None`: not compared.
    pub success_rate_stdev_factor: Option<u32>,
    /// Ejected if its answers take on average more than this percentage of the median; `None`: not compared.
    pub latency_percent: Option<u32>,
}

/// What one endpoint did in the interval.
#[derive(Debug, Default)]
pub struct Window {
    requests: AtomicU32,
    good: AtomicU32,
    answers: AtomicU32,
    latency_micros: AtomicU64,
}

/// The same, read.
struct Read<'e> {
    endpoint: &'e Endpoint,
    requests: u32,
    success_rate: f64,
    answers: u32,
    mean_micros: f64,
}

impl Window {
    /// One more request.
    pub(super) fn note(&self, good: bool, latency: Option<Duration>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.good.fetch_add(u32::from(good), Ordering::Relaxed);
        if let Some(latency) = latency {
            self.answers.fetch_add(1, Ordering::Relaxed);
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.latency_micros.fetch_add(micros, Ordering::Relaxed);
        }
    }

    fn take<'e>(&self, endpoint: &'e Endpoint) -> Read<'e> {
        let [requests, good, answers] =
            [&self.requests, &self.good, &self.answers].map(|count| count.swap(0, Ordering::Relaxed));
        let micros = self.latency_micros.swap(0, Ordering::Relaxed);
        Read {
            endpoint,
            requests,
            success_rate: f64::from(good) / f64::from(requests.max(1)),
            answers,
            mean_micros: micros as f64 / f64::from(answers.max(1)),
        }
    }
}

/// If the interval is over: ejects those that stand out, and begins the next.
pub(super) fn evaluate(cluster: &Cluster, settings: &Settings, how: &Statistics, now: Millis) -> Vec<Ejected> {
    let ends = &cluster.state.window_ends;
    let due = ends.load(Ordering::Relaxed);
    if now.0 < due {
        return Vec::new();
    }
    let next = now.0.saturating_add(u64::try_from(how.interval.as_millis()).unwrap_or(u64::MAX));
    let mine = ends.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    // The first interval begins with the first request.
    if !mine || due == 0 {
        return Vec::new();
    }
    let set = cluster.endpoints.load();
    let read: Vec<_> = set.active().iter().map(|endpoint| endpoint.state.outlier.window.take(endpoint)).collect();
    let mut ejected = Vec::new();
    let mut out = |endpoint: &Endpoint, detector| {
        if eject(cluster, settings, endpoint, now) {
            ejected.push(Ejected { endpoint: endpoint.address, detector });
        }
    };
    if let Some(factor) = how.success_rate_stdev_factor {
        failing(&read, how, factor).for_each(|endpoint| out(endpoint, Detector::SuccessRate));
    }
    if let Some(percent) = how.latency_percent {
        slow(&read, how, percent).for_each(|endpoint| out(endpoint, Detector::Latency));
    }
    ejected
}

/// Envoy's rule ("Outlier detection", success rate).
fn failing<'e>(read: &[Read<'e>], how: &Statistics, factor: u32) -> impl Iterator<Item = &'e Endpoint> {
    let compared: Vec<_> = read.iter().filter(|one| one.requests >= how.request_volume.max(1)).collect();
    let count = compared.len() as f64;
    let mean = compared.iter().map(|one| one.success_rate).sum::<f64>() / count;
    let variance = compared.iter().map(|one| (one.success_rate - mean).powi(2)).sum::<f64>() / count;
    let least = mean - variance.sqrt() * f64::from(factor) / 1000.0;
    let enough = compared.len() >= how.minimum_hosts.max(1) as usize;
    compared.into_iter().filter(move |one| enough && one.success_rate < least).map(|one| one.endpoint)
}

/// The median, because one endpoint that is a hundred times slower would raise the mean above all others.
fn slow<'e>(read: &[Read<'e>], how: &Statistics, percent: u32) -> impl Iterator<Item = &'e Endpoint> {
    let mut compared: Vec<_> = read.iter().filter(|one| one.answers >= how.request_volume.max(1)).collect();
    compared.sort_by(|a, b| a.mean_micros.total_cmp(&b.mean_micros));
    let median = compared.get(compared.len().saturating_sub(1) / 2).map_or(0.0, |one| one.mean_micros);
    let most = median * f64::from(percent) / 100.0;
    let enough = compared.len() >= how.minimum_hosts.max(1) as usize;
    compared.into_iter().filter(move |one| enough && one.mean_micros > most).map(|one| one.endpoint)
}
