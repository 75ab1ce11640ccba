//! Two clients that are the same but for their sidecars, heddle-proxy and Envoy, and the Services they ask, whose sidecars are
//! all of one kind.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use heddle_tests::envoy::Envoy;
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::wire::{Message, Reader};
use heddle_tests::{eventually, h2c, talk};
use serde_json::Value;

use crate::application::{self, Attempts};
use crate::case::{Ask, By, Case, EMPTY, SERVICES, SHADOW, allowed, by, denied, in_force, marker_ask, parents, store};
use crate::seen::Seen;

/// Which data plane stands beside an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sidecar {
    /// Ours.
    Heddle,
    /// Envoy.
    Envoy,
}

/// Clients and servers, their control plane, and the case in force.
pub struct World {
    beside: Sidecar,
    _envoys: Vec<Envoy>,
    clients: [(Sidecar, MeshPod); 2],
    stranger: MeshPod,
    /// With the names of their Services.
    servers: Vec<(&'static str, MeshPod)>,
    attempts: Attempts,
    number: u64,
    asked: AtomicU64,
    // After the pods in it.
    mesh: LiveMesh,
}

/// What came of the requests of a case.
pub type Transcript = Vec<Outcomes>;

/// What came of one request.
#[derive(Debug)]
pub struct Outcomes {
    /// How often.
    pub seen: BTreeMap<Seen, u32>,
    /// By which applications know it.
    ids: Range<u64>,
}

/// Name, number, account and app of each workload. The clients have one identity, as policies see it.
const WORKLOADS: [(&str, u8, &str, &str); 7] = [
    ("heddle-client", 2, "client", "client"),
    ("envoy-client", 3, "client", "client"),
    ("alpha-0", 11, "alpha", "alpha"),
    ("beta-0", 12, "beta", "beta"),
    ("beta-1", 13, "beta", "beta"),
    ("gamma-0", 14, "gamma", "gamma"),
    ("shadow-0", 15, "shadow", SHADOW),
];

/// Otherwise Envoy judges a connection of before a policy changed by the policy of then for ten more minutes.
const AT_ONCE: [&str; 2] = ["--drain-time-s", "0"];

impl World {
    /// Everybody is ready; `servers` stand beside the applications.
    pub fn new(servers: Sidecar) -> Self {
        let services = (1..).zip(SERVICES).map(|(number, name)| (name, number, name));
        let services: Vec<_> = services.chain([(SHADOW, 5, SHADOW), (EMPTY, 9, "nobody")]).collect();
        let (_, away) = parents().last().unwrap();
        let manifests = format!("{}{}", shop(&WORKLOADS, &services), store(away));
        let mesh = LiveMesh::start(&[("shop.yaml", &manifests)]);
        let mut envoys = Vec::new();
        let mut pod = |(name, number, account, _): (&str, u8, &str, &str), sidecar| match sidecar {
            Sidecar::Heddle => mesh.workload(name, number, account, 1),
            Sidecar::Envoy => {
                let pod = mesh.pod(name, number);
                let binary = env!("CARGO_BIN_EXE_heddle-under-test");
                envoys.push(Envoy::start(&mesh, &pod, binary, name, account, &AT_ONCE));
                pod
            }
        };
        let clients = [(Sidecar::Heddle, WORKLOADS[0]), (Sidecar::Envoy, WORKLOADS[1])];
        let clients = clients.map(|(sidecar, workload)| (sidecar, pod(workload, sidecar)));
        let stranger = mesh.pod("stranger", 4);
        let attempts = Attempts::default();
        let mut all = Vec::new();
        for workload in &WORKLOADS[2..] {
            let pod = pod(*workload, servers);
            application::start(&pod, workload.0, workload.3, attempts.clone());
            all.push((workload.3, pod));
        }
        Self {
            beside: servers,
            _envoys: envoys,
            clients,
            stranger,
            servers: all,
            attempts,
            number: 0,
            asked: AtomicU64::new(0),
            mesh,
        }
    }

    /// Puts a case in force, for both clients and all servers.
    pub fn apply(&mut self, case: &Case) {
        self.number += 1;
        let number = self.number;
        self.mesh.apply("case.yaml", &in_force(case, number));
        for (sidecar, client) in &self.clients {
            for (service, place) in parents() {
                eventually(&format!("case {number} is in force for {service} at {sidecar:?}"), || {
                    let seen =
                        Connection::to(client, vip(place), by(service)).exchange(&marker_ask(service, number), "");
                    let mutual = seen.told.iter().any(|field| field.starts_with("x-forwarded-client-cert"));
                    (seen.fields.contains(&format!("x-case: {number}")) && mutual != case.disabled()).then_some(())
                });
            }
        }
        for (service, server) in &self.servers {
            // A connection that the case before has not let in is closed without an answer.
            let status = |path: &str| {
                let asked = format!("GET {path} HTTP/1.1\r\nHost: api.shop\r\nConnection: close\r\n\r\n");
                let answer = talk::exchange(&self.clients[0].1, server.v4(8080), asked);
                (!answer.is_empty()).then(|| talk::Response::parse(&answer).status())
            };
            eventually(&format!("the policies of case {number} are in force at {service}"), || {
                (status(&denied(number)) == Some(403) && status(&allowed(number)) == Some(200)).then_some(())
            });
        }
    }

