//! Certificates of workloads: exchanged under load without a dropped connection, refused once they have ended or their
//! root is gone, given only for a token that fits, and good for OpenSSL.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use heddle_certs::bundle::Bundle;
use heddle_certs::ca::{Authority, MIN_LEAF_LIFETIME};
use heddle_certs::credential::Identity;
use heddle_certs::csr::{Csr, KeyRequest};
use heddle_certs::identity::{SpiffeId, TrustDomain};
use heddle_certs::tls::client_config;
use heddle_certs::token::{Claims, TokenKey};
use heddle_certs::verify;
use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::listener::Protocol;
use heddle_tests::live::{LiveMesh, control_plane_admin, shop, vip};
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::programs::{Program, run_with};
use heddle_tests::service::{self, Service};
use heddle_tests::wire::Reader;
use heddle_tests::{eventually, h2c, metrics, origin, tables, talk};
use http::Response;
use http_body_util::Full;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

const OPENSSL: Program = Program { name: "openssl", package: "openssl" };

/// The certificate a sidecar holds.
fn held(pod: &MeshPod) -> Identity {
    pod.shared().dialer.identity.load().unwrap().identity().clone()
}

// ---- exchanged under load ----

const WORKLOADS: [(&str, u8, &str, &str); 4] = [
    ("client", 2, "client", "client"),
    ("api", 3, "api", "api"),
    ("cart", 4, "cart", "cart"),
    ("stock", 5, "stock", "stock"),
];
const SERVICES: [(&str, u8, &str); 3] = [("api", 1, "api"), ("cart", 2, "cart"), ("stock", 3, "stock")];

/// The shortest life there is; a root is made every ten seconds and signs five seconds after it was published.
const SHORT_LIVES: [&str; 6] = ["--leaf-lifetime", "30s", "--root-lifetime", "80s", "--root-lead", "5s"];
/// Two renewals, each at two thirds of a leaf's life at the latest, and some.
const TWO_RENEWALS: Duration = Duration::from_secs(55);
/// Between two uses of a connection.
const PACE: Duration = Duration::from_millis(5);

/// Waits for one beat; false once the load is to end.
fn beat(end: &mpsc::Receiver<()>) -> bool {
    end.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout)
}

/// Requests on one connection that is never closed; how many.
fn http1(client: &MeshPod, end: &mpsc::Receiver<()>) -> usize {
    let mut connection = Reader::new(talk::connect(client, vip(1)));
    let mut answered = 0;
    while beat(end) {
        connection.stream().write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        let response = connection.response(false).unwrap_or_else(|broken| panic!("after {answered}: {broken:?}"));
        assert_eq!(response.status(), 200, "{response:?}");
        answered += 1;
    }
    answered
}

/// The same over HTTP/2.
fn http2(client: &MeshPod, end: &mpsc::Receiver<()>) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connection = runtime.block_on(h2c::connect(client, vip(2)));
    let mut answered = 0;
    while beat(end) {
        let response =
            runtime.block_on(connection.get("/")).unwrap_or_else(|error| panic!("after {answered}: {error}"));
        assert_eq!(response.status(), 200);
        answered += 1;
    }
    assert!(!connection.connection.is_finished());
    answered
}

/// An opaque connection that stays, and beside it one new connection a beat, each with its own handshake.
fn opaque(client: &MeshPod, end: &mpsc::Receiver<()>) -> usize {
    let mut connection = Reader::new(talk::connect(client, vip(3)));
    connection.bytes(2).unwrap();
    let mut answered = 0;
    while beat(end) {
        connection.stream().write_all(b"ping").unwrap();
        assert_eq!(connection.bytes(4).unwrap(), b"PING", "after {answered}");
        let mut new = talk::connect(client, vip(3));
        let mut said = [0; 2];
        new.read_exact(&mut said).unwrap_or_else(|error| panic!("after {answered}: {error}"));
        assert_eq!(&said, b"hi");
        answered += 1;
    }
    answered
}

