//! Kubernetes as the source: what happens to objects arrives over xDS.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use heddle_tests::ads::AdsClient;
use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::gate::Gate;
use heddle_tests::replica::{Account, install_definitions};
use heddle_xds::resource::Kind;

const BINARY: &str = env!("CARGO_BIN_EXE_heddle-under-test");

/// Makes [`ECHO`] and waits for it; the node id of its client.
fn client(namespace: &Namespace<'_>) -> String {
    namespace.apply(ECHO);
    namespace.rolled_out("deployment/echo");
    namespace.wait("pod/client", "condition=Ready");
    format!("client.{}", namespace.name)
}

fn listener(namespace: &Namespace<'_>, service: &str) -> String {
    let ip = namespace.get(&format!("service/{service}"))["spec"]["clusterIP"].as_str().unwrap().to_owned();
    format!("outbound/{ip}:80")
}

#[test]
fn endpoints_come_drain_and_go_as_pods_do() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let node = client(&namespace);
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    let ads = AdsClient::connect(account.network(), replica.plain, &node, &[]);
    let name = format!("{}/echo/80", namespace.name);
    ads.subscribe(Kind::Listener, &listener(&namespace, "echo"));
    ads.subscribe(Kind::Endpoints, &name);
    ads.has(Kind::Listener, &listener(&namespace, "echo"));
    ads.endpoints_become(&name, "two", |endpoints| {
        endpoints.len() == 2 && endpoints.iter().all(|e| !e.draining && !e.mtls)
    });

    namespace.kubectl(["scale", "deployment/echo", "--replicas=3"]);
    namespace.rolled_out("deployment/echo");
    ads.endpoints_become(&name, "three", |endpoints| endpoints.len() == 3);

    // The pod takes its time to end, and serves meanwhile.
    namespace.kubectl(["scale", "deployment/echo", "--replicas=2"]);
    ads.endpoints_become(&name, "one drains", |endpoints| endpoints.iter().filter(|e| e.draining).count() == 1);
    ads.endpoints_become(&name, "two again", |endpoints| endpoints.len() == 2 && endpoints.iter().all(|e| !e.draining));
}

#[test]
fn services_and_pods_are_known_by_their_addresses_of_both_families() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let node = client(&namespace);
    namespace.apply(BOTH_FAMILIES);
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    let ads = AdsClient::connect(account.network(), replica.plain, &node, &[]);
    let service: Vec<IpAddr> =
        serde_json::from_value(namespace.get("service/both")["spec"]["clusterIPs"].clone()).unwrap();
    let pod = namespace.pods("app=echo").remove(0);
    let pod = namespace.get(&format!("pod/{pod}"))["status"]["podIPs"].clone();
    let pod: Vec<IpAddr> =
        pod.as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!((service.len(), pod.len()), (2, 2));

    for (address, port) in service.iter().map(|ip| (ip, 80)).chain(pod.iter().map(|ip| (ip, 8080))) {
        let name = heddle_xds::resource::outbound(SocketAddr::new(*address, port));
        ads.subscribe(Kind::Listener, &name);
        ads.has(Kind::Listener, &name);
    }
    // Each pod once, in the Service's first family.
    let name = format!("{}/both/80", namespace.name);
    ads.subscribe(Kind::Endpoints, &name);
    ads.endpoints_become(&name, "each pod once", |endpoints| {
        endpoints.len() == 2 && endpoints.iter().all(|endpoint| endpoint.address.is_ipv4() == service[0].is_ipv4())
    });
}

#[test]
fn a_pod_with_a_sidecar_is_spoken_to_over_mutual_tls_and_one_without_is_not() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let node = client(&namespace);
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    let ads = AdsClient::connect(account.network(), replica.plain, &node, &[]);
    let name = format!("{}/echo/80", namespace.name);
    ads.subscribe(Kind::Endpoints, &name);
    ads.endpoints_become(&name, "plaintext", |endpoints| endpoints.len() == 2 && endpoints.iter().all(|e| !e.mtls));

    let patch = r#"{"spec":{"template":{"metadata":{"annotations":{"heddle.dev/injected":"by hand"}}}}}"#;
    namespace.kubectl(["patch", "deployment/echo", &format!("--patch={patch}")]);

    ads.endpoints_become(&name, "mutual TLS", |endpoints| endpoints.len() == 2 && endpoints.iter().all(|e| e.mtls));
}

