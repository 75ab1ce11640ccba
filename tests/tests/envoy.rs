//! A real Envoy in the place of heddle-proxy, from the same control plane and the same manifests: as the client's sidecar,
//! as the server's, as both.
//!
//! Each case is what clients and applications see of some traffic. Every placement must give what two sidecars of ours
//! give, but for what [`DIFFERENCES`] lists.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use heddle_tests::envoy::Envoy;
use heddle_tests::live::{LiveMesh, control_plane_admin, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::{PATIENCE, eventually, h2c, metrics, origin, talk};
use http::{HeaderMap, Request, Response};
use http_body_util::Full;

/// Who stands beside an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sidecar {
    Heddle,
    Envoy,
}

/// The pods with their sidecars, and one without. What is declared first is stopped first.
struct World {
    _envoys: Vec<Envoy>,
    client: MeshPod,
    api: MeshPod,
    next: MeshPod,
    stranger: MeshPod,
    mesh: LiveMesh,
}

/// Some traffic.
struct Case {
    name: &'static str,
    /// Sends it and tells what came of it.
    run: fn(&World) -> String,
    /// What must be told in any case.
    says: &'static [&'static str],
}

#[test]
fn envoy_as_the_client_s_sidecar_gives_the_answers_heddle_proxy_gives() {
    compare(Sidecar::Envoy, Sidecar::Heddle);
}

#[test]
fn envoy_as_the_server_s_sidecar_gives_the_answers_heddle_proxy_gives() {
    compare(Sidecar::Heddle, Sidecar::Envoy);
}

#[test]
fn envoy_on_both_sides_gives_the_answers_heddle_proxy_gives() {
    let told = compare(Sidecar::Envoy, Sidecar::Envoy);
    let lines = |told: &[String], begin: &str| {
        told.iter().flat_map(|told| told.lines()).filter(|line| line.starts_with(begin)).count()
    };
    let gone = DIFFERENCES.iter().filter(|(begin, _)| lines(ours(), begin) == lines(&told, begin)).collect::<Vec<_>>();
    assert!(gone.is_empty(), "listed as different, and the same: {gone:?}");
}

#[test]
fn an_envoy_follows_a_change_of_a_file_without_a_restart() {
    let world = World::new(Sidecar::Envoy, Sidecar::Heddle);
    assert!(get(&world, 2, "/", &[]).contains("by next"));
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: more, namespace: shop }\n\
                 spec:\n  parentRefs: [{ group: \"\", kind: Service, name: next, port: 80 }]\n  rules:\n  \
                 - backendRefs: [{ name: api, port: 80 }]\n";
    let file = world.mesh.apply("more.yaml", route);
    eventually("requests go to the other Service", || get(&world, 2, "/", &[]).contains("by api").then_some(()));
    std::fs::remove_file(file).unwrap();
    eventually("requests go to the Service again", || get(&world, 2, "/", &[]).contains("by next").then_some(()));
}

/// What two sidecars of ours tell.
fn ours() -> &'static [String] {
    static OURS: OnceLock<Vec<String>> = OnceLock::new();
    OURS.get_or_init(|| tell(Sidecar::Heddle, Sidecar::Heddle))
}

/// Holds what the placement tells against [`ours`], and gives it back.
fn compare(client: Sidecar, server: Sidecar) -> Vec<String> {
    let told = tell(client, server);
    let mut wrong = String::new();
    for ((case, expected), told) in CASES.iter().zip(ours()).zip(&told) {
        for said in case.says {
            for (text, place) in [(expected, "two of ours"), (told, "with Envoy")] {
                if !text.contains(said) {
                    writeln!(wrong, "== {}: {place} do not say {said:?}:\n{text}", case.name).unwrap();
                }
            }
        }
        if !same(expected).eq(same(told)) {
            writeln!(wrong, "== {}: two of ours:\n{expected}-- with Envoy:\n{told}", case.name).unwrap();
        }
    }
    assert!(wrong.is_empty(), "client {client:?}, server {server:?}\n{wrong}");
    told
}

