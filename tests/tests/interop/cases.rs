//! What every client is to see.

use std::collections::{BTreeMap, BTreeSet};

use heddle_tests::eventually;

use super::calls::{CANCELLED, Calls, DEADLINE_EXCEEDED, Outcome, UNAVAILABLE, counted};
use super::programs;
use super::world::{Client, World};
use super::{Case, manifests, secure};

/// All of them, by name.
pub const ALL: &[(&str, Case)] = &[
    ("ping pong", ping_pong),
    ("round robin", round_robin),
    ("traffic splitting", traffic_splitting),
    ("path matching", path_matching),
    ("header matching", header_matching),
    ("timeouts", timeouts),
    ("retries", retries),
    ("fault injection", fault_injection),
    ("circuit breaking", circuit_breaking),
    ("outlier detection", outlier_detection),
    ("ring hash affinity", ring_hash_affinity),
    ("failover between localities", failover_between_localities),
    ("change of backend service", change_of_backend_service),
    ("mutual TLS", secure::mutual_tls),
    ("mutual TLS: another identity", secure::another_identity),
    ("authorization", secure::authorization),
];

fn ping_pong(_: &World, client: &Client) {
    let outcomes = client.makes(&Calls::to("any").times(10));
    assert!(outcomes.iter().all(|outcome| outcome.status == 0 && !outcome.server.is_empty()), "{outcomes:?}");
}

fn round_robin(_: &World, client: &Client) {
    eventually("each of three servers answers every third call", || {
        let counts = counted(&client.makes(&Calls::to("any").times(30)));
        (counts == servers(&[("a", 10), ("b", 10), ("c", 10)])).then_some(())
    });
}

/// Of 400 calls; with these bounds 99.99 % of all times.
fn traffic_splitting(_: &World, client: &Client) {
    let counts = counted(&client.makes(&Calls::to("split").times(400)));
    let b = counts.get("b").copied().unwrap_or_default();
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "b"], "{counts:?}");
    assert!((49..=111).contains(&b), "about 80: {counts:?}");
}

fn path_matching(_: &World, client: &Client) {
    assert_eq!(counted(&client.makes(&Calls::to("paths").ask().times(5))), servers(&[("b", 5)]));
    assert_eq!(counted(&client.makes(&Calls::to("paths").times(5))), servers(&[("a", 5)]));
}

fn header_matching(_: &World, client: &Client) {
    let calls = || Calls::to("headers").times(3);
    assert_eq!(counted(&client.makes(&calls().with("x-version", "2"))), servers(&[("b", 3)]));
    assert_eq!(counted(&client.makes(&calls().with("x-user", "tester-7"))), servers(&[("c", 3)]));
    assert_eq!(counted(&client.makes(&calls().with("x-user", "a-tester-7"))), servers(&[("a", 3)]), "matched whole");
    assert_eq!(counted(&client.makes(&calls())), servers(&[("a", 3)]));
}

/// The route's, and the client's own where that is shorter. C-core counts a route's timeout from one to two seconds before the
/// call, with xDS or without (grpcio 1.85: `Timestamp::FromCycleCounterRoundUp`).
fn timeouts(_: &World, client: &Client) {
    let calls = || Calls::to("hasty");
    assert_eq!(counted(&client.makes(&calls())), servers(&[("a", 1)]));
    let least = if client.name == "grpcio" { 1_000 } else { 3_000 };
    for (calls, least) in [(calls(), least), (calls().within(100), 100)] {
        let late = client.makes(&calls.with("x-millis", 10_000));
        // The server knows the time too, and C-core hears it resetting the stream if that was first.
        let statuses: &[u16] =
            if client.name == "grpcio" { &[DEADLINE_EXCEEDED, CANCELLED] } else { &[DEADLINE_EXCEEDED] };
        assert!(statuses.contains(&late[0].status), "{late:?}");
        assert!((least - 1..least + 3_000).contains(&late[0].millis), "{late:?}");
    }
}

/// Two beside the first attempt.
fn retries(_: &World, client: &Client) {
    let attempts = |wanted: u32| client.makes(&Calls::to("again").with("x-attempts", wanted))[0].status;
    assert_eq!([attempts(1), attempts(3), attempts(4)], [0, 0, UNAVAILABLE]);
    let once = client.makes(&Calls::to("any").with("x-attempts", 2));
    assert_eq!(once[0].status, UNAVAILABLE, "no policy: {once:?}");
}

fn fault_injection(_: &World, client: &Client) {
    assert_eq!(counted(&client.makes(&Calls::to("faulty").ask().times(5))), servers(&[("status 15", 5)]));
    assert_eq!(counted(&client.makes(&Calls::to("faulty").times(5))), servers(&[("a", 5)]));
}

