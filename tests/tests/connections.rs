//! How long connections to endpoints last and what ends them, and requests that fall silent, between sidecars over mutual TLS.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::cluster::{Connections, KeepAlive, Settings};
use heddle_proxy::tables::listener::Protocol;
use heddle_proxy::tables::route::Rule;
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::wire::Reader;
use heddle_tests::{eventually, h2c, metrics, origin, tables, talk};
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Barrier;

/// A server and a client, and a Service between them.
struct World {
    client: MeshPod,
    server: MeshPod,
    // After the pods on it.
    _mesh: Mesh,
}

impl World {
    fn new(connections: Connections, adapt: impl FnOnce(&mut Rule)) -> Self {
        let mesh = Mesh::new();
        let (mut server, mut client) = (mesh.pod("server", 10), mesh.pod("client", 2));
        server.meshed_sidecar(&mesh, 1, tables::inbound("server", tables::port(Protocol::Detect, TlsMode::Strict)));
        let endpoints = vec![tables::meshed(server.v4(8080), &server.spiffe_id())];
        let settings = Settings { connections, ..Settings::default() };
        let mut rule = tables::rule(vec![(1, tables::cluster("api", endpoints, settings))]);
        adapt(&mut rule);
        let mut known = tables::nothing("client");
        tables::destination(&mut known, vip(), Protocol::Http, rule);
        client.meshed_sidecar(&mesh, 1, known);
        Self { client, server, _mesh: mesh }
    }

    /// How many the server's sidecar has taken.
    fn connections(&self) -> f64 {
        let page = metrics::page(&self.server);
        metrics::sum(&page, "heddle_downstream_connections_total", &["direction=\"inbound\""])
    }

    fn failed(&self, cause: &str) -> f64 {
        let cause = format!("cause=\"{cause}\"");
        metrics::sum(&metrics::page(&self.client), "heddle_requests_total", &[&cause])
    }
}

fn vip() -> SocketAddr {
    ([10, 96, 0, 1], 80).into()
}

fn get() -> Request<()> {
    Request::get("http://api/").body(()).unwrap()
}

#[test]
fn a_connection_takes_no_more_requests_than_it_is_given() {
    let world = World::new(Connections { max_requests: Some(2), ..Connections::default() }, |_| {});
    origin::echo(&world.server, 8080, "api");
    let mut answers = Reader::new(talk::connect(&world.client, vip()));
    for _ in 0..6 {
        answers.stream().write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        assert_eq!(answers.response(false).unwrap().status(), 200);
    }
    assert_eq!(world.connections(), 3.0);
    h2c::run(async {
        let connection = h2c::connect(&world.client, vip()).await;
        for _ in 0..6 {
            assert_eq!(connection.exchange(get(), Bytes::new()).await.unwrap().status(), 200);
        }
    });
    assert_eq!(world.connections(), 6.0);
}

#[test]
fn a_connection_takes_no_more_requests_after_its_time() {
    let world = World::new(Connections { max_age: Some(Duration::from_millis(50)), ..Connections::default() }, |_| {});
    origin::echo(&world.server, 8080, "api");
    let mut answers = Reader::new(talk::connect(&world.client, vip()));
    eventually("the third connection takes requests", || {
        answers.stream().write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        assert_eq!(answers.response(false).unwrap().status(), 200);
        (world.connections() >= 3.0).then_some(())
    });
}

#[test]
fn a_connection_takes_no_more_requests_at_once_than_it_may() {
    let world = World::new(Connections { max_streams: 1, ..Connections::default() }, |_| {});
    let all_here = Arc::new(Barrier::new(3));
    origin::http_in_time(&world.server, 8080, move |_| {
        let all_here = all_here.clone();
        async move {
            all_here.wait().await;
            Response::new(Full::from("api"))
        }
    });
    h2c::run(async {
        let connection = h2c::connect(&world.client, vip()).await;
        let ask = || async { connection.exchange(get(), Bytes::new()).await.unwrap().status() };
        assert_eq!(tokio::join!(ask(), ask(), ask()), (200, 200, 200));
    });
    assert_eq!(world.connections(), 3.0);
}

#[test]
fn the_kernel_is_asked_to_find_out_that_the_other_end_is_gone() {
    let keep_alive = KeepAlive { time: Duration::from_secs(30), interval: Duration::from_secs(5), probes: 3 };
    let world = World::new(Connections { keep_alive: Some(keep_alive), ..Connections::default() }, |_| {});
    origin::echo(&world.server, 8080, "api");
    assert_eq!(talk::get(&world.client, vip(), "/").status(), 200);
    let table = world.client.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap()).unwrap();
    // Remote address, state (1: established), and which timer runs (2: keep-alive); proc_net_tcp(5).
    let watched = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields[..], [_, _, remote, "01", _, timer, ..] if remote.ends_with(":1F90") && timer.starts_with("02:"))
    };
    assert_eq!(table.lines().filter(watched).count(), 1, "{table}");
}

#[test]
fn a_request_that_falls_silent_ends_and_one_that_goes_on_slowly_does_not() {
    let world = World::new(Connections::default(), |rule| rule.idle_timeout = Some(IDLE));
    origin::tcp(&world.server, 8080, |stream| {
        let mut requests = Reader::new(stream);
        while let Ok(request) = requests.request() {
            let parts = match request.target() {
                "/silent" => continue,
                "/stops" => 1,
                _ => PARTS,
            };
            write!(requests.stream(), "HTTP/1.1 200 OK\r\nContent-Length: {PARTS}\r\n\r\n").unwrap();
            (0..parts).for_each(|_| slowly(requests.stream()));
        }
    });
    let silent = talk::get(&world.client, vip(), "/silent");
    assert_eq!((silent.status(), silent.field("x-heddle-error")), (504, Some("idle_timeout")), "{silent:?}");
    let stops = talk::exchange(&world.client, vip(), "GET /stops HTTP/1.1\r\nHost: api\r\n\r\n");
    assert!(stops.starts_with(b"HTTP/1.1 200") && stops.ends_with(b"\r\n\r\nx"), "{}", String::from_utf8_lossy(&stops));
    assert_eq!(world.failed("idle_timeout"), 2.0);

    assert_eq!(talk::get(&world.client, vip(), "/").body.len(), PARTS);
    let mut answers = Reader::new(talk::connect(&world.client, vip()));
    write!(answers.stream(), "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: {PARTS}\r\n\r\n").unwrap();
    (0..PARTS).for_each(|_| slowly(answers.stream()));
    assert_eq!(answers.response(false).unwrap().body.len(), PARTS);
    assert_eq!(world.failed("idle_timeout"), 2.0);
}

/// A part of a body, and a pause that is no silence.
fn slowly(stream: &mut TcpStream) {
    stream.write_all(b"x").unwrap();
    std::thread::sleep(IDLE / 8);
}

const IDLE: Duration = Duration::from_secs(1);
/// All of them take longer than the silence that is too long.
const PARTS: usize = 12;