#[test]
fn a_change_arrives_within_a_fraction_of_a_second() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let node = client(&namespace);
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    let ads = AdsClient::connect(account.network(), replica.plain, &node, &[]);
    let name = format!("{}/fixed/80", namespace.name);
    ads.subscribe(Kind::Endpoints, &name);
    namespace.apply(&fixed(1));
    ads.endpoints_become(&name, "the first", |endpoints| endpoints.len() == 1);

    let mut took = Vec::new();
    for number in 2..12 {
        namespace.apply(&fixed(number));
        let applied = Instant::now();
        let last = format!("192.0.2.{number}:8080").parse().unwrap();
        eventually("the change arrives", || ads.endpoints(&name)?.iter().any(|e| e.address == last).then_some(()));
        took.push(applied.elapsed());
    }

    took.sort();
    // From the answer of the API server on; a test on a busy machine is no benchmark.
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_broken_watch_withdraws_nothing_and_what_happened_meanwhile_arrives_at_once() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let node = client(&namespace);
    let mut account = Account::in_namespace(&cluster, &home, BINARY);
    let gate = Gate::to(account.network(), account.server());
    account.through(gate.address);
    let replica = account.start("a");
    let ads = AdsClient::connect(account.network(), replica.plain, &node, &[]);
    let name = format!("{}/fixed/80", namespace.name);
    ads.subscribe(Kind::Endpoints, &name);
    namespace.apply(&fixed(2));
    let before = ads.endpoints_become(&name, "two", |endpoints| endpoints.len() == 2);

    gate.shut();
    namespace.apply(&fixed(3));
    let failures = "heddle_source_watch_failures_total{kind=\"EndpointSlice\"}";
    eventually("the watch is missed", || (replica.metric(failures) > 2.0).then_some(()));
    assert_eq!(ads.endpoints(&name), Some(before), "nothing is withdrawn");
    assert!(replica.page("/ready").starts_with("ready"));

    gate.open();
    let opened = Instant::now();
    ads.endpoints_become(&name, "three", |endpoints| endpoints.len() == 3);
    assert!(opened.elapsed() < Duration::from_secs(10), "{:?}", opened.elapsed());
}

#[test]
fn a_stream_that_is_faster_than_the_news_of_its_pod_waits_for_it() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    namespace.apply(&fixed(1));
    let name = format!("{}/fixed/80", namespace.name);
    let ads = AdsClient::connect(account.network(), replica.plain, &format!("client.{}", namespace.name), &[]);
    ads.subscribe(Kind::Endpoints, &name);

    namespace.apply(ECHO);

    ads.endpoints_become(&name, "one", |endpoints| endpoints.len() == 1);
    assert_eq!(replica.metric("heddle_xds_denied_total{reason=\"unknown_workload\"}"), 0.0);
}

#[test]
fn the_endpoints_meant_for_its_zone_are_near_a_client() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let node = client(&namespace);
    let zone =
        namespace.get("pod/client")["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str().unwrap().to_owned();
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    let ads = AdsClient::connect(account.network(), replica.plain, &node, &[]);
    let name = format!("{}/fixed/80", namespace.name);
    ads.subscribe(Kind::Endpoints, &name);
    let hinted = |near: &str, far: &str| {
        let hint = |address: u8, zone: &str| {
            format!("{{ addresses: [192.0.2.{address}], hints: {{ forZones: [{{ name: {zone} }}] }} }}")
        };
        let endpoints = format!("endpoints: [{}, {}]", hint(1, near), hint(2, far));
        fixed(0).replace("endpoints: []", &endpoints)
    };
    let far = |wanted: [bool; 2]| {
        move |endpoints: &std::collections::BTreeSet<heddle_tests::ads::Seen>| {
            endpoints.iter().map(|endpoint| endpoint.far).eq(wanted)
        }
    };

    namespace.apply(&hinted(&zone, "elsewhere"));
    ads.endpoints_become(&name, "that of its zone is near", far([false, true]));

    namespace.apply(&hinted("elsewhere", "nowhere"));
    ads.endpoints_become(&name, "all are", far([false, false]));
}

