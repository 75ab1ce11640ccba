//! Retries, outlier detection, circuit breaking, timeouts and balancing between two sidecars over mutual TLS.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use heddle_proxy::balance::{breaker, outlier};
use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::cluster::{Endpoint, LoadBalancing, Settings};
use heddle_proxy::tables::listener::Protocol;
use heddle_proxy::tables::route::{Hedge, RetryPolicy, Rule};
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::wire::Reader;
use heddle_tests::{eventually, metrics, origin, tables, talk};
use http::{Response, StatusCode};
use http_body_util::Full;

const VIP: &str = "10.96.0.1:80";

/// Servers with sidecars, none of which serves anything yet.
fn servers(mesh: &Mesh, count: u8) -> Vec<MeshPod> {
    let port = || tables::port(Protocol::Detect, TlsMode::Strict);
    let names = ["server-a", "server-b", "server-c"];
    (0..count)
        .map(|i| {
            let mut server = mesh.pod(names[usize::from(i)], 10 + i);
            server.meshed_sidecar(mesh, 1, tables::inbound(names[usize::from(i)], port()));
            server
        })
        .collect()
}

fn endpoints(servers: &[MeshPod]) -> Vec<Endpoint> {
    servers.iter().map(|server| tables::meshed(server.v4(8080), &server.spiffe_id())).collect()
}

/// A client for whom `VIP` leads to `servers` by `rule`.
fn client(
    mesh: &Mesh,
    servers: &[MeshPod],
    settings: Settings,
    workers: usize,
    adapt: impl FnOnce(&mut Rule),
) -> MeshPod {
    let mut client = mesh.pod("client", 2);
    let mut rule = tables::rule(vec![(1, tables::cluster("api", endpoints(servers), settings))]);
    adapt(&mut rule);
    let mut known = tables::nothing("client");
    tables::destination(&mut known, VIP.parse().unwrap(), Protocol::Http, rule);
    client.meshed_sidecar(mesh, workers, known);
    client
}

fn round_robin() -> Settings {
    Settings { policy: LoadBalancing::RoundRobin, ..Settings::default() }
}

fn answers(pod: &MeshPod, name: &'static str, status: StatusCode) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    origin::http(pod, 8080, move |_| {
        seen.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::new(Full::from(name));
        *response.status_mut() = status;
        response
    });
    count
}

fn retry_503() -> RetryPolicy {
    RetryPolicy {
        retries: 1,
        codes: vec![StatusCode::SERVICE_UNAVAILABLE],
        grpc_codes: vec![],
        connection_failures: true,
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
    }
}

#[test]
fn a_request_that_was_never_delivered_is_tried_elsewhere_whatever_its_method() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 2);
    // Only one of the two has an application behind its sidecar.
    origin::echo(&servers[1], 8080, "alive");
    let client = client(&mesh, &servers, round_robin(), 1, |_| {});
    for i in 0..6 {
        let post = format!("POST /{i} HTTP/1.1\r\nHost: api\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody");
        let response = talk::request(&client, VIP.parse().unwrap(), &post);
        assert_eq!(response.status(), 200, "{response:?}");
        assert!(response.body.contains("body"), "{response:?}");
        assert!(response.field("x-heddle-undelivered").is_none(), "{response:?}");
    }
    let page = metrics::page(&client);
    assert!(metrics::sum(&page, "heddle_retries_total", &["reason=\"never_delivered\""]) >= 1.0, "{page}");
}

#[test]
fn without_another_endpoint_the_cause_travels_back() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 1);
    let client = client(&mesh, &servers, round_robin(), 1, |_| {});
    let response = talk::get(&client, VIP.parse().unwrap(), "/");
    assert_eq!((response.status(), response.field("x-heddle-error")), (503, Some("undelivered")), "{response:?}");
    assert!(response.field("x-heddle-undelivered").is_none(), "{response:?}");
}