    /// What comes of the requests, those of applications with a sidecar being sent by this client.
    pub fn ask(&self, client: Sidecar, asks: &[Ask]) -> Transcript {
        asks.iter().map(|ask| self.ask_one(client, ask)).collect()
    }

    /// What stands beside the applications.
    pub fn servers(&self) -> Sidecar {
        self.beside
    }

    /// How many copies of a request have come so far. They come in their own time.
    pub fn copies(&self, outcomes: &Outcomes) -> u32 {
        let attempts = self.attempts.lock().unwrap();
        outcomes.ids.clone().filter_map(|id| attempts.get(&(id.to_string(), SHADOW))).sum()
    }

    fn ask_one(&self, client: Sidecar, ask: &Ask) -> Outcomes {
        let (_, pod) = self.clients.iter().find(|(sidecar, _)| *sidecar == client).unwrap();
        let (_, place) = parents().find(|(name, _)| *name == ask.service).unwrap();
        let first = self.servers.iter().find(|(service, _)| *service == ask.service);
        let mut connection = match ask.by {
            By::Http | By::Grpc => Connection::to(pod, vip(place), ask.by),
            By::Stranger => Connection::to(&self.stranger, first.unwrap().1.v4(8080), ask.by),
        };
        if let Some(field) = &ask.session {
            return Outcomes { seen: BTreeMap::from([(kept(connection, ask, field), ask.times)]), ids: 0..0 };
        }
        let mut seen = BTreeMap::new();
        let first = self.asked.fetch_add(u64::from(ask.times), Ordering::Relaxed);
        let ids = first..first + u64::from(ask.times);
        for id in ids.clone() {
            let id = id.to_string();
            let mut told = connection.exchange(ask, &id);
            let mut attempts = self.attempts.lock().unwrap();
            told.attempts = SERVICES.iter().filter_map(|service| attempts.remove(&(id.clone(), *service))).sum();
            *seen.entry(told).or_insert(0) += 1;
        }
        Outcomes { seen, ids }
    }
}

enum Connection<'a> {
    /// Kept for as long as both ends do.
    Http(Option<Reader<TcpStream>>, &'a MeshPod, SocketAddr),
    /// One for each call.
    Grpc(&'a MeshPod, SocketAddr),
}

impl<'a> Connection<'a> {
    fn to(pod: &'a MeshPod, to: SocketAddr, by: By) -> Self {
        match by {
            By::Http | By::Stranger => Self::Http(None, pod, to),
            By::Grpc => Self::Grpc(pod, to),
        }
    }

    fn exchange(&mut self, ask: &Ask, id: &str) -> Seen {
        match self {
            Self::Http(..) => self.http(ask, id).map(|response| Seen::of_http(&response)).unwrap_or_default(),
            Self::Grpc(pod, to) => h2c::run(async {
                let client = h2c::connect(pod, *to).await;
                let response = client.exchange(ask.call(id), h2c::grpc_message(b"")).await;
                response.map(|response| Seen::of_grpc(&response)).unwrap_or_default()
            }),
        }
    }

    fn http(&mut self, ask: &Ask, id: &str) -> Option<Message> {
        let Self::Http(connection, pod, to) = self else { return None };
        let reader = connection.get_or_insert_with(|| Reader::new(talk::connect(pod, *to)));
        let sent = reader.stream().write_all(&ask.bytes(id));
        let response = sent.ok().and_then(|()| reader.response(ask.method == "HEAD").ok());
        if response.as_ref().is_none_or(|response| response.field("connection") == Some("close")) {
            *connection = None;
        }
        response
    }
}

/// What comes of requests that say again what `field` of the last response that had it told.
fn kept(mut connection: Connection<'_>, ask: &Ask, field: &str) -> Seen {
    let sent_in = if field == "set-cookie" { "Cookie" } else { field };
    let (mut pods, mut told, mut ask) = (BTreeSet::new(), 0, ask.clone());
    for _ in 0..ask.times {
        let Some(response) = connection.http(&ask, "kept") else { return Seen::default() };
        if let Some(session) = response.field(field) {
            told += 1;
            ask.fields.retain(|(name, _)| name != sent_in);
            ask.fields.push((sent_in.to_owned(), session.split(';').next().unwrap().to_owned()));
        }
        let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        pods.extend(body["pod"].as_str().map(ToOwned::to_owned));
    }
    // Without a session each request goes anywhere.
    let line = if told == 0 { "told never".to_owned() } else { format!("{} pods, told {told} times", pods.len()) };
    Seen { line, ..Seen::default() }
}
