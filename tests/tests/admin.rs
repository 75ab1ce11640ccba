//! The pages of a sidecar: what is ready and when, what it was told, a log filter that can be changed, and who may see
//! them: the pod itself, but for metrics and readiness.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use heddle::pods::Child;
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::talk::Response;
use heddle_tests::{PATIENCE, eventually, metrics, origin, talk};
use serde_json::Value;

/// This crate's copy of the `heddle` binary.
const HEDDLE: &str = env!("CARGO_BIN_EXE_heddle-under-test");
/// On loopback only.
const ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 15000);

const WORKLOADS: [(&str, u8, &str, &str); 2] = [("client", 2, "client", "client"), ("api", 3, "api", "api")];

fn mesh() -> LiveMesh {
    LiveMesh::start(&[("shop.yaml", &shop(&WORKLOADS, &[("api", 1, "api")]))])
}

fn get(pod: &MeshPod, to: impl Into<SocketAddr>, path: &str) -> Response {
    talk::request(pod, to.into(), &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

fn page(pod: &MeshPod, path: &str) -> (u16, String) {
    let response = get(pod, ADMIN, path);
    (response.status(), response.body)
}

#[test]
fn a_sidecar_is_ready_once_it_has_a_certificate_and_its_own_tables_and_lives_before() {
    let mut mesh = mesh();
    mesh.stop_control_plane();
    let mut api = mesh.pod("api", 3);
    mesh.start_sidecar(&mut api, "api", "api", 1);
    let waiting = (503, "waiting for a certificate\n".to_owned());
    for port in [15000, 15020] {
        let response = get(&api, ([127, 0, 0, 1], port), "/ready");
        assert_eq!((response.status(), response.body), waiting);
    }
    assert_eq!(page(&api, "/live"), (200, "live\n".into()));

    mesh.start_control_plane();

    eventually("it is ready", || (page(&api, "/ready") == (200, "ready\n".into())).then_some(()));
    assert_eq!(get(&api, ([127, 0, 0, 1], 15020), "/ready").status(), 200);
    mesh.stop_control_plane();
    eventually("its stream is gone", || {
        let page = metrics::page(&api);
        (metrics::sum(&page, "heddle_xds_state", &["what=\"connected\""]) == 0.0).then_some(())
    });
    assert_eq!(page(&api, "/ready").0, 200, "what is known stays in force");
}

#[test]
fn a_sidecar_without_its_tables_says_what_it_waits_for() {
    let mesh = mesh();
    // The certificate is for the service account; the tables would be those of another workload.
    let mut impostor = mesh.pod("impostor", 9);
    mesh.start_sidecar(&mut impostor, "api", "api", 1);
    let waiting = (503, "waiting for the control plane's answer about this workload\n".to_owned());
    eventually("it has a certificate", || (page(&impostor, "/ready") == waiting).then_some(()));
}

#[test]
fn the_pages_say_what_is_set_and_what_was_told_and_no_secret() {
    let mesh = mesh();
    let client = mesh.workload("client", 2, "client", 1);
    let api = mesh.workload("api", 3, "api", 1);
    origin::echo(&api, 8080, "api");
    let (status, config) = page(&client, "/config");
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!((status, &config["workers"], &config["outbound_port"]), (200, &1.into(), &15001.into()));
    assert_eq!(config["identity"]["workload"], "client");
    let secret = std::fs::read_to_string(mesh.token_file("client")).unwrap();

    assert!(!page(&client, "/tables").1.contains(&vip(1).to_string()), "nothing was asked for yet");
    assert_eq!(talk::get(&client, vip(1), "/").status(), 200);
    let (status, tables) = page(&client, "/tables");

    assert_eq!(status, 200);
    for told in [vip(1).to_string(), api.v4(8080).to_string(), "spiffe://cluster.local/ns/shop/sa/api".to_owned()] {
        assert!(tables.contains(&told), "{told} is missing\n{tables}");
    }
    for page in [config.to_string(), tables] {
        assert!(!page.contains(secret.trim()) && !page.contains("PRIVATE KEY"), "{page}");
    }
}

/// A sidecar in a process of its own, for what concerns a process, and what it has logged so far.
fn with_process(mesh: &LiveMesh) -> (MeshPod, Child, Arc<Mutex<String>>) {
    let pod = mesh.pod("client", 2);
    mesh.capture(&pod);
    let mut command = mesh.sidecar_command(HEDDLE, "client", "client", 1);
    command.stderr(Stdio::piped());
    let mut process = pod.netns().spawn(command).unwrap();
    let log = Arc::new(Mutex::new(String::new()));
    let (mut stderr, kept) = (process.stderr().unwrap(), log.clone());
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(len @ 1..) = stderr.read(&mut chunk) {
            kept.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..len]));
        }
    });
    eventually("the sidecar is ready", || {
        pod.netns().run(|| TcpStream::connect(SocketAddr::from(ADMIN))).unwrap().ok()?;
        (page(&pod, "/ready").0 == 200).then_some(())
    });
    (pod, process, log)
}

