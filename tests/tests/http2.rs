//! HTTP/2 and gRPC through two sidecars over mutual TLS: streams share connections and do not stop each other, their
//! ends travel, and what was not delivered is sent elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up fails the test")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use heddle_proxy::drain::Phase;
use heddle_proxy::tables::cluster::{LoadBalancing, Settings, UpstreamHttp};
use heddle_proxy::tables::listener::Protocol;
use heddle_proxy::tables::{Port, TlsMode};
use heddle_tests::h2c::{self, Answer, grpc_message};
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::service::{Service, vip};
use heddle_tests::{eventually, metrics, origin, tables, talk, wire};
use http::{HeaderMap, Method, Request, Response};
use tokio::sync::{Barrier, Notify, mpsc};

/// A port for HTTP/2.
fn port(tls: TlsMode) -> Port {
    tables::port(Protocol::Http, tls)
}

fn service_with(mesh: &Mesh, upstream_http: UpstreamHttp) -> Service {
    let settings = Settings { upstream_http, ..Settings::default() };
    Service::with(mesh, Protocol::Http, port(TlsMode::Strict), settings, |_| {})
}

/// Answers with `head` and `body`.
fn reply(mut response: SendResponse<Bytes>, head: Response<()>, body: impl Into<Bytes>) {
    let body = body.into();
    // Gone if the client is.
    if let Ok(mut sender) = response.send_response(head, body.is_empty())
        && !body.is_empty()
    {
        let _ = sender.send_data(body, true);
    }
}

/// An origin that answers each request with what it saw.
fn echo(pod: &MeshPod, name: &'static str) {
    h2c::origin(pod, 8080, move |request, response| async move {
        let (head, mut body) = request.into_parts();
        let Ok((body, _)) = h2c::read(&mut body).await else { return };
        let fields: String = head.headers.iter().map(|(n, v)| format!("{n}: {}\n", v.to_str().unwrap())).collect();
        let body = String::from_utf8_lossy(&body).into_owned();
        let seen = format!("{name} {} {}\n{fields}{body}", head.method, head.uri);
        reply(response, Response::new(()), if head.method == Method::HEAD { String::new() } else { seen });
    });
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://api.shop{path}")).body(()).unwrap()
}

fn grpc(path: &str) -> Request<()> {
    let request = Request::post(format!("http://api.shop{path}"));
    request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
}

/// Trailers that end a gRPC call.
fn status(code: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    trailers.insert("grpc-message", "as%20told".parse().unwrap());
    trailers
}

#[test]
fn many_streams_share_one_connection_at_every_hop() {
    const STREAMS: usize = 90;
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    // Nobody is answered before all are there.
    let all = Arc::new(Barrier::new(STREAMS));
    h2c::origin(&service.server, 8080, move |request, response| {
        let all = all.clone();
        async move {
            all.wait().await;
            reply(response, Response::new(()), request.uri().path().to_owned());
        }
    });
    h2c::run(async {
        let client = Arc::new(h2c::connect(&service.client, vip()).await);
        let streams = (0..STREAMS).map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let answer = client.get(&format!("/{number}")).await.unwrap();
                assert_eq!(answer.body, format!("/{number}"));
            })
        });
        for stream in streams.collect::<Vec<_>>() {
            stream.await.unwrap();
        }
    });
    for pod in [&service.client, &service.server] {
        let page = metrics::page(pod);
        let count = |name, labels: &[&str]| metrics::sum(&page, name, labels);
        assert_eq!(count("heddle_downstream_connections_total", &[]), 1.0, "{page}");
        assert_eq!(count("heddle_requests_total", &["response_code=\"200\""]), STREAMS as f64, "{page}");
    }
}

