//! What a route does besides choosing a backend, between sidecars over mutual TLS.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use heddle_proxy::balance::outlier;
use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::cluster::{Cluster, LoadBalancing, Settings};
use heddle_proxy::tables::listener::Protocol;
use heddle_proxy::tables::route::{Mirror, Session};
use heddle_tests::envoy::Envoy;
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::programs::{self, Program, Server};
use heddle_tests::{eventually, metrics, origin, tables, talk};
use http::{Request, Response};
use http_body_util::Full;

const VIP: &str = "10.96.0.1:80";
const LONG: usize = 48 * 1024;

#[test]
fn copies_of_requests_go_where_mirrors_say_and_change_nothing_for_the_client() {
    let mesh = Mesh::new();
    let mut client = mesh.pod("client", 2);
    let [api, shadow, gone] =
        [("api", 10), ("shadow", 11), ("gone", 12)].map(|(name, number)| server(&mesh, name, number));
    origin::echo(&api, 8080, "api");
    let copies = Arc::new(Mutex::new(Vec::new()));
    let kept = copies.clone();
    // It never answers, which nobody waits for.
    origin::http_in_time(&shadow, 8080, move |request| {
        kept.lock().unwrap().push(request);
        std::future::pending::<Response<Full<Bytes>>>()
    });
    let mirror = |to, per_million| Mirror { cluster: to, per_million };
    let mut rule = tables::rule(vec![(1, cluster(&api, "api"))]);
    let shadow = cluster(&shadow, "shadow");
    rule.mirrors =
        vec![mirror(shadow.clone(), 1_000_000), mirror(shadow, 0), mirror(cluster(&gone, "gone"), 1_000_000)];
    let mut known = tables::nothing("client");
    tables::destination(&mut known, VIP.parse().unwrap(), Protocol::Http, rule);
    client.meshed_sidecar(&mesh, 1, known);

    let body = "x".repeat(LONG);
    let head = "Host: api\r\nConnection: close\r\n";
    let post = format!("POST /a?b HTTP/1.1\r\n{head}Content-Length: {LONG}\r\nx-mine: 1\r\n\r\n{body}");
    for request in [post.as_str(), &format!("GET / HTTP/1.1\r\n{head}\r\n")] {
        let response = talk::request(&client, VIP.parse().unwrap(), request);
        assert!(response.status() == 200 && response.body.starts_with("api\n"), "{response:?}");
    }
    eventually("each request was copied once", || (copies.lock().unwrap().len() == 2).then_some(()));
    let gone = "cluster=\"shop/gone/80\"";
    eventually("copies to nowhere are counted", || {
        let labels = [gone, "outcome=\"undelivered\""];
        (metrics::sum(&metrics::page(&client), "heddle_mirrored_requests_total", &labels) >= 2.0).then_some(())
    });
    // Counts of clusters that are not in use are forgotten.
    assert_eq!(metrics::sum(&metrics::page(&client), "heddle_cluster_endpoints", &[gone, "state=\"active\""]), 1.0);
    let copies = copies.lock().unwrap();
    let find = |method: &str| copies.iter().find(|copy| copy.method() == method).unwrap();
    let field =
        |of: &Request<Bytes>, name: &str| of.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let copy = find("POST");
    assert_eq!((copy.uri().to_string().as_str(), copy.body().len()), ("/a?b", LONG));
    assert_eq!(field(copy, "host").as_deref(), Some("api"));
    assert_eq!(field(copy, "x-mine").as_deref(), Some("1"));
    assert!(field(copy, "x-forwarded-client-cert").is_some_and(|by| by.contains("/sa/client")), "{copy:?}");
    assert!(find("GET").body().is_empty());
}

