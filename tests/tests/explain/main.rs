//! What `explain` says is what happens: generated manifests and requests, explained from the manifests with nothing running and by
//! the live sidecars, and then sent. The route, the endpoint, the request as it leaves, the status and the cause must be those.
//!
//! Seeds as in `tests/differential`, whose generator this uses; `HEDDLE_EXPLAIN_CASES=500` asks for more of them. Standard output
//! is the sidecars' access log, so this is the only test in its file.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed set-up, or a missing field, fails the test")]

#[path = "../differential/application.rs"]
mod application;
#[allow(dead_code, reason = "the other half is used where Envoy is compared with")]
#[path = "../differential/case.rs"]
mod case;
#[path = "../differential/generate.rs"]
mod generate;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use clap::Parser;
use heddle::explain::mesh::{Mesh, MeshArgs};
use heddle::explain::{Cache, whole};
use heddle_proxy::explain::{Caller, Ending, Inbound, Outbound, Request, Sight, Speaks, Target, inbound, outbound};
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::stdout::Captured;
use heddle_tests::wire::{Message, Reader};
use heddle_tests::{eventually, h2c, talk};
use serde_json::Value;

use case::{Ask, By, Case, EMPTY, SERVICES, SHADOW, by, marker_ask, parents};

/// Name, number, account and app of each workload.
const WORKLOADS: [(&str, u8, &str, &str); 6] = [
    ("client", 2, "client", "client"),
    ("alpha-0", 11, "alpha", "alpha"),
    ("beta-0", 12, "beta", "beta"),
    ("beta-1", 13, "beta", "beta"),
    ("gamma-0", 14, "gamma", "gamma"),
    ("shadow-0", 15, "shadow", SHADOW),
];
/// Cases, unless others are asked for. Chosen: some five hundred requests, in less than a minute.
const CASES: u64 = 40;
/// Requests that must have been compared, so that a generator that makes none is found out.
const LEAST: usize = 400;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    mesh: MeshArgs,
}

#[test]
fn what_is_explained_is_what_happens() {
    let cases = std::env::var("HEDDLE_EXPLAIN_CASES").map_or(CASES, |count| count.parse().unwrap());
    let log = Captured::begin();
    let mut world = World::new();
    let mut compared = Compared::default();
    for seed in 1..=cases {
        let case = generate::case(seed);
        let explainer = world.apply(seed, &case);
        for (number, ask) in case.asks.iter().enumerate().filter(|(_, ask)| ask.session.is_none()) {
            let id = format!("{seed}.{number}");
            let what = format!("seed {seed}, {ask:?}\n{}", serde_json::to_string_pretty(&case.manifests).unwrap());
            world.compare(&explainer, &log, ask, &id, &what, &mut compared);
        }
    }
    eprintln!("{compared:?}");
    assert!(cases < CASES || compared.sent + compared.answered + compared.refused >= LEAST, "{compared:?}");
    for (what, count) in [
        ("sent", compared.sent),
        ("answered", compared.answered),
        ("refused", compared.refused),
        ("denied", compared.denied),
        ("closed", compared.closed),
        ("strangers", compared.strangers),
    ] {
        assert!(cases < CASES || count > 5, "{what}: {compared:?}");
    }
}

/// What was compared, by how it ended.
#[derive(Debug, Default)]
struct Compared {
    sent: usize,
    answered: usize,
    refused: usize,
    denied: usize,
    closed: usize,
    strangers: usize,
}

struct World {
    client: MeshPod,
    stranger: MeshPod,
    servers: Vec<(&'static str, MeshPod)>,
    // After the pods in it.
    mesh: LiveMesh,
}

impl World {
    fn new() -> Self {
        let services = (1..).zip(SERVICES).map(|(number, name)| (name, number, name));
        let services: Vec<_> = services.chain([(SHADOW, 5, SHADOW), (EMPTY, 9, "nobody")]).collect();
        let (_, away) = parents().last().unwrap();
        let manifests = format!("{}{}", shop(&WORKLOADS, &services), case::store(away));
        let mesh = LiveMesh::start(&[("shop.yaml", &manifests)]).with_access_logs();
        let mut pods = WORKLOADS.map(|(name, number, account, _)| Some(mesh.workload(name, number, account, 1)));
        let client = pods[0].take().unwrap();
        let mut servers = Vec::new();
        for (pod, workload) in pods.iter_mut().zip(WORKLOADS).skip(1) {
            let pod = pod.take().unwrap();
            application::start(&pod, workload.0, workload.3, application::Attempts::default());
            servers.push((workload.3, pod));
        }
        let stranger = mesh.pod("stranger", 4);
        Self { client, stranger, servers, mesh }
    }