#[test]
fn a_unary_grpc_call_keeps_its_frames_its_fields_and_its_trailers() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let (seen, request_seen) = std::sync::mpsc::channel();
    h2c::origin(&service.server, 8080, move |request, mut response| {
        let seen = seen.clone();
        async move {
            let (head, mut body) = request.into_parts();
            let (body, trailers) = h2c::read(&mut body).await.unwrap();
            seen.send((head, body, trailers)).unwrap();
            let head =
                Response::builder().header("content-type", "application/grpc").header("x-a", "1").header("x-a", "2");
            let mut sender = response.send_response(head.body(()).unwrap(), false).unwrap();
            sender.send_data(grpc_message(b"world"), false).unwrap();
            sender.send_trailers(status("0")).unwrap();
        }
    });
    let answer = h2c::run(async {
        let client = h2c::connect(&service.client, vip()).await;
        client.exchange(grpc("/shop.Greeter/Hello"), grpc_message(b"hello")).await.unwrap()
    });
    let (head, body, _) = request_seen.recv().unwrap();
    assert_eq!(head.uri.to_string(), "http://api.shop/shop.Greeter/Hello");
    assert_eq!(
        (&head.headers["te"], &head.headers["content-type"]),
        (&"trailers".parse().unwrap(), &"application/grpc".parse().unwrap())
    );
    assert!(head.headers["x-forwarded-client-cert"].to_str().unwrap().contains(&service.client.spiffe_id()));
    assert_eq!(body, grpc_message(b"hello"));
    assert_eq!((answer.status(), &answer.body), (200, &grpc_message(b"world")));
    assert_eq!(answer.head.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(answer.trailers, Some(status("0")));
    for pod in [&service.client, &service.server] {
        let labels = ["protocol=\"grpc\"", "grpc_status=\"0\"", "response_code=\"200\""];
        eventually("the call is counted", || {
            (metrics::sum(&metrics::page(pod), "heddle_requests_total", &labels) == 1.0).then_some(())
        });
    }
}

#[test]
fn a_streaming_grpc_call_goes_both_ways_at_once_and_a_call_without_a_body_is_known_by_its_status() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    h2c::origin(&service.server, 8080, |request, mut response| async move {
        let head = Response::builder().header("content-type", "application/grpc");
        if request.uri().path() == "/shop.Greeter/Missing" {
            // Trailers-Only.
            return reply(response, head.header("grpc-status", "5").body(()).unwrap(), "");
        }
        let mut sender = response.send_response(head.body(()).unwrap(), false).unwrap();
        let mut body = request.into_body();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            sender.send_data(data.to_ascii_uppercase().into(), false).unwrap();
        }
        assert_eq!(body.trailers().await.unwrap().unwrap()["x-last"], "1");
        sender.send_trailers(status("0")).unwrap();
    });
    h2c::run(async {
        let client = h2c::connect(&service.client, vip()).await;
        let mut streams = client.streams.clone().ready().await.unwrap();
        let (response, mut sender) = streams.send_request(grpc("/shop.Greeter/Chat"), false).unwrap();
        let mut answers = response.await.unwrap().into_body();
        for number in 0..20 {
            // Each message is answered before the next is sent.
            let said = grpc_message(format!("message {number}").as_bytes());
            sender.send_data(said.clone(), false).unwrap();
            let mut heard = Vec::new();
            while heard.len() < said.len() {
                let data = answers.data().await.unwrap().unwrap();
                answers.flow_control().release_capacity(data.len()).unwrap();
                heard.extend_from_slice(&data);
            }
            assert_eq!(heard, said.to_ascii_uppercase());
        }
        let mut last = HeaderMap::new();
        last.insert("x-last", "1".parse().unwrap());
        sender.send_trailers(last).unwrap();
        assert_eq!(h2c::read(&mut answers).await.unwrap(), (Bytes::new(), Some(status("0"))));
        let missing = client.exchange(grpc("/shop.Greeter/Missing"), grpc_message(b"")).await.unwrap();
        assert_eq!((missing.field("grpc-status"), &missing.trailers), (Some("5"), &None));
    });
    for pod in [&service.client, &service.server] {
        for code in ["grpc_status=\"0\"", "grpc_status=\"5\""] {
            eventually("both calls are counted", || {
                (metrics::sum(&metrics::page(pod), "heddle_requests_total", &[code]) == 1.0).then_some(())
            });
        }
    }
}

