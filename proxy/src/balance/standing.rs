//! Where each endpoint of a cluster stands now, for `explain`: what [`super::pick`] would choose among, and what speaks against
//! the others. Pure, and unlike a pick it changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Nothing, leaving, narrow, near_capacity};
use crate::tables::Millis;
use crate::tables::cluster::{Cluster, Endpoint};

/// One endpoint.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// What it gets now.
    pub gets: Gets,
    /// What speaks against it; with too few others it gets requests all the same.
    pub against: Option<Against>,
}

/// What an endpoint gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gets {
    /// Its share of requests.
    Requests,
    /// Its share of what is too much for the near ones.
    Overflow,
    /// Nothing.
    Nothing,
}

/// What speaks against an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// The control plane says that it is on its way out.
    Draining,
    /// Outlier detection, for so long yet.
    Ejected(Duration),
    /// It failed health checks.
    Unwell,
    /// It said itself that it is on its way out; that holds for so long yet.
    Leaving(Duration),
    /// It asked to be left alone for so long yet.
    Resting(Duration),
    /// There are nearer ones.
    Far,
}

/// All endpoints, and the share of requests in percent that goes far.
///
/// # Errors
/// If there is nothing to choose among.
pub fn standings(cluster: &Cluster, now: Millis) -> (Vec<Standing>, Result<u32, Nothing>) {
    let set = cluster.endpoints.load();
    let ejected = |endpoint: &Endpoint| endpoint.state.outlier.ejected(now);
    let mut far_percent = 0;
    let near = narrow(cluster, &set, &[], now, ejected, |near, well| {
        let all = near as u64 * 100;
        let percent = all.saturating_sub(near_capacity(well)) * 100 / all.max(1);
        far_percent = u32::try_from(percent).unwrap_or(100);
        percent == 100
    });
    let far = match &near {
        Ok(_) if (1..100).contains(&far_percent) => narrow(cluster, &set, &[], now, ejected, |_, _| true),
        _ => Ok(Vec::new()),
    };
    let is_among = |list: &Result<Vec<Arc<Endpoint>>, Nothing>, endpoint: &Endpoint| {
        list.as_ref().is_ok_and(|list| list.iter().any(|one| one.id() == endpoint.id()))
    };
    let all = set.endpoints.iter().map(|endpoint| Standing {
        endpoint: endpoint.clone(),
        gets: match endpoint {
            endpoint if is_among(&near, endpoint) => Gets::Requests,
            endpoint if is_among(&far, endpoint) => Gets::Overflow,
            _ => Gets::Nothing,
        },
        against: against(endpoint, now),
    });
    (all.collect(), near.map(|_| far_percent))
}

fn against(endpoint: &Endpoint, now: Millis) -> Option<Against> {
    let left = |until: &std::sync::atomic::AtomicU64| {
        Duration::from_millis(until.load(Ordering::Relaxed).saturating_sub(now.0))
    };
    let state = &endpoint.state;
    if endpoint.draining {
        Some(Against::Draining)
    } else if state.outlier.ejected(now) {
        Some(Against::Ejected(state.outlier.ejected_for(now)))
    } else if !state.health.is_well() {
        Some(Against::Unwell)
    } else if leaving::is(endpoint, now) {
        Some(Against::Leaving(left(&state.leaving_until)))
    } else if leaving::is_avoided(endpoint, now) {
        Some(Against::Resting(left(&state.resting_until)))
    } else {
        endpoint.far.then_some(Against::Far)
    }
}