#[test]
fn a_client_comes_back_to_the_endpoint_that_answered_it_until_that_is_gone() {
    let mesh = Mesh::new();
    let mut client = mesh.pod("client", 2);
    let servers = [("api-a", 10), ("api-b", 11), ("api-c", 12)].map(|(name, number)| server(&mesh, name, number));
    let gone = Arc::new(AtomicBool::new(false));
    for (server, name) in servers.iter().zip(["a", "b", "c"]) {
        let gone = gone.clone();
        origin::http(server, 8080, move |_| {
            let failing = name == "a" && gone.load(Ordering::SeqCst);
            Response::builder().status(if failing { 503 } else { 200 }).body(Full::from(name)).unwrap()
        });
    }
    let outlier = Some(outlier::Settings { consecutive_failures: 2, ..outlier::Settings::default() });
    let settings = Settings { policy: LoadBalancing::RoundRobin, outlier, ..Settings::default() };
    let endpoints =
        |servers: &[MeshPod]| servers.iter().map(|pod| tables::meshed(pod.v4(8080), &pod.spiffe_id())).collect();
    // Two backends: a session comes before weights.
    let mut rule = tables::rule(vec![
        (1, tables::cluster("first", endpoints(&servers[..2]), settings.clone())),
        (1, tables::cluster("second", endpoints(&servers[2..]), settings)),
    ]);
    rule.session = Some(Session::Cookie { name: "cart".into(), lifetime: Some(Duration::from_secs(60)) });
    let mut known = tables::nothing("client");
    tables::destination(&mut known, VIP.parse().unwrap(), Protocol::Http, rule);
    client.meshed_sidecar(&mesh, 1, known);

    let ask = |cookie: &str| {
        let get = format!("GET / HTTP/1.1\r\nHost: api\r\nCookie: a=b; {cookie}\r\nConnection: close\r\n\r\n");
        talk::request(&client, VIP.parse().unwrap(), &get)
    };
    let told = |response: &talk::Response| Some(response.field("set-cookie")?.split(';').next()?.to_owned());
    let cookie_of = |name: &str| {
        eventually(&format!("{name} answers a new client"), || {
            let response = ask("");
            (response.body == name).then(|| told(&response).expect("a new client is told its endpoint"))
        })
    };
    let cookies = ["a", "b", "c"].map(|name| (name, cookie_of(name)));
    for _ in 0..5 {
        for (name, cookie) in &cookies {
            let response = ask(cookie);
            assert_eq!((response.body.as_str(), told(&response)), (*name, None), "{response:?}");
        }
    }
    gone.store(true, Ordering::SeqCst);
    let [(_, cookie), ..] = &cookies;
    let moved = eventually("a session moves when its endpoint is ejected", || {
        let response = ask(cookie);
        (response.status() == 200).then(|| told(&response).expect("it is told its new endpoint"))
    });
    assert_ne!(&moved, cookie);
    let response = ask(&moved);
    assert_eq!((response.status(), told(&response)), (200, None), "{response:?}");
}

/// A mesh with the Services `old` and `new`, still without servers, and a client beside each kind of sidecar.
struct OldAndNew {
    heddle: MeshPod,
    _envoy: Envoy,
    other: MeshPod,
    // After the pods in it.
    mesh: LiveMesh,
}

impl OldAndNew {
    fn start() -> Self {
        let workloads = [
            ("heddle-client", 2, "client", "client"),
            ("envoy-client", 3, "client", "client"),
            ("old", 10, "old", "old"),
            ("new", 11, "new", "new"),
        ];
        let manifests = shop(&workloads, &[("old", 1, "old"), ("new", 2, "new")]);
        let mesh = LiveMesh::start(&[("shop.yaml", &manifests)]);
        let heddle = mesh.workload("heddle-client", 2, "client", 1);
        let other = mesh.pod("envoy-client", 3);
        let _envoy =
            Envoy::start(&mesh, &other, env!("CARGO_BIN_EXE_heddle-under-test"), "envoy-client", "client", &[]);
        Self { heddle, _envoy, other, mesh }
    }
}

#[test]
fn a_tcp_route_sends_connections_where_its_weights_say() {
    let OldAndNew { mesh, heddle, other, _envoy } = OldAndNew::start();
    let servers = [("old", 10), ("new", 11)].map(|(name, number)| {
        let pod = mesh.workload(name, number, name, 1);
        origin::tcp(&pod, 8080, move |mut stream| drop(stream.write_all(name.as_bytes())));
        pod
    });
    // The server speaks, the client never does: nothing waits for bytes that would tell a protocol.
    let answer = |pod: &MeshPod| String::from_utf8(talk::try_from(pod.netns(), vip(1), "")).unwrap();
    let counted = |pod: &MeshPod| {
        let mut counts = BTreeMap::new();
        (0..CONNECTIONS).for_each(|_| *counts.entry(answer(pod)).or_insert(0) += 1);
        counts
    };
    let route = |backends: &str| {
        let route = format!(
            "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{ name: old, namespace: shop }}\n\
             spec:\n  parentRefs: [{{ group: \"\", kind: Service, name: old }}]\n  rules: [{{ backendRefs: [{backends}] }}]\n"
        );
        mesh.apply("route.yaml", &route);
    };
    for (sidecar, pod) in [("heddle-proxy", &heddle), ("Envoy", &other)] {
        route("{ name: new, port: 80 }");
        eventually("connections go to the other Service", || (answer(pod) == "new").then_some(()));
        route(
            "{ name: old, port: 80, weight: 50 }, { name: new, port: 80, weight: 50 }, { name: new, port: 80, weight: 0 }",
        );
        eventually("connections go to both", || (answer(pod) == "old").then_some(()));
        let counts = counted(pod);
        // Less than a fifth of half comes once in 10⁹ times.
        let fair = counts.len() == 2 && counts.values().all(|count| *count > CONNECTIONS / 5);
        assert!(fair, "{sidecar}: {counts:?}");
        route("{ name: missing, port: 80 }");
        // By both, so that the other one does not answer out of what held before.
        for pod in [&heddle, &other] {
            eventually("connections to nowhere are closed", || answer(pod).is_empty().then_some(()));
        }
    }
    drop(servers);
}