#[test]
fn a_stream_the_client_gives_up_is_given_up_for_the_application_before_and_after_its_answer() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let arrived = Arc::new(Notify::new());
    let (given_up, mut reasons) = mpsc::unbounded_channel();
    let there = arrived.clone();
    h2c::origin(&service.server, 8080, move |request, mut response| {
        let (there, given_up) = (there.clone(), given_up.clone());
        async move {
            there.notify_one();
            let reason = if request.uri().path() == "/silent" {
                std::future::poll_fn(|cx| response.poll_reset(cx)).await
            } else {
                let mut sender = response.send_response(Response::new(()), false).unwrap();
                sender.send_data("begun".into(), false).unwrap();
                std::future::poll_fn(|cx| sender.poll_reset(cx)).await
            };
            given_up.send(reason.unwrap()).unwrap();
        }
    });
    h2c::run(async {
        let client = h2c::connect(&service.client, vip()).await;
        let mut streams = client.streams.clone().ready().await.unwrap();
        let (silent, mut sender) = streams.send_request(post("/silent"), true).unwrap();
        arrived.notified().await;
        sender.send_reset(Reason::CANCEL);
        assert_eq!(reasons.recv().await, Some(Reason::CANCEL), "before an answer");
        drop(silent);
        let (begun, mut sender) = streams.send_request(post("/begun"), true).unwrap();
        let mut body = begun.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "begun");
        sender.send_reset(Reason::CANCEL);
        assert_eq!(reasons.recv().await, Some(Reason::CANCEL), "after it began");
    });
    for pod in [&service.client, &service.server] {
        let closed = ["cause=\"downstream_closed\""];
        eventually("both are counted", || {
            (metrics::sum(&metrics::page(pod), "heddle_requests_total", &closed) == 2.0).then_some(())
        });
    }
}

#[test]
fn a_stream_the_application_resets_is_reset_with_its_reason_or_answered_with_a_cause() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    h2c::origin(&service.server, 8080, |request, mut response| async move {
        if request.uri().path() == "/before" {
            return response.send_reset(Reason::INTERNAL_ERROR);
        }
        let mut sender = response.send_response(Response::new(()), false).unwrap();
        sender.send_data("begun".into(), false).unwrap();
        // The data leaves first.
        tokio::task::yield_now().await;
        sender.send_reset(Reason::ENHANCE_YOUR_CALM);
    });
    h2c::run(async {
        let client = h2c::connect(&service.client, vip()).await;
        let before = client.get("/before").await.unwrap();
        assert_eq!((before.status(), before.field("x-heddle-error")), (503, Some("reset_before_response")));
        let after = client.get("/after").await.unwrap_err();
        assert!(after.is_reset() && after.is_remote(), "{after:?}");
        assert_eq!(after.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    });
}

#[test]
fn a_grpc_stream_whose_server_is_lost_or_whose_time_is_over_ends_with_a_status() {
    let mesh = Mesh::new();
    let service = Service::with(
        &mesh,
        Protocol::Http,
        tables::port(Protocol::Http, TlsMode::Strict),
        Settings::default(),
        |rule| rule.request_timeout = Some(Duration::from_millis(500)),
    );
    let heard = Arc::new(Notify::new());
    let (lost, kept) = (heard.clone(), Notify::new());
    origin::tcp(&service.server, 8080, move |stream| {
        stream.set_nonblocking(true).unwrap();
        h2c::run(async {
            let mut connection = h2::server::handshake(tokio::net::TcpStream::from_std(stream).unwrap()).await.unwrap();
            let (request, mut response) = connection.accept().await.unwrap().unwrap();
            let ends = if request.uri().path().ends_with("/Lost") { &*lost } else { &kept };
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut sender = response.send_response(head, false).unwrap();
            sender.send_data(grpc_message(b"begun"), false).unwrap();
            tokio::select! {
                _ = connection.accept() => {}
                () = ends.notified() => {}
            }
        });
    });
    for (method, code) in [("Lost", "14"), ("Late", "4")] {
        let answer = h2c::run(async {
            let client = h2c::connect(&service.client, vip()).await;
            let mut streams = client.streams.clone().ready().await.unwrap();
            let (response, _sender) = streams.send_request(grpc(&format!("/shop.Greeter/{method}")), false).unwrap();
            let mut body = response.await.unwrap().into_body();
            let begun = body.data().await.unwrap().unwrap();
            assert_eq!(begun, grpc_message(b"begun"));
            heard.notify_one();
            h2c::read(&mut body).await.unwrap()
        });
        let (rest, trailers) = answer;
        assert!(rest.is_empty());
        assert_eq!(trailers.unwrap()["grpc-status"], code, "{method}");
        eventually("it is counted", || {
            let label = format!("grpc_status=\"{code}\"");
            (metrics::sum(&metrics::page(&service.client), "heddle_requests_total", &[&label]) == 1.0).then_some(())
        });
    }
}