/// The lines that must be the same.
fn same(told: &str) -> impl Iterator<Item = &str> {
    told.lines().filter(|line| !DIFFERENCES.iter().any(|(begin, _)| line.starts_with(begin)))
}

/// What every case tells.
fn tell(client: Sidecar, server: Sidecar) -> Vec<String> {
    let world = World::new(client, server);
    let told = CASES.iter().map(|case| (case.run)(&world)).collect();
    let page = talk::request(&world.stranger, control_plane_admin(), "GET /metrics HTTP/1.0\r\n\r\n").body;
    assert_eq!(metrics::sum(&page, "heddle_xds_answers_total", &["result=\"refused\""]), 0.0, "{page}");
    let envoys = [client, server, server].iter().filter(|sidecar| **sidecar == Sidecar::Envoy).count();
    assert_eq!(metrics::sum(&page, "heddle_xds_streams", &["dialect=\"envoy\""]), envoys as f64, "{page}");
    told
}

const CASES: [Case; 29] = [
    Case { name: "a request passes", run: |world| get(world, 1, "/", &[]), says: &["HTTP/1.1 200 OK", "by api"] },
    Case {
        name: "a method, a query and a body pass",
        run: |world| {
            let body = "x".repeat(1 << 20);
            let head = "PUT /put?a=1&b=%2f HTTP/1.1\r\nHost: api.shop\r\nConnection: close\r\nX-CaSe: Kept\r\n";
            http1(&world.client, vip(1), &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
        },
        says: &["PUT /put?a=1&b=%2f", "1048576 bytes"],
    },
    Case {
        name: "HEAD has no body",
        run: |world| http1(&world.client, vip(1), "HEAD / HTTP/1.1\r\nHost: api.shop\r\nConnection: close\r\n\r\n"),
        says: &["HTTP/1.1 200 OK"],
    },
    Case { name: "routing by path", run: |world| get(world, 1, "/next/x", &[]), says: &["by next"] },
    Case { name: "a path that only begins alike", run: |world| get(world, 1, "/nextdoor", &[]), says: &["by api"] },
    Case { name: "routing by header", run: |world| get(world, 1, "/", &[("X-Canary", "yes")]), says: &["by next"] },
    Case {
        name: "another value of the header",
        run: |world| get(world, 1, "/", &[("X-Canary", "no")]),
        says: &["by api"],
    },
    Case {
        name: "header modification",
        run: |world| get(world, 1, "/headers", &[("X-Old", "gone"), ("X-Set", "before"), ("X-Add", "one")]),
        says: &["> x-set: after", "> x-add: one", "> x-add: two", "< x-answer: 100%"],
    },
    Case {
        name: "redirect",
        run: |world| get(world, 1, "/redirect/me?q=1", &[]),
        says: &["HTTP/1.1 301", "https://elsewhere.example/new/me?q=1"],
    },
    Case {
        name: "rewrite of path and host",
        run: |world| get(world, 1, "/rewrite/me?q=1", &[]),
        says: &["> GET /written/me?q=1", "> host: inner.example"],
    },
    Case { name: "weights", run: weights, says: &["about a fifth: true"] },
    Case {
        name: "timeout of a request",
        run: |world| {
            let began = Instant::now();
            let told = get(world, 3, "/", &[]);
            let waited = (Duration::from_millis(250)..Duration::from_secs(5)).contains(&began.elapsed());
            format!("{told}in time: {waited}\n")
        },
        says: &["HTTP/1.1 504", "in time: true"],
    },
    Case { name: "retry", run: |world| get(world, 1, "/flaky/retried", &[]), says: &["HTTP/1.1 200", "attempt 3"] },
    Case {
        name: "no retry without a policy",
        run: |world| get(world, 1, "/once", &[]),
        says: &["HTTP/1.1 503", "attempt 1"],
    },
    Case {
        name: "a backend that does not exist",
        run: |world| get(world, 1, "/invalid", &[]),
        says: &["HTTP/1.1 500"],
    },
    Case { name: "an application that is not there", run: |world| get(world, 7, "/", &[]), says: &["HTTP/1.1 503"] },
    Case {
        name: "what one application is not there for, the other answers",
        run: |world| (0..20).map(|number| post(world, 9, &format!("/{number}"))).collect(),
        says: &["by next", "> POST /19"],
    },
    Case {
        name: "an application cannot say that it was not reached",
        run: |world| get(world, 1, "/forged", &[]),
        says: &["HTTP/1.1 200 OK", "attempt 1"],
    },
    Case {
        name: "STRICT: a stranger in plaintext is refused, its neighbour in PERMISSIVE is not",
        run: |world| {
            let request = "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: By=me\r\nConnection: close\r\n\r\n";
            let strict = talk::exchange(&world.stranger, world.next.v4(8080), request);
            format!("{} bytes\n{}", strict.len(), http1(&world.stranger, world.api.v4(8080), request))
        },
        says: &["0 bytes", "by api"],
    },
    Case {
        name: "authorization: DENY by path, normalised",
        run: |world| ["/admin", "/x/../admin", "/administer"].map(|path| get(world, 1, path, &[])).concat(),
        says: &["HTTP/1.1 403", "HTTP/1.1 200"],
    },
    Case {
        name: "authorization: ALLOW by identity",
        run: |world| {
            let (ours, another) = (get(world, 2, "/", &[]), http1_get(&world.api, vip(2), "/", &[]));
            format!("{ours}another's: {}\n", status(&another))
        },
        says: &["by next", "another's: HTTP/1.1 403"],
    },
    Case {
        name: "opaque TCP, the server speaks first, declared",
        run: |world| String::from_utf8(talk::exchange_half_closed(&world.client, vip(5), "quit\n")).unwrap(),
        says: &["220 ready\nQUIT\n"],
    },
    Case {
        name: "opaque TCP, the server speaks first, nothing declared",
        run: |world| {
            let mut stream = talk::connect(&world.client, vip(4));
            let mut greeting = [0; 10];
            stream.read_exact(&mut greeting).unwrap();
            stream.write_all(b"quit\n").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            String::from_utf8([&greeting[..], &talk::read_to_end(&mut stream)].concat()).unwrap()
        },
        says: &["220 ready\nQUIT\n"],
    },
    Case {
        name: "authorization of opaque TCP by identity",
        run: |world| {
            let [stranger, client] = [&world.stranger, &world.client]
                .map(|pod| talk::exchange_half_closed(pod, world.api.v4(8085), "quit\n"))
                .map(|said| said.ends_with(b"QUIT\n"));
            format!("stranger heard: {stranger}, client heard: {client}\n")
        },
        says: &["stranger heard: false, client heard: true"],
    },
    Case {
        name: "a pod dialled by its own address, both families",
        run: |world| [world.api.v4(8080), world.api.v6(8080)].map(|to| http1_get(&world.client, to, "/", &[])).concat(),
        says: &["URI=spiffe://cluster.local/ns/shop/sa/client"],
    },
    Case {
        name: "a pod that calls itself through its Service",
        run: |world| http1_get(&world.api, vip(1), "/", &[]),
        says: &["by api", "URI=spiffe://cluster.local/ns/shop/sa/api"],
    },
    Case {
        name: "a host outside the mesh",
        run: |world| http1_get(&world.client, world.stranger.v4(8080), "/", &[]),
        says: &["by the stranger"],
    },
    Case { name: "gRPC with trailers", run: grpc, says: &["< 200", "by grpc", "trailer grpc-status: 0"] },
    Case { name: "WebSocket", run: websocket, says: &["HTTP/1.1 101", "ping"] },
];

/// Headers of whose values only the presence is compared. The length is that of the body, which is compared itself.
const VOLATILE: [&str; 4] = ["content-length", "date", "traceparent", "x-request-id"];

impl World {
    fn new(client: Sidecar, server: Sidecar) -> Self {
        let mesh = LiveMesh::start(&[("shop.yaml", MANIFESTS)]);
        let mut envoys = Vec::new();
        let mut pod = |name: &str, number: u8, sidecar: Sidecar| match sidecar {
            Sidecar::Heddle => mesh.workload(name, number, name, 1),
            Sidecar::Envoy => {
                let pod = mesh.pod(name, number);
                envoys.push(Envoy::start(&mesh, &pod, env!("CARGO_BIN_EXE_heddle-under-test"), name, name, &[]));
                pod
            }
        };
        let (client, api, next) = (pod("client", 2, client), pod("api", 3, server), pod("next", 4, server));
        let stranger = mesh.pod("stranger", 9);
        applications(&api, &next, &stranger);
        Self { _envoys: envoys, client, api, next, stranger, mesh }
    }
}

fn applications(api: &MeshPod, next: &MeshPod, stranger: &MeshPod) {
    let seen = Mutex::new(Vec::new());
    origin::http(api, 8080, move |request| {
        let path = request.uri().path().to_owned();
        let attempt = {
            let mut seen = seen.lock().unwrap();
            seen.push(path.clone());
            seen.iter().filter(|before| **before == path).count()
        };
        let fails = path == "/once" || (path.starts_with("/flaky/") && attempt < 3);
        let mut answer = Response::builder().status(if fails { 503 } else { 200 });
        if path == "/forged" {
            answer = answer.header("x-heddle-undelivered", "true").header("x-heddle-error", "forged");
        }
        answer.body(Full::from(format!("by api, attempt {attempt}\n{}", told_by_application(&request)))).unwrap()
    });
    for port in [8080, 8084] {
        origin::http(next, port, |request| {
            Response::new(Full::from(format!("by next\n{}", told_by_application(&request))))
        });
    }
    origin::http(stranger, 8080, |request| {
        Response::new(Full::from(format!("by the stranger\n{}", told_by_application(&request))))
    });
    // Takes everything and never answers.
    origin::tcp(api, 8081, |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    for port in [8082, 8085] {
        origin::greets(api, port, "220 ready\n");
    }
    h2c::origin(api, 8083, grpc_application);
    origin::tcp(api, 8086, |mut stream| {
        if head(&mut stream).to_ascii_lowercase().contains("upgrade: websocket") {
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
        }
    });
}

async fn grpc_application(request: Request<RecvStream>, mut answer: SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    let Ok((message, _)) = h2c::read(&mut body).await else { return };
    let told = told_by_application(&Request::from_parts(head, message));
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = answer.send_response(head, false).unwrap();
    stream.send_data(Bytes::from(format!("by grpc\n{told}")), false).unwrap();
    let trailers = [("grpc-status", "0"), ("x-end", "here")];
    let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    stream.send_trailers(HeaderMap::from_iter(trailers)).unwrap();
}

/// A request as the application sees it, in lines that begin with `>`.
fn told_by_application(request: &Request<Bytes>) -> String {
    let mut told = format!("> {} {} {:?}\n", request.method(), request.uri(), request.version());
    let fields = request.headers().iter();
    told.push_str(&fields_told('>', fields.map(|(name, value)| (name.as_str(), value.to_str().unwrap()))));
    writeln!(told, "> {} bytes", request.body().len()).unwrap();
    told
}

/// Fields by name, of one name in their order.
fn fields_told<'f>(mark: char, fields: impl Iterator<Item = (&'f str, &'f str)>) -> String {
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    let mut told = String::new();
    for (name, value) in fields {
        let value = match name.to_ascii_lowercase().as_str() {
            name if VOLATILE.contains(&name) => "…",
            "x-forwarded-client-cert" => &without_hash(value),
            _ => value,
        };
        writeln!(told, "{mark} {name}: {value}").unwrap();
    }
    told
}

/// Every run has certificates of its own.
fn without_hash(certificate: &str) -> String {
    certificate.split(';').filter(|part| !part.starts_with("Hash=")).collect::<Vec<_>>().join(";")
}

/// The answer to a GET of the client for the Service at 10.96.0.`service`.
fn get(world: &World, service: u8, path: &str, fields: &[(&str, &str)]) -> String {
    http1_get(&world.client, vip(service), path, fields)
}

fn post(world: &World, service: u8, path: &str) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nHost: api.shop\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    http1(&world.client, vip(service), &head)
}

