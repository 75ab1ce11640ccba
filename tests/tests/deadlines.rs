//! When answers must be there, and what applications are told of it, with a real control plane.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::talk::Response;
use heddle_tests::{eventually, origin, talk};
use http_body_util::Full;

struct World {
    client: MeshPod,
    _server: MeshPod,
    mesh: LiveMesh,
}

impl World {
    /// A server that says what it saw, after ten seconds at `/slow`, and 503 to every first of two at `/503`.
    fn new() -> Self {
        let workloads = [("client", 2, "client", "client"), ("api", 10, "api", "api")];
        let mesh = LiveMesh::start(&[("shop.yaml", &shop(&workloads, &[("api", 1, "api")]))]);
        let server = mesh.workload("api", 10, "api", 1);
        let asked = AtomicUsize::new(0);
        origin::http_in_time(&server, 8080, move |request| {
            let wait = if request.uri().path() == "/slow" { Duration::from_secs(10) } else { Duration::ZERO };
            let fails = request.uri().path() == "/503" && asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            async move {
                tokio::time::sleep(wait).await;
                let response = http::Response::builder().status(if fails { 503 } else { 200 });
                response.body(Full::from(origin::seen(&request))).unwrap()
            }
        });
        let client = mesh.workload("client", 2, "client", 1);
        Self { client, _server: server, mesh }
    }
}

fn ask(pod: &MeshPod, path: &str, fields: &str) -> Response {
    let request = format!("GET {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n{fields}\r\n");
    talk::request(pod, vip(1), &request)
}

/// What the server was told of its time, in milliseconds.
fn told(response: &Response) -> Option<u64> {
    let line = response.body.lines().find_map(|line| line.strip_prefix("grpc-timeout: "))?;
    Some(line.strip_suffix('m').unwrap_or_else(|| panic!("{line}")).parse().unwrap())
}

const GRPC: &str = "Content-Type: application/grpc\r\n";

#[test]
fn a_grpc_client_s_timeout_holds_and_is_passed_on_as_what_is_left_of_it() {
    let world = World::new();
    let ask = |path: &str, timeout: &str| ask(&world.client, path, &format!("{GRPC}{timeout}"));
    let left = told(&ask("/", "grpc-timeout: 5S\r\n")).unwrap();
    assert!((1..=5_000).contains(&left), "{left}");
    let late = ask("/slow", "grpc-timeout: 200m\r\n");
    assert_eq!(late.field("grpc-status"), Some("4"), "{late:?}");
    assert_eq!(told(&ask("/", "")), None, "nobody gave one");
    world.mesh.apply("policy.yaml", &POLICY.replace("RULES", "timeouts: { request: 2s }"));
    eventually("the policy's is shorter", || {
        let left = told(&ask("/", "grpc-timeout: 5S\r\n")).unwrap();
        (left <= 2_000).then_some(())
    });
    let left = told(&ask("/", "grpc-timeout: 1S\r\n")).unwrap();
    assert!(left <= 1_000, "the client's is shorter: {left}");
    assert!(told(&ask("/", "")).is_some_and(|left| left <= 2_000), "only the policy's");
}

#[test]
fn an_application_is_told_which_attempt_a_request_is() {
    let world = World::new();
    world.mesh.apply("policy.yaml", &POLICY.replace("RULES", "retry: { attempts: 1, codes: [503] }"));
    let pod = &world.client;
    eventually("a second attempt is made, and told", || {
        let response = ask(pod, "/503", "x-heddle-attempt: 7\r\n");
        assert!(!response.body.contains("x-heddle-attempt: 7"), "{response:?}");
        (response.status() == 200 && response.body.contains("x-heddle-attempt: 2\n")).then_some(())
    });
    assert!(!ask(pod, "/", "x-heddle-attempt: 7\r\n").body.contains("x-heddle-attempt"));
}

const POLICY: &str = "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: api, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: api }], RULES }
";