#[test]
fn a_post_refused_because_the_application_is_away_is_sent_elsewhere() {
    let mesh = Mesh::new();
    let mut servers = [mesh.pod("server-a", 10), mesh.pod("server-b", 11)];
    for server in &mut servers {
        let name = server.pod.name.clone();
        server.meshed_sidecar(&mesh, 1, tables::inbound(&name, port(TlsMode::Strict)));
    }
    // Only one of the two has an application behind its sidecar.
    echo(&servers[1], "alive");
    let settings = Settings { policy: LoadBalancing::RoundRobin, outlier: None, ..Settings::default() };
    let endpoints = servers.iter().map(|server| tables::meshed(server.v4(8080), &server.spiffe_id())).collect();
    let mut known = tables::nothing("client");
    let rule = tables::rule(vec![(1, tables::cluster("api", endpoints, settings.clone()))]);
    tables::destination(&mut known, vip(), Protocol::Http, rule);
    let mut client = mesh.pod("client", 2);
    client.meshed_sidecar(&mesh, 1, known);
    h2c::run(async {
        let streams = h2c::connect(&client, vip()).await;
        for _ in 0..6 {
            let answer = streams.exchange(post("/"), "body").await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(answer.body.starts_with(b"alive POST") && answer.body.ends_with(b"body"), "{answer:?}");
        }
    });
    let page = metrics::page(&client);
    let retries = metrics::sum(&page, "heddle_retries_total", &["reason=\"never_delivered\""]);
    assert!(retries >= 1.0, "some met the one without an application\n{page}");
    // With nothing else to turn to, the cause is told.
    let mut known = tables::nothing("client");
    let away = vec![tables::meshed(servers[0].v4(8080), &servers[0].spiffe_id())];
    tables::destination(
        &mut known,
        vip(),
        Protocol::Http,
        tables::rule(vec![(1, tables::cluster("api", away, settings))]),
    );
    client.shared().tables.publish(known);
    h2c::run(async {
        let streams = h2c::connect(&client, vip()).await;
        let plain = streams.exchange(post("/"), "body").await.unwrap();
        assert_eq!((plain.status(), plain.field("x-heddle-error")), (503, Some("undelivered")));
        let call = streams.exchange(grpc("/a/b"), grpc_message(b"")).await.unwrap();
        assert_eq!(
            (call.status(), call.field("grpc-status"), call.field("x-heddle-error")),
            (200, Some("14"), Some("undelivered"))
        );
    });
}

/// More than all windows and buffers between client and origin hold.
const ENDLESS: usize = 16 * 1024 * 1024;
/// What two sidecars may hold of one stream whose reader has stopped: on each hop a window, and in each sidecar what
/// was read but could not be written, and what hyper has taken to write.
const MOST_HELD: usize = 1024 * 1024;