    /// Puts a case in force everywhere; returns who explains it from the manifests.
    fn apply(&mut self, number: u64, case: &Case) -> Explainer {
        self.mesh.apply("case.yaml", &case::in_force(case, number));
        for (service, place) in parents() {
            eventually(&format!("case {number} is in force for {service}"), || {
                let ask = marker_ask(service, number);
                let mine = format!("x-case: {number}");
                let seen = if by(service) == By::Grpc {
                    let (response, _) = call(&self.client, vip(place), &ask, "")?;
                    response.headers().get("x-case").is_some_and(|case| *case == *number.to_string())
                } else {
                    let response = exchange(&self.client, vip(place), &ask, "")?;
                    response.fields.iter().any(|(name, value)| format!("{name}: {value}") == mine)
                };
                seen.then_some(())
            });
        }
        for (service, server) in &self.servers {
            let status = |path: &str| talk::get(&self.client, server.v4(8080), path).status();
            eventually(&format!("the policies of case {number} are in force at {service}"), || {
                (status(&case::denied(number)) == 403 && status(&case::allowed(number)) == 200).then_some(())
            });
        }
        Explainer::new(&self.mesh.manifests())
    }

    fn compare(&self, explainer: &Explainer, log: &Captured, ask: &Ask, id: &str, what: &str, compared: &mut Compared) {
        let (_, place) = parents().find(|(name, _)| *name == ask.service).unwrap();
        let request = request(ask);
        if ask.by == By::Stranger {
            let (_, server) = self.servers.iter().find(|(service, _)| *service == ask.service).unwrap();
            let caller = Caller { principal: None, ip: self.stranger.v4(0).ip(), opaque: false };
            let answer = live_inbound(server, &caller, &request);
            let response = exchange(&self.stranger, server.v4(8080), ask, id);
            let status = response.as_ref().map(Message::status);
            assert_eq!(status_of(&answer.ending, status), status, "{what}\n{answer:#?}");
            compared.strangers += 1;
            return;
        }
        let whole = explainer.explain(vip(place), &request);
        let live = live_outbound(&self.client, vip(place), &request);
        assert_eq!(without_state(whole.client.clone()), without_state(live.clone()), "{what}");
        let Some(Answer { status, location, denied: refused, told }) = self.send(vip(place), ask, id) else {
            let closed = |ending: &Ending| matches!(ending, Ending::Refused { status: None, .. });
            assert!(
                whole.client.outcomes.iter().all(|outcome| closed(&outcome.ending)),
                "no answer: {what}\n{whole:#?}"
            );
            compared.closed += 1;
            return;
        };
        let line = eventually("the request is in the access log", || {
            log.json().into_iter().find(|line| line["request_id"] == id && line["direction"] == "outbound")
        });
        let shown = || format!("{what}\n{line}\n{whole:#?}");
        let rule = whole.client.rule.as_ref().map(|rule| rule.name.as_str());
        assert_eq!(line["route"].as_str(), rule, "{}", shown());
        let cause = line["cause"].as_str();
        let upstream = line["upstream"].as_str();
        let ended = whole.client.outcomes.iter().any(|outcome| match &outcome.ending {
            Ending::Sent { cluster } => upstream.is_some_and(|upstream| {
                let backends = whole.client.backends.iter().filter(|backend| backend.cluster.as_ref() == Some(cluster));
                let mut endpoints = backends.flat_map(|backend| &backend.endpoints);
                endpoints.any(|endpoint| endpoint.eligible && endpoint.address.to_string() == upstream)
            }),
            Ending::Answered { status: told, location: to, .. } => {
                cause.is_none() && upstream.is_none() && *told == status && *to == location
            }
            Ending::Refused { cause: told, status: with, .. } => {
                cause == Some(told.as_str()) && (ask.by == By::Grpc || *with == Some(status))
            }
            Ending::Delivered | Ending::Outside => false,
        });
        assert!(ended, "{}", shown());
        match (upstream, cause) {
            (Some(upstream), _) => {
                // An endpoint may have been found unwell in between.
                let after = live_outbound(&self.client, vip(place), &request);
                let eligible = [&live, &after].iter().any(|answer| is_eligible(answer, upstream));
                assert!(eligible, "{upstream}: {live:#?}\n{}", shown());
                let server = whole
                    .servers
                    .iter()
                    .find(|server| server.endpoints.iter().any(|endpoint| endpoint.to_string() == upstream));
                let server = server.and_then(|server| server.answer.as_ref()).unwrap_or_else(|| panic!("{}", shown()));
                let denied = matches!(&server.ending, Ending::Refused { cause, .. } if cause == "denied");
                assert_eq!(denied, refused, "{}", shown());
                if let (Some(told), false) = (&told, denied) {
                    let of_service = format!("shop/{}/80", told["service"].as_str().unwrap());
                    let mut sent = whole.client.backends.iter().filter(|one| one.cluster.as_ref() == Some(&of_service));
                    let line = told["line"].as_str().unwrap();
                    let as_told = |sent: &Request| format!("{} {}", sent.method, sent.path) == line;
                    assert!(sent.any(|backend| backend.sent.as_ref().is_some_and(as_told)), "{}", shown());
                }
                compared.sent += 1;
                compared.denied += usize::from(denied);
            }
            (None, Some(_)) => compared.refused += 1,
            (None, None) => compared.answered += 1,
        }
    }
}

/// What the client got.
struct Answer {
    status: u16,
    location: Option<String>,
    /// No application answers so.
    denied: bool,
    /// What the application told, if it was one that answered.
    told: Option<Value>,
}

impl World {
    fn send(&self, to: SocketAddr, ask: &Ask, id: &str) -> Option<Answer> {
        if ask.by == By::Grpc {
            let (response, message) = call(&self.client, to, ask, id)?;
            let told = message.get(5..).and_then(|message| serde_json::from_slice(message).ok());
            let denied = response.headers().get("grpc-status").is_some_and(|status| status == "7");
            return Some(Answer { status: response.status().as_u16(), location: None, denied, told });
        }
        let response = exchange(&self.client, to, ask, id)?;
        let told = serde_json::from_slice(&response.body).ok();
        let location = response.field("location").map(str::to_owned);
        Some(Answer { status: response.status(), location, denied: response.status() == 403, told })
    }
}

/// The status that an ending means; of what is delivered it is the application's.
fn status_of(ending: &Ending, seen: Option<u16>) -> Option<u16> {
    match ending {
        Ending::Refused { status, .. } => *status,
        Ending::Delivered => seen.filter(|status| *status != 403),
        other => panic!("{other:?}"),
    }
}

/// Explains from manifests alone.
struct Explainer(Mesh, std::cell::RefCell<Cache>);

impl Explainer {
    fn new(manifests: &Path) -> Self {
        let flags = ["explain", "--mesh-cidr", "10.77.0.0/24,10.96.0.0/16,fd77::/64,fd96::/64"];
        let mesh = Mesh::manifests(manifests, &Flags::parse_from(flags).mesh).unwrap();
        Self(mesh, std::cell::RefCell::default())
    }

