//! A gRPC client without sidecar, PyPI's grpcio, that has its routes and endpoints from the control plane by xDS: one
//! server behind a sidecar, one without.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use heddle_tests::live::{LiveMesh, control_plane_admin};
use heddle_tests::pods::MeshPod;
use heddle_tests::programs::Server;
use heddle_tests::{eventually, metrics, pypi, talk};
use serde_json::{Value, json};

/// Programs first, so that they stop first.
struct World {
    _programs: Vec<Server>,
    client: MeshPod,
    _servers: [MeshPod; 2],
    mesh: LiveMesh,
}

#[test]
fn a_unary_call_is_answered_and_a_method_is_routed_by_its_name() {
    let world = World::new("GRPCRoute", 100);
    assert_eq!(world.calls("Say", 10), [("a".to_owned(), 10)].into());
    assert_eq!(world.calls("Ask", 10), [("b".to_owned(), 10)].into());
}

#[test]
fn weights_split_calls_and_a_change_of_them_needs_no_restart() {
    for kind in ["GRPCRoute", "HTTPRoute"] {
        let world = World::new(kind, 80);
        assert_share_of_b(&world.calls("Say", 300), 0.2);
        world.route(kind, 0);
        eventually("all calls go to b", || (world.calls("Say", 20) == [("b".to_owned(), 20)].into()).then_some(()));
        world.route(kind, 20);
        eventually("calls go to a again", || world.calls("Say", 20).contains_key("a").then_some(()));
        assert_share_of_b(&world.calls("Say", 300), 0.8);
        let page = talk::request(&world.client, control_plane_admin(), "GET /metrics HTTP/1.0\r\n\r\n").body;
        assert_eq!(metrics::sum(&page, "heddle_xds_answers_total", &["result=\"refused\""]), 0.0, "{page}");
        assert_eq!(metrics::sum(&page, "heddle_xds_streams", &["dialect=\"grpc\""]), 1.0, "{page}");
    }
}

#[test]
fn a_fault_goes_wrong_for_the_calls_of_its_rule() {
    let world = World::new("GRPCRoute", 100);
    let named = "    filters: [{ type: ExtensionRef, extensionRef: { group: heddle.dev, kind: FaultInjection, name: out } }]\n  ";
    let route = route("GRPCRoute", 100).replacen("    backendRefs", &format!("{named}  backendRefs"), 1);
    world.mesh.apply("route.yaml", &format!("{route}---\n{FAULT}"));
    eventually("calls fail as they are told to", || {
        let answers = world.calls("Ask", 5);
        let failed = answers.iter().filter(|(answer, _)| answer.starts_with("DATA_LOSS")).map(|(_, count)| count);
        (failed.sum::<usize>() == 5).then_some(())
    });
    assert_eq!(world.calls("Say", 10), [("a".to_owned(), 10)].into());
}

/// Of 300 calls; with these bounds 99.99 % of all times.
fn assert_share_of_b(answers: &BTreeMap<String, usize>, share: f64) {
    let expected = 300.0 * share;
    let b = answers.get("b").copied().unwrap_or_default();
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["a", "b"], "{answers:?}");
    assert!((b as f64 - expected).abs() <= 27.0, "b should have about {expected}: {answers:?}");
}

impl World {
    /// With a route of `kind` that gives the server `a` so many per cent.
    fn new(kind: &str, percent: u32) -> Self {
        let mesh = LiveMesh::start(&[("shop.yaml", MANIFESTS), ("route.yaml", &route(kind, percent))]);
        let servers = [mesh.workload("a", 3, "a", 1), mesh.pod("b", 4)];
        let mut programs: Vec<_> = servers.iter().map(server).collect();
        let client = mesh.pod("client", 2);
        let identity = mesh.directory().join("identity");
        let agent = mesh.agent_command(env!("CARGO_BIN_EXE_heddle-under-test"), "client", "client", &identity);
        let agent = Server::start(&client, agent, "certificate received");
        eventually("the agent writes its files", || identity.join("key.pem").exists().then_some(()));
        let bootstrap_file = mesh.directory().join("bootstrap.json");
        std::fs::write(&bootstrap_file, bootstrap(&identity).to_string()).unwrap();
        let mut command = pypi::python_with_grpcio(&script("client.py"));
        command.env("GRPC_XDS_BOOTSTRAP", bootstrap_file).arg("xds:///talk.shop:7070");
        programs.push(Server::start(&client, command, "ready"));
        programs.push(agent);
        Self { _programs: programs, client, _servers: servers, mesh }
    }

