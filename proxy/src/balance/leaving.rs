//! Endpoints that have said themselves that they are on their way out: their sidecar drains.
//!
//! The control plane says so too, to everybody (`Endpoint::draining`), but a moment later, and not while it is away. Until it
//! does, an endpoint that said so gets requests only where there is no other. Pure in `now`.

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

/// Whether an endpoint of the cluster may be leaving: most never are.
pub fn any(cluster: &Cluster, now: Millis) -> bool {
    cluster.state.leaving_until.load(Ordering::Relaxed) > now.0
}

/// Whether this one is.
pub fn is(endpoint: &Endpoint, now: Millis) -> bool {
    endpoint.state.leaving_until.load(Ordering::Relaxed) > now.0
}

/// How long it holds after it was said last: Kubernetes' default grace period, after which the endpoint is gone. One that lives
/// longer says so again at the next request it gets.
const REMEMBERED: Duration = Duration::from_secs(30);
