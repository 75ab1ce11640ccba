//! Deployments are rolled, and Heddle itself, under load between two sidecars: no request fails.
//!
//! The application is podinfo, which knows nothing of meshes. The load is hey's, at a fixed rate: GET on connections that
//! are kept, POST on a connection for each request. It runs in the network of a pod with a sidecar, whose capture takes it
//! for the pod's own traffic.

use std::io::Read;
use std::process::Stdio;

use heddle::pods::{Child, Netns};
use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::installed::{Heddle, NAMESPACE};
use heddle_tests::programs::Program;
use nix::sys::signal::Signal;

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

/// Two pods of podinfo behind a Service, and a pod to ask from, all with sidecars.
fn shop<'c>(cluster: &'c Cluster, purpose: &str) -> Namespace<'c> {
    let shop = cluster.namespace_labelled(purpose, &[("heddle.dev/inject", "enabled")]);
    shop.apply(SHOP);
    shop.rolled_out("deployment/podinfo");
    shop.wait("pod/client", "condition=Ready");
    shop
}

fn roll(namespace: &Namespace<'_>, deployment: &str) {
    namespace.kubectl(["rollout", "restart", deployment]);
    namespace.rolled_out(deployment);
}

/// Load from a pod, until it is ended.
struct Load {
    clients: Vec<Child>,
    // After the clients, who are in it.
    _network: Netns,
}

impl Load {
    /// 300 requests a second, half of them on fresh connections; there when the first were answered.
    fn begin(shop: &Namespace<'_>) -> Self {
        let network = shop.network("client");
        let service = shop.get("service/podinfo")["spec"]["clusterIP"].as_str().unwrap().to_owned();
        // 10 clients of 15 requests a second each.
        let hey = |more: &[&str], path: &str| {
            let mut command = Program { name: "hey", package: "hey" }.command();
            command.args(["-z", "10m", "-c", "10", "-q", "15", "-t", "20"]).args(more);
            command.arg(format!("http://{service}{path}")).stdin(Stdio::null()).stdout(Stdio::piped());
            network.spawn(command).unwrap()
        };
        let clients = vec![hey(&[], "/"), hey(&["-disable-keepalive", "-m", "POST", "-d", "hello"], "/echo")];
        Self { clients, _network: network }
    }

    /// Ends it; every request that was sent must have been answered well.
    fn end(self) {
        for mut client in self.clients {
            client.signal(Signal::SIGINT).unwrap();
            let mut report = String::new();
            client.stdout().unwrap().read_to_string(&mut report).unwrap();
            let (_, statuses) = report.split_once("Status code distribution:").expect(&report);
            let answered = statuses.lines().filter(|line| line.contains("responses")).collect::<Vec<_>>();
            let well = answered.iter().all(|line| line.contains("[200]") || line.contains("[202]"));
            assert!(well && !answered.is_empty() && !report.contains("Error distribution"), "{report}");
        }
    }
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
      containers:
        - name: podinfo
          image: local.test/podinfo:1
          imagePullPolicy: Never
          args: [--port=9898, --level=warn]
          ports: [{ containerPort: 9898, name: http }]
          readinessProbe: { httpGet: { path: /readyz, port: http }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: podinfo }
spec: { selector: { app: podinfo }, ports: [{ name: http, port: 80, targetPort: http }] }
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: client, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"] }]
"#;
