//! The kubelet's probes under STRICT: a caller without certificate asks the sidecar, the sidecar asks a real nginx and a
//! real gRPC server as the kubelet would, and whoever asks them directly gets nothing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed set-up fails the test")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use heddle_control_plane::inject::{self, Decision, Namespace, Settings};
use heddle_proxy::config::Config;
use heddle_proxy::probes::Specs;
use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::listener::Protocol;
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::programs::{self, Program, Server};
use heddle_tests::{metrics, tables, talk};
use serde_json::{Value, json};

/// Programs first, so that they stop first.
struct World {
    _nginx: Server,
    _health: Server,
    _files: tempfile::TempDir,
    pod: MeshPod,
    kubelet: MeshPod,
    _mesh: Mesh,
}

impl World {
    /// An application behind a STRICT sidecar that knows these probes of it.
    fn new(probes: &Value) -> Self {
        let mesh = Mesh::new();
        let (mut pod, kubelet) = (mesh.pod("api", 3), mesh.pod("kubelet", 9));
        let files = tempfile::tempdir().unwrap();
        let nginx = nginx(&pod, files.path());
        let health = {
            let mut command = Program { name: "python3", package: "python3" }.command();
            command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/probes/health.py"));
            Server::start(&pod, command, "ready")
        };
        let probes: Specs = probes.to_string().parse().unwrap();
        let strict = tables::port(Protocol::Detect, TlsMode::Strict);
        pod.sidecar_with(Config { workers: 1, probes, ..Config::default() }, tables::inbound("api", strict));
        Self { _nginx: nginx, _health: health, _files: files, pod, kubelet, _mesh: mesh }
    }

    /// What the kubelet is told, at either of the pod's addresses.
    fn probe(&self, to: SocketAddr, name: &str) -> talk::Response {
        let request = format!(
            "GET /probe/{name} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: kube-probe/1.36\r\nConnection: close\r\n\r\n"
        );
        talk::request(&self.kubelet, to, &request)
    }

    fn status(&self, name: &str) -> u16 {
        let both = [self.pod.v4(15020), self.pod.v6(15020)].map(|to| self.probe(to, name).status());
        assert_eq!(both[0], both[1], "{name}: the two families differ");
        both[0]
    }
}

