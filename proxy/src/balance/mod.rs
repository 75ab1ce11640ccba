//! Choosing an endpoint. Pure: time, randomness and the worker's own loads are passed in.
//!
//! `http/attempt` and the opaque relay call [`pick`]; what happened comes back through [`Loads`] (latency, this
//! worker) and [`outlier`] (failures, whole process).

pub mod breaker;
mod choose;
mod ewma;
pub mod hashed;
pub mod health;
pub mod leaving;
pub mod outlier;
pub mod standing;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use choose::choose;
pub use ewma::Load;

use crate::tables::Millis;
use crate::tables::cluster::{Cluster, Endpoint, EndpointSet};

/// One worker's view of its endpoints, by [`Endpoint::id`].
#[derive(Debug, Default)]
pub struct Loads {
    by_endpoint: HashMap<u64, Load>,
}

impl Loads {
    /// A request begins at `endpoint`.
    pub fn begin(&mut self, endpoint: u64) {
        self.by_endpoint.entry(endpoint).or_default().in_flight += 1;
    }

    /// A request at `endpoint` ended; `latency` is the time to its response's head, `None` if there was none.
    pub fn end(&mut self, endpoint: u64, latency: Option<Duration>, now: Instant) {
        if let Some(load) = self.by_endpoint.get_mut(&endpoint) {
            load.in_flight = load.in_flight.saturating_sub(1);
            if let Some(latency) = latency {
                load.observe(latency, now);
            }
        }
    }

    /// How many endpoints are remembered.
    pub fn len(&self) -> usize {
        self.by_endpoint.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_endpoint.is_empty()
    }

    /// Forgets endpoints that are idle here and for which `known` is false.
    pub fn retain(&mut self, known: impl Fn(u64) -> bool) {
        self.by_endpoint.retain(|id, load| load.in_flight > 0 || known(*id));
    }

    /// Requests in flight and one more, by weight.
    fn in_flight(&self, endpoint: &Endpoint) -> f64 {
        let in_flight = self.by_endpoint.get(&endpoint.id()).map_or(0, |load| load.in_flight);
        f64::from(in_flight + 1) / f64::from(endpoint.weight.max(1))
    }

    fn cost(&self, endpoint: &Endpoint, now: Instant) -> f64 {
        let cost = self.by_endpoint.get(&endpoint.id()).map_or(0.0, |load| load.cost(now));
        cost / f64::from(endpoint.weight.max(1))
    }
}

/// Why there is nothing to pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nothing {
    /// The cluster has no endpoints that take requests.
    NoEndpoints,
    /// It has, and all of them are ejected or not well.
    AllEjected,
}

/// One moment of one worker.
pub struct View<'w> {
    /// The worker's loads.
    pub loads: &'w Loads,
    /// The worker's generator.
    pub rng: &'w mut fastrand::Rng,
    /// For latency averages.
    pub now: Instant,
    /// For ejections.
    pub now_ms: Millis,
    /// Of the request, where a hash chooses; `None`: it has none.
    pub hash: Option<u64>,
}

/// Chooses an endpoint of `cluster`, avoiding those in `tried`, and then those that are leaving, as long as there are others.
pub fn pick(cluster: &Cluster, tried: &[u64], view: &mut View<'_>) -> Result<Arc<Endpoint>, Nothing> {
    let set = cluster.endpoints.load();
    let active = set.active();
    let all_well = cluster.state.ejected.load(Ordering::Relaxed) == 0 && !health::any_unwell(cluster);
    match active {
        [] => return Err(Nothing::NoEndpoints),
        [only] if all_well => return Ok(only.clone()),
        _ => {}
    }
    let leaving = leaving::any(cluster, view.now_ms);
    if tried.is_empty() && !leaving && all_well {
        return Ok(choose(cluster, &set, set.near(), view).clone());
    }
    let now = view.now_ms;
    let ejected = |endpoint: &Endpoint| outlier::still_ejected(cluster, endpoint, now);
    let candidates = narrow(cluster, &set, tried, now, ejected, |near, well| overflows(near, well, view))?;
    Ok(choose(cluster, &set, &candidates, view).clone())
}

/// The endpoints that a request may go to. `overflows` says whether it goes far, of how many near endpoints there are and how
/// many of them are well.
fn narrow(
    cluster: &Cluster,
    set: &EndpointSet,
    tried: &[u64],
    now: Millis,
    ejected: impl Fn(&Endpoint) -> bool,
    overflows: impl FnOnce(usize, usize) -> bool,
) -> Result<Vec<Arc<Endpoint>>, Nothing> {
    if set.active().is_empty() {
        return Err(Nothing::NoEndpoints);
    }
    let mut candidates = healthy(cluster, set.active(), ejected);
    if candidates.is_empty() {
        return Err(Nothing::AllEjected);
    }
    let well = candidates.iter().filter(|endpoint| !endpoint.far).count();
    prefer(&mut candidates, |endpoint| !tried.contains(&endpoint.id()));
    if !set.far().is_empty() {
        let overflow = overflows(set.near().len(), well);
        prefer(&mut candidates, |endpoint| endpoint.far == overflow);
    }
    if leaving::any(cluster, now) {
        prefer(&mut candidates, |endpoint| !leaving::is_avoided(endpoint, now));
    }
    Ok(candidates)
}

/// The endpoints among `active` that are neither ejected nor unwell; all of them if those are too few.
fn healthy(cluster: &Cluster, active: &[Arc<Endpoint>], ejected: impl Fn(&Endpoint) -> bool) -> Vec<Arc<Endpoint>> {
    let is_healthy = |endpoint: &&Arc<Endpoint>| {
        // Both are asked: asking is how an ejection ends.
        let ejected = ejected(endpoint);
        !ejected && endpoint.state.health.is_well()
    };
    let healthy: Vec<_> = active.iter().filter(is_healthy).cloned().collect();
    let panics = healthy.len() * 100 < active.len() * cluster.settings.panic_percent as usize;
    if panics { active.to_vec() } else { healthy }
}

/// Whether a request goes far, where so many of the near endpoints are well. The same key always does or always does not.
fn overflows(near: usize, well: usize, view: &mut View<'_>) -> bool {
    let all = near as u64 * 100;
    let ticket = view.hash.map_or_else(|| view.rng.u64(..all), |hash| hash % all);
    ticket >= near_capacity(well)
}

/// What so many near endpoints that are well can take, in percent of one's share.
fn near_capacity(well: usize) -> u64 {
    (well * OVERPROVISIONED_PERCENT) as u64
}

/// The endpoint at `address`, if it takes requests: it is neither ejected nor unwell nor leaving.
pub fn at(cluster: &Cluster, address: SocketAddr, now: Millis) -> Option<Arc<Endpoint>> {
    let set = cluster.endpoints.load();
    let endpoint = set.active().iter().find(|endpoint| endpoint.address == address)?;
    let ejected = endpoint.state.outlier.ejected(now);
    let gone = ejected || !endpoint.state.health.is_well() || leaving::is(endpoint, now);
    (!gone).then(|| endpoint.clone())
}

/// Leaves those for which `preferred` holds, if there are any.
fn prefer(candidates: &mut Vec<Arc<Endpoint>>, preferred: impl Fn(&Endpoint) -> bool) {
    if candidates.iter().any(|endpoint| preferred(endpoint)) {
        candidates.retain(|endpoint| preferred(endpoint));
    }
}

/// How much near endpoints can take, in percent of what is theirs: while more than five in seven are well, nothing overflows. Envoy's
/// `overprovisioning_factor`.
const OVERPROVISIONED_PERCENT: usize = 140;