fn http1_get(pod: &MeshPod, to: SocketAddr, path: &str, fields: &[(&str, &str)]) -> String {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    http1(pod, to, &format!("GET {path} HTTP/1.1\r\nHost: api.shop\r\nConnection: close\r\n{fields}\r\n"))
}

fn http1(pod: &MeshPod, to: SocketAddr, request: &str) -> String {
    let response = talk::request(pod, to, request);
    let fields = response.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut told = format!("{}\n{}", response.status_line, fields_told('<', fields));
    told.extend(response.body.lines().map(|line| format!("{line}\n")));
    told
}

fn status(told: &str) -> &str {
    told.lines().next().unwrap_or_default()
}

/// 4 to 1 between two Services: of 300 requests 60, and 99.99 % of all times between 33 and 87.
fn weights(world: &World) -> String {
    let next = (0..300).filter(|_| get(world, 1, "/split", &[]).contains("by next")).count();
    format!("about a fifth: {}\n", (33..=87).contains(&next))
}

fn grpc(world: &World) -> String {
    let response = h2c::run(async {
        let client = h2c::connect(&world.client, vip(6)).await;
        let call = Request::post("http://grpc.shop/talk.Talk/Say").header("content-type", "application/grpc");
        let call = call.header("te", "trailers").body(()).unwrap();
        client.exchange(call, h2c::grpc_message(b"hello")).await.unwrap()
    });
    let fields = response.head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
    let mut told = format!("< {}\n{}", response.status(), fields_told('<', fields));
    told.push_str(&String::from_utf8_lossy(&response.body));
    let trailers = response.trailers.unwrap_or_default();
    let trailers: BTreeSet<_> =
        trailers.iter().map(|(name, value)| format!("trailer {name}: {}\n", value.to_str().unwrap())).collect();
    told.extend(trailers);
    told
}

