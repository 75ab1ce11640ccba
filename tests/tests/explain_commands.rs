//! `heddle explain` and `heddle diff` as people run them: by manifests with nothing running, by a live control plane and by a live
//! sidecar, each of which says what then happens.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed set-up, or a missing field, fails the test")]

use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use heddle::pods::Netns;
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::{eventually, origin, talk};
use http::Response;
use http_body_util::Full;
use serde_json::Value;

/// This crate's copy of the `heddle` binary.
const HEDDLE: &str = env!("CARGO_BIN_EXE_heddle-under-test");
const WORKLOADS: [(&str, u8, &str, &str); 4] = [
    ("client", 2, "client", "client"),
    ("api-a", 3, "api", "api"),
    ("api-b", 4, "api", "api"),
    ("next-a", 5, "next", "next"),
];

/// Lines are counted by the tests.
const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: canary, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: api, port: 80 }]
  rules:
  - matches: [{ headers: [{ name: x-canary, value: \"yes\" }] }]
    backendRefs: [{ name: next, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /cart } }]
    name: cart
    timeouts: { request: 2s }
    filters:
    - type: URLRewrite
      urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /admin } }
    backendRefs: [{ name: api, port: 80 }]
  - backendRefs: [{ name: api, port: 80 }]
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: admin, namespace: shop }
spec:
  action: DENY
  selector: { matchLabels: { app: api } }
  rules:
  - to: [{ paths: [/secret] }]
  - to: [{ paths: [/admin*] }]
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: api, namespace: shop }
spec:
  targetRefs: [{ group: \"\", kind: Service, name: api }]
  outlierDetection: { consecutiveFailures: 2, baseEjection: 200s }
  loadBalancing: { policy: RoundRobin }
";

struct World {
    client: MeshPod,
    next: MeshPod,
    _apis: [MeshPod; 2],
    // After the pods in it.
    mesh: LiveMesh,
}

fn world() -> World {
    let mesh = LiveMesh::start(&[
        ("shop.yaml", &shop(&WORKLOADS, &[("api", 1, "api"), ("next", 2, "next")])),
        ("route.yaml", ROUTE),
    ]);
    let [client, a, b, next] = WORKLOADS.map(|(name, number, account, _)| mesh.workload(name, number, account, 1));
    origin::http(&a, 8080, |_| Response::builder().status(500).body(Full::from("a")).unwrap());
    origin::http(&b, 8080, |_| Response::new(Full::from("b")));
    origin::echo(&next, 8080, "next");
    World { client, next, _apis: [a, b], mesh }
}

fn heddle(network: Option<&Netns>, args: &[&str]) -> Output {
    let run = || Command::new(HEDDLE).args(args).output().unwrap();
    network.map_or_else(run, |network| network.run(run).unwrap())
}

fn json(network: Option<&Netns>, args: &[&str]) -> Value {
    let output = heddle(network, &[args, &["--output", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(args: &[&str]) -> String {
    let output = heddle(None, args);
    assert!(!output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn manifests(mesh: &LiveMesh) -> String {
    mesh.manifests().display().to_string()
}

/// What is decided, without what only some can know.
fn decided(of: &Value) -> [Value; 3] {
    let routes = of["client"]["routes"].as_array().unwrap().iter();
    let routes = routes.map(|route| serde_json::json!([route["rule"], route["verdict"], route["missed"]]));
    [routes.collect(), of["client"]["rule"]["name"].clone(), of["client"]["outcomes"].clone()]
}

#[test]
fn manifests_control_plane_and_sidecar_explain_alike_and_so_it_happens() {
    let World { client, next: _next, _apis, mesh } = world();
    let directory = manifests(&mesh);
    let ask = ["explain", "http://api/a", "-H", "x-canary: yes", "--from", "shop/client"];
    let by_manifests = json(None, &[&ask[..], &["--manifests", &directory]].concat());
    let by_control_plane =
        json(Some(mesh.fabric().netns()), &[&ask[..], &["--control-plane", "127.0.0.1:15014"]].concat());
    let sidecar = ["--sidecar", "127.0.0.1:15000", "--address", "10.96.0.1:80"];
    let by_sidecar = json(Some(client.netns()), &[&ask[..4], &sidecar].concat());

    assert_eq!(decided(&by_manifests), decided(&by_control_plane));
    assert_eq!(decided(&by_manifests), decided(&by_sidecar));
    assert_eq!(by_manifests["client"]["rule"]["name"], "HTTPRoute/shop/canary/0");
    for placed in [&by_manifests, &by_control_plane] {
        assert_eq!(placed["client"]["rule"]["place"], "route.yaml:7");
        let routes = placed["client"]["routes"].as_array().unwrap();
        let named = routes.iter().find(|route| route["rule"] == "HTTPRoute/shop/canary/cart").unwrap();
        assert_eq!(named["place"], "route.yaml:9", "a rule is found by its name too");
    }
    assert_eq!(by_manifests["servers"][0]["workload"], "shop/next-a");
    assert_eq!(by_manifests["servers"][0]["answer"]["caller"], "spiffe://cluster.local/ns/shop/sa/client");
    let request = "GET /a HTTP/1.1\r\nHost: api\r\nx-canary: yes\r\nConnection: close\r\n\r\n";
    assert!(talk::request(&client, vip(1), request).body.starts_with("next"));
}

#[test]
fn the_whole_path_names_the_rule_that_denies_what_the_client_s_route_rewrites() {
    let World { client, next: _next, _apis, mesh } = world();
    let directory = manifests(&mesh);
    let shown =
        text(&heddle(None, &["explain", "http://api.shop/cart/x", "--from", "shop/client", "--manifests", &directory]));

    for line in [
        "client: shop/client",
        "won   HTTPRoute/shop/canary/cart (route.yaml:9): path /cart and below",
        "lost  HTTPRoute/shop/canary/0 (route.yaml:7): header x-canary is `yes`; the header x-canary does not match",
        "later HTTPRoute/shop/canary/2",
        "timeouts     request 2s",
        "TrafficPolicy/shop/api (route.yaml:",
        "sent as GET http://api.shop/admin/x",
        "balanced by RoundRobin",
        "10.77.0.3:8080 shop/api-a, weight 1, mutual TLS as spiffe://cluster.local/ns/shop/sa/api: may get it",
        "outcome      sent to an endpoint of shop/api/80",
        "server: shop/api-a at 10.77.0.3:8080",
        "rules[0]: `to` does not match",
        "rules[1]: matches",
        "decision     deny: by AuthorizationPolicy/shop/admin/1 (route.yaml:26)",
        "outcome      answered 403, cause denied",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    let response = talk::get(&client, vip(1), "/cart/x");
    assert_eq!((response.status(), response.field("x-heddle-error")), (403, Some("denied")));
    let page = heddle(None, &["explain", "denied"]);
    assert!(text(&page).starts_with("denied\n\n403"), "{page:?}");
    let link = response.field("link").unwrap();
    assert!(link.ends_with("/docs/causes.md#denied>; rel=\"help\""), "{link}");
}

#[test]
fn a_live_sidecar_tells_the_state_of_its_endpoints_and_of_the_other_side() {
    let World { client, next, _apis, mesh: _mesh } = world();
    let get = |pod: &MeshPod, path: &str| {
        talk::request(pod, ([127, 0, 0, 1], 15000).into(), &format!("GET {path} HTTP/1.0\r\n\r\n"))
    };
    eventually("the failing endpoint is ejected", || {
        talk::get(&client, vip(1), "/");
        let page = get(&client, "/explain?destination=api.shop:80&path=/").body;
        let ejected = page.lines().any(|line| {
            line.contains("10.77.0.3:8080") && line.contains("gets nothing; ejected by outlier detection for")
        });
        let other = page.lines().any(|line| line.contains("10.77.0.4:8080") && line.ends_with(": may get it"));
        (ejected && other).then_some(())
    });
    let both = ["--sidecar", "127.0.0.1:15000"];
    let asked = json(Some(client.netns()), &[&["explain", "http://api.shop/"], &both[..]].concat());
    let eligible = asked["client"]["backends"][0]["endpoints"].as_array().unwrap().iter();
    assert_eq!(eligible.filter(|endpoint| endpoint["eligible"] == true).count(), 1);

    let inbound = get(&next, "/explain?direction=inbound&destination=8080&path=/x&host=next");
    assert_eq!(inbound.status(), 200);
    assert!(inbound.body.contains("outcome      delivered to the application"), "{inbound:?}");

    // As two `kubectl port-forward` would have it.
    let other = forward(&client, 14900, &next);
    let from = "spiffe://cluster.local/ns/shop/sa/client";
    let canary = ["explain", "http://api.shop/x", "-H", "x-canary: yes", "--from", from, "--server-sidecar", &other];
    let whole = text(&heddle(Some(client.netns()), &[&canary[..], &both].concat()));
    for line in
        ["won   HTTPRoute/shop/canary/0", "server: shop/next-a at 10.77.0.5:8080", &format!("caller       {from}")]
    {
        assert!(whole.contains(line), "{line}\n{whole}");
    }

    for (query, status, words) in [
        ("destination=10.96.0.1:80&header=nonsense", 400, "header `nonsense`: must be written as `name: value`"),
        ("destination=10.96.0.1:80&method=G%20T", 400, "method `G T`: must be a token"),
        ("destination=10.96.0.1:80&path=x", 400, "path `x`: must begin with /"),
        ("destination=10.96.0.1:http", 400, "destination `10.96.0.1:http`: must be a host with an optional port"),
        ("destination=8080x&direction=inbound", 400, "destination `8080x`"),
        ("destination=10.96.0.1:80&protocol=spdy", 400, "protocol `spdy`: must be http1, http2, tls or tcp"),
        ("destination=nobody.invalid:80", 404, "destination `nobody.invalid:80`: neither a Service"),
    ] {
        let refused = get(&client, &format!("/explain?{query}"));
        assert!(refused.status() == status && refused.body.starts_with(words), "{query}: {refused:?}");
    }
}

#[test]
fn what_cannot_be_explained_is_answered_with_what_would_be_right() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("shop.yaml"), shop(&WORKLOADS, &[("api", 1, "api")])).unwrap();
    let manifests = ["--manifests", directory.path().to_str().unwrap()];
    for (args, words) in [
        (&["http://api.shop/", "--from", "shop/clent"][..], "workload `shop/clent`: no Pod or Workload of that name"),
        (&["http://api.shop/", "--from", "client"], "workload `client`: must be <namespace>/<name>"),
        (&["http://api.shop/"], "--from is missing"),
        (&["http://nobody.shop/", "--from", "shop/client"], "host `nobody.shop`: there is no Service shop/nobody"),
        (&["http://api.shop:81/", "--from", "shop/client"], "port 81: Service shop/api has 80"),
        (&["http://api.shop/", "--from", "shop/client", "-H", "x"], "header `x`: must be written as `name: value`"),
        (&["http://api.shop:x/", "--from", "shop/client"], "destination `api.shop:x`"),
        (&["ftp://api.shop/", "--from", "shop/client"], "URL `ftp://api.shop/`: must begin with http://"),
        (&["no-route"], "`no-route` is neither a URL"),
    ] {
        let said = error(&[&["explain"], args, &manifests].concat());
        assert!(said.starts_with(&format!("error: {words}")), "{args:?}: {said}");
    }
    let said = error(&["explain", "http://api.shop/", "--from", "shop/client"]);
    assert!(said.starts_with("error: nothing to ask: give --manifests DIR"), "{said}");
    let said = error(&["explain", "http://api.shop/", "--from", "shop/client", "--control-plane", "127.0.0.1:1"]);
    assert!(said.starts_with("error: --control-plane 127.0.0.1:1: cannot connect"), "{said}");
    std::fs::write(directory.path().join("broken.yaml"), "kind: HTTPRoute\n").unwrap();
    let said = error(&[&["explain", "http://api.shop/", "--from", "shop/client"][..], &manifests].concat());
    assert!(said.contains("broken.yaml: line 1: "), "{said}");
}

#[test]
fn of_a_client_without_a_sidecar_it_is_told_and_so_are_the_servers_that_let_nobody_in() {
    let directory = tempfile::tempdir().unwrap();
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: { name: bare, namespace: shop }\n\
               spec: { containers: [{ name: c, image: i }] }\n\
               status: { phase: Running, podIP: 10.77.0.9, podIPs: [{ ip: 10.77.0.9 }] }\n\
               ---\napiVersion: heddle.dev/v1alpha1\nkind: MeshTLSPolicy\nmetadata: { name: strict, namespace: shop }\n\
               spec: { mode: STRICT }\n";
    let manifests = format!("{}{pod}", shop(&WORKLOADS, &[("next", 2, "next")]));
    std::fs::write(directory.path().join("shop.yaml"), manifests).unwrap();
    let directory = directory.path().to_str().unwrap();
    let shown = text(&heddle(None, &["explain", "http://next/", "--from", "shop/bare", "--manifests", directory]));

    for line in [
        "client: shop/bare\n  it has no sidecar",
        "server: shop/next-a",
        "mutual TLS strict",
        "caller       without mutual TLS from 10.77.0.9",
        "outcome      closed, cause tls_required\n",
        "`heddle explain tls_required` says what to look at",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
}

/// What a real sidecar has logged is compared, and the decisions that differ are those that then do.
#[test]
fn a_changed_manifest_is_compared_by_the_traffic_that_a_sidecar_has_recorded() {
    let mesh = LiveMesh::start(&[
        ("shop.yaml", &shop(&WORKLOADS, &[("api", 1, "api"), ("next", 2, "next")])),
        ("route.yaml", ROUTE),
    ]);
    let client = mesh.pod("client", 2);
    mesh.capture(&client);
    let api = mesh.workload("api-b", 4, "api", 1);
    origin::http(&api, 8080, |_| Response::new(Full::from("b")));
    let next = mesh.workload("next-a", 5, "next", 1);
    origin::echo(&next, 8080, "next");
    let log = mesh.directory().join("access.log");
    let mut command = mesh.sidecar_command(HEDDLE, "client", "client", 1);
    command.args(["--access-log", "json"]).stdout(std::fs::File::create(&log).unwrap());
    let sidecar = client.netns().spawn(command).unwrap();
    eventually("the sidecar is ready", || {
        let ready = client.netns().run(|| TcpStream::connect(("127.0.0.1", 15000)).is_ok()).unwrap();
        (ready && talk::get(&client, ([127, 0, 0, 1], 15000).into(), "/ready").status() == 200).then_some(())
    });
    // The one of api's endpoints that is not there is passed over: nothing was delivered to it.
    for path in ["/a", "/cart/x", "/a"] {
        talk::get(&client, vip(1), path);
    }
    eventually("three requests are logged", || {
        let log = std::fs::read_to_string(&log).unwrap();
        (log.lines().filter(|line| line.contains("\"direction\":\"outbound\"")).count() == 3).then_some(())
    });
    drop(sidecar);

    let after = tempfile::tempdir().unwrap();
    copy(&mesh.manifests(), after.path());
    let changed = ROUTE
        .replace("value: /cart }", "value: /carts }")
        .replace("replacePrefixMatch: /admin", "replacePrefixMatch: /x");
    std::fs::write(after.path().join("route.yaml"), changed).unwrap();
    let (before, after) = (manifests(&mesh), after.path().display().to_string());
    let log = log.display().to_string();
    let diff = ["diff", "--before", &before, "--after", &after, "--traffic", &log];
    let told = json(None, &diff);

    assert_eq!(told["compared"], 2, "{told:#}");
    let requests = told["requests"].as_array().unwrap();
    let differing: Vec<_> = requests.iter().map(|one| one["request"].as_str().unwrap()).collect();
    assert_eq!(differing, ["GET http://api.shop/cart/x"], "{told:#}");
    let change = |decision: &str| {
        let changes = requests[0]["changes"].as_array().unwrap();
        let found = changes.iter().find(|change| change["decision"] == decision);
        found.map(|change| (change["before"].as_str().unwrap(), change["after"].as_str().unwrap()))
    };
    assert_eq!(change("route"), Some(("HTTPRoute/shop/canary/cart", "HTTPRoute/shop/canary/2")), "{told:#}");
    assert_eq!(
        change("authorization at shop/api-b:8080"),
        Some(("deny by AuthorizationPolicy/shop/admin/1", "allow")),
        "{told:#}"
    );
    assert_eq!(change("timeouts"), Some(("request 2s", "none")));
    let shown = text(&heddle(None, &diff));
    assert!(shown.contains("  route\n  - HTTPRoute/shop/canary/cart\n  + HTTPRoute/shop/canary/2\n"), "{shown}");
    assert!(shown.ends_with("1 of 2 distinct requests differ; 0 lines say no request\n"), "{shown}");
    let said = heddle(None, &[&diff[..], &["--exit-code"]].concat());
    assert!(!said.status.success());
    let same = ["diff", "--before", &before, "--after", &before, "--traffic", &log, "--exit-code"];
    assert!(text(&heddle(None, &same)).starts_with("0 of 2 distinct requests differ"));
}

/// A port on loopback of `from` that leads to the admin port of `to`.
fn forward(from: &MeshPod, port: u16, to: &MeshPod) -> String {
    let listener = from.netns().run(|| TcpListener::bind(("127.0.0.1", port)).unwrap()).unwrap();
    let admin = to.netns().run(|| TcpStream::connect(("127.0.0.1", 15000)).unwrap()).unwrap();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let (mut up, mut down) = ((client.try_clone().unwrap(), admin.try_clone().unwrap()), (admin, client));
        let upwards = std::thread::spawn(move || std::io::copy(&mut up.0, &mut up.1));
        // Whichever end closes first.
        let _ = std::io::copy(&mut down.0, &mut down.1);
        let _ = down.1.shutdown(Shutdown::Both);
        let _ = upwards.join();
    });
    format!("127.0.0.1:{port}")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