#[test]
fn slow_readers_stop_neither_other_streams_nor_grow_memory() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let went_out = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(Notify::new());
    let (count, blocked) = (went_out.clone(), ended.clone());
    h2c::origin(&service.server, 8080, move |request, mut response| {
        let (count, blocked) = (count.clone(), blocked.clone());
        async move {
            if request.uri().path() != "/endless" {
                return reply(response, Response::new(()), "quick");
            }
            let mut sender = response.send_response(Response::new(()), false).unwrap();
            let sent = h2c::send(&mut sender, &vec![0; ENDLESS].into(), blocked.notified()).await;
            count.fetch_add(sent, Ordering::SeqCst);
        }
    });
    const SLOW: usize = 20;
    h2c::run(async {
        let client = h2c::connect(&service.client, vip()).await;
        let mut slow = Vec::new();
        for _ in 0..SLOW {
            let mut streams = client.streams.clone().ready().await.unwrap();
            let request = Request::get("http://api.shop/endless").body(()).unwrap();
            // Held, never read.
            slow.push(streams.send_request(request, true).unwrap().0.await.unwrap().into_body());
        }
        // Another connection: the client's own window must not be what stops the others.
        let other = h2c::connect(&service.client, vip()).await;
        for _ in 0..50 {
            assert_eq!(other.get("/quick").await.unwrap().body, "quick");
        }
        for _ in 0..SLOW {
            ended.notify_one();
        }
        eventually_async("the origin says how much went out", || went_out.load(Ordering::SeqCst) > 0).await;
    });
    let sent = went_out.load(Ordering::SeqCst);
    assert!(sent < SLOW * MOST_HELD, "{sent} octets went out to readers that read nothing");
}

#[test]
fn an_application_that_does_not_read_stops_neither_other_streams_nor_grows_memory() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let held = Arc::new(Mutex::new(Vec::<(RecvStream, SendResponse<Bytes>)>::new()));
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    h2c::origin(&service.server, 8080, move |request, response| {
        let (held, arrived) = (held.clone(), arrived.clone());
        async move {
            if request.uri().path() != "/unread" {
                return reply(response, Response::new(()), "quick");
            }
            held.lock().unwrap().push((request.into_body(), response));
            arrived.send(()).unwrap();
        }
    });
    let sent = h2c::run(async {
        let client = h2c::connect(&service.client, vip()).await;
        let mut streams = client.streams.clone().ready().await.unwrap();
        let (_response, mut sender) = streams.send_request(post("/unread"), false).unwrap();
        let quick = async {
            arrivals.recv().await.unwrap();
            let other = h2c::connect(&service.client, vip()).await;
            for _ in 0..50 {
                assert_eq!(other.get("/quick").await.unwrap().body, "quick");
            }
        };
        h2c::send(&mut sender, &vec![0; ENDLESS].into(), quick).await
    });
    assert!(sent > 0 && sent < MOST_HELD, "{sent} octets were taken for an application that reads nothing");
}

async fn eventually_async(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + heddle_tests::PATIENCE;
    while !happened() {
        assert!(tokio::time::Instant::now() < deadline, "did not happen: {what}");
        tokio::task::yield_now().await;
    }
}

#[test]
fn draining_either_sidecar_ends_connections_after_their_streams_and_nothing_fails() {
    for drained in ["client", "server"] {
        let mesh = Mesh::new();
        let service = Service::new(&mesh);
        let release = Arc::new(Notify::new());
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        let released = release.clone();
        h2c::origin(&service.server, 8080, move |request, response| {
            let (arrived, released) = (arrived.clone(), released.clone());
            async move {
                if request.uri().path() == "/held" {
                    arrived.send(()).unwrap();
                    released.notified().await;
                }
                reply(response, Response::new(()), "served");
            }
        });
        h2c::run(async {
            let client = h2c::connect(&service.client, vip()).await;
            let held = client.get("/held");
            let drain = async {
                arrivals.recv().await.unwrap();
                let pod = if drained == "client" { &service.client } else { &service.server };
                pod.shared().drain.advance(Phase::Draining);
                // Served meanwhile, on new connections where the old ones take no more.
                for _ in 0..20 {
                    let other = h2c::connect(&service.client, vip()).await;
                    assert_eq!(other.get("/").await.unwrap().body, "served", "{drained}");
                }
                release.notify_one();
            };
            let (held, ()) = tokio::join!(held, drain);
            assert_eq!(held.unwrap().body, "served", "{drained}: what was under way is finished");
            if drained == "client" {
                // GOAWAY, then the end.
                let late = client.get("/late").await.unwrap_err();
                assert!(late.is_go_away() || late.is_io(), "{late:?}");
                drop(client.streams);
                client.connection.await.unwrap().unwrap();
            }
        });
        for pod in [&service.client, &service.server] {
            let page = metrics::page(pod);
            let all = metrics::sum(&page, "heddle_requests_total", &[]);
            let good = metrics::sum(&page, "heddle_requests_total", &["response_code=\"200\"", "cause=\"\""]);
            assert_eq!((all, good), (21.0, 21.0), "{drained}\n{page}");
        }
    }
}

