//! Which endpoint is picked: distributions with a fixed seed, and who is avoided.

use super::*;
use crate::tables::cluster::{EndpointSet, EndpointState, EndpointTls, LoadBalancing, Settings};

/// The endpoint at this port of one host.
pub(super) fn endpoint(port: u16, weight: u32) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: ([10, 0, 0, 1], port).into(),
        tls: EndpointTls::Plaintext,
        weight,
        draining: false,
        far: false,
        workload: "".into(),
        state: Arc::default(),
    })
}

fn cluster(policy: LoadBalancing, weights: &[u32]) -> Cluster {
    cluster_of(Settings { policy, ..Settings::default() }, weights)
}

/// A cluster with an endpoint of each weight, at the ports from 1.
pub(crate) fn cluster_of(settings: Settings, weights: &[u32]) -> Cluster {
    let endpoints = (1..).zip(weights).map(|(port, weight)| endpoint(port, *weight));
    Cluster {
        name: "shop/api/80".into(),
        service: None,
        settings,
        identities: Arc::new([]),
        sources: Arc::new([]),
        endpoints: EndpointSet::new(endpoints.collect()).into_swap(),
        state: Arc::default(),
    }
}

fn counts(cluster: &Cluster, loads: &Loads, picks: usize) -> Vec<usize> {
    let mut counts = vec![0; cluster.endpoints.load().endpoints.len()];
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..picks {
        let mut view = View { loads, rng: &mut rng, now: Instant::now(), now_ms: Millis(0), hash: None };
        let endpoint = pick(cluster, &[], &mut view).unwrap();
        counts[usize::from(endpoint.address.port()) - 1] += 1;
    }
    counts
}

#[test]
fn round_robin_gives_each_its_weight_exactly() {
    let cluster = cluster(LoadBalancing::RoundRobin, &[1, 2, 1]);
    assert_eq!(counts(&cluster, &Loads::default(), 400), [100, 200, 100]);
}

#[test]
fn at_random_each_gets_about_its_weight() {
    let cluster = cluster(LoadBalancing::Random, &[1, 2, 1]);
    for (count, share) in counts(&cluster, &Loads::default(), 4000).into_iter().zip([1000, 2000, 1000]) {
        assert!((share * 9 / 10..share * 11 / 10).contains(&count), "{count} instead of {share}");
    }
}

#[test]
fn least_request_takes_the_less_loaded_of_two_whatever_their_latency() {
    let cluster = cluster(LoadBalancing::LeastRequest, &[1, 1, 1]);
    let mut loads = Loads::default();
    let set = cluster.endpoints.load();
    for _ in 0..3 {
        loads.begin(set.endpoints[0].id());
    }
    loads.begin(set.endpoints[1].id());
    loads.begin(set.endpoints[1].id());
    loads.end(set.endpoints[1].id(), Some(Duration::from_secs(9)), Instant::now());
    let counts = counts(&cluster, &loads, 3000);
    // The busiest loses against both others, the idle one wins against both.
    assert_eq!(counts[0], 0);
    assert!((900..1100).contains(&counts[1]) && (1900..2100).contains(&counts[2]), "{counts:?}");
}

#[test]
fn a_key_keeps_its_endpoint_and_has_another_only_while_that_is_left_out() {
    for policy in [LoadBalancing::RingHash(Arc::new([])), LoadBalancing::Maglev(Arc::new([]))] {
        let cluster = cluster(policy, &[1, 1, 1, 1]);
        let (mut rng, loads) = (fastrand::Rng::with_seed(1), Loads::default());
        let mut pick_for = |key: u64, tried: &[u64]| {
            let hash = Some(hashed::hash(&key.to_le_bytes()));
            let mut view = View { loads: &loads, rng: &mut rng, now: Instant::now(), now_ms: Millis(0), hash };
            pick(&cluster, tried, &mut view).unwrap().id()
        };
        for key in 0..200 {
            let own = pick_for(key, &[]);
            assert_eq!(pick_for(key, &[]), own);
            let other = pick_for(key, &[own]);
            assert_ne!(other, own);
            assert_eq!(pick_for(key, &[own]), other);
        }
        let counts = counts(&cluster, &loads, 4000);
        assert!(counts.iter().all(|count| (500..1500).contains(count)), "no key: any endpoint: {counts:?}");
    }
}