#[test]
fn an_answer_arrives_though_nobody_wanted_the_requests_body_and_its_connection_goes_on() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 1);
    let client = client(&mesh, &servers, round_robin(), 1, |_| {});
    let mut answers = Reader::new(talk::connect(&client, VIP.parse().unwrap()));
    let body = "x".repeat(8 * 1024 * 1024);
    let post = format!("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for request in [post.as_str(), "GET / HTTP/1.1\r\nHost: api\r\n\r\n", &post, &post] {
        answers.stream().write_all(request.as_bytes()).unwrap();
        let answer = answers.response(false).unwrap();
        assert_eq!((answer.status(), answer.field("x-heddle-error")), (503, Some("undelivered")), "{answer:?}");
    }
}

#[test]
fn a_retry_by_policy_saves_a_request_and_a_post_with_its_body() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 2);
    let failing = answers(&servers[0], "a", StatusCode::SERVICE_UNAVAILABLE);
    let healthy = answers(&servers[1], "b", StatusCode::OK);
    let client = client(&mesh, &servers, round_robin(), 1, |rule| rule.retry = Some(retry_503()));
    for _ in 0..4 {
        let post = "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
        assert_eq!(talk::request(&client, VIP.parse().unwrap(), post).status(), 200);
    }
    assert!(failing.load(Ordering::SeqCst) >= 1 && healthy.load(Ordering::SeqCst) == 4);
    let page = metrics::page(&client);
    assert!(metrics::sum(&page, "heddle_retries_total", &["reason=\"policy\""]) >= 1.0, "{page}");
}

#[test]
fn an_endpoint_that_keeps_failing_is_ejected() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 2);
    let failing = answers(&servers[0], "a", StatusCode::INTERNAL_SERVER_ERROR);
    answers(&servers[1], "b", StatusCode::OK);
    let outlier = Some(outlier::Settings { consecutive_failures: 3, ..outlier::Settings::default() });
    let client = client(&mesh, &servers, Settings { outlier, ..round_robin() }, 3, |_| {});
    for _ in 0..30 {
        talk::get(&client, VIP.parse().unwrap(), "/");
    }
    assert_eq!(failing.load(Ordering::SeqCst), 3, "three failures in a row, over all workers");
    let page = metrics::page(&client);
    assert_eq!(metrics::sum(&page, "heddle_outlier_ejections_total", &["cluster=\"shop/api/80\""]), 1.0);
    assert_eq!(metrics::sum(&page, "heddle_outlier_ejected", &["cluster=\"shop/api/80\""]), 1.0);
}

