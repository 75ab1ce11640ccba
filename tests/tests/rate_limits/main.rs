//! How many requests a workload takes, with a real control plane.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod concurrency;
mod local;
mod service;

use std::io::Write;
use std::net::SocketAddr;

use heddle_tests::live::vip;
use heddle_tests::pods::MeshPod;
use heddle_tests::talk;
use heddle_tests::wire::{Message, Reader};

fn ask(pod: &MeshPod, path: &str, fields: &str) -> Message {
    ask_at(pod, vip(1), path, fields)
}

/// Over a connection of its own.
fn ask_at(pod: &MeshPod, service: SocketAddr, path: &str, fields: &str) -> Message {
    let mut answers = Reader::new(talk::connect(pod, service));
    write!(answers.stream(), "GET {path} HTTP/1.1\r\nHost: api\r\n{fields}\r\n").unwrap();
    answers.response(false).unwrap()
}

const LIMIT: &str = "
apiVersion: heddle.dev/v1alpha1
kind: RateLimitPolicy
metadata: { name: api, namespace: shop }
spec: { SPEC }
";

/// A connection on a configuration that is no more ends with its next answer.
const DRAINS: [&str; 4] = ["--drain-time-s", "1", "--drain-strategy", "immediate"];
