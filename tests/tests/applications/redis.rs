//! Redis: its client speaks first, in bytes that are neither HTTP nor TLS.

use std::fs;
use std::process::Stdio;

use heddle_tests::meshed::Pair;
use heddle_tests::programs::{self, Program, Server};
use tempfile::TempDir;

use super::{WORKERS, noise};

fn redis_server(pair: &Pair) -> (TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Program { name: "redis-server", package: "redis-server" }.command();
    command.args(["--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir"]);
    command.arg(directory.path());
    let server = Server::start(&pair.server, command, "Ready to accept connections");
    (directory, server)
}

fn tool(name: &'static str, pair: &Pair) -> std::process::Command {
    let mut command = Program { name, package: "redis-tools" }.command();
    command.args(["-h", &pair.vip.ip().to_string(), "-p", "6379"]);
    command
}

#[test]
fn redis_keeps_values_and_stands_a_small_load() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 6379);
        let (directory, _redis) = redis_server(&pair);
        let content = noise(1 << 20);
        let path = directory.path().join("value");
        fs::write(&path, &content).unwrap();

        let mut set = tool("redis-cli", &pair);
        set.args(["-x", "SET", "big"]);
        let outcome = programs::run_with(&pair.client, set, Stdio::from(fs::File::open(&path).unwrap()));
        assert_eq!(outcome.text(), "OK");
        let mut get = tool("redis-cli", &pair);
        get.args(["GET", "big"]);
        let outcome = programs::run(&pair.client, get);
        assert!(outcome.stdout.strip_suffix(b"\n") == Some(&content[..]), "the value differs");
        pair.assert_connections(2);

        let mut benchmark = tool("redis-benchmark", &pair);
        benchmark.args(["-n", "2000", "-c", "10", "-P", "4", "-q", "--csv", "-t", "set,get,lpush,lrange_100"]);
        let said = programs::run(&pair.client, benchmark).text();
        for test in ["SET", "GET", "LPUSH", "LRANGE_100 (first 100 elements)"] {
            assert!(said.lines().any(|line| line.starts_with(&format!("\"{test}\","))), "{test} is missing:\n{said}");
        }
        pair.assert_connections(pair.connections_begun());
        assert!(pair.connections_begun() >= 2 + 4 * 10, "{}", pair.connections_begun());
    }
}
