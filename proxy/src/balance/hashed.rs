//! Choosing by a hash: the same endpoint for the same key, and few keys moved when endpoints come or go.
//!
//! Both tables are laid out exactly as Envoy lays them out (its defaults, xxHash64 of `address:port`), so that a client
//! beside an Envoy and one beside this sidecar send the same key to the same endpoint.

use std::sync::{Arc, OnceLock};

use twox_hash::XxHash64;

use crate::tables::cluster::Endpoint;

/// The hash of one value.
pub fn hash(value: &[u8]) -> u64 {
    XxHash64::oneshot(0, value)
}

/// The hash of several values in their order.
pub fn hash_all<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> u64 {
    values.into_iter().fold(0, XxHash64::oneshot)
}

/// The tables of a set of endpoints, each made when it is first asked for.
#[derive(Debug, Default)]
pub struct Tables {
    ring: OnceLock<Ring>,
    maglev: OnceLock<Maglev>,
}

impl Tables {
    /// Places among `endpoints`, beginning with that of `key` on the ring; each as often as it stands there.
    pub fn on_ring(&self, endpoints: &[Arc<Endpoint>], key: u64) -> impl Iterator<Item = usize> {
        let points = &self.ring.get_or_init(|| Ring::new(endpoints)).points;
        let first = points.partition_point(|(hash, _)| *hash < key);
        let (before, after) = points.split_at(first);
        after.iter().chain(before).map(|(_, place)| *place as usize)
    }

    /// Places among `endpoints`, beginning with that of `key` in Maglev's table.
    pub fn in_maglev(&self, endpoints: &[Arc<Endpoint>], key: u64) -> impl Iterator<Item = usize> {
        let slots = &self.maglev.get_or_init(|| Maglev::new(endpoints)).slots;
        let first = usize::try_from(key % MAGLEV_SLOTS).unwrap_or_default().min(slots.len());
        let (before, after) = slots.split_at(first);
        after.iter().chain(before).map(|place| *place as usize)
    }
}

/// Points on a circle (ketama): each endpoint has as many as its weight says, a key belongs to the next.
#[derive(Debug)]
struct Ring {
    /// Hash and place, by hash.
    points: Vec<(u64, u32)>,
}

impl Ring {
    fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let shares = shares(endpoints);
        let least = shares.iter().copied().fold(1.0, f64::min);
        // The lightest has a whole number of points, and together there are at least so many.
        let size = ((least * RING_POINTS).ceil() / least).min(MAX_RING_POINTS);
        let (mut points, mut target) = (Vec::new(), 0.0);
        for (place, (endpoint, share)) in endpoints.iter().zip(&shares).enumerate() {
            target += size * share;
            let address = endpoint.address.to_string();
            for number in 0.. {
                if points.len() as f64 >= target {
                    break;
                }
                points.push((hash(format!("{address}_{number}").as_bytes()), place as u32));
            }
        }
        points.sort_unstable();
        Self { points }
    }
}

/// Maglev's lookup table (Eisenbud et al., NSDI 2016, §3.4): endpoints take turns at the next free slot of their own
/// permutation, the lighter ones less often.
#[derive(Debug)]
struct Maglev {
    slots: Vec<u32>,
}

struct Turn {
    place: u32,
    offset: u64,
    skip: u64,
    next: u64,
    share: f64,
    /// What its share times the round must have reached.
    due: f64,
}

impl Maglev {
    fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let shares = shares(endpoints);
        let most = shares.iter().copied().fold(0.0, f64::max);
        let mut named: Vec<_> =
            endpoints.iter().enumerate().map(|(place, endpoint)| (endpoint.address.to_string(), place)).collect();
        named.sort_unstable();
        let turn = |(address, place): &(String, usize)| Turn {
            place: *place as u32,
            offset: hash(address.as_bytes()) % MAGLEV_SLOTS,
            skip: XxHash64::oneshot(1, address.as_bytes()) % (MAGLEV_SLOTS - 1) + 1,
            next: 0,
            share: shares[*place],
            due: 0.0,
        };
        let mut turns: Vec<Turn> = named.iter().map(turn).collect();
        let mut slots = vec![FREE; MAGLEV_SLOTS as usize];
        let mut free = if turns.is_empty() { 0 } else { slots.len() };
        for round in 1.. {
            for turn in &mut turns {
                if free == 0 {
                    return Self { slots };
                }
                if f64::from(round) * turn.share >= turn.due {
                    turn.due += most;
                    turn.take(&mut slots);
                    free -= 1;
                }
            }
            if free == 0 {
                break;
            }
        }
        Self { slots }
    }
}

