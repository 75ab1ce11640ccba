//! Deployments are rolled, and Heddle itself, under load between two sidecars: no request fails.
//!
//! The application is podinfo, which knows nothing of meshes. The load is hey's, at a fixed rate: GET on connections that
//! are kept, POST on a connection for each request; and gRPC's: calls on one channel, and a stream that is to last. It runs in
//! the network of a pod with a sidecar, whose capture takes it for the pod's own traffic.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use heddle::pods::{Child, Netns};
use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::installed::{Heddle, NAMESPACE};
use heddle_tests::programs::Program;
use heddle_tests::talk;
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn no_request_fails_while_its_deployment_is_rolled() {
    let cluster = Cluster::running();
    Heddle::installed(&cluster);
    let shop = shop(&cluster, "rollouts");
    let load = Load::begin(&shop);
    for _ in 0..5 {
        roll(&shop, "deployment/podinfo");
    }
    load.end();
}

#[test]
fn no_request_fails_while_the_control_plane_is_rolled_or_away_and_what_it_missed_is_made_up_for() {
    let cluster = Cluster::running();
    Heddle::installed(&cluster);
    let shop = shop(&cluster, "away");
    let load = Load::begin(&shop);
    let control_plane = |arguments: &[&str]| cluster.kubectl([&["--namespace", NAMESPACE], arguments].concat());
    let wait = |arguments: &[&str]| control_plane(&[arguments, &["--timeout=60s"]].concat());
    control_plane(&["rollout", "restart", "deployment/heddle-control-plane"]);
    wait(&["rollout", "status", "deployment/heddle-control-plane"]);

    control_plane(&["scale", "deployment/heddle-control-plane", "--replicas=0"]);
    wait(&["wait", "pods", "--selector=app.kubernetes.io/name=heddle-control-plane", "--for=delete"]);
    // One of two pods goes, and a sidecar without a control plane finds that out by itself.
    let gone = shop.pods("app=podinfo").remove(0);
    shop.kubectl(["delete", "pod", &gone]);
    control_plane(&["scale", "deployment/heddle-control-plane", "--replicas=1"]);
    wait(&["rollout", "status", "deployment/heddle-control-plane"]);
    eventually("the API server reaches the webhook again", || {
        let ask = ["run", "asked", "--image=local.test/busybox:1", "--dry-run=server"];
        shop.try_kubectl(ask).status.success().then_some(())
    });
    // What could not be made meanwhile is tried again with pauses that grow to minutes, or when the number changes.
    shop.kubectl(["scale", "deployment/podinfo", "--replicas=3"]);
    shop.rolled_out("deployment/podinfo");
    let mut missing = shop.pods("app=podinfo");
    eventually("the pods that came afterwards get their part", || {
        let page = shop.exec("client", &["--container=client", "wget", "-q", "-O", "-", "http://podinfo/"]);
        missing.retain(|pod| !page.contains(pod.as_str()));
        missing.is_empty().then_some(())
    });
    load.end();
}

#[test]
fn no_request_fails_while_heddle_is_upgraded_and_rolled_back() {
    let cluster = Cluster::running();
    let previous = Heddle::previous(&cluster);
    let shop = shop(&cluster, "upgrade");
    let (before, load) = (sidecars(&shop), Load::begin(&shop));

    let heddle = Heddle::installed(&cluster);
    // Sidecars of before have the new control plane: they learn where the pods went.
    roll(&shop, "deployment/podinfo");
    assert_ne!(sidecars(&shop), before);

    heddle.roll_back(previous);
    // Now new ones have the control plane of before.
    roll(&shop, "deployment/podinfo");
    assert_eq!(sidecars(&shop), before);
    load.end();
    Heddle::installed(&cluster);
}

/// Two pods of podinfo behind a Service, and a pod to ask from, all with sidecars.
fn shop<'c>(cluster: &'c Cluster, purpose: &str) -> Namespace<'c> {
    let shop = cluster.namespace_labelled(purpose, &[("heddle.dev/inject", "enabled")]);
    shop.apply(SHOP);
    shop.rolled_out("deployment/podinfo");
    shop.wait("pod/client", "condition=Ready");
    shop
}