/// Says `hi`, then everything it is sent, upper-case, at once.
fn shouts(pod: &MeshPod) {
    origin::tcp(pod, 8080, |mut stream| {
        let _ = stream.write_all(b"hi");
        let mut said = [0; 64];
        while let Ok(len @ 1..) = stream.read(&mut said) {
            let _ = stream.write_all(&said[..len].to_ascii_uppercase());
        }
    });
}

#[test]
fn leaves_and_roots_are_exchanged_under_load_without_a_failed_request_or_a_dropped_connection() {
    let mesh = LiveMesh::start_with(&SHORT_LIVES, &[("shop.yaml", &shop(&WORKLOADS, &SERVICES))]);
    let first_roots = std::fs::read(mesh.state().join("bundle.pem")).unwrap();
    let trust_domain = TrustDomain::parse("cluster.local").unwrap();
    let first_roots = Bundle::from_pem(trust_domain.clone(), &first_roots).unwrap();
    let pods = WORKLOADS.map(|(name, number, account, _)| mesh.workload(name, number, account, 1));
    let [client, api, cart, stock] = &pods;
    origin::echo(api, 8080, "api");
    origin::http(cart, 8080, |_| Response::new(Full::from("cart")));
    shouts(stock);

    type Load = fn(&MeshPod, &mpsc::Receiver<()>) -> usize;
    let loads: [Load; 3] = [http1, http2, opaque];
    thread::scope(|scope| {
        let running = loads.map(|load| {
            let (end, ended) = mpsc::channel();
            (end, scope.spawn(move || load(client, &ended)))
        });
        let mut serials = pods.each_ref().map(|pod| vec![held(pod).serial_hex().to_owned()]);
        let deadline = Instant::now() + TWO_RENEWALS;
        while serials.iter().any(|serials| serials.len() < 3) {
            assert!(Instant::now() < deadline, "two renewals within {TWO_RENEWALS:?}: {serials:?}");
            assert!(!running.iter().any(|(_, load)| load.is_finished()), "a load has failed");
            for (pod, serials) in pods.iter().zip(&mut serials) {
                let serial = held(pod).serial_hex().to_owned();
                if serials.last() != Some(&serial) {
                    serials.push(serial);
                }
            }
            thread::park_timeout(PACE);
        }
        for (end, load) in running {
            drop(end);
            let answered = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert!(answered > 100, "{answered} is no load");
        }
    });

    for pod in &pods {
        let (identity, roots) = (held(pod), pod.shared().dialer.identity.load().unwrap().roots().clone());
        let now = SystemTime::now();
        assert!(verify::recheck(identity.chain(), &roots, now).is_ok());
        assert!(
            verify::recheck(identity.chain(), &first_roots, now).is_err(),
            "signed by a root that is not the first"
        );
        let page = metrics::page(pod);
        assert_eq!(metrics::sum(&page, "heddle_tls_handshakes_total", &["outcome=\"failed\""]), 0.0, "{page}");
    }
    let page = metrics::page(client);
    let serial = format!("serial=\"{}\"", held(client).serial_hex());
    assert!(metrics::sum(&page, "heddle_certificate_handshakes", &[&serial]) >= 1.0, "{page}");
}

// ---- refused ----

/// An authority that has been there for an hour.
fn authority() -> Authority {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    Authority::generate(&trust_domain(), Duration::from_secs(86_400), hour_ago).unwrap()
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("mesh.test").unwrap()
}

fn spiffe_id(account: &str) -> SpiffeId {
    SpiffeId::new(&trust_domain(), "shop", account).unwrap()
}

fn roots(authorities: &[&Authority]) -> Arc<Bundle> {
    Arc::new(Bundle::new(trust_domain(), authorities.iter().map(|authority| authority.root().clone())).unwrap())
}

/// A leaf of the shortest life that was made so long ago.
fn leaf(authority: &Authority, account: &str, age: Duration) -> Identity {
    let request = KeyRequest::generate(&spiffe_id(account)).unwrap();
    let csr = Csr::from_der(&request.csr).unwrap();
    let signed = authority.sign(&csr, &spiffe_id(account), MIN_LEAF_LIFETIME, SystemTime::now() - age).unwrap();
    Identity::new(signed.chain, request.key).unwrap()
}

/// Ended half a minute ago.
const ENDED: Duration = Duration::from_secs(60);

