//! The same manifests and the same requests for heddle-proxy and for a real Envoy, on the client's side, the server's and both:
//! status, fields, the Service that answered and its share, redirects, what the application was asked, and how often, must be the same.
//!
//! Cases are generated from seeds, which are printed. `HEDDLE_DIFFERENTIAL_CASES=5000` asks for more of them,
//! `HEDDLE_DIFFERENTIAL_SEED=…` for others. Which fields they use, and how often, is printed. A difference is made small and printed as a file for `cases/`, whose cases run first.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]
#![allow(clippy::indexing_slicing, clippy::print_stdout, reason = "JSON of its own; seeds and coverage are printed")]

mod application;
mod case;
mod compare;
mod coverage;
mod generate;
mod seen;
mod shrink;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use case::{Ask, Case};
use coverage::Coverage;
use serde_json::{Value, json};
use world::{Sidecar, Transcript, World};

#[test]
fn envoy_and_heddle_do_the_same_with_whatever_is_written() {
    let count = number("HEDDLE_DIFFERENTIAL_CASES", CASES);
    let seed = number("HEDDLE_DIFFERENTIAL_SEED", SEED);
    println!("seeds {seed} to {}", seed + count - 1);
    let mut worlds = [World::new(Sidecar::Heddle), World::new(Sidecar::Envoy)];
    let mut found = Vec::new();
    let generated = (seed..seed + count).map(|seed| (format!("seed {seed}"), generate::case(seed)));
    for (name, case) in kept().into_iter().chain(generated) {
        let Some(words) = differs(&mut worlds, &case) else { continue };
        println!("{name}: {words}");
        let smallest = shrink::shrink(&case, SHRINKING, |case| differs(&mut worlds, case).is_some());
        let words = differs(&mut worlds, &smallest).unwrap_or_else(|| "now and then only".into());
        found.push(format!("{name}:\n{words}{}\n", serde_json::to_string_pretty(&smallest).unwrap()));
        if found.len() == MOST {
            break;
        }
    }
    assert!(found.is_empty(), "{} cases differ:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_field_is_written_often_enough() {
    let mut coverage = Coverage::default();
    kept().iter().for_each(|(_, case)| coverage.add(case));
    (SEED..SEED + CASES).for_each(|seed| coverage.add(&generate::case(seed)));
    let rare = coverage.print(LEAST);
    assert!(rare.is_empty(), "used less than {LEAST} times: {rare:?}");
    for path in FIELDS {
        assert!(coverage.has(path), "no case has {path}");
    }
}

/// A data plane that is told something else than what was written must be found out. What it would do is what ours does with
/// other manifests, so the bug is put into these, for ours alone: no product has a switch for it.
#[test]
fn bugs_of_translation_are_found() {
    let mut world = World::new(Sidecar::Heddle);
    for (name, bug) in BUGS {
        let cases = (SEED..).map(generate::case).filter(|case| bug(case) != *case).take(MUTANTS);
        let found = cases.into_iter().enumerate().find(|(_, case)| {
            world.apply(case);
            let right = world.ask(Sidecar::Envoy, &case.asks);
            world.apply(&bug(case));
            let wrong = world.ask(Sidecar::Heddle, &case.asks);
            !compare::differences(&case.asks, &right, &wrong).is_empty()
        });
        let (tried, _) = found.unwrap_or_else(|| panic!("{name}: not found with {MUTANTS} cases"));
        println!("{name}: found with {} cases", tried + 1);
    }
}

/// Where Envoy on any side gives something else than ours on both. What differs is asked again, as often as tells a
/// difference from chance: a choice by weight, or a machine that was busy for longer than a timeout.
fn differs(worlds: &mut [World; 2], case: &Case) -> Option<String> {
    each_world(worlds, |world| world.apply(case));
    let mut asks = case.asks.clone();
    let mut words = String::new();
    for round in 1..=1 + CONFIRMATIONS {
        let found = compared(worlds, &asks);
        let places: BTreeSet<_> = found.iter().map(|(place, _)| *place).collect();
        words = found.into_iter().map(|(_, words)| words).collect();
        asks = places.into_iter().map(|place| asks[place].again(case.again(round))).collect();
        if asks.is_empty() {
            return None;
        }
    }
    Some(words)
}

/// Differences from ours on both sides.
fn compared(worlds: &mut [World; 2], asks: &[Ask]) -> Vec<(usize, String)> {
    let told = each_world(worlds, |world| at_once(CLIENTS, |client| world.ask(client, asks)));
    let ours = &told[0][0];
    let mut found = Vec::new();
    for (world, told) in worlds.iter().zip(&told) {
        for (client, told) in CLIENTS.into_iter().zip(told) {
            let pair = format!("ours, and {client:?} → {:?}", world.servers());
            let differences = compare::differences(asks, ours, told).into_iter();
            found.extend(differences.map(|(place, words)| (place, format!("{pair}: {words}"))));
        }
    }
    let copies = |(world, told): (&World, &Transcript)| told.iter().map(|outcomes| world.copies(outcomes)).collect();
    let begun = Instant::now();
    loop {
        let all = worlds.iter().zip(&told).flat_map(|(world, told)| told.iter().map(move |told| (world, told)));
        let all: Vec<Vec<u32>> = all.map(copies).collect();
        let differs = |place: &usize| all.iter().any(|counts| counts[*place] != all[0][*place]);
        let differing: Vec<_> = (0..asks.len()).filter(differs).collect();
        if differing.is_empty() || begun.elapsed() > COPIES {
            let words = |place: usize| {
                let counts: Vec<_> = all.iter().map(|counts| counts[place]).collect();
                let Ask { method, target, service, .. } = &asks[place];
                (place, format!("{method} {target} at {service}: copies by client and server: {counts:?}\n"))
            };
            found.extend(differing.into_iter().map(words));
            return found;
        }
        thread::yield_now();
    }
}

/// What each world gives, both at a time.
fn each_world<T: Send>(worlds: &mut [World; 2], of: impl Fn(&mut World) -> T + Sync) -> [T; 2] {
    at_once(worlds.each_mut(), of)
}

/// What both give, at a time.
fn at_once<I: Send, T: Send>(both: [I; 2], of: impl Fn(I) -> T + Sync) -> [T; 2] {
    thread::scope(|scope| {
        let threads = both.map(|one| scope.spawn(|| of(one)));
        threads.map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

const CLIENTS: [Sidecar; 2] = [Sidecar::Heddle, Sidecar::Envoy];

type Bug = fn(&Case) -> Case;

const BUGS: [(&str, Bug); 3] = [
    ("weights are swapped", |case| {
        each(case, "/backendRefs", |backends| {
            let Some(backends) = backends.as_array_mut().filter(|backends| backends.len() > 1) else { return };
            let mut weights: Vec<_> = backends.iter().map(|backend| backend["weight"].clone()).collect();
            weights.rotate_left(1);
            for (backend, weight) in backends.iter_mut().zip(weights) {
                backend["weight"] = weight;
            }
        })
    }),
    ("a prefix is taken as exact", |case| {
        each_match(case, |given| {
            if given["path"]["type"] == "PathPrefix" {
                given["path"]["type"] = json!("Exact");
            }
        })
    }),
    // Names arrive in lower case (RFC 9113 §8.2; hyper's HeaderMap), so one that is compared as it was written never matches.
    ("the name of a header match is case-sensitive", |case| {
        each_match(case, |given| {
            for header in given["headers"].as_array_mut().into_iter().flatten() {
                let name = header["name"].as_str().unwrap();
                if name != name.to_lowercase() {
                    header["value"] = json!("never sent");
                    header["type"] = json!("Exact");
                }
            }
        })
    }),
];

fn each_match(case: &Case, change: impl Fn(&mut Value)) -> Case {
    each(case, "/matches", |matches| matches.as_array_mut().into_iter().flatten().for_each(&change))
}

/// The case with a part of each rule changed.
fn each(case: &Case, part: &str, change: impl Fn(&mut Value)) -> Case {
    let mut changed = case.clone();
    for route in changed.manifests.iter_mut().filter(|manifest| manifest["kind"] == "HTTPRoute") {
        let rules = route["spec"]["rules"].as_array_mut().into_iter().flatten();
        rules.filter_map(|rule| rule.pointer_mut(part)).for_each(&change);
    }
    changed
}

/// Cases that once differed.
fn kept() -> Vec<(String, Case)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/differential/cases");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let read = |path: PathBuf| {
        let case = serde_json::from_str(&fs::read_to_string(&path).unwrap());
        (path.display().to_string(), case.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    files.into_iter().map(read).collect()
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return otherwise };
    text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}"))
}

/// Cases, unless others are asked for. Chosen: four minutes.
const CASES: u64 = 200;
/// Where seeds begin, unless elsewhere: each run of the tests has the same cases.
const SEED: u64 = 1;
/// Differences after which a run ends.
const MOST: usize = 3;
/// Longest wait for copies of requests to come.
const COPIES: Duration = Duration::from_secs(2);
/// How often a difference must be seen again.
const CONFIRMATIONS: u32 = 2;
/// Tries to make a case smaller.
const SHRINKING: usize = 80;
/// Cases in which a bug must be found.
const MUTANTS: usize = 20;
/// How often each field must occur in a run of [`CASES`].
const LEAST: u32 = 20;
/// What must occur at all: a generator that forgets one would not be missed otherwise.
const FIELDS: [&str; 55] = [
    "HTTPRoute.rules.matches.path.type=Exact",
    "HTTPRoute.rules.matches.path.type=PathPrefix",
    "HTTPRoute.rules.matches.path.type=RegularExpression",
    "HTTPRoute.rules.matches.headers.type=RegularExpression",
    "HTTPRoute.rules.matches.queryParams.type=RegularExpression",
    "HTTPRoute.rules.matches.method",
    "HTTPRoute.rules.filters.type=RequestHeaderModifier",
    "HTTPRoute.rules.filters.type=ResponseHeaderModifier",
    "HTTPRoute.rules.filters.type=RequestRedirect",
    "HTTPRoute.rules.filters.type=URLRewrite",
    "HTTPRoute.rules.filters.type=RequestMirror",
    "HTTPRoute.rules.filters.type=CORS",
    "HTTPRoute.rules.backendRefs.weight",
    "HTTPRoute.rules.backendRefs.filters.type=RequestHeaderModifier",
    "HTTPRoute.rules.timeouts.request",
    "HTTPRoute.rules.retry.codes",
    "HTTPRoute.rules.sessionPersistence.type=Header",
    "HTTPRoute.rules.sessionPersistence.cookieConfig.lifetimeType",
    "HTTPRoute.rules.filters.type=ExtensionRef",
    "GRPCRoute.rules.filters.type=ExtensionRef",
    "FaultInjection.delay.percent",
    "FaultInjection.abort.httpStatus",
    "FaultInjection.abort.grpcStatus",
    "FaultInjection.headers",
    "TrafficPolicy.healthCheck.http.codes",
    "TrafficPolicy.healthCheck.grpc",
    "TrafficPolicy.connections.maxRequests",
    "TrafficPolicy.timeouts.idle",
    "TrafficPolicy.retry.perTryTimeout",
    "TrafficPolicy.loadBalancing.policy=LeastRequest",
    "TrafficPolicy.loadBalancing.policy=RoundRobin",
    "TrafficPolicy.loadBalancing.policy=Random",
    "TrafficPolicy.loadBalancing.policy=RingHash",
    "TrafficPolicy.loadBalancing.policy=Maglev",
    "TrafficPolicy.loadBalancing.hashOn.type=Header",
    "TrafficPolicy.loadBalancing.hashOn.type=Cookie",
    "TrafficPolicy.loadBalancing.hashOn.type=QueryParam",
    "TrafficPolicy.loadBalancing.hashOn.type=Path",
    "AuthorizationPolicy.action=DENY",
    "AuthorizationPolicy.rules.from.principals",
    "RateLimitPolicy.limits.by.type=Header",
    "RateLimitPolicy.limits.by.type=Identity",
    "RateLimitPolicy.limits.by.type=SourceIP",
    "RateLimitPolicy.limits.headers",
    "RateLimitPolicy.limits.from.principals",
    "RateLimitPolicy.limits.to.paths",
    "GRPCRoute.rules.matches.method.type=Exact",
    "GRPCRoute.rules.matches.method.type=RegularExpression",
    "GRPCRoute.rules.matches.headers.type=Exact",
    "GRPCRoute.rules.filters.type=RequestHeaderModifier",
    "GRPCRoute.rules.backendRefs.weight",
    "TrafficPolicy.retry.grpcCodes",
    "MeshTLSPolicy.mode=STRICT",
    "MeshTLSPolicy.mode=PERMISSIVE",
    "MeshTLSPolicy.mode=DISABLE",
];