#[test]
fn p2c_spreads_evenly_over_equal_endpoints_and_avoids_a_slow_one() {
    let cluster = cluster(LoadBalancing::P2cEwma, &[1, 1, 1, 1]);
    for count in counts(&cluster, &Loads::default(), 4000) {
        assert!((800..1200).contains(&count), "{count}");
    }
    let mut loads = Loads::default();
    let now = Instant::now();
    for (i, endpoint) in cluster.endpoints.load().endpoints.iter().enumerate() {
        loads.begin(endpoint.id());
        let latency = Duration::from_millis(if i == 0 { 900 } else { 3 });
        loads.end(endpoint.id(), Some(latency), now);
    }
    assert_eq!(counts(&cluster, &loads, 1000)[0], 0, "the slow one never wins against another");
}

#[test]
fn p2c_gives_a_slightly_slower_endpoint_its_part_and_a_twice_slower_one_a_fifth() {
    let cluster = cluster(LoadBalancing::P2cEwma, &[1, 1]);
    let share_of_slower = |slower: u64| {
        let mut loads = Loads::default();
        let now = Instant::now();
        for (endpoint, millis) in cluster.endpoints.load().endpoints.iter().zip([10, slower]) {
            loads.begin(endpoint.id());
            loads.end(endpoint.id(), Some(Duration::from_millis(millis)), now);
        }
        counts(&cluster, &loads, 1000)[1]
    };
    assert!((400..500).contains(&share_of_slower(11)), "{}", share_of_slower(11));
    assert!((150..250).contains(&share_of_slower(20)), "{}", share_of_slower(20));
}

#[test]
fn the_share_of_a_new_endpoint_grows_from_a_tenth() {
    for policy in [LoadBalancing::RoundRobin, LoadBalancing::P2cEwma, LoadBalancing::LeastRequest] {
        let mut cluster = cluster(policy, &[1, 1]);
        cluster.settings.slow_start = Some(Duration::from_secs(100));
        let set = cluster.endpoints.load();
        let replaced = Endpoint {
            address: set.endpoints[1].address,
            tls: EndpointTls::Plaintext,
            weight: 1,
            draining: false,
            far: false,
            workload: "".into(),
            state: Arc::new(EndpointState::appeared(Millis(1_000_000))),
        };
        let endpoints = vec![set.endpoints[0].clone(), Arc::new(replaced)];
        cluster.endpoints = EndpointSet::new(endpoints).into_swap();
        let share_after = |seconds: u32| {
            let mut rng = fastrand::Rng::with_seed(7);
            let now_ms = Millis(1_000_000 + 1_000 * u64::from(seconds));
            let loads = Loads::default();
            let mut view = View { loads: &loads, rng: &mut rng, now: Instant::now(), now_ms, hash: None };
            let picks = (0..4000).filter(|_| pick(&cluster, &[], &mut view).unwrap().id() != set.endpoints[0].id());
            picks.count() as f64 / 4000.0
        };
        for (seconds, share) in [(0, 0.1 / 1.1), (50, 0.5 / 1.5), (100, 0.5)] {
            let found = share_after(seconds);
            assert!((found - share).abs() < 0.03, "after {seconds} s: {found} instead of {share}");
        }
    }
}

#[test]
fn one_that_is_leaving_gets_what_no_other_can_take_until_it_is_forgotten() {
    let cluster = cluster(LoadBalancing::RoundRobin, &[1, 1]);
    let set = cluster.endpoints.load();
    let (leaving, staying) = (&set.endpoints[0], &set.endpoints[1]);
    let (mut rng, loads) = (fastrand::Rng::with_seed(1), Loads::default());
    let mut pick_at = |now_ms: u64, tried: &[u64]| {
        let mut view = View { loads: &loads, rng: &mut rng, now: Instant::now(), now_ms: Millis(now_ms), hash: None };
        pick(&cluster, tried, &mut view).unwrap().id()
    };
    leaving::note(&cluster, leaving, Millis(1_000));
    for _ in 0..4 {
        assert_eq!(pick_at(1_000, &[]), staying.id());
        assert_eq!(pick_at(1_000, &[staying.id()]), leaving.id());
    }
    let later: Vec<_> = (0..2).map(|_| pick_at(31_000, &[])).collect();
    assert!(later.contains(&leaving.id()) && later.contains(&staying.id()));
    leaving::note(&cluster, staying, Millis(31_000));
    leaving::note(&cluster, leaving, Millis(31_000));
    assert!([leaving.id(), staying.id()].contains(&pick_at(31_000, &[])), "all leave: any may be taken");
}

