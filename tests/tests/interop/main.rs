//! gRPC without sidecars, of three implementations: the cases of gRPC's own xDS interop tests, with a real control plane.
//!
//! Every case of [`cases::ALL`] runs with every client of [`world::CLIENTS`], and each must hold; afterwards CSDS has each
//! process say that no resource was refused. The applications are in `tests/interop`, which builds them.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod calls;
mod cases;
mod manifests;
mod programs;
mod secure;
mod statuses;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

use heddle_tests::live::control_plane_admin;
use heddle_tests::{metrics, talk};

use world::{Client, World};

/// What a client is to see.
type Case = fn(&World, &Client);

#[test]
fn every_case_holds_for_every_client_and_no_resource_is_refused() {
    let world = World::start();
    let begun = Instant::now();
    let held: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = world.clients.iter().map(|client| scope.spawn(|| all_cases(&world, client))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    secure::from_a_sidecar(&world);
    println!("{}", table(&held, &world));
    println!("{} cases in {} ms", cases::ALL.len(), begun.elapsed().as_millis());
    for (name, pod) in world.processes() {
        statuses::all_accepted(name, pod);
    }
    let page =
        talk::request_from(world.mesh.fabric().netns(), control_plane_admin(), "GET /metrics HTTP/1.0\r\n\r\n").body;
    assert_eq!(metrics::sum(&page, "heddle_xds_answers_total", &["result=\"refused\""]), 0.0, "{page}");
    assert!(held.iter().all(|client| client.values().all(|held| *held)), "what did not hold is said above");
}

/// Whether each case held.
fn all_cases(world: &World, client: &Client) -> BTreeMap<&'static str, bool> {
    let one = |(name, case): &(&'static str, Case)| {
        let held = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(format!("{}: {name}", client.name));
            thread.spawn_scoped(scope, || case(world, client)).unwrap().join().is_ok()
        });
        (*name, held)
    };
    cases::ALL.iter().map(one).collect()
}

fn table(held: &[BTreeMap<&'static str, bool>], world: &World) -> String {
    let mut text = format!("{:40}", "");
    for client in &world.clients {
        text.push_str(&format!("{:10}", client.name));
    }
    for (name, _) in cases::ALL {
        text.push_str(&format!("\n{name:40}"));
        for client in held {
            text.push_str(if client[name] { "holds     " } else { "DOES NOT  " });
        }
    }
    text
}