/// Three requests at once.
fn circuit_breaking(_: &World, client: &Client) {
    assert_eq!(counted(&client.makes(&Calls::to("narrow"))), servers(&[("a", 1)]));
    let outcomes = client.makes(&Calls::to("narrow").at_once(8).with("x-millis", 2_000));
    assert_eq!(counted(&outcomes), servers(&[("a", 3), ("status 14", 5)]));
    let refused = outcomes.iter().filter(|outcome| outcome.status == UNAVAILABLE);
    assert!(refused.clone().all(|outcome| outcome.millis < 1_900), "at once: {outcomes:?}");
    assert_eq!(counted(&client.makes(&Calls::to("narrow").at_once(3))), servers(&[("a", 3)]), "there is room again");
}

fn outlier_detection(_: &World, client: &Client) {
    let calls = Calls::to("judged").times(30).with("x-fail", "b");
    let first = counted(&client.makes(&calls));
    assert!(first.contains_key("status 14"), "{first:?}");
    eventually("the server that fails is left out", || {
        let counts = counted(&client.makes(&calls));
        (counts.keys().eq(["a", "c"])).then_some(())
    });
    let after = counted(&client.makes(&Calls::to("judged").times(30)));
    assert!(after.keys().eq(["a", "c"]), "also by calls that do not fail: {after:?}");
}

/// A key goes to one server, the same from every client but grpc-java, which places servers by another spelling of their addresses.
fn ring_hash_affinity(world: &World, client: &Client) {
    let goes_to = |key: usize| {
        let outcomes = client.makes(&Calls::to("sticky").times(4).with("x-user", format!("user-{key}")));
        let servers: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.server.clone()).collect();
        assert!(servers.len() == 1 && outcomes.iter().all(|outcome| outcome.status == 0), "{outcomes:?}");
        servers.into_iter().next().unwrap()
    };
    let owners: Vec<String> = (0..24).map(goes_to).collect();
    assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), 3, "keys are spread: {owners:?}");
    if client.name == "java" {
        return;
    }
    let known = world.owners.lock().unwrap().get_or_insert_with(|| owners.clone()).clone();
    assert_eq!(known, owners, "the same from every client");
}

/// Near are those of the client's zone; each client has a Service of its own, at a port of its own.
fn failover_between_localities(world: &World, client: &Client) {
    let port = client.own_port;
    let service = format!("zoned-{}", client.name);
    let near = programs::server(&world.servers[0], port);
    let _far = programs::server(&world.servers[1], port);
    eventually("all calls stay in the zone", || {
        (counted(&client.makes(&Calls::to(&service).times(10))) == servers(&[("a", 10)])).then_some(())
    });
    drop(near);
    assert_all_but_the_lost(&client.makes(&Calls::to(&service).until("b")));
    assert_eq!(counted(&client.makes(&Calls::to(&service).times(10))), servers(&[("b", 10)]));
    let _near = programs::server(&world.servers[0], port);
    assert_all_but_the_lost(&client.makes(&Calls::to(&service).until("a")));
    eventually("all calls are in the zone again", || {
        (counted(&client.makes(&Calls::to(&service).times(10))) == servers(&[("a", 10)])).then_some(())
    });
}

/// A call that was under way on a connection when that broke is lost; of at most four at a time.
fn assert_all_but_the_lost(outcomes: &[Outcome]) {
    let lost = outcomes.iter().filter(|outcome| outcome.status != 0).count();
    assert!(lost <= 4, "{:?}", counted(outcomes));
}

/// There and back while calls are under way, none of which fails. In the moments in which grpc-go has the new route and not yet the
/// balancer of the new cluster it fails calls, against gRFC A31 and whatever the retry policy (1.85: `clientconn.go` applies the one
/// before the other).
fn change_of_backend_service(world: &World, client: &Client) {
    let service = format!("moved-{}", client.name);
    for (to, from) in [("b", "a"), ("a", "b")] {
        let before = counted(&client.makes(&Calls::to(&service).times(5)));
        assert_eq!(before, servers(&[(from, 5)]));
        let outcomes = std::thread::scope(|scope| {
            let running = scope.spawn(|| client.makes(&Calls::to(&service).until(to)));
            world.mesh.apply(&format!("{service}.yaml"), &manifests::moved(&service, to));
            running.join().unwrap()
        });
        let too_early = |outcome: &&Outcome| client.name == "go" && outcome.message.starts_with(TOO_EARLY);
        let seen: Vec<_> = outcomes.iter().filter(|outcome| !too_early(outcome)).collect();
        let failed = seen.iter().find(|outcome| ![to, from].contains(&outcome.server.as_str()));
        assert!(failed.is_none(), "none fails: {:?}, as {failed:?}", counted(&outcomes));
        let after = || counted(&client.makes(&Calls::to(&service).times(5))) == servers(&[(to, 5)]);
        eventually("all calls go to the new backend", || after().then_some(()));
    }
}

fn servers(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// What grpc-go says of a cluster whose balancer it does not have yet.
const TOO_EARLY: &str = "unknown cluster selected for RPC";