    fn explain(&self, destination: SocketAddr, request: &Request) -> whole::Whole {
        let target = Target { host: destination.ip().to_string(), port: destination.port() };
        whole::explain(&self.0, &mut self.1.borrow_mut(), "shop/client", &target, None, request).unwrap()
    }
}

fn request(ask: &Ask) -> Request {
    let mut headers = ask.fields.clone();
    let mut protocol = Speaks::Http1;
    if ask.by == By::Grpc {
        headers.push(("te".into(), "trailers".into()));
        headers.push(("content-type".into(), "application/grpc".into()));
        protocol = Speaks::Http2;
    }
    Request { protocol, method: ask.method.clone(), host: ask.host.clone(), path: ask.target.clone(), headers }
}

fn live_outbound(client: &MeshPod, destination: SocketAddr, request: &Request) -> Outbound {
    let shared = client.shared();
    let tables = shared.tables.load_full();
    let sight = Sight { tables: &tables, elapsed: shared.started.elapsed(), wall: SystemTime::now() };
    outbound(&sight, destination, client.v4(0).ip(), request).unwrap()
}

fn live_inbound(server: &MeshPod, caller: &Caller, request: &Request) -> Inbound {
    let shared = server.shared();
    let tables = shared.tables.load_full();
    let sight = Sight { tables: &tables, elapsed: shared.started.elapsed(), wall: SystemTime::now() };
    inbound(&sight, 8080, caller, request).unwrap()
}

/// Whether it may get the request by what a live sidecar says.
fn is_eligible(answer: &Outbound, upstream: &str) -> bool {
    let mut endpoints = answer.backends.iter().flat_map(|backend| &backend.endpoints);
    endpoints.any(|endpoint| endpoint.eligible && endpoint.address.to_string() == upstream)
}

/// What became of endpoints and how much is open is the live sidecar's alone to know.
fn without_state(mut answer: Outbound) -> Outbound {
    answer.places(&mut |_, place| *place = None);
    for backend in &mut answer.backends {
        backend.breakers.clear();
        for endpoint in &mut backend.endpoints {
            (endpoint.eligible, endpoint.because) = (true, None);
        }
    }
    answer
}

fn exchange(pod: &MeshPod, to: SocketAddr, ask: &Ask, id: &str) -> Option<Message> {
    let mut stream = talk::connect(pod, to);
    stream.write_all(&with_id(ask, id).bytes(id)).ok()?;
    Reader::new(stream).response(ask.method == "HEAD").ok()
}

fn call(pod: &MeshPod, to: SocketAddr, ask: &Ask, id: &str) -> Option<(http::Response<()>, Vec<u8>)> {
    h2c::run(async {
        let client = h2c::connect(pod, to).await;
        let response = client.exchange(with_id(ask, id).call(id), h2c::grpc_message(b"")).await.ok()?;
        let (mut head, ()) = http::Response::new(()).into_parts();
        (head.status, head.headers) = (response.head.status, response.head.headers.clone());
        Some((http::Response::from_parts(head, ()), response.body.to_vec()))
    })
}

/// By which it is found in the access log.
fn with_id(ask: &Ask, id: &str) -> Ask {
    let mut ask = ask.clone();
    if !id.is_empty() {
        ask.fields.push(("x-request-id".into(), id.into()));
    }
    ask
}