#[test]
fn a_leaf_that_has_ended_is_refused_on_either_side() {
    for (client_age, server_age) in [(ENDED, Duration::ZERO), (Duration::ZERO, ENDED)] {
        let (mesh, authority) = (Mesh::new(), authority());
        let Service { client, server } = Service::new(&mesh);
        let application = counting(&server);
        let roots = roots(&[&authority]);
        let replace = |pod: &MeshPod, age| {
            let leaf = leaf(&authority, &pod.pod.name, age);
            pod.shared().dialer.identity.replace(leaf, roots.clone()).unwrap();
        };
        replace(&client, client_age);
        replace(&server, server_age);

        let response = talk::get(&client, service::vip(), "/");

        assert_eq!(response.status(), 503, "{response:?}");
        eventually("the server's sidecar counts a handshake that failed", || {
            let page = metrics::page(&server);
            let failed = ["direction=\"inbound\"", "outcome=\"failed\""];
            (metrics::sum(&page, "heddle_tls_handshakes_total", &failed) >= 1.0).then_some(())
        });
        assert_eq!(application.load(Ordering::SeqCst), 0);

        replace(&client, Duration::ZERO);
        replace(&server, Duration::ZERO);
        assert_eq!(talk::get(&client, service::vip(), "/").status(), 200, "with leaves that have not");
    }
}

/// An application that counts its requests.
fn counting(pod: &MeshPod) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    origin::http(pod, 8080, move |_| {
        seen.fetch_add(1, Ordering::SeqCst);
        Response::new(Full::from("served"))
    });
    count
}

/// A server behind its sidecar that takes nothing but mutual TLS, and a pod without a sidecar to call it from, whose
/// TLS is the test's own.
struct Called {
    stranger: MeshPod,
    server: MeshPod,
    // After the pods on it.
    _mesh: Mesh,
}

impl Called {
    fn new(identity: Identity, roots: Arc<Bundle>) -> Self {
        let mesh = Mesh::new();
        let (stranger, mut server) = (mesh.pod("stranger", 2), mesh.pod("server", 3));
        server.sidecar(1, tables::inbound("server", tables::port(Protocol::Detect, TlsMode::Strict)));
        server.shared().dialer.identity.replace(identity, roots).unwrap();
        origin::greets(&server, 8080, "hi");
        Self { stranger, server, _mesh: mesh }
    }

    /// What the application answers over a new connection, and how its handshake went.
    fn call(&self, config: &Arc<ClientConfig>) -> (Vec<u8>, Option<HandshakeKind>) {
        let to: SocketAddr = self.server.v4(8080);
        let tls = ClientConnection::new(config.clone(), ServerName::IpAddress(to.ip().into())).unwrap();
        let mut stream = StreamOwned::new(tls, talk::connect(&self.stranger, to));
        // The server's refusal of a certificate comes after the handshake (RFC 8446 §4.4.2.4), here or at the first read.
        let _ = stream.write_all(b"a");
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        (answer, stream.conn.handshake_kind())
    }

    fn handshakes(&self, labels: &[&str]) -> f64 {
        metrics::sum(&metrics::page(&self.server), "heddle_tls_handshakes_total", labels)
    }
}

/// A sidecar's TLS for opaque bytes; keeps the tickets it is given.
fn sidecar_tls(identity: &Identity, roots: Arc<Bundle>) -> Arc<ClientConfig> {
    let mut config = client_config(identity, roots, Arc::new([spiffe_id("server")])).unwrap();
    config.alpn_protocols = vec![b"heddle-tcp".to_vec()];
    Arc::new(config)
}

