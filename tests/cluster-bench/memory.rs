//! The control plane's memory with a large mesh in the API server.

use std::collections::BTreeMap;
use std::fs;

use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::installed::NAMESPACE;
use serde_json::{Value, json};

use crate::api::Api;

const SERVICES: usize = 1_000;
const PODS_OF_A_SERVICE: usize = 5;
/// Connections that make objects at the same time.
const WRITERS: usize = 8;

/// Makes the mesh, and prints.
pub fn measure(cluster: &Cluster, api: &Api) {
    println!("control plane, nothing but the cluster's own   {}", Memory::of_the_control_plane());
    let namespace = cluster.namespace("bench-large");
    fill(api, &namespace);
    // The cluster's own controller makes their slices.
    eventually("every Service has its slice", || {
        let slices = api.page(&format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", namespace.name));
        let slices: Value = serde_json::from_str(&slices).unwrap();
        let ready = slices["items"].as_array()?.iter().flat_map(|slice| slice["endpoints"].as_array()).flatten();
        (ready.count() == SERVICES * PODS_OF_A_SERVICE).then_some(())
    });
    println!(
        "  {SERVICES} Services and {} pods came one by one  {}",
        SERVICES * PODS_OF_A_SERVICE,
        Memory::of_the_control_plane()
    );
    cluster.kubectl(["rollout", "restart", "deployment/heddle-control-plane", "--namespace", NAMESPACE]);
    let patience = "--timeout=60s";
    cluster.kubectl(["rollout", "status", "deployment/heddle-control-plane", "--namespace", NAMESPACE, patience]);
    eventually("the one before has ended", || (processes().len() == 1).then_some(()));
    println!("  – were there when it started                 {}", Memory::of_the_control_plane());
}

fn fill(api: &Api, namespace: &Namespace<'_>) {
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (api, name) = (api.another(), namespace.name.as_str());
            scope.spawn(move || {
                for service in (writer..SERVICES).step_by(WRITERS) {
                    fill_service(&api, name, service);
                }
            });
        }
    });
}

fn fill_service(api: &Api, namespace: &str, number: usize) {
    let (services, pods) =
        (format!("/api/v1/namespaces/{namespace}/services"), format!("/api/v1/namespaces/{namespace}/pods"));
    let app = format!("app-{number:04}");
    let ports = json!([{ "name": "http", "port": 80, "targetPort": 8080 }]);
    api.send(
        "POST",
        &services,
        &json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": app },
            "spec": { "selector": { "app": app }, "ports": ports } }),
    );
    for pod in 0..PODS_OF_A_SERVICE {
        let name = format!("{app}-{pod}");
        // Nobody schedules it: it is what it is said to be.
        let spec = json!({ "schedulerName": "nobody", "automountServiceAccountToken": false, "containers": [
            { "name": "web", "image": "local.test/busybox:1", "ports": [{ "containerPort": 8080 }] }] });
        let labels = BTreeMap::from([("app", app.as_str()), ("app.kubernetes.io/part-of", "bench")]);
        api.send(
            "POST",
            &pods,
            &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels }, "spec": spec }),
        );
        let index = number * PODS_OF_A_SERVICE + pod;
        let address = format!("10.{}.{}.{}", 128 + index / 62_500, index / 250 % 250, 1 + index % 250);
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        let status =
            json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "conditions": ready });
        api.send("PATCH", &format!("{pods}/{name}/status"), &json!({ "status": status }));
    }
}

/// Of a process, in KiB.
struct Memory {
    now: u64,
    peak: u64,
}

impl Memory {
    fn of_the_control_plane() -> Self {
        let processes = processes();
        let [status] = processes.as_slice() else {
            panic!("{} control planes run on this machine; one is measured", processes.len())
        };
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix(" kB")).unwrap();
            line.trim().parse().unwrap()
        };
        Self { now: of("VmRSS:"), peak: of("VmHWM:") }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MiB, at most {:.1} MiB", self.now as f64 / 1_024.0, self.peak as f64 / 1_024.0)
    }
}

/// What the kernel says of every control plane (proc_pid_status(5)); a name is cut to 15 bytes.
fn processes() -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let statuses = all.filter_map(|process| fs::read_to_string(process.path().join("status")).ok());
    statuses.filter(|status| status.starts_with("Name:\theddle-control-\n")).collect()
}