#[test]
fn the_authority_is_the_one_host_the_application_sees() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    echo(&service.server, "h2");
    let old = service_behind_http1(&mesh);
    let record = wire::origin(&old, 8080, |_| wire::ok(""));
    retarget(&service, &old);
    h2c::run(async {
        let both = Request::get("http://api.shop/both").header("host", "other").body(()).unwrap();
        let h2 = h2c::connect(&service.client, vip()).await;
        let seen = h2.exchange(both.clone(), "").await.unwrap();
        let seen = String::from_utf8_lossy(&seen.body).into_owned();
        assert!(seen.starts_with("h2 GET http://api.shop/both\n") && !seen.contains("host:"), "{seen}");
        let h1 = h2c::connect(&service.client, OLD.parse().unwrap()).await;
        h1.exchange(both, "").await.unwrap();
        assert_eq!(record.only().all("host"), ["api.shop"]);
    });
}

/// Where the application that only speaks HTTP/1 is.
const OLD: &str = "10.96.0.2:80";

/// A pod for an application that only speaks HTTP/1.
fn service_behind_http1(mesh: &Mesh) -> MeshPod {
    let mut old = mesh.pod("old", 7);
    old.meshed_sidecar(mesh, 1, tables::inbound("old", port(TlsMode::Strict)));
    old
}

/// Leads [`OLD`] to `old`, beside what is known already.
fn retarget(service: &Service, old: &MeshPod) {
    let mut known = (**service.client.shared().tables.load()).clone();
    let settings = Settings { upstream_http: UpstreamHttp::Http1, ..Settings::default() };
    let cluster = tables::cluster("old", vec![tables::meshed(old.v4(8080), &old.spiffe_id())], settings);
    tables::destination(&mut known, OLD.parse().unwrap(), Protocol::Http, tables::rule(vec![(1, cluster)]));
    service.client.shared().tables.publish(known);
}

#[test]
fn requests_in_http_2_reach_an_application_that_only_speaks_http_1() {
    let mesh = Mesh::new();
    let service = service_with(&mesh, UpstreamHttp::Http1);
    let record = wire::origin(&service.server, 8080, |request| {
        match request.target() {
        "/trailers" => "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n".into(),
        _ => "HTTP/1.1 200 Fine\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-Case: a\r\nContent-Length: 2\r\n\r\nhi".into(),
    }
    });
    h2c::run(async {
        let client = h2c::connect(&service.client, vip()).await;
        let request = Request::put("http://api.shop:80/a?b=c").header("cookie", "a=1").header("cookie", "b=2");
        let request = request.header("cookie", "c=3").header("x-a", "1").header("x-a", "2").body(()).unwrap();
        let answer = client.exchange(request, "body").await.unwrap();
        assert_eq!((answer.status(), &answer.body[..], answer.field("x-case")), (200, &b"hi"[..], Some("a")));
        assert_eq!((answer.field("connection"), answer.field("keep-alive")), (None, None));
        let seen = record.only();
        assert_eq!((seen.start.as_str(), seen.text().as_str()), ("PUT /a?b=c HTTP/1.1", "body"));
        assert_eq!((seen.all("host"), seen.all("x-a")), (vec!["api.shop:80"], vec!["1", "2"]));
        assert_eq!(seen.all("cookie"), ["a=1; b=2; c=3"], "crumbs are one field again");
        let request = Request::get("http://api.shop/trailers").header("te", "trailers").body(()).unwrap();
        let answer = client.exchange(request, "").await.unwrap();
        assert_eq!(answer.trailers.unwrap()["x-sum"], "1");
    });
}