impl Turn {
    /// Takes the next free slot; there is one.
    fn take(&mut self, slots: &mut [u32]) {
        loop {
            let slot = (self.offset + self.skip * self.next) % MAGLEV_SLOTS;
            self.next += 1;
            if let Some(slot) = slots.get_mut(slot as usize).filter(|slot| **slot == FREE) {
                *slot = self.place;
                return;
            }
        }
    }
}

/// Weights, together 1.
fn shares(endpoints: &[Arc<Endpoint>]) -> Vec<f64> {
    let total: f64 = endpoints.iter().map(|endpoint| f64::from(endpoint.weight.max(1))).sum();
    endpoints.iter().map(|endpoint| f64::from(endpoint.weight.max(1)) / total).collect()
}

/// Envoy's `minimum_ring_size`.
const RING_POINTS: f64 = 1024.0;
/// Envoy's `maximum_ring_size`.
const MAX_RING_POINTS: f64 = 8_388_608.0;
/// Envoy's `table_size`, a prime.
const MAGLEV_SLOTS: u64 = 65_537;
/// No endpoint's place.
const FREE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::balance::tests::endpoint;

    fn endpoints(weights: &[(u16, u32)]) -> Vec<Arc<Endpoint>> {
        weights.iter().map(|(port, weight)| endpoint(*port, *weight)).collect()
    }

    /// Where each of some keys goes, by both tables.
    fn places(endpoints: &[Arc<Endpoint>], keys: u64) -> [Vec<u16>; 2] {
        let tables = Tables::default();
        let port = |place: Option<usize>| endpoints[place.unwrap()].address.port();
        let keys = || (0..keys).map(|key| hash(&key.to_le_bytes()));
        [
            keys().map(|key| port(tables.on_ring(endpoints, key).next())).collect(),
            keys().map(|key| port(tables.in_maglev(endpoints, key).next())).collect(),
        ]
    }

    #[test]
    fn xxh64_is_the_published_function() {
        // Of the reference implementation.
        assert_eq!(hash(b""), 0xef46_db37_51d8_e999);
        assert_eq!(hash(b"abc"), 0x44bc_2cf5_ad77_0999);
    }

    #[test]
    fn keys_spread_by_weight() {
        let endpoints = endpoints(&[(1, 1), (2, 1), (3, 2)]);
        for (places, tolerance) in places(&endpoints, 20_000).iter().zip([0.15, 0.02]) {
            let mut counts = HashMap::new();
            places.iter().for_each(|port| *counts.entry(*port).or_insert(0.0) += 1.0 / 20_000.0);
            for (port, share) in [(1, 0.25), (2, 0.25), (3, 0.5)] {
                let found: f64 = counts[&port];
                assert!((found - share).abs() < tolerance * share, "{port}: {found} instead of {share}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Keys of those that stay keep their endpoint: on the ring all, in Maglev's table nearly all.
        #[test]
        fn the_loss_of_an_endpoint_moves_its_keys_and_few_others(count in 3u16..12, lost in 0usize..12) {
            let weights: Vec<_> = (1..=count).map(|port| (port, 1)).collect();
            let before = endpoints(&weights);
            let mut after = before.clone();
            let lost = after.remove(lost % usize::from(count)).address.port();
            let (before, after) = (places(&before, 2_000), places(&after, 2_000));
            for ((before, after), allowed) in before.iter().zip(&after).zip([0.30, 0.15]) {
                let stay = before.iter().zip(after).filter(|(before, _)| **before != lost);
                let moved = stay.clone().filter(|(before, after)| before != after).count();
                prop_assert!((moved as f64) < allowed * stay.count() as f64, "{moved} moved");
            }
        }

        /// Whatever is left out, what follows in the table is found, and each place is among them.
        #[test]
        fn every_place_follows_from_every_key(count in 1u16..20, key in any::<u64>()) {
            let weights: Vec<_> = (1..=count).map(|port| (port, u32::from(port))).collect();
            let endpoints = endpoints(&weights);
            let tables = Tables::default();
            let mut on_ring: Vec<_> = tables.on_ring(&endpoints, key).collect();
            let mut in_maglev: Vec<_> = tables.in_maglev(&endpoints, key).collect();
            for places in [&mut on_ring, &mut in_maglev] {
                places.sort_unstable();
                places.dedup();
                prop_assert_eq!(places.len(), usize::from(count));
            }
        }
    }
}