fn websocket(world: &World) -> String {
    let mut stream = talk::connect(&world.client, vip(8));
    let request = "GET /chat HTTP/1.1\r\nHost: api.shop\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let head = head(&mut stream);
    stream.write_all(b"ping").unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).unwrap();
    format!("{}\n{}\n", status(&head), String::from_utf8_lossy(&echoed))
}

/// Reads up to the end of a message's head.
fn head(stream: &mut std::net::TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// What differs with an Envoy, and why: how lines begin, of the response's fields (`<`), of the request's as the
/// application sees them (`>`), and of bodies.
///
/// One difference is a race and no line: Envoy asks its network RBAC filter at the client's first byte, and dials the
/// application before. So a caller that is then refused may have had the greeting of a server that speaks first; what it
/// says itself is never heard. Ours decides before it dials.
const DIFFERENCES: [(&str, &str); 13] = [
    ("< date: ", "Envoy writes one into every response"),
    ("> x-forwarded-proto: ", "Envoy writes one into every request"),
    ("> x-heddle-attempt: ", "Envoy's count has another name, and stands in first attempts too"),
    ("> traceparent: ", "Envoy begins a trace only where a tracer is configured; one that came passes"),
    ("< x-heddle-error: ", "the cause by name is the sidecar's own; Envoy has none"),
    ("heddle: ", "the same in words"),
    ("see https://github.com/heddle-mesh/heddle/", "and the page that explains it"),
    ("< link: <https://github.com/heddle-mesh/heddle/", "the same page"),
    ("< x-heddle-answer: ", "what made an answer that is no failure is the sidecar's own word too"),
    ("RBAC: access denied", "Envoy's words for `denied`"),
    ("upstream request timeout", "Envoy's words for `request_timeout`"),
    ("upstream connect error", "Envoy's words for `undelivered`"),
    ("< content-type: text/plain", "Envoy answers an invalid backend without words"),
];

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: { name: client, namespace: shop, labels: { app: client } }
spec: { addresses: ["10.77.0.2", "fd77::2"], serviceAccountName: client }
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: { name: api, namespace: shop, labels: { app: api, part: half } }
spec: { addresses: ["10.77.0.3", "fd77::3"], serviceAccountName: api }
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: { name: next, namespace: shop, labels: { app: next, part: half } }
spec: { addresses: ["10.77.0.4", "fd77::4"], serviceAccountName: next }
---
apiVersion: v1
kind: Service
metadata: { name: api, namespace: shop }
spec: { clusterIP: 10.96.0.1, selector: { app: api }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: next, namespace: shop }
spec: { clusterIP: 10.96.0.2, selector: { app: next }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: silent, namespace: shop }
spec: { clusterIP: 10.96.0.3, selector: { app: api }, ports: [{ port: 80, targetPort: 8081, appProtocol: http }] }
---
apiVersion: v1
kind: Service
metadata: { name: greeter, namespace: shop }
spec: { clusterIP: 10.96.0.4, selector: { app: api }, ports: [{ port: 80, targetPort: 8082 }] }
---
apiVersion: v1
kind: Service
metadata: { name: mail, namespace: shop }
spec: { clusterIP: 10.96.0.5, selector: { app: api }, ports: [{ port: 80, targetPort: 8085, appProtocol: tcp }] }
---
apiVersion: v1
kind: Service
metadata: { name: grpc, namespace: shop }
spec: { clusterIP: 10.96.0.6, selector: { app: api }, ports: [{ port: 80, targetPort: 8083 }] }
---
apiVersion: v1
kind: Service
metadata: { name: nobody, namespace: shop }
spec: { clusterIP: 10.96.0.7, selector: { app: api }, ports: [{ port: 80, targetPort: 8084 }] }
---
apiVersion: v1
kind: Service
metadata: { name: websocket, namespace: shop }
spec: { clusterIP: 10.96.0.8, selector: { app: api }, ports: [{ port: 80, targetPort: 8086 }] }
---
apiVersion: v1
kind: Service
metadata: { name: half, namespace: shop }
spec: { clusterIP: 10.96.0.9, selector: { part: half }, ports: [{ port: 80, targetPort: 8084 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: api, port: 80 }]
  rules:
  - matches:
    - path: { type: PathPrefix, value: /next }
    - headers: [{ name: x-canary, value: "yes" }]
    backendRefs: [{ name: next, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /headers } }]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{ name: x-set, value: after }]
        add: [{ name: x-add, value: two }]
        remove: [x-old]
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set: [{ name: x-answer, value: "100%" }]
    backendRefs: [{ name: api, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /redirect } }]
    filters:
    - type: RequestRedirect
      requestRedirect:
        scheme: https
        hostname: elsewhere.example
        path: { type: ReplacePrefixMatch, replacePrefixMatch: /new }
        statusCode: 301
  - matches: [{ path: { type: PathPrefix, value: /rewrite } }]
    filters:
    - type: URLRewrite
      urlRewrite: { hostname: inner.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: /written } }
    backendRefs: [{ name: api, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /split } }]
    backendRefs: [{ name: api, port: 80, weight: 80 }, { name: next, port: 80, weight: 20 }]
  - matches: [{ path: { type: PathPrefix, value: /flaky } }]
    retry: { codes: [503], attempts: 3, backoff: 1ms }
    backendRefs: [{ name: api, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /invalid } }]
    backendRefs: [{ name: nowhere, port: 80 }]
  - backendRefs: [{ name: api, port: 80 }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: silent, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: silent, port: 80 }]
  rules:
  - timeouts: { request: 300ms }
    backendRefs: [{ name: silent, port: 80 }]
---
apiVersion: heddle.dev/v1alpha1
kind: MeshTLSPolicy
metadata: { name: next, namespace: shop }
spec: { selector: { matchLabels: { app: next } }, mode: STRICT }
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: no-admin, namespace: shop }
spec:
  selector: { matchLabels: { app: api } }
  action: DENY
  rules: [{ to: [{ ports: [8080], paths: [/admin] }] }]
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: mail-for-the-client, namespace: shop }
spec:
  selector: { matchLabels: { app: api } }
  action: DENY
  rules: [{ from: [{ notPrincipals: [shop/client] }], to: [{ ports: [8085] }] }]
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: next-for-the-client, namespace: shop }
spec:
  selector: { matchLabels: { app: next } }
  rules: [{ from: [{ principals: [shop/client] }] }]
"#;