#[test]
fn a_ticket_is_worth_nothing_once_its_leaf_has_ended() {
    let authority = authority();
    let called = Called::new(leaf(&authority, "server", Duration::ZERO), roots(&[&authority]));
    let soon_over = leaf(&authority, "client", MIN_LEAF_LIFETIME - Duration::from_secs(5));
    let tls = sidecar_tls(&soon_over, roots(&[&authority]));
    assert_eq!(called.call(&tls), (b"hiA".to_vec(), Some(HandshakeKind::Full)));
    assert_eq!(called.call(&tls), (b"hiA".to_vec(), Some(HandshakeKind::Resumed)));

    eventually("the leaf has ended and its ticket is refused", || {
        let (answer, kind) = called.call(&tls);
        assert_eq!(kind, Some(HandshakeKind::Resumed), "TLS alone would have let it in");
        answer.is_empty().then_some(())
    });

    assert!(SystemTime::now() > soon_over.not_after(), "not before its end");
    assert_eq!(called.handshakes(&["outcome=\"failed\"", "reason=\"resumed\""]), 1.0);
    assert_eq!(called.call(&tls).0, b"", "nor is a whole handshake of use");
}

#[test]
fn a_ticket_is_worth_nothing_once_its_root_is_gone() {
    let (old, new) = (authority(), authority());
    let server = leaf(&new, "server", Duration::ZERO);
    let called = Called::new(server.clone(), roots(&[&old, &new]));
    let tls = sidecar_tls(&leaf(&old, "client", Duration::ZERO), roots(&[&old, &new]));
    assert_eq!(called.call(&tls), (b"hiA".to_vec(), Some(HandshakeKind::Full)));
    assert_eq!(called.call(&tls), (b"hiA".to_vec(), Some(HandshakeKind::Resumed)));

    called.server.shared().dialer.identity.replace(server, roots(&[&new])).unwrap();

    let (answer, kind) = called.call(&tls);
    assert_eq!(answer, b"");
    assert_ne!(kind, Some(HandshakeKind::Resumed), "the ticket died with the roots");
    let of_the_new = sidecar_tls(&leaf(&new, "client", Duration::ZERO), roots(&[&new]));
    assert_eq!(called.call(&of_the_new).0, b"hiA");
}

// ---- given only for a token that fits ----

/// What the control plane has counted of requests for certificates with this outcome.
fn requests(observer: &MeshPod, outcome: &str) -> f64 {
    let page = talk::request(observer, control_plane_admin(), "GET /metrics HTTP/1.0\r\n\r\n").body;
    metrics::sum(&page, "heddle_certificates_requests_total", &[&format!("outcome=\"{outcome}\"")])
}

fn ready(pod: &MeshPod) -> (u16, String) {
    let response = talk::request(pod, SocketAddr::from(([127, 0, 0, 1], 15000)), "GET /ready HTTP/1.0\r\n\r\n");
    (response.status(), response.body)
}

/// A token for `workload` as `account`, signed by the mesh's key, good for an hour from `made` on.
fn token(mesh: &LiveMesh, workload: &str, account: &str, made: SystemTime) -> String {
    let key = TokenKey::from_pem(&std::fs::read(mesh.state().join("token.key")).unwrap()).unwrap();
    let id = SpiffeId::new(&TrustDomain::parse("cluster.local").unwrap(), "shop", account).unwrap();
    key.issue(&Claims::new(&id, workload, Duration::from_secs(3600), made).unwrap()).unwrap()
}

/// Starts the sidecar of `api` with the wrong token, sees it refused, then gives it the right one.
fn assert_refused(outcome: &str, wrong: impl FnOnce(&LiveMesh) -> String) {
    let mesh = LiveMesh::start(&[("shop.yaml", &shop(&WORKLOADS, &SERVICES))]);
    let (observer, mut api) = (mesh.pod("observer", 50), mesh.pod("api", 3));
    let file = mesh.token_file("api");
    let wrong = wrong(&mesh);
    std::fs::write(&file, &wrong).unwrap();

    mesh.start_sidecar(&mut api, "api", "api", 1);

    eventually("it is refused", || (requests(&observer, outcome) >= 1.0).then_some(()));
    assert!(api.shared().dialer.identity.load().is_none(), "{wrong}");
    assert_eq!(ready(&api), (503, "waiting for a certificate\n".into()), "{wrong}");
    assert_eq!(requests(&observer, "signed_for_token"), 0.0, "{wrong}");
    std::fs::write(&file, token(&mesh, "api", "api", SystemTime::now())).unwrap();
    eventually("it is ready", || (ready(&api).0 == 200).then_some(()));
    assert_eq!(held(&api).id().to_string(), "spiffe://cluster.local/ns/shop/sa/api");
    assert_eq!(requests(&observer, "signed_for_token"), 1.0);
}

