//! The control plane's memory with a large mesh in the API server.

use std::fs;

use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::installed::NAMESPACE;
use serde_json::json;

use crate::api::Api;

const SERVICES: usize = 1_000;
const PODS_OF_A_SERVICE: usize = 5;
/// Connections that make objects at the same time.
const WRITERS: usize = 8;

/// Makes the mesh, and prints.
pub fn measure(cluster: &Cluster, api: &Api) {
    restart(cluster);
    println!("control plane, the cluster's own objects     {}", Memory::of_the_control_plane());
    let namespace = cluster.namespace("bench-large");
    fill(api, &namespace);
    let pods = SERVICES * PODS_OF_A_SERVICE;
    println!("  {SERVICES} Services, {pods} Pods, one after another {}", Memory::of_the_control_plane());
    restart(cluster);
    println!("  – as it found them when it started         {}", Memory::of_the_control_plane());
}

/// Another process, ready, and none besides.
fn restart(cluster: &Cluster) {
    let deployment = "deployment/heddle-control-plane";
    cluster.kubectl(["rollout", "restart", deployment, "--namespace", NAMESPACE]);
    cluster.kubectl(["rollout", "status", deployment, "--namespace", NAMESPACE, "--timeout=60s"]);
    eventually("the one before has ended", || (processes().len() == 1).then_some(()));
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

/// A Service, its Pods, and the slice that a cluster's own controller makes where kubelets run pods.
fn fill_service(api: &Api, namespace: &str, number: usize) {
    let core = format!("/api/v1/namespaces/{namespace}");
    let app = format!("app-{number:04}");
    let ports = json!([{ "name": "http", "port": 80, "targetPort": 8080 }]);
    let service =
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": app }, "spec": { "ports": ports } });
    api.send("POST", &format!("{core}/services"), &service);
    let mut endpoints = Vec::new();
    for pod in 0..PODS_OF_A_SERVICE {
        let name = format!("{app}-{pod}");
        let index = number * PODS_OF_A_SERVICE + pod;
        let address = format!("10.{}.{}.{}", 128 + index / 62_500, index / 250 % 250, 1 + index % 250);
        make_pod(api, &core, &app, &name, &address);
        let target = json!({ "kind": "Pod", "namespace": namespace, "name": name });
        endpoints.push(json!({ "addresses": [address], "conditions": { "ready": true }, "targetRef": target }));
    }
    let labels = json!({ "kubernetes.io/service-name": app });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": format!("{app}-1"), "labels": labels },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": endpoints,
    });
    api.send("POST", &format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"), &slice);
}

/// Nobody schedules it: it is what it is said to be.
fn make_pod(api: &Api, core: &str, app: &str, name: &str, address: &str) {
    let container = json!({ "name": "web", "image": "local.test/busybox:1", "ports": [{ "containerPort": 8080 }] });
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": app, "app.kubernetes.io/part-of": "bench" } },
        "spec": { "schedulerName": "nobody", "automountServiceAccountToken": false, "containers": [container] },
    });
    api.send("POST", &format!("{core}/pods"), &pod);
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    let status = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "conditions": ready });
    api.send("PATCH", &format!("{core}/pods/{name}/status"), &json!({ "status": status }));
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