#[test]
fn a_circuit_opens_at_its_limit_over_all_workers() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 1);
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    origin::tcp(&servers[0], 8080, move |mut stream| {
        use std::io::{Read, Write};
        let mut head = [0; 4096];
        let _ = stream.read(&mut head);
        let _ = held.lock().unwrap().recv();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    });
    let limits = breaker::Limits { requests: 4, ..breaker::Limits::default() };
    let client = client(&mesh, &servers, Settings { limits, ..round_robin() }, 3, |_| {});
    let request = "GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";
    let mut waiting: Vec<_> = (0..4)
        .map(|_| {
            use std::io::Write;
            let mut stream = talk::connect(&client, VIP.parse().unwrap());
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    eventually("four requests are under way", || {
        let labels = ["cluster=\"shop/api/80\"", "kind=\"requests\""];
        (metrics::sum(&metrics::page(&client), "heddle_circuit_breaker_open", &labels) == 4.0).then_some(())
    });
    let refused = talk::get(&client, VIP.parse().unwrap(), "/");
    assert_eq!((refused.status(), refused.field("x-heddle-error")), (503, Some("overflow")), "{refused:?}");
    for _ in &waiting {
        release.send(()).unwrap();
    }
    for stream in &mut waiting {
        assert_eq!(talk::Response::parse(&talk::read_to_end(stream)).status(), 200);
    }
}

#[test]
fn a_route_timeout_answers_504_and_a_try_timeout_is_retried_by_policy() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 1);
    let first = AtomicUsize::new(0);
    origin::tcp(&servers[0], 8080, move |mut stream| {
        use std::io::{Read, Write};
        let mut head = [0; 4096];
        while stream.read(&mut head).is_ok_and(|len| len > 0) {
            if first.fetch_add(1, Ordering::SeqCst) < 2 {
                continue; // says nothing to the first two
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let with_timeouts = |rule: &mut Rule| rule.request_timeout = Some(Duration::from_millis(300));
    let slow = client(&mesh, &servers, round_robin(), 1, with_timeouts);
    let response = talk::get(&slow, VIP.parse().unwrap(), "/");
    assert_eq!((response.status(), response.field("x-heddle-error")), (504, Some("request_timeout")), "{response:?}");
    let mut known = tables::nothing("client");
    let mut rule = tables::rule(vec![(1, tables::cluster("api", endpoints(&servers), round_robin()))]);
    rule.try_timeout = Some(Duration::from_millis(300));
    rule.retry = Some(retry_503());
    tables::destination(&mut known, VIP.parse().unwrap(), Protocol::Http, rule);
    slow.shared().tables.publish(known);
    assert_eq!(talk::get(&slow, VIP.parse().unwrap(), "/").status(), 200, "the second attempt is answered");
}

#[test]
fn weights_split_traffic_and_a_share_without_backend_is_500() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 2);
    let counts = [answers(&servers[0], "a", StatusCode::OK), answers(&servers[1], "b", StatusCode::OK)];
    let mut known = tables::nothing("client");
    let cluster = |i: usize| tables::cluster(["a", "b"][i], endpoints(&servers[i..=i]), Settings::default());
    let mut rule = tables::rule(vec![(8, cluster(0)), (1, cluster(1)), (1, cluster(1))]);
    rule.backends[2].cluster = None;
    tables::destination(&mut known, VIP.parse().unwrap(), Protocol::Http, rule);
    let mut client = mesh.pod("client", 2);
    client.meshed_sidecar(&mesh, 1, known);
    let mut stream = talk::connect(&client, VIP.parse().unwrap());
    let requests =
        "GET / HTTP/1.1\r\nHost: api\r\n\r\n".repeat(399) + "GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";
    stream.write_all(requests.as_bytes()).unwrap();
    let text = String::from_utf8(talk::read_to_end(&mut stream)).unwrap();
    let invalid = text.matches("HTTP/1.1 500").count();
    let [a, b] = counts.map(|count| count.load(Ordering::SeqCst));
    assert_eq!(a + b + invalid, 400, "pipelined requests are all answered");
    assert!((270..=370).contains(&a) && (15..=70).contains(&b) && (15..=70).contains(&invalid), "{a} {b} {invalid}");
}

#[test]
fn where_an_answer_does_not_come_another_endpoint_is_asked_beside_it() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, 2);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    origin::http_in_time(&servers[0], 8080, move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<Response<Full<Bytes>>>()
    });
    answers(&servers[1], "b", StatusCode::OK);
    let hedge = Hedge { delay: Duration::from_millis(50), attempts: 1 };
    let client = client(&mesh, &servers, round_robin(), 1, |rule| {
        rule.hedge = Some(hedge);
        rule.request_timeout = Some(Duration::from_secs(2));
    });
    let gets: Vec<_> = (0..6).map(|_| talk::get(&client, VIP.parse().unwrap(), "/").body).collect();
    assert_eq!(gets, ["b"; 6]);
    let hedged = || metrics::sum(&metrics::page(&client), "heddle_retries_total", &["reason=\"hedge\""]);
    // The second attempt takes the turn of the one that answers.
    assert_eq!((asked.load(Ordering::SeqCst), hedged()), (6, 6.0));
    // What may not be made twice is not, and neither is what has a body.
    for request in ["POST / HTTP/1.1\r\nContent-Length: 0\r\n", "PUT / HTTP/1.1\r\nContent-Length: 1\r\n"] {
        let body = if request.contains("PUT") { "x" } else { "" };
        let request = format!("{request}Host: api\r\nConnection: close\r\n\r\n{body}");
        let statuses: Vec<_> =
            (0..2).map(|_| talk::request(&client, VIP.parse().unwrap(), &request).status()).collect();
        assert!(statuses.contains(&504), "{statuses:?}");
    }
    assert_eq!(hedged(), 6.0);
}