#[test]
fn far_endpoints_take_what_is_too_much_for_the_near_ones_that_are_well() {
    let all = cluster(LoadBalancing::RoundRobin, &[1, 1, 1, 1]);
    let far = |endpoint: &Arc<Endpoint>| Endpoint {
        address: endpoint.address,
        tls: EndpointTls::Plaintext,
        weight: 1,
        draining: false,
        far: endpoint.address.port() > 2,
        workload: "".into(),
        state: endpoint.state.clone(),
    };
    let endpoints = all.endpoints.load().endpoints.iter().map(|endpoint| Arc::new(far(endpoint))).collect();
    let cluster = Cluster { endpoints: EndpointSet::new(endpoints).into_swap(), ..all };
    let loads = Loads::default();
    assert_eq!(counts(&cluster, &loads, 100), [50, 50, 0, 0]);
    let set = cluster.endpoints.load();
    let fails = |index: usize| {
        (0..5).for_each(|_| {
            drop(outlier::note(&cluster, &set.endpoints[index], outlier::Outcome::NoResponse, None, Millis(0)))
        });
    };
    fails(0);
    // Half of the near ones are well, and can take seven tenths.
    let counted = counts(&cluster, &loads, 4000);
    assert_eq!(counted[0], 0);
    assert!((2700..2900).contains(&counted[1]), "{counted:?}");
    assert!(counted[2].abs_diff(counted[3]) < 200 && counted[2] > 500, "{counted:?}");
    let tried: Vec<_> = set.near().iter().map(|endpoint| endpoint.id()).collect();
    let mut view = View {
        loads: &loads,
        rng: &mut fastrand::Rng::with_seed(1),
        now: Instant::now(),
        now_ms: Millis(0),
        hash: None,
    };
    assert!(pick(&cluster, &tried, &mut view).unwrap().far, "a retry goes where it was not tried yet");
    let mut goes_far = |hash: u64| {
        view.hash = Some(hashed::hash(&hash.to_le_bytes()));
        pick(&cluster, &[], &mut view).unwrap().far
    };
    assert!((0..100).all(|key| goes_far(key) == goes_far(key)), "a key does or does not");
    assert!((0..100).any(&mut goes_far) && !(0..100).all(goes_far));
    fails(1);
    let counted = counts(&cluster, &loads, 100);
    assert_eq!((counted[0], counted[1]), (0, 0));
}

#[test]
fn one_that_asks_to_be_left_alone_is_for_as_long_as_it_says_unless_too_many_do() {
    let cluster = cluster(LoadBalancing::RoundRobin, &[1, 1, 1]);
    let set = cluster.endpoints.load();
    let loads = Loads::default();
    let picked_at = |now_ms: u64| -> std::collections::BTreeSet<u64> {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut view = View { loads: &loads, rng: &mut rng, now: Instant::now(), now_ms: Millis(now_ms), hash: None };
        (0..9).map(|_| pick(&cluster, &[], &mut view).unwrap().id()).collect()
    };
    leaving::rest(&cluster, &set.endpoints[0], Millis(0), Duration::from_secs(5));
    leaving::rest(&cluster, &set.endpoints[1], Millis(0), Duration::from_secs(5));
    let others = [set.endpoints[1].id(), set.endpoints[2].id()];
    assert_eq!(picked_at(4_999), others.into(), "half may rest, which is one of three");
    assert!(at(&cluster, set.endpoints[0].address, Millis(0)).is_some(), "sessions stay");
    assert_eq!(picked_at(5_000).len(), 3);
    leaving::rest(&cluster, &set.endpoints[1], Millis(5_000), Duration::from_secs(3600));
    assert_eq!(picked_at(34_999).len(), 2);
    assert_eq!(picked_at(35_000).len(), 3, "no longer than an ejection");
}

#[test]
fn an_endpoint_already_tried_is_avoided_while_there_are_others() {
    let cluster = cluster(LoadBalancing::RoundRobin, &[1, 1]);
    let set = cluster.endpoints.load();
    let (mut rng, loads) = (fastrand::Rng::with_seed(1), Loads::default());
    let mut pick_after = |tried: &[u64]| {
        let mut view = View { loads: &loads, rng: &mut rng, now: Instant::now(), now_ms: Millis(0), hash: None };
        pick(&cluster, tried, &mut view).unwrap().id()
    };
    let ids: Vec<u64> = set.endpoints.iter().map(|e| e.id()).collect();
    for _ in 0..4 {
        assert_eq!(pick_after(&ids[..1]), ids[1]);
    }
    assert!(ids.contains(&pick_after(&ids)), "all tried: any may be taken again");
}
