//! One endpoint of several, as the cluster's policy has it. Pure, as all of [`super`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::View;
use crate::tables::Millis;
use crate::tables::cluster::{Cluster, Endpoint, EndpointSet, LoadBalancing};

/// `among` are some of the set's active endpoints, at least one: both callers have checked.
pub(super) fn choose<'e>(
    cluster: &Cluster,
    set: &'e EndpointSet,
    among: &'e [Arc<Endpoint>],
    view: &mut View<'_>,
) -> &'e Arc<Endpoint> {
    let mut chosen = by_policy(cluster, set, among, view);
    let Some(window) = cluster.settings.slow_start else { return chosen };
    // A new endpoint is passed over as often as its share is not there yet.
    for _ in 0..MAX_PASSED_OVER {
        let since = chosen.state.since;
        let age = Duration::from_millis(view.now_ms.0.saturating_sub(since.0));
        let share = if since == Millis::default() { 1.0 } else { age.div_duration_f64(window) };
        if share >= 1.0 || view.rng.f64() < share.max(FIRST_SHARE) {
            break;
        }
        chosen = by_policy(cluster, set, among, view);
    }
    chosen
}

fn by_policy<'e>(
    cluster: &Cluster,
    set: &'e EndpointSet,
    among: &'e [Arc<Endpoint>],
    view: &mut View<'_>,
) -> &'e Arc<Endpoint> {
    match cluster.settings.policy {
        LoadBalancing::P2cEwma => better_of_two(among, view),
        LoadBalancing::LeastRequest => less_loaded_of_two(among, view),
        LoadBalancing::RoundRobin => next_by_weight(cluster, among),
        LoadBalancing::Random => any_by_weight(among, view.rng),
        LoadBalancing::RingHash(_) => {
            let key = view.hash.unwrap_or_else(|| view.rng.u64(..));
            first_of(set, among, set.hashed.on_ring(set.active(), key))
        }
        LoadBalancing::Maglev(_) => {
            let key = view.hash.unwrap_or_else(|| view.rng.u64(..));
            first_of(set, among, set.hashed.in_maglev(set.active(), key))
        }
    }
}

/// The first of the set's endpoints at `places` that is `among` them.
fn first_of<'e>(
    set: &'e EndpointSet,
    among: &'e [Arc<Endpoint>],
    places: impl Iterator<Item = usize>,
) -> &'e Arc<Endpoint> {
    let all = among.len() == set.active().len();
    let mut places = places.filter_map(|place| set.active().get(place));
    places.find(|endpoint| all || among.iter().any(|one| one.id() == endpoint.id())).unwrap_or(&among[0])
}

/// Two of them, different if there are two.
fn two<'e>(among: &'e [Arc<Endpoint>], rng: &mut fastrand::Rng) -> [&'e Arc<Endpoint>; 2] {
    let [first, second] = match among.len() {
        0 | 1 => [0, 0],
        len => {
            let first = rng.usize(..len);
            let second = rng.usize(..len - 1);
            [first, if second >= first { second + 1 } else { second }]
        }
    };
    [&among[first], &among[second]]
}

/// Power of two choices (Mitzenmacher 2001) by requests in flight.
fn less_loaded_of_two<'e>(among: &'e [Arc<Endpoint>], view: &mut View<'_>) -> &'e Arc<Endpoint> {
    let [a, b] = two(among, view.rng);
    let [load_a, load_b] = [a, b].map(|endpoint| view.loads.in_flight(endpoint));
    if load_b < load_a { b } else { a }
}

/// Each as often as its weight says.
fn any_by_weight<'e>(among: &'e [Arc<Endpoint>], rng: &mut fastrand::Rng) -> &'e Arc<Endpoint> {
    let total: u64 = among.iter().map(|endpoint| u64::from(endpoint.weight.max(1))).sum();
    at_position(among, total, rng.u64(..total))
}

/// Power of two choices by peak EWMA, the cheaper one more often.
fn better_of_two<'e>(among: &'e [Arc<Endpoint>], view: &mut View<'_>) -> &'e Arc<Endpoint> {
    let [a, b] = two(among, view.rng);
    let [cost_a, cost_b] = [a, b].map(|endpoint| view.loads.cost(endpoint, view.now));
    let share = share_of_first(cost_a, cost_b);
    // No coin where there is nothing to decide.
    if share >= 1.0 || (share > 0.0 && view.rng.f64() < share) { a } else { b }
}

/// How often the first of two endpoints is taken: by the inverse squares of their costs. Taking always the cheaper, as
/// Finagle does, gives one of two equally good endpoints nearly everything while requests are few: a difference of a
/// tenth decides each time, and only the one that is asked is measured.
fn share_of_first(cost_a: f64, cost_b: f64) -> f64 {
    let (a, b) = (cost_a * cost_a, cost_b * cost_b);
    if a + b > 0.0 { b / (a + b) } else { 0.5 }
}

/// Weighted round robin: position `n` of the endless sequence in which each endpoint stands `weight` times.
fn next_by_weight<'e>(cluster: &Cluster, among: &'e [Arc<Endpoint>]) -> &'e Arc<Endpoint> {
    let total: u64 = among.iter().map(|e| u64::from(e.weight.max(1))).sum();
    at_position(among, total, cluster.state.round_robin.fetch_add(1, Ordering::Relaxed) % total)
}

/// The endpoint at `position` of the sequence in which each stands as often as its weight says, `total` times together.
fn at_position(among: &[Arc<Endpoint>], total: u64, mut position: u64) -> &Arc<Endpoint> {
    let uniform = total == among.len() as u64;
    if uniform {
        return &among[position as usize];
    }
    for endpoint in among {
        let weight = u64::from(endpoint.weight.max(1));
        if position < weight {
            return endpoint;
        }
        position -= weight;
    }
    &among[0]
}

/// With which part of its share a new endpoint begins: Envoy's `min_weight_percent`.
const FIRST_SHARE: f64 = 0.1;
/// How often new endpoints are passed over for one request. Chosen: where all are new, one in five requests comes so far.
const MAX_PASSED_OVER: usize = 16;