#[test]
fn requests_in_http_1_reach_an_application_that_only_speaks_http_2() {
    let mesh = Mesh::new();
    let service = service_with(&mesh, UpstreamHttp::Http2);
    echo(&service.server, "h2");
    let request = "POST /a?b=c HTTP/1.1\r\nHost: API.shop:80\r\nTransfer-Encoding: chunked\r\nConnection: x-hop, close\r\n\
                   X-Hop: 1\r\nX-End: 1\r\nUpgrade: websocket\r\nKeep-Alive: 1\r\nTE: gzip\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    let answer = talk::request(&service.client, vip(), request);
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(answer.body.contains("h2 POST http://API.shop:80/a?b=c\n"), "{answer:?}");
    assert!(answer.body.contains("x-end: 1\n") && answer.body.contains("\nbody"), "{answer:?}");
    for gone in ["x-hop", "host:", "upgrade", "keep-alive", "transfer-encoding", "te:"] {
        assert!(!answer.body.contains(gone), "{gone}: {answer:?}");
    }
    let old = talk::request(&service.client, vip(), "GET / HTTP/1.0\r\n\r\n");
    assert!(old.body.contains("h2 GET http://10.96.0.1:80/\n"), "{old:?}");
}

#[test]
fn malformed_requests_in_http_2_are_refused_and_an_application_in_http_1_never_has_a_second_reading() {
    const PROTOCOL_ERROR: Answer = Answer::Reset(1);
    // What cannot even be decoded ends the connection: its header table may be out of step.
    const GO_AWAY: Answer = Answer::GoAway(1);
    let mesh = Mesh::new();
    let service = service_with(&mesh, UpstreamHttp::Http1);
    let record = wire::origin(&service.server, 8080, |_| wire::ok(""));
    let base = [(":method", "POST"), (":scheme", "http"), (":path", "/")];
    let host = (":authority", "api");
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    let cases = [
        ("nothing special", with(&[host]), "", Answer::Status(200)),
        ("Host without an authority", with(&[("host", "api")]), "", Answer::Status(200)),
        ("Host beside the authority", with(&[host, ("host", "other")]), "", Answer::Status(200)),
        ("no host at all", with(&[]), "", Answer::Status(400)),
        ("two Hosts", with(&[("host", "api"), ("host", "other")]), "", Answer::Status(400)),
        ("two Hosts beside the authority", with(&[host, ("host", "a"), ("host", "b")]), "", Answer::Status(400)),
        ("an authority with a user", with(&[(":authority", "user@api")]), "", Answer::Status(400)),
        ("a Host with a path", with(&[("host", "api/x")]), "", Answer::Status(400)),
        ("two authorities", with(&[host, host]), "", PROTOCOL_ERROR),
        ("Transfer-Encoding", with(&[host, ("transfer-encoding", "chunked")]), "0\r\n\r\n", PROTOCOL_ERROR),
        ("Connection", with(&[host, ("connection", "close")]), "", PROTOCOL_ERROR),
        ("Upgrade", with(&[host, ("upgrade", "websocket")]), "", PROTOCOL_ERROR),
        ("TE other than trailers", with(&[host, ("te", "gzip")]), "", PROTOCOL_ERROR),
        ("a name with a capital", with(&[host, ("X-A", "b")]), "", GO_AWAY),
        ("a line end in a value", with(&[host, ("x-a", "b\r\nx-c: d")]), "", GO_AWAY),
        ("a line end in a name", with(&[host, ("x-a: b\r\nx-c", "d")]), "", GO_AWAY),
        ("a length that is true", with(&[host, ("content-length", "4")]), "body", Answer::Status(200)),
        ("a length too small", with(&[host, ("content-length", "3")]), "body", PROTOCOL_ERROR),
        ("a length too large", with(&[host, ("content-length", "5")]), "body", PROTOCOL_ERROR),
        ("a length with a sign", with(&[host, ("content-length", "+4")]), "body", PROTOCOL_ERROR),
        ("two lengths", with(&[host, ("content-length", "4"), ("content-length", "5")]), "body", PROTOCOL_ERROR),
        ("an unknown pseudo-field", with(&[host, (":x", "a")]), "", GO_AWAY),
    ];
    let mut wrong = Vec::new();
    for (name, fields, data, due) in cases {
        let answer = h2c::by_hand(&service.client, vip(), &fields, data.as_bytes());
        let came = record.take();
        let whole = came.iter().flatten().collect::<Vec<_>>();
        let served = usize::from(due == Answer::Status(200));
        let as_due = answer == due && whole.len() == served && whole.iter().all(|seen| seen.text() == data);
        let broken = came.iter().any(|came| matches!(came, Err(wire::Broken::Ambiguous(_))));
        if !as_due || broken {
            wrong.push(format!("{name}: {answer:?}, application saw {came:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What hyper does not do as h2spec wants: a connection that begins with a bad preface is reset instead of closed.
const KNOWN: [&str; 1] = ["Sends invalid connection preface"];

#[test]
fn the_inbound_listener_does_what_h2spec_asks_strictly() {
    let mesh = Mesh::new();
    let mut server = mesh.pod("server", 3);
    echo(&server, "h2");
    server.meshed_sidecar(&mesh, 1, tables::inbound("server", port(TlsMode::Permissive)));
    let stranger = mesh.pod("stranger", 9);
    let (score, failed) = h2spec::run(&stranger, server.v4(8080));
    let known: HashSet<_> = KNOWN.into_iter().collect();
    let failed: HashSet<_> = failed.iter().map(String::as_str).collect();
    assert_eq!(failed, known, "{score}");
    assert!(score.contains("146 tests"), "{score}");
}

mod h2spec {
    //! `h2spec`, a Go program.

    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::process::Command;

    use heddle_tests::pods::MeshPod;

    /// The newest of each that Debian 12's Go, 1.19, builds.
    const GO_MOD: &str = "module h2spec\n\ngo 1.19\n\nrequire (\n\tgithub.com/fatih/color v1.16.0\n\tgithub.com/spf13/cobra v1.8.0\n\tgithub.com/summerwind/h2spec v2.2.1+incompatible\n\tgolang.org/x/net v0.17.0\n)\n";

    /// The summary, and the names of the cases that failed.
    pub fn run(from: &MeshPod, to: SocketAddr) -> (String, Vec<String>) {
        let mut command = Command::new(program());
        command.args(["--strict", "--timeout", "2", "--host", &to.ip().to_string(), "--port", &to.port().to_string()]);
        let output = from.netns().run(|| command.output()).unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let score = text.lines().find(|line| line.contains(" tests, ")).unwrap_or(&text).to_owned();
        let failed = text.lines().filter_map(|line| line.trim().strip_prefix("× ")?.split_once(": "));
        (score, failed.map(|(_, name)| name.to_owned()).collect())
    }

    /// Built once, where programs keep what they can make again.
    fn program() -> PathBuf {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        let directory = cache.expect("HOME is set").join("heddle/h2spec");
        let program = directory.join("h2spec");
        if !program.is_file() {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("go.mod"), GO_MOD).unwrap();
            let mut go = Command::new("go");
            go.args(["build", "-mod=mod", "-o", "h2spec", "github.com/summerwind/h2spec/cmd/h2spec"]);
            let built = go.current_dir(&directory).status();
            let built = built.expect("h2spec is built with Go: apt-get install golang-go (scripts/test does it)");
            assert!(built.success(), "h2spec cannot be built: {built}");
        }
        program
    }
}