#[test]
fn an_object_that_cannot_be_read_changes_nothing_and_is_named() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    namespace.apply(POLICY);
    let shown = format!("TrafficPolicy {}/echo", namespace.name);
    eventually("the policy is known", || replica.page("/status").contains(&shown).then_some(()));
    assert!(replica.page("/status").contains("problems: []"), "{}", replica.page("/status"));

    // A definition of a newer version may let in what this one cannot read.
    let loose = r#"[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec",
        "value":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}]"#;
    let definition = "customresourcedefinition/trafficpolicies.heddle.dev";
    cluster.kubectl(["patch", definition, "--type=json", &format!("--patch={loose}")]);
    let broken = namespace.name.clone();
    let patch = r#"{"spec":{"connectTimeout":["never"]}}"#;
    eventually("the definition is in force", || {
        let patched =
            namespace.try_kubectl(["patch", "trafficpolicy/echo", "--type=merge", &format!("--patch={patch}")]);
        patched.status.success().then_some(())
    });

    let problem = eventually("the problem is shown", || {
        let page = replica.page("/status");
        page.lines()
            .find(|line| line.contains(&format!("TrafficPolicy {broken}/echo: spec.connectTimeout")))
            .map(str::to_owned)
    });
    assert!(problem.contains("what it said before stays in force"), "{problem}");
    assert_eq!(replica.metric("heddle_source_broken"), 1.0);

    namespace.kubectl(["delete", "trafficpolicy/echo"]);
    replica.metric_becomes("heddle_source_broken", 0.0);
}

#[test]
fn a_kind_that_is_installed_later_is_picked_up() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let definition = "customresourcedefinition/workloads.heddle.dev";
    cluster.kubectl(["delete", definition, "--wait=true"]);
    let replica = account.start("a");
    assert_eq!(replica.metric("heddle_source_served{kind=\"Workload\"}"), 0.0);

    install_definitions(&cluster);
    namespace.apply(WORKLOAD);

    let shown = format!("Workload {}/vm", namespace.name);
    eventually("the workload is known", || replica.page("/status").contains(&shown).then_some(()));
    assert_eq!(replica.metric("heddle_source_served{kind=\"Workload\"}"), 1.0);
}

/// A Service without selector and its one EndpointSlice, with an address for each number up to `last`.
fn fixed(last: u8) -> String {
    let addresses: Vec<String> = (1..=last).map(|number| format!("{{ addresses: [192.0.2.{number}] }}")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: fixed }}\nspec: {{ ports: [{{ port: 80, targetPort: 8080 }}] }}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: fixed-1, labels: {{ kubernetes.io/service-name: fixed }} }}\naddressType: IPv4\n\
         ports: [{{ port: 8080, protocol: TCP, name: '' }}]\nendpoints: [{}]\n",
        addresses.join(", ")
    )
}

const BOTH_FAMILIES: &str = "
apiVersion: v1
kind: Service
metadata: { name: both }
spec:
  ipFamilyPolicy: RequireDualStack
  selector: { app: echo }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
";

const POLICY: &str = "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: echo }
spec: { targetRefs: [{ group: '', kind: Service, name: echo }], connectTimeout: 1s }
";

const WORKLOAD: &str = "
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: { name: vm }
spec: { addresses: [192.0.2.9] }
";

/// A Deployment of two pods that answer with their names and take three seconds to end, its Service, and a pod to ask from.
pub const ECHO: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: echo }
spec:
  replicas: 2
  selector: { matchLabels: { app: echo } }
  template:
    metadata: { labels: { app: echo } }
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: echo
          image: local.test/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "mkdir /tmp/www && hostname > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www"]
          ports: [{ containerPort: 8080 }]
          readinessProbe: { httpGet: { path: /, port: 8080 }, periodSeconds: 1 }
          lifecycle: { preStop: { sleep: { seconds: 3 } } }
---
apiVersion: v1
kind: Service
metadata: { name: echo }
spec:
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