/// The images of podinfo's sidecars, but for pods on their way out.
fn sidecars(shop: &Namespace<'_>) -> BTreeSet<String> {
    let listed = shop.kubectl(["get", "pods", "--selector=app=podinfo", "--output=json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let staying =
        listed["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let containers = staying.flat_map(|pod| pod["spec"]["initContainers"].as_array().unwrap());
    let sidecars = containers.filter(|container| container["name"] == "heddle-proxy");
    sidecars.map(|sidecar| sidecar["image"].as_str().unwrap().to_owned()).collect()
}

fn roll(namespace: &Namespace<'_>, deployment: &str) {
    namespace.kubectl(["rollout", "restart", deployment]);
    namespace.rolled_out(deployment);
}

/// Load from a pod, until it is ended.
struct Load {
    requests: [Child; 2],
    calls: Child,
    // After the clients, who are in it.
    network: Netns,
}

impl Load {
    /// 300 requests a second, half of them on fresh connections, 20 calls a second, and a stream.
    fn begin(shop: &Namespace<'_>) -> Self {
        let network = shop.network("client");
        let service = shop.get("service/podinfo")["spec"]["clusterIP"].as_str().unwrap().to_owned();
        let start = |mut command: Command| {
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            network.spawn(command).unwrap()
        };
        // 10 clients of 15 requests a second each.
        let hey = |more: &[&str], path: &str| {
            let mut command = Program { name: "hey", package: "hey" }.command();
            command.args(["-z", "10m", "-c", "10", "-q", "15", "-t", "20"]).args(more);
            command.arg(format!("http://{service}{path}"));
            start(command)
        };
        let mut python = Command::new("/usr/bin/python3");
        python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes/calls.py")).arg(format!("{service}:9999"));
        let requests = [hey(&[], "/"), hey(&["-disable-keepalive", "-m", "POST", "-d", "hello"], "/echo")];
        Self { requests, calls: start(python), network }
    }

    /// Ends it; every request and every call must have been answered well. A stream may end where the server at its other
    /// end did, and must have been opened again at once.
    fn end(self) {
        for client in self.requests {
            let report = report(client);
            let (_, statuses) = report.split_once("Status code distribution:").expect(&report);
            let answered = statuses.lines().filter(|line| line.contains("responses")).collect::<Vec<_>>();
            let well = answered.iter().all(|line| line.contains("[200]") || line.contains("[202]"));
            let well = well && !answered.is_empty() && !report.contains("Error distribution");
            assert!(well, "{report}\n{}", causes(&self.network));
        }
        let report = report(self.calls);
        let good = ["ready", "call OK=", "opened=", "stream UNAVAILABLE "];
        let well = report.lines().all(|line| good.iter().any(|good| line.starts_with(good)));
        assert!(well, "{report}\n{}", causes(&self.network));
        assert!(good.iter().take(3).all(|good| report.contains(good)), "{report}");
    }
}

/// What a client of the load prints when it is told to end.
fn report(mut client: Child) -> String {
    client.signal(Signal::SIGINT).unwrap();
    let mut report = String::new();
    client.stdout().unwrap().read_to_string(&mut report).unwrap();
    report
}

/// What the client's sidecar counts.
fn causes(network: &Netns) -> String {
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let page = talk::request_from(network, (Ipv4Addr::LOCALHOST, 15020).into(), request).body;
    let telling = ["heddle_requests_total", "heddle_retries_total", "heddle_outlier", "heddle_upstream"];
    page.lines().filter(|line| telling.iter().any(|name| line.starts_with(name))).collect::<Vec<_>>().join("\n")
}

const SHOP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: podinfo }
spec:
  replicas: 2
  selector: { matchLabels: { app: podinfo } }
  strategy: { rollingUpdate: { maxUnavailable: 0, maxSurge: 1 } }
  template:
    metadata: { labels: { app: podinfo } }
    spec:
      # It waits for streams to end as long as it may.
      terminationGracePeriodSeconds: 10
      containers:
        - name: podinfo
          image: local.test/podinfo:1
          imagePullPolicy: Never
          args: [--port=9898, --grpc-port=9999, --level=warn]
          ports: [{ containerPort: 9898, name: http }, { containerPort: 9999, name: grpc }]
          readinessProbe: { httpGet: { path: /readyz, port: http }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: podinfo }
spec:
  selector: { app: podinfo }
  ports: [{ name: http, port: 80, targetPort: http }, { name: grpc, port: 9999, targetPort: grpc }]
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: client, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"] }]
"#;