fn put_log_level(pod: &MeshPod, filter: &str) -> (u16, String) {
    let length = filter.len();
    let request = format!("PUT /log-level HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{filter}");
    let response = talk::request(pod, ADMIN.into(), &request);
    (response.status(), response.body)
}

#[test]
fn the_log_filter_is_changed_while_running_and_a_bad_one_is_refused_with_its_reason() {
    let mesh = mesh();
    let (pod, _process, log) = with_process(&mesh);
    assert_eq!(page(&pod, "/log-level"), (200, "warn\n".into()));
    let logged = |text: &str| log.lock().unwrap().contains(text);
    // The sidecar's own port, from outside.
    let stranger = mesh.pod("stranger", 50);
    let refused = || assert!(talk::exchange(&stranger, pod.v4(15001), "").is_empty());
    refused();
    assert!(!logged("connection refused"), "{log:?}");

    for bad in ["heddle_proxy=loud", "=", "a=b=c"] {
        let (status, said) = put_log_level(&pod, bad);
        assert_eq!(status, 400, "{bad}: {said}");
        assert!(said.starts_with(&format!("log filter `{bad}`: ")), "{said}");
        assert!(said.contains("right would be `info` or `heddle_proxy=debug`"), "{said}");
        assert_eq!(page(&pod, "/log-level"), (200, "warn\n".into()), "what was in force stays");
    }

    assert_eq!(put_log_level(&pod, "heddle_proxy=debug\n"), (200, "heddle_proxy=debug\n".into()));

    assert_eq!(page(&pod, "/log-level"), (200, "heddle_proxy=debug\n".into()));
    refused();
    eventually("what is asked for is logged", || logged("connection refused").then_some(()));
}

#[test]
fn admin_is_for_the_pod_alone_and_metrics_and_readiness_are_for_all() {
    let mesh = mesh();
    let api = mesh.workload("api", 3, "api", 1);
    origin::echo(&api, 8080, "api");
    let client = mesh.workload("client", 2, "client", 1);
    let stranger = mesh.pod("stranger", 50);
    // From outside, with a sidecar or without.
    for from in [&stranger, &client] {
        for to in [api.v4(15000), api.v6(15000)] {
            let answer = from.netns().run(|| {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let _ = stream.write_all(b"GET /config HTTP/1.0\r\n\r\n");
                Some(talk::read_to_end(&mut stream))
            });
            let answer = String::from_utf8(answer.unwrap().unwrap_or_default()).unwrap();
            // The client's own sidecar says that nobody is there.
            let nobody = answer.is_empty() || answer.contains("x-heddle-error: tls_failure");
            assert!(nobody && !answer.contains("outbound_port"), "{to}: {answer}");
        }
    }
    eventually("the stranger's tries are counted", || {
        let page = metrics::page(&api);
        let labels = ["direction=\"inbound\"", "cause=\"loop\""];
        (metrics::sum(&page, "heddle_downstream_connections_refused_total", &labels) >= 2.0).then_some(())
    });
    // The pod by its own address is not loopback.
    for to in [api.v4(15000), api.v6(15000)] {
        assert!(api.netns().run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().is_err(), "{to}");
    }

    for to in [api.v4(15020), api.v6(15020)] {
        let page = get(&stranger, to, "/metrics");
        assert_eq!(page.status(), 200);
        assert_eq!(page.field("content-type"), Some("text/plain; version=0.0.4"));
        assert!(page.body.contains("heddle_certificate_expiry_timestamp_seconds{"), "{page:?}");
        let ready = get(&stranger, to, "/ready");
        assert_eq!((ready.status(), ready.body.as_str()), (200, "ready\n"));
        for path in ["/config", "/tables", "/log-level", "/live"] {
            assert_eq!(get(&stranger, to, path).status(), 404, "{path}");
        }
        let drained = talk::request(&stranger, to, "POST /drain HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(drained.status(), 404);
    }
    assert_eq!(talk::get(&client, vip(1), "/").status(), 200);
}
