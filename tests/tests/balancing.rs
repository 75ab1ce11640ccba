//! How endpoints are chosen, with a real control plane, by this sidecar and by a real Envoy.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use heddle_tests::clients::{Clients, WORKLOADS};
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::{PATIENCE, eventually, h2c, metrics, origin, talk};
use http::Response;
use http_body_util::Full;

/// Chosen: that twenty keys agree by chance over four servers comes once in 10¹² times.
const KEYS: usize = 20;
const SERVERS: [(&str, u8); 4] = [("api-a", 10), ("api-b", 11), ("api-c", 12), ("api-d", 13)];

#[test]
fn a_key_goes_to_the_same_endpoint_from_both_sidecars() {
    let servers = SERVERS.map(|(name, number)| (name, number, "api", "api"));
    let workloads = [&WORKLOADS[..], &servers[..]].concat();
    let mesh = LiveMesh::start(&[("shop.yaml", &shop(&workloads, &[("api", 1, "api")]))]);
    let clients = Clients::start(&mesh, env!("CARGO_BIN_EXE_heddle-under-test"));
    let pods = SERVERS.map(|(name, number)| {
        let pod = mesh.workload(name, number, "api", 1);
        origin::echo(&pod, 8080, name);
        pod
    });
    for (_, pod) in clients.each() {
        eventually("every server answers", || {
            let seen: BTreeSet<_> = (0..KEYS).map(|_| server(pod, "GET / HTTP/1.1\r\n")).collect();
            (seen.len() == SERVERS.len()).then_some(())
        });
    }
    for policy in ["RingHash", "Maglev"] {
        for (hash_on, request) in [
            ("{ type: Header, name: X-User }", "GET / HTTP/1.1\r\nx-user: KEY\r\n"),
            ("{ type: Cookie, name: user }", "GET / HTTP/1.1\r\nCookie: a=b; user=KEY\r\n"),
            ("{ type: QueryParam, name: user }", "GET /?a=b&user=KEY HTTP/1.1\r\n"),
            ("{ type: Header, name: absent }, { type: Path }", "GET /KEY?a=b HTTP/1.1\r\n"),
            ("{ type: SourceIP }", "GET /KEY HTTP/1.1\r\n"),
        ] {
            let rule = format!("{{ policy: {policy}, hashOn: [{hash_on}] }}");
            mesh.apply("policy.yaml", &POLICY.replace("RULE", &rule));
            let by_keys = |pod: &MeshPod| -> Vec<String> {
                (0..KEYS).map(|key| server(pod, &request.replace("KEY", &format!("key-{key}")))).collect()
            };
            eventually(&format!("both sidecars choose by {rule}"), || {
                let of_heddle = by_keys(&clients.heddle);
                let distinct = of_heddle.iter().collect::<BTreeSet<_>>().len();
                // Its own address is all that two clients do not share.
                if hash_on.contains("SourceIP") {
                    let of_other = by_keys(&clients.other).into_iter().collect::<BTreeSet<_>>();
                    return (distinct == 1 && of_other.len() == 1).then_some(());
                }
                let same = by_keys(&clients.other) == of_heddle && by_keys(&clients.heddle) == of_heddle;
                (distinct > 1 && same).then_some(())
            });
        }
    }
    drop(pods);
}

#[test]
fn a_long_lived_connection_reaches_endpoints_that_come_later() {
    let first = shop(&[("client", 2, "client", "client"), ("api-a", 10, "api", "api")], &[("api", 1, "api")]);
    let mesh = LiveMesh::start(&[("shop.yaml", &first)]);
    let client = mesh.workload("client", 2, "client", 1);
    let old = mesh.workload("api-a", 10, "api", 1);
    origin::echo(&old, 8080, "api-a");
    h2c::run(async {
        let connection = h2c::connect(&client, vip(1)).await;
        let answer = async || {
            let body = connection.get("/").await.unwrap().body;
            String::from_utf8_lossy(&body).lines().next().unwrap_or_default().to_owned()
        };
        assert_eq!(answer().await, "api-a");

        // Without the namespace, which is there.
        let later = shop(&[("api-b", 11, "api", "api")], &[]);
        mesh.apply("later.yaml", later.split_once("---").unwrap().1);
        let new = mesh.workload("api-b", 11, "api", 1);
        origin::echo(&new, 8080, "api-b");
        let deadline = Instant::now() + PATIENCE;
        let mut seen = BTreeSet::new();
        while seen.len() < 2 {
            assert!(Instant::now() < deadline, "only {seen:?}");
            seen.insert(answer().await);
        }
    });
    let page = metrics::page(&client);
    assert_eq!(metrics::sum(&page, "heddle_downstream_connections_total", &[]), 1.0, "{page}");
    drop(old);
}

#[test]
fn endpoints_of_other_zones_help_out_while_those_of_the_clients_own_are_not_well() {
    let servers = [("near", 10, "api", "api"), ("far", 11, "api", "api")];
    let mut manifests = shop(&[&WORKLOADS[..], &servers[..]].concat(), &[("api", 1, "api")]);
    manifests = manifests.replace("spec:\n  clusterIP", "spec:\n  trafficDistribution: PreferSameZone\n  clusterIP");
    for (name, _, _, app) in WORKLOADS.iter().chain(&servers) {
        let zone = if *name == "far" { "b" } else { "a" };
        let labels = |zone: &str| format!("name: {name}, namespace: shop, labels: {{ app: {app}{zone} }}");
        manifests = manifests.replace(&labels(""), &labels(&format!(", topology.kubernetes.io/zone: {zone}")));
    }
    manifests.push_str(&format!("---{}", POLICY.replace("loadBalancing: RULE", OUTLIERS)));
    let mesh = LiveMesh::start(&[("shop.yaml", &manifests)]);
    let clients = Clients::start(&mesh, env!("CARGO_BIN_EXE_heddle-under-test"));
    let near = mesh.workload("near", 10, "api", 1);
    let far = mesh.workload("far", 11, "api", 1);
    let well = Arc::new(AtomicBool::new(true));
    let is_well = well.clone();
    origin::http(&near, 8080, move |_| {
        let status = if is_well.load(Ordering::SeqCst) { 200 } else { 500 };
        Response::builder().status(status).body(Full::from("near")).unwrap()
    });
    origin::echo(&far, 8080, "far");
    for (sidecar, pod) in clients.each() {
        let ask = || talk::get(pod, vip(1), "/");
        eventually("the near one answers", || (ask().body == "near").then_some(()));
        assert!((0..20).all(|_| ask().body == "near"), "{sidecar}: none goes far");
        well.store(false, Ordering::SeqCst);
        eventually("the far one helps out", || ask().body.starts_with("far").then_some(()));
        assert!((0..5).all(|_| ask().status() == 200), "{sidecar}: all go far");
        well.store(true, Ordering::SeqCst);
        eventually("the near one is back", || (ask().body == "near").then_some(()));
    }
    drop(far);
}

/// Who answers.
fn server(pod: &MeshPod, request: &str) -> String {
    let response = talk::request(pod, vip(1), &format!("{request}Host: api\r\nConnection: close\r\n\r\n"));
    assert_eq!(response.status(), 200, "{response:?}");
    response.body.lines().next().unwrap_or_default().to_owned()
}

/// Ends soon.
const OUTLIERS: &str = "outlierDetection: { consecutiveFailures: 3, baseEjection: 3s }";
const POLICY: &str = "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: api, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: api }], loadBalancing: RULE }
";
