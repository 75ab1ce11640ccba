//! Endpoints that have said themselves that they are on their way out, because their sidecar drains, or that they want to be left
//! alone for a while (`Retry-After`).
//!
//! Either gets requests only where there is no other. That one goes the control plane says too, to everybody
//! (`Endpoint::draining`), but a moment later, and not while it is away. Pure in `now`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::tables::Millis;
use crate::tables::cluster::{Cluster, Endpoint};

/// The endpoint has just said so.
pub fn note(cluster: &Cluster, endpoint: &Endpoint, now: Millis) {
    let until = now.0.saturating_add(REMEMBERED.as_millis() as u64);
    if endpoint.state.leaving_until.fetch_max(until, Ordering::Relaxed) <= now.0 {
        tracing::debug!(cluster = %cluster.name, endpoint = %endpoint.address, "endpoint is leaving");
    }
    cluster.state.leaving_until.fetch_max(until, Ordering::Relaxed);
}

/// The endpoint has just said that it can take nothing for so long. Not heard where too many rest already, as with ejections: what
/// is said to one client must not drive all to the endpoints that are left.
pub fn rest(cluster: &Cluster, endpoint: &Endpoint, now: Millis, length: Duration) {
    let Some(outlier) = &cluster.settings.outlier else { return };
    let set = cluster.endpoints.load();
    let resting = set.active().iter().filter(|one| one.id() != endpoint.id() && is_resting(one, now)).count();
    if (resting + 1) * 100 > set.active().len() * outlier.max_ejected_percent as usize {
        return;
    }
    let length = length.min(outlier.base_ejection);
    let until = now.0.saturating_add(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    endpoint.state.resting_until.fetch_max(until, Ordering::Relaxed);
    cluster.state.leaving_until.fetch_max(until, Ordering::Relaxed);
}

/// Whether an endpoint of the cluster may be leaving or resting: most never are.
pub fn any(cluster: &Cluster, now: Millis) -> bool {
    cluster.state.leaving_until.load(Ordering::Relaxed) > now.0
}

/// Whether this one is leaving or resting, so that others are better.
pub fn is_avoided(endpoint: &Endpoint, now: Millis) -> bool {
    is(endpoint, now) || is_resting(endpoint, now)
}

fn is_resting(endpoint: &Endpoint, now: Millis) -> bool {
    endpoint.state.resting_until.load(Ordering::Relaxed) > now.0
}

/// Whether this one is leaving.
pub fn is(endpoint: &Endpoint, now: Millis) -> bool {
    endpoint.state.leaving_until.load(Ordering::Relaxed) > now.0
}

/// How long it holds after it was said last: Kubernetes' default grace period, after which the endpoint is gone. One that lives
/// longer says so again at the next request it gets.
const REMEMBERED: Duration = Duration::from_secs(30);
