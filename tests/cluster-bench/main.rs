//! The figures of a cluster: how long a change takes to its sidecar, what admission costs, how much memory the control plane takes.
//!
//! ```text
//! tests/cluster/cluster up, scripts/images, load-images, helm install     (README, "A Kubernetes of one's own")
//! cargo run -p heddle-tests --bin cluster-bench
//! ```
//!
//! It measures the Heddle that is installed, over the API server as any client has it (`kubectl proxy` on loopback), and
//! judges nothing.
//!
//! - A change counts from when its write is sent to when the sidecar's admin port shows it, asked over and over: the API
//!   server's write, its watch, the control plane, xDS and the sidecar are in it. What the write alone took is shown beside it.
//! - Admission is the difference between pods that are created (`dryRun`) in a namespace with the label and in one without, in
//!   turn.
//! - Memory is that of the control plane's process, now and at most, with 1,000 Services of 5 pods each, which no kubelet runs:
//!   when they have come one after another, and after a restart, which lists them all.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a table is its purpose; what is missing ends it")]

mod api;
mod memory;

use std::time::{Duration, Instant};

use heddle_tests::cluster::{Cluster, Namespace};
use serde_json::json;

use crate::api::Api;

/// Changes of each kind, and pods that are created.
const SAMPLES: usize = 200;
/// Where a Service without pods says its endpoints are; the last two numbers make each address a text of its own.
const ENDPOINTS: &str = "198.18";

fn main() {
    let cluster = Cluster::running();
    let api = Api::open(&cluster);
    let mesh = cluster.namespace_labelled("bench", &[("heddle.dev/inject", "enabled")]);
    let plain = cluster.namespace("bench-plain");
    mesh.apply(SHOP);
    mesh.wait("pod/client", "condition=Ready");
    // The sidecar asks for what its workload uses.
    mesh.try_exec("client", &["wget", "-q", "-O", "-", "http://fixed/"]);
    let sidecar = Api::at(&mesh.network("client"), "127.0.0.1:15000");

    let endpoints = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/fixed-1", mesh.name);
    let (writes, applied) = changes(&api, &sidecar, &endpoints, |number| {
        let address = format!("{ENDPOINTS}.{}.{}", 100 + number / 100, 100 + number % 100);
        (json!({ "endpoints": [{ "addresses": [address] }] }), address)
    });
    print("endpoint changed → applied by the sidecar", &applied);
    print("  its write, answered by the API server", &writes);
    let route = format!("/apis/gateway.networking.k8s.io/v1/namespaces/{}/httproutes/fixed", mesh.name);
    let (writes, applied) = changes(&api, &sidecar, &route, |number| {
        let value = format!("change-{number:04}");
        let header = json!([{ "name": "x-change", "value": value }]);
        let filter = json!({ "type": "RequestHeaderModifier", "requestHeaderModifier": { "set": header } });
        let rule = json!({ "filters": [filter], "backendRefs": [{ "name": "fixed", "port": 80 }] });
        (json!({ "spec": { "rules": [rule] } }), value)
    });
    print("route changed → applied by the sidecar", &applied);
    print("  its write, answered by the API server", &writes);

    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        with.push(created(&api, &mesh));
        without.push(created(&api, &plain));
    }
    print("pod created with injection", &with);
    print("pod created without", &without);

    memory::measure(&cluster, &api);
}

/// Writes one change after another to an object, each when the one before is seen: how long the writes took, and how long it took
/// until the sidecar showed them. `change` makes a merge patch and the text by which it is known.
fn changes(
    api: &Api,
    sidecar: &Api,
    object: &str,
    change: impl Fn(usize) -> (serde_json::Value, String),
) -> (Vec<Duration>, Vec<Duration>) {
    let (mut writes, mut applied) = (Vec::new(), Vec::new());
    for number in 0..SAMPLES {
        let (patch, sign) = change(number);
        let begun = Instant::now();
        api.send("PATCH", object, &patch);
        writes.push(begun.elapsed());
        while !sidecar.page("/tables").contains(&sign) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{object}: the sidecar never showed {sign}");
        }
        applied.push(begun.elapsed());
    }
    (writes, applied)
}

/// How long the API server takes to say that it would create a pod.
fn created(api: &Api, namespace: &Namespace<'_>) -> Duration {
    let container = json!({ "name": "web", "image": "local.test/busybox:1",
        "readinessProbe": { "httpGet": { "path": "/", "port": 8080 } } });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "web-" },
        "spec": { "containers": [container] } });
    let begun = Instant::now();
    api.send("POST", &format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name), &pod);
    begun.elapsed()
}

fn print(what: &str, samples: &[Duration]) {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = |share: f64| {
        let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1;
        sorted[index].as_secs_f64() * 1_000.0
    };
    println!("{what:<44} median {:>7.2} ms   p99 {:>7.2} ms   ({} times)", at(0.5), at(0.99), sorted.len());
}

const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: fixed }
spec: { ports: [{ name: http, port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: fixed-1, labels: { kubernetes.io/service-name: fixed } }
addressType: IPv4
ports: [{ name: http, port: 80 }]
endpoints: [{ addresses: [198.18.0.1] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: fixed }
spec:
  parentRefs: [{ group: "", kind: Service, name: fixed }]
  rules: [{ backendRefs: [{ name: fixed, port: 80 }] }]
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: client, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"] }]
"#;