#[test]
fn a_token_that_this_control_plane_did_not_write_gives_no_certificate() {
    assert_refused("unauthenticated", |_| "nonsense".to_owned());
    assert_refused("unauthenticated", |_| {
        let other = LiveMesh::start(&[("shop.yaml", &shop(&WORKLOADS, &SERVICES))]);
        token(&other, "api", "api", SystemTime::now())
    });
    assert_refused("unauthenticated", |mesh| {
        let mut token = token(mesh, "api", "api", SystemTime::now());
        let last = if token.pop() == Some('0') { '1' } else { '0' };
        token.push(last);
        token
    });
}

#[test]
fn a_token_that_is_over_gives_no_certificate() {
    let hour_ago = SystemTime::now() - Duration::from_secs(3601);
    assert_refused("unauthenticated", |mesh| token(mesh, "api", "api", hour_ago));
}

#[test]
fn a_token_for_another_workload_or_account_gives_no_certificate() {
    for (workload, account) in [("nobody", "api"), ("cart", "api"), ("cart", "cart")] {
        assert_refused("denied", |mesh| token(mesh, workload, account, SystemTime::now()));
    }
}

// ---- good for OpenSSL ----

#[test]
fn openssl_believes_a_running_sidecar_by_the_published_bundle_and_nobody_elses() {
    let mesh = LiveMesh::start(&[("shop.yaml", &shop(&WORKLOADS, &SERVICES))]);
    let [client, api] = [0, 1].map(|i| {
        let (name, number, account, _) = WORKLOADS[i];
        mesh.workload(name, number, account, 1)
    });
    origin::tcp(&api, 8080, |mut stream| drop(stream.write_all(b"hi from api\n")));
    let stranger = mesh.pod("stranger", 50);
    let bundle = mesh.state().join("bundle.pem");
    let [certificate, key] = ["client.pem", "client.key"].map(|name| mesh.directory().join(name));
    std::fs::write(&certificate, held(&client).chain_pem()).unwrap();
    std::fs::write(&key, held(&client).key_pem()).unwrap();

    let mut handshake = OPENSSL.command();
    handshake.args(["s_client", "-connect", &api.v4(8080).to_string(), "-alpn", "heddle-tcp", "-tls1_3"]);
    handshake.args(["-verify_return_error", "-showcerts", "-ign_eof", "-purpose", "sslserver", "-x509_strict"]);
    handshake.arg("-CAfile").arg(&bundle).arg("-cert").arg(&certificate).arg("-key").arg(&key);
    let said = run_with(&stranger, handshake, Stdio::null()).text();

    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    assert!(said.contains("hi from api"), "{said}");
    let begin = said.find("-----BEGIN CERTIFICATE-----").unwrap();
    let end = said.find("-----END CERTIFICATE-----").unwrap();
    let leaf = mesh.directory().join("leaf.pem");
    std::fs::write(&leaf, format!("{}-----END CERTIFICATE-----\n", &said[begin..end])).unwrap();
    let mut command = OPENSSL.command();
    command.args(["x509", "-noout", "-serial", "-ext", "subjectAltName", "-in"]).arg(&leaf);
    let shown = run_with(&stranger, command, Stdio::null()).text();
    assert!(shown.to_lowercase().starts_with(&format!("serial={}\n", held(&api).serial_hex())), "{shown}");
    assert!(shown.ends_with("URI:spiffe://cluster.local/ns/shop/sa/api"), "{shown}");
    for purpose in ["sslserver", "sslclient"] {
        let mut command = OPENSSL.command();
        command.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).arg(&bundle).arg(&leaf);
        assert!(run_with(&stranger, command, Stdio::null()).text().ends_with(": OK"), "{purpose}");
    }
    let other = LiveMesh::start(&[("shop.yaml", &shop(&WORKLOADS, &SERVICES))]);
    let mut command = OPENSSL.command();
    command.arg("verify").arg("-CAfile").arg(other.state().join("bundle.pem")).arg(&leaf);
    assert!(!command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
}
