//! Calls that a client makes when it is told to, and what came of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use heddle_tests::pods::MeshPod;
use heddle_tests::talk;
use serde::Deserialize;

/// Calls to make; see `tests/interop/protocol.md`.
#[derive(Debug, Clone)]
pub struct Calls {
    target: String,
    method: &'static str,
    headers: Vec<(&'static str, String)>,
    count: usize,
    at_once: usize,
    until: &'static str,
    deadline: u64,
}

/// What came of one.
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    /// Who answered; empty: nobody.
    pub server: String,
    /// gRPC's number.
    pub status: u16,
    /// What a status says beside it.
    pub message: String,
    /// How long it took.
    pub millis: u64,
}

impl Calls {
    /// One call of `Say` to port 7070 of a Service of the namespace `shop`.
    pub fn to(service: &str) -> Self {
        Self::to_target(&format!("xds:///{service}.shop:7070"))
    }

    /// One call of `Say` to a target.
    pub fn to_target(target: &str) -> Self {
        let target = target.to_owned();
        Self { target, method: "Say", headers: Vec::new(), count: 1, at_once: 1, until: "", deadline: 15_000 }
    }

    /// Of the other method.
    pub fn ask(self) -> Self {
        Self { method: "Ask", ..self }
    }

    /// With a header.
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// So many, one after another.
    pub fn times(self, count: usize) -> Self {
        Self { count, ..self }
    }

    /// So many, all at once.
    pub fn at_once(self, count: usize) -> Self {
        Self { count, at_once: count, ..self }
    }

    /// Several at a time, until a server has answered.
    pub fn until(self, server: &'static str) -> Self {
        Self { count: 1_000_000, at_once: 4, until: server, ..self }
    }

    /// With a deadline of the client's own, in milliseconds.
    pub fn within(self, deadline: u64) -> Self {
        Self { deadline, ..self }
    }

    /// Has the client in `pod` make them, and waits for the last.
    pub fn by(&self, pod: &MeshPod) -> Vec<Outcome> {
        let Self { target, method, headers, count, at_once, until, deadline } = self;
        let mut path = format!("/calls?target={target}&method={method}&count={count}&at-once={at_once}");
        path.push_str(&format!("&until={until}&deadline={deadline}"));
        headers.iter().for_each(|(name, value)| path.push_str(&format!("&header={name}:{value}")));
        let answer = talk::get(pod, SocketAddr::from(([127, 0, 0, 1], 9000)), &path);
        assert!(answer.status_line.contains(" 200 "), "{answer:?}");
        let lines = answer.body.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }
}

/// How often each server answered, and each status but OK was the end, as `status 14`.
pub fn counted(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        let ended = match outcome.status {
            0 => outcome.server.clone(),
            status => format!("status {status}"),
        };
        *counts.entry(ended).or_default() += 1;
    }
    counts
}

/// `CANCELLED` (gRPC `statuscodes.md`).
pub const CANCELLED: u16 = 1;
/// `DEADLINE_EXCEEDED`.
pub const DEADLINE_EXCEEDED: u16 = 4;
/// `PERMISSION_DENIED`.
pub const PERMISSION_DENIED: u16 = 7;
/// `UNAVAILABLE`.
pub const UNAVAILABLE: u16 = 14;