fn nginx(pod: &MeshPod, files: &Path) -> Server {
    let root = files.display();
    let mut openssl = Program { name: "openssl", package: "openssl" }.command();
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=somebody-else"]);
    openssl.arg("-keyout").arg(files.join("key.pem")).arg("-out").arg(files.join("crt.pem"));
    programs::run(pod, openssl);
    let config = format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr notice;
        events {{ worker_connections 256; }}
        http {{
            access_log off; ssl_certificate {root}/crt.pem; ssl_certificate_key {root}/key.pem;
            client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
            uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
            server {{
                listen 8080; listen [::]:8080;
                location = /ok {{ return 200 ok; }}
                location = /sick {{ return 500 sick; }}
                location = /host {{ if ($http_host != api.shop) {{ return 418; }} return 204; }}
                location = /agent {{ if ($http_user_agent != kube-probe/1.36) {{ return 418; }} return 200; }}
                location = /header {{ if ($http_x_probe != 1) {{ return 418; }} return 200; }}
                location = /query {{ if ($args != full=1) {{ return 418; }} return 200; }}
                location = /source {{ if ($remote_addr !~ '^(127\\.0\\.0\\.6|::6)$') {{ return 403; }} return 200; }}
                location = /moved {{ absolute_redirect off; return 302 /ok; }}
                location = /moved-to-sick {{ absolute_redirect off; return 302 /sick; }}
                location = /away {{ return 302 http://192.0.2.1/; }}
                location = /round {{ absolute_redirect off; return 302 /round; }}
            }}
            server {{ listen 10.77.0.3:8081; listen [fd77::3]:8081; location / {{ return 200; }} }}
            server {{ listen 8443 ssl http2; listen [::]:8443 ssl http2; location / {{ return 200; }} }}
            server {{ listen 8444 ssl; listen [::]:8444 ssl; ssl_protocols TLSv1.2; location / {{ return 200; }} }}
        }}"
    );
    fs::write(files.join("nginx.conf"), config).unwrap();
    let mut command = Program { name: "nginx", package: "nginx" }.command();
    command.args(["-e", "stderr", "-c"]).arg(files.join("nginx.conf"));
    Server::start(pod, command, "using the \"epoll\" event method")
}

fn http(path: &str) -> Value {
    json!({ "httpGet": { "scheme": "HTTP", "port": 8080, "path": path }, "timeoutSeconds": 5 })
}

fn https(port: u16) -> Value {
    json!({ "httpGet": { "scheme": "HTTPS", "port": port, "path": "/" }, "timeoutSeconds": 5 })
}

fn with_header(path: &str, name: &str, value: &str) -> Value {
    let mut probe = http(path);
    probe["httpGet"]["httpHeaders"] = json!([{ "name": name, "value": value }]);
    probe
}

fn grpc(service: &str) -> Value {
    json!({ "grpc": { "port": 9090, "service": service }, "timeoutSeconds": 5 })
}

#[test]
fn http_probes_mean_what_they_mean_to_the_kubelet() {
    let world = World::new(&json!({
        "ok/liveness": http("/ok"),
        "sick/liveness": http("/sick"),
        "host/liveness": with_header("/host", "Host", "api.shop"),
        "agent/liveness": http("/agent"),
        "header/liveness": with_header("/header", "X-Probe", "1"),
        "query/liveness": http("/query?full=1"),
        "source/liveness": http("/source"),
        "moved/liveness": http("/moved"),
        "moved-to-sick/liveness": http("/moved-to-sick"),
        "away/liveness": http("/away"),
        "round/liveness": http("/round"),
        "pod-address/liveness": json!({ "httpGet": { "scheme": "HTTP", "port": 8081, "path": "/" }, "timeoutSeconds": 5 }),
    }));
    for name in ["ok", "host", "agent", "header", "query", "source", "moved", "away", "pod-address"] {
        assert_eq!(world.status(&format!("{name}/liveness")), 200, "{name}");
    }
    for (name, status) in [("sick", 500), ("moved-to-sick", 500), ("round", 502)] {
        assert_eq!(world.status(&format!("{name}/liveness")), status, "{name}");
    }
    let told = world.probe(world.pod.v4(15020), "sick/liveness").body;
    assert!(told.contains("sick/liveness: 10.77.0.3:8080 answers 500"), "{told}");
    let page = metrics::page(&world.pod);
    let count = |outcome| metrics::sum(&page, "heddle_probes_total", &["probe=\"liveness\"", outcome]);
    assert_eq!(count("outcome=\"success\""), 18.0, "{page}");
    assert_eq!(count("outcome=\"status\""), 5.0, "{page}");
    assert_eq!(count("outcome=\"protocol\""), 2.0, "{page}");
}

#[test]
fn whoever_asks_the_application_directly_gets_nothing() {
    let world = World::new(&json!({}));
    for to in [world.pod.v4(8080), world.pod.v6(8080)] {
        let answer = talk::exchange(&world.kubelet, to, "GET /ok HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(world.status("api/liveness"), 404);
}

#[test]
fn https_is_not_verified_whatever_version_it_speaks() {
    let world =
        World::new(&json!({ "two/readiness": https(8443), "old/readiness": https(8444), "no/readiness": https(8080) }));
    assert_eq!(world.status("two/readiness"), 200);
    assert_eq!(world.status("old/readiness"), 200);
    assert_eq!(world.status("no/readiness"), 502);
}

#[test]
fn tcp_and_grpc_probes_are_made() {
    let tcp = |port: u16| json!({ "tcpSocket": { "port": port }, "timeoutSeconds": 5 });
    let world = World::new(&json!({
        "api/startup": tcp(8080),
        "nobody/startup": tcp(7),
        "api/readiness": grpc(""),
        "cart/readiness": grpc("shop.Cart"),
        "sick/readiness": grpc("shop.Sick"),
        "unknown/readiness": grpc("shop.Unknown"),
        "no/readiness": json!({ "grpc": { "port": 8080, "service": "" }, "timeoutSeconds": 5 }),
    }));
    for name in ["api/startup", "api/readiness", "cart/readiness"] {
        assert_eq!(world.status(name), 200, "{name}");
    }
    for (name, why) in [
        ("nobody/startup", "cannot connect to 10.77.0.3:7: Connection refused"),
        ("sick/readiness", "NOT_SERVING"),
        ("unknown/readiness", "NotFound"),
    ] {
        assert_eq!(world.status(name), 503, "{name}");
        let told = world.probe(world.pod.v4(15020), name).body;
        assert!(told.contains(why), "{told}");
    }
    assert_ne!(world.status("no/readiness"), 200);
}

#[test]
fn a_silent_application_is_told_before_the_kubelet_gives_up() {
    let silent = json!({ "httpGet": { "scheme": "HTTP", "port": 8085, "path": "/" }, "timeoutSeconds": 1 });
    let world = World::new(&json!({ "api/liveness": silent }));
    let _silent = world.pod.netns().run(|| TcpListener::bind("[::]:8085").unwrap()).unwrap();
    let told = world.probe(world.pod.v4(15020), "api/liveness");
    assert_eq!(told.status(), 504);
    assert!(told.body.contains("no answer within 900ms"), "{told:?}");
}

#[test]
fn a_hook_that_was_delivered_succeeds_and_one_that_was_not_gets_no_answer() {
    let lost = json!({ "httpGet": { "scheme": "HTTP", "port": 7, "path": "/" }, "timeoutSeconds": 5 });
    let world = World::new(&json!({ "api/post-start": http("/sick"), "api/pre-stop": lost }));
    assert_eq!(world.status("api/post-start"), 200);
    let request = "GET /probe/api/pre-stop HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(talk::exchange(&world.kubelet, world.pod.v4(15020), request).is_empty());
}

#[test]
fn what_injection_writes_is_what_the_sidecar_reads_and_answers() {
    let action = |path: &str| json!({ "httpGet": { "path": path, "port": "http" } });
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "api" },
        "spec": { "containers": [{
            "name": "api", "image": "api:1", "ports": [{ "name": "http", "containerPort": 8080 }],
            "livenessProbe": action("/ok"),
            "readinessProbe": { "grpc": { "port": 9090, "service": "shop.Cart" } },
            "startupProbe": { "tcpSocket": { "port": "http" } },
            "lifecycle": { "postStart": action("/ok"), "preStop": { "httpGet": { "port": 8443, "scheme": "HTTPS" } } },
        }] },
    });
    let namespace = Namespace { name: "shop".into(), inject: Some("enabled".into()) };
    let Decision::Inject(injection) = inject::decide(&pod, &namespace, &Settings::default()) else { panic!() };
    json_patch::patch(&mut pod, &injection.patch).unwrap();
    let sidecar = pod["spec"]["initContainers"].as_array().unwrap().last().unwrap();
    let variables = sidecar["env"].as_array().unwrap();
    let probes = variables.iter().find(|variable| variable["name"] == "HEDDLE_PROBES").unwrap();
    let world = World::new(&serde_json::from_str(probes["value"].as_str().unwrap()).unwrap());

    let container = &pod["spec"]["containers"][0];
    for field in ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"] {
        let get = &container.pointer(field).unwrap()["httpGet"];
        assert_eq!(get["port"], 15020);
        let name = get["path"].as_str().unwrap().strip_prefix("/probe/").unwrap();
        assert_eq!(world.status(name), 200, "{field}");
    }
}