    fn route(&self, kind: &str, percent: u32) {
        self.mesh.apply("route.yaml", &route(kind, percent));
    }

    /// Who answered how often.
    fn calls(&self, method: &str, count: usize) -> BTreeMap<String, usize> {
        let said =
            talk::get(&self.client, SocketAddr::from(([127, 0, 0, 1], 9000)), &format!("/{method}/{count}")).body;
        let answers = said.lines().map(|line| line.rsplit_once('=').unwrap());
        answers.map(|(name, count)| (name.to_owned(), count.parse().unwrap())).collect()
    }
}

fn server(pod: &MeshPod) -> Server {
    let mut command = pypi::python_with_grpcio(&script("server.py"));
    command.arg(&pod.pod.name);
    Server::start(pod, command, "ready")
}

fn script(name: &str) -> String {
    format!("{}/tests/grpcio/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// gRFC A27, and A65 for the certificate on the way to the control plane.
fn bootstrap(identity: &Path) -> Value {
    let tls = json!({
        "certificate_file": identity.join("chain.pem"),
        "private_key_file": identity.join("key.pem"),
        "ca_certificate_file": identity.join("bundle.pem"),
        "refresh_interval": "1s",
    });
    json!({
        "xds_servers": [{
            "server_uri": "10.77.0.1:15012",
            "channel_creds": [{ "type": "tls", "config": tls }],
            "server_features": ["xds_v3"],
        }],
        "node": { "id": "client.shop" },
    })
}

/// `Ask` goes to `b`, of all else so many per cent to `a`.
fn route(kind: &str, percent: u32) -> String {
    let ask = match kind {
        "GRPCRoute" => "method: { service: heddle.test.Talk, method: Ask }",
        _ => "path: { type: Exact, value: /heddle.test.Talk/Ask }",
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: talk, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ group: \"\", kind: Service, name: talk, port: 7070 }}]\n  rules:\n  \
         - matches: [{{ {ask} }}]\n    backendRefs: [{{ name: b, port: 7070 }}]\n  \
         - backendRefs: [{{ name: a, port: 7070, weight: {percent} }}, {{ name: b, port: 7070, weight: {} }}]\n",
        100 - percent
    )
}

const FAULT: &str = "apiVersion: heddle.dev/v1alpha1
kind: FaultInjection
metadata: { name: out, namespace: shop }
spec: { abort: { grpcStatus: 15 } }
";

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: { name: client, namespace: shop }
spec: { addresses: ["10.77.0.2", "fd77::2"], serviceAccountName: client, meshed: false }
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: { name: a, namespace: shop, labels: { app: talk, server: a } }
spec: { addresses: ["10.77.0.3", "fd77::3"], serviceAccountName: a }
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: { name: b, namespace: shop, labels: { app: talk, server: b } }
spec: { addresses: ["10.77.0.4", "fd77::4"], serviceAccountName: b, meshed: false }
---
apiVersion: v1
kind: Service
metadata: { name: talk, namespace: shop }
spec: { clusterIP: 10.96.0.1, selector: { app: talk }, ports: [{ port: 7070, targetPort: 50051 }] }
---
apiVersion: v1
kind: Service
metadata: { name: a, namespace: shop }
spec: { clusterIP: 10.96.0.2, selector: { server: a }, ports: [{ port: 7070, targetPort: 50051 }] }
---
apiVersion: v1
kind: Service
metadata: { name: b, namespace: shop }
spec: { clusterIP: 10.96.0.3, selector: { server: b }, ports: [{ port: 7070, targetPort: 50051 }] }
"#;