#[test]
fn a_tls_route_sends_connections_where_the_name_they_ask_for_leads() {
    let OldAndNew { mesh, heddle, other, _envoy } = OldAndNew::start();
    let servers = [("old", 10), ("new", 11)].map(|(name, number)| {
        let pod = mesh.workload(name, number, name, 1);
        let files = tempfile::tempdir().unwrap();
        let server = tls_server(&pod, files.path(), name);
        (server, pod, files)
    });
    mesh.apply(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: { name: old, namespace: shop }\nspec:\n  \
         parentRefs: [{ group: \"\", kind: Service, name: old }]\n  hostnames: [new.example, \"*.new.example\"]\n  \
         rules: [{ backendRefs: [{ name: new, port: 80 }] }]\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: { name: rest, namespace: shop }\nspec:\n  \
         parentRefs: [{ group: \"\", kind: Service, name: old }]\n  hostnames: [\"*.example\", not.new.example]\n  \
         rules: [{ backendRefs: [{ name: old, port: 80 }] }]\n",
    );
    for (sidecar, pod) in [("heddle-proxy", &heddle), ("Envoy", &other)] {
        let leads = |name| subject(pod, &["-servername", name]);
        eventually("a name that leads nowhere is refused", || leads("example").is_none().then_some(()));
        let cases = [
            ("new.example", Some("new")),
            ("NEW.example", Some("new")),
            ("a.b.new.example", Some("new")),
            ("not.new.example", Some("old")),
            ("old.example", Some("old")),
            ("example.org", None),
        ];
        for (name, server) in cases {
            assert_eq!(leads(name).as_deref(), server, "{sidecar}: {name}");
        }
        assert_eq!(subject(pod, &["-noservername"]), None, "{sidecar}: no name");
        let answer = talk::exchange(pod, vip(1), "no TLS at all\r\n");
        assert!(answer.is_empty(), "{sidecar}: {answer:?}");
    }
    let page = metrics::page(&heddle);
    let refused = |cause: &str| {
        let labels = ["direction=\"outbound\"", &format!("cause=\"{cause}\"")];
        metrics::sum(&page, "heddle_downstream_connections_refused_total", &labels)
    };
    assert!(refused("no_route") >= 3.0 && refused("protocol_mismatch") == 1.0, "{page}");
    drop(servers);
}

/// A server in `pod` whose certificate has this name.
fn tls_server(pod: &MeshPod, files: &Path, name: &str) -> Server {
    let [key, certificate] = ["key.pem", "crt.pem"].map(|name| files.join(name));
    let mut make = OPENSSL.command();
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
        "-subj",
    ]);
    make.arg(format!("/CN={name}")).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    programs::run(pod, make);
    let mut serve = OPENSSL.command();
    serve.args(["s_server", "-accept", "8080", "-www", "-cert"]).arg(&certificate).arg("-key").arg(&key);
    Server::start(pod, serve, "ACCEPT")
}

/// Whose certificate a TLS client in `pod` is shown.
fn subject(pod: &MeshPod, options: &[&str]) -> Option<String> {
    let mut shell = Program { name: "sh", package: "dash" }.command();
    let address = vip(1).to_string();
    shell.args(["-c", "openssl s_client -connect \"$0\" \"$@\" 2>&1; true", &address]).args(options);
    let said = programs::run(pod, shell).text();
    said.lines().find_map(|line| Some(line.strip_prefix("subject=CN = ")?.to_owned()))
}

const OPENSSL: Program = Program { name: "openssl", package: "openssl" };
/// Chosen: enough to tell halves.
const CONNECTIONS: usize = 100;

fn server(mesh: &Mesh, name: &'static str, number: u8) -> MeshPod {
    let mut server = mesh.pod(name, number);
    server.meshed_sidecar(mesh, 1, tables::inbound(name, tables::port(Protocol::Detect, TlsMode::Strict)));
    server
}

fn cluster(server: &MeshPod, name: &str) -> Arc<Cluster> {
    tables::cluster(name, vec![tables::meshed(server.v4(8080), &server.spiffe_id())], Settings::default())
}
