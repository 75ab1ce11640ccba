//! The cluster itself, without Heddle: what the other tests take for granted.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use heddle_tests::cluster::Cluster;
use heddle_tests::eventually;

#[test]
fn both_pods_of_a_deployment_are_reached_by_the_name_of_their_service() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("names");
    namespace.apply(ECHO);
    namespace.rolled_out("deployment/echo");
    namespace.wait("pod/client", "condition=Ready");
    let pods = namespace.pods("app=echo");
    assert_eq!(pods.len(), 2, "{pods:?}");

    for name in ["echo", &format!("echo.{}.svc.cluster.local", namespace.name)] {
        let mut missing = pods.clone();
        eventually("both pods answer", || {
            let answer = namespace.exec("client", &["wget", "-q", "-O", "-", &format!("http://{name}/")]);
            assert!(pods.contains(&answer), "{answer:?} is none of {pods:?}");
            missing.retain(|pod| *pod != answer);
            missing.is_empty().then_some(())
        });
    }
}

#[test]
fn a_service_of_both_families_is_reached_in_either() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("families");
    namespace.apply(ECHO);
    namespace.rolled_out("deployment/echo");
    let service = namespace.get("service/echo");
    let addresses: Vec<IpAddr> = serde_json::from_value(service["spec"]["clusterIPs"].clone()).unwrap();
    assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6(), "{addresses:?}");
    for address in addresses {
        cluster.network().run(|| TcpStream::connect(SocketAddr::new(address, 80)).unwrap()).unwrap();
    }
}

#[test]
fn a_name_outside_the_cluster_is_refused_at_once() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("outside");
    namespace.apply(ECHO);
    namespace.wait("pod/client", "condition=Ready");
    let output = namespace.try_exec("client", &["timeout", "2", "nslookup", "loom.example."]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("NXDOMAIN"), "{output:?}");
}

#[test]
fn an_image_made_from_files_of_this_machine_runs_in_a_pod() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("loom.tar");
    let image = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/image"))
        .args(["--name=local.test/loom:1", "--entrypoint=/bin/cat", "--cmd=/etc/pattern", "--user=1337"])
        .arg(format!("--output={}", archive.display()))
        .args(["/bin/cat=/bin/busybox", concat!("/etc/pattern=", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml:0444")])
        .status();
    assert!(image.unwrap().success());
    let cluster = Cluster::running();
    cluster.load_images([&archive]);

    let namespace = cluster.namespace("images");
    namespace.kubectl(["run", "loom", "--image=local.test/loom:1", "--image-pull-policy=Never", "--restart=Never"]);
    namespace.wait("pod/loom", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(namespace.kubectl(["logs", "loom"]), include_str!("../../Cargo.toml").trim());
}

#[test]
fn commands_and_code_run_inside_the_node() {
    let cluster = Cluster::running();
    let said = cluster.in_node("sh").args(["-c", "hostname && kubectl get nodes --output=name"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "node1\nnode/node1\n", "{said:?}");
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    assert!(kubeconfig.contains("https://10.250.0.1:6443"), "{kubeconfig}");
    cluster.network().run(|| TcpStream::connect("10.250.0.1:6443").unwrap()).unwrap();
}

/// A Deployment of two pods that answer with their names, its Service, and a pod to ask from.
const ECHO: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: echo }
spec:
  replicas: 2
  selector: { matchLabels: { app: echo } }
  template:
    metadata: { labels: { app: echo } }
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: echo
          image: local.test/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "mkdir /tmp/www && hostname > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www"]
          ports: [{ containerPort: 8080 }]
          readinessProbe: { httpGet: { path: /, port: 8080 }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: echo }
spec:
  ipFamilyPolicy: PreferDualStack
  selector: { app: echo }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  terminationGracePeriodSeconds: 0
  containers: [{ name: client, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"] }]
"#;
