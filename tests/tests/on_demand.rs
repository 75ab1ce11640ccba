//! Sidecars that learn what they use from a real control plane, at the first connection, and keep it when the control
//! plane is away.

use heddle_proxy::tables::Answer;
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::{eventually, metrics, origin, talk};

const WORKLOADS: [(&str, u8, &str, &str); 3] =
    [("client", 2, "client", "client"), ("api-a", 3, "api", "api"), ("api-b", 4, "api", "api-next")];

const STRICT: &str = "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLSPolicy\nmetadata: { name: strict, namespace: shop }\n\
                      spec: { mode: STRICT }\n";

fn mesh() -> LiveMesh {
    let shop = shop(&WORKLOADS, &[("api", 1, "api"), ("api-next", 2, "api-next")]);
    LiveMesh::start(&[("shop.yaml", &shop), ("strict.yaml", STRICT)])
}

/// Client, and the two workloads of the api, each with its application.
fn pods(mesh: &LiveMesh, workers: usize) -> [MeshPod; 3] {
    let pods = WORKLOADS.map(|(name, number, account, _)| mesh.workload(name, number, account, workers));
    origin::echo(&pods[1], 8080, "api-a");
    origin::echo(&pods[2], 8080, "api-b");
    pods
}

fn refused(pod: &MeshPod, cause: &str) -> f64 {
    let name = "heddle_downstream_connections_refused_total";
    metrics::sum(&metrics::page(pod), name, &[&format!("cause=\"{cause}\"")])
}

#[test]
fn the_first_connection_to_a_service_asks_for_it_and_is_served_over_mutual_tls() {
    for workers in [1, 3] {
        let mesh = mesh();
        let [client, _a, _b] = pods(&mesh, workers);
        assert!(client.shared().tables.load().outbound.is_empty(), "nothing is known before it is used");
        let response = talk::get(&client, vip(1), "/first");
        assert_eq!(response.status(), 200, "{response:?}");
        assert!(response.body.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "{response:?}");
        let known: Vec<_> = client.shared().tables.load().outbound.keys().copied().collect();
        assert_eq!(known, [vip(1)], "and nothing but what was used is known after");
    }
}

#[test]
fn a_pod_dialled_by_its_own_address_has_identity_too() {
    let mesh = mesh();
    let [client, a, _b] = pods(&mesh, 1);
    for address in [a.v4(8080), a.v6(8080)] {
        let response = talk::get(&client, address, "/direct");
        assert!(response.body.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "{response:?}");
    }
}

#[test]
fn a_change_of_a_file_reaches_requests_without_a_restart_and_a_broken_file_changes_nothing() {
    let mesh = mesh();
    let [client, _a, _b] = pods(&mesh, 1);
    assert!(talk::get(&client, vip(1), "/").body.starts_with("api-a"));
    let route = |header: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: api, namespace: shop }}\nspec:\n  \
             parentRefs: [{{ group: \"\", kind: Service, name: api, port: 80 }}]\n  rules:\n  - filters:\n    \
             - type: RequestHeaderModifier\n      requestHeaderModifier: {{ set: [{{ name: x-version, value: \"{header}\" }}] }}\n    \
             backendRefs: [{{ name: api-next, port: 80 }}]\n"
        )
    };
    mesh.apply("route.yaml", &route("one"));
    eventually("requests go to the other Service", || {
        let body = talk::get(&client, vip(1), "/").body;
        (body.starts_with("api-b") && body.contains("x-version: one")).then_some(())
    });
    mesh.apply("route.yaml", &route("two")[..200]);
    mesh.apply("other.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: { name: other }\n");
    mesh.apply("route2.yaml", "kind: [\n");
    for _ in 0..20 {
        assert!(talk::get(&client, vip(1), "/").body.contains("x-version: one"));
    }
    mesh.apply("route.yaml", &route("two"));
    eventually("the mended file is in force", || {
        talk::get(&client, vip(1), "/").body.contains("x-version: two").then_some(())
    });
}

#[test]
fn with_the_control_plane_away_what_is_known_works_and_what_is_not_is_refused_never_plaintext() {
    let mut mesh = mesh();
    let [client, _a, b] = pods(&mesh, 1);
    assert_eq!(talk::get(&client, vip(1), "/").status(), 200);
    mesh.stop_control_plane();
    for _ in 0..5 {
        assert_eq!(talk::get(&client, vip(1), "/").status(), 200, "known");
    }
    let answer = talk::exchange(&client, vip(2), "GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n");
    assert!(answer.is_empty(), "not known: {}", String::from_utf8_lossy(&answer));
    assert_eq!(refused(&client, "config_unavailable"), 1.0);
    assert_eq!(refused(&b, "tls_required"), 0.0, "nothing came in plaintext");
    mesh.start_control_plane();
    eventually("the Service is served once the control plane is back", || {
        let answer = talk::exchange(&client, vip(2), "GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n");
        answer.starts_with(b"HTTP/1.1 200").then_some(())
    });
}

#[test]
fn a_mesh_address_that_does_not_exist_is_left_to_the_egress_default_and_may_come_to_exist() {
    let mesh = mesh();
    let [client, _a, _b] = pods(&mesh, 1);
    let answer = |exists: bool| {
        eventually("the control plane answers about the address", || {
            let tables = client.shared().tables.load();
            let answer = &tables.outbound.get(&vip(7))?.answer;
            (matches!(answer, Answer::Exists(_)) == exists).then_some(())
        });
    };
    // Known for certain not to be the mesh's: relayed, to where nobody is.
    let _waiting = talk::connect(&client, vip(7));
    answer(false);
    assert_eq!(refused(&client, "config_unavailable"), 0.0);
    mesh.apply(
        "more.yaml",
        &shop(&[], &[("later", 7, "api")])
            .replace("kind: Namespace\nmetadata: { name: shop }", "kind: Namespace\nmetadata: { name: more }"),
    );
    answer(true);
    assert_eq!(talk::get(&client, vip(7), "/").status(), 200);
}

#[test]
fn a_sidecar_that_says_it_is_another_workload_is_told_nothing() {
    let mesh = mesh();
    // The right service account, another workload's name: the certificate is given, the tables are not.
    let mut impostor = mesh.pod("impostor", 9);
    mesh.start_sidecar(&mut impostor, "api-a", "api", 1);
    eventually("it has a certificate", || impostor.shared().dialer.identity.load().map(drop));
    eventually("its stream is refused", || {
        let page = metrics::page(&impostor);
        (metrics::sum(&page, "heddle_xds_events_total", &["event=\"disconnect\""]) >= 2.0).then_some(())
    });
    assert!(impostor.shared().tables.load().inbound.is_none());
}
