//! Each cause of a failure, provoked: status, `x-heddle-error`, gRPC status, the `cause` label and the access log say
//! the same.
//!
//! Failures of a connection before it carries a request have the label and the line: there is nobody to answer.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_proxy::app;
use heddle_proxy::balance::{breaker, outlier};
use heddle_proxy::capture::{self, Exempt, Rules};
use heddle_proxy::concurrency::{Bounds, Controller};
use heddle_proxy::config::Config;
use heddle_proxy::http::error::Cause;
use heddle_proxy::metrics::AccessLogFormat;
use heddle_proxy::rate_limit::{Buckets, Rate};
use heddle_proxy::tables::cluster::{Endpoint, Settings};
use heddle_proxy::tables::listener::Protocol;
use heddle_proxy::tables::policy::{Policy, PolicySet};
use heddle_proxy::tables::rate_limit::{Concurrency, Counter, LimitBy, Quota, RateLimit, RateLimitService, Unit};
use heddle_proxy::tables::route::{Abort, AbortStatus, Fault, Route, RouteMatch, Rule};
use heddle_proxy::tables::{Answer, Destination, Egress, Tables, TlsMode};
use heddle_tests::pods::{MARK, Mesh, MeshPod};
use heddle_tests::stdout::Captured;
use heddle_tests::wire::{Broken, Message, Reader};
use heddle_tests::{eventually, h2c, metrics, origin, tables, talk};
use http::Method;

/// What a cause looks like from outside.
enum Seen {
    /// A request to [`vip`] is answered with it by the client's own sidecar.
    Answered,
    /// As [`Seen::Answered`], but by the server's sidecar.
    AnsweredInbound,
    /// As [`Seen::Answered`], by these bytes instead of a GET.
    AnsweredTo(&'static str),
    /// Only for the second of two requests; the tables change between them if `true`.
    AnsweredLater(bool),
    /// The response has begun and cannot be changed any more.
    BrokenOff,
    /// The client is gone.
    Nobody,
    /// A connection is closed unserved; these bytes were sent.
    Closed(&'static str),
    /// As [`Seen::Closed`], by the server's sidecar, for a client without one and this port of the server.
    ClosedInbound(u16),
}

fn seen(cause: Cause) -> Seen {
    match cause {
        Cause::ConnectRefused
        | Cause::ConnectTimeout
        | Cause::TlsFailure
        | Cause::NoEndpoints
        | Cause::Overflow
        | Cause::RequestTimeout
        | Cause::PerTryTimeout
        | Cause::IdleTimeout
        | Cause::ResetBeforeResponse
        | Cause::Undelivered
        | Cause::UpstreamProtocolError
        | Cause::NoRoute
        | Cause::FaultInjected
        | Cause::InvalidBackend => Seen::Answered,
        Cause::Denied | Cause::RateLimited | Cause::RateLimitUnavailable | Cause::ConcurrencyLimited => {
            Seen::AnsweredInbound
        }
        Cause::ProtocolError => Seen::AnsweredTo("GET /protocol_error HTTP/1.1\r\nHost: a\r\nHost: b\r\n"),
        Cause::AllEjected => Seen::AnsweredLater(false),
        Cause::ConfigUnavailable => Seen::AnsweredLater(true),
        Cause::ResetAfterResponse => Seen::BrokenOff,
        Cause::DownstreamClosed => Seen::Nobody,
        Cause::ProtocolMismatch => Seen::Closed("EHLO somebody\r\n"),
        Cause::EgressDenied => Seen::Closed("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        Cause::TlsRequired => Seen::ClosedInbound(8080),
        Cause::Loop => Seen::ClosedInbound(15006),
    }
}

/// Where requests with that cause go.
fn vip(cause: Cause) -> SocketAddr {
    let at = Cause::ALL.iter().position(|one| *one == cause).unwrap();
    SocketAddr::from(([10, 96, 0, 1 + u8::try_from(at).unwrap()], 80))
}

// Ports of the application without a sidecar.
const SILENT: u16 = 8081;
const CLOSES: u16 = 8082;
const BREAKS_OFF: u16 = 8083;
const BABBLES: u16 = 8084;
const ENDLESS: u16 = 8085;
const NOBODY: u16 = 9;

struct Pods {
    client: MeshPod,
    /// With a sidecar; denies everything on 8080, has no application on 8090.
    server: MeshPod,
    /// Without a sidecar.
    bare: MeshPod,
}

fn pods(mesh: &Mesh) -> Pods {
    let (mut client, mut server, bare) = (mesh.pod("client", 2), mesh.pod("server", 3), mesh.pod("bare", 9));
    applications(&bare);
    let deny = Policy { name: "shop/deny".into(), dry_run: false, rules: vec![Default::default()] };
    let port =
        |policies| Arc::new(heddle_proxy::tables::Port { policies, ..tables::port(Protocol::Http, TlsMode::Strict) });
    let mut inbound = tables::inbound("server", tables::port(Protocol::Http, TlsMode::Strict));
    let known = Arc::get_mut(inbound.inbound.as_mut().unwrap()).unwrap();
    known.ports.insert(8080, port(PolicySet { deny: vec![deny], allow: vec![] }));
    for (port, counter) in [(8070, used_up()), (8071, unknown_service())] {
        let rate_limits = vec![limit(counter)];
        let limited = heddle_proxy::tables::Port { rate_limits, ..tables::port(Protocol::Http, TlsMode::Strict) };
        known.ports.insert(port, Arc::new(limited));
    }
    let concurrency = vec![one_forever()];
    let limited = heddle_proxy::tables::Port { concurrency, ..tables::port(Protocol::Http, TlsMode::Strict) };
    known.ports.insert(8072, Arc::new(limited));
    start(mesh, &mut server, inbound);
    let known = outbound(&server, &bare);
    start(mesh, &mut client, known);
    Pods { client, server, bare }
}

/// Has no room for long.
fn used_up() -> Counter {
    let year = Duration::from_secs(365 * 24 * 3600);
    let buckets = Buckets::new(Rate::new(1, Duration::from_secs(3600), 1));
    buckets.take(None, year);
    Counter::Local(Arc::new(buckets))
}

/// One request at once, which does not end.
fn one_forever() -> Concurrency {
    let bounds = Bounds { minimum: 1, maximum: 1, buffer_percent: 25, interval: Duration::from_secs(60) };
    let controller = Arc::new(Controller::new(bounds));
    std::mem::forget(controller.enter(Duration::ZERO).unwrap());
    Concurrency { name: "shop/limit".into(), dry_run: false, controller }
}

/// Never answers, and nothing may come in without.
fn unknown_service() -> Counter {
    let service = RateLimitService {
        cluster: "shop/nobody/8081".into(),
        authority: "nobody.shop".into(),
        domain: "heddle".into(),
        timeout: Duration::from_secs(1),
        deny_on_failure: true,
    };
    Counter::Service(Arc::new(service), Quota { requests: 1, unit: Unit::Hour })
}

fn limit(counter: Counter) -> RateLimit {
    RateLimit {
        name: "shop/limit#0".into(),
        dry_run: false,
        by: LimitBy::Nothing,
        counts: Default::default(),
        headers: Vec::new(),
        counter,
    }
}

/// A sidecar with an access log.
fn start(mesh: &Mesh, pod: &mut MeshPod, tables: Tables) {
    let config = Config { workers: 1, mark: Some(MARK), access_log: AccessLogFormat::Json, ..Config::default() };
    let rules = Rules { exempt: Exempt::Mark(MARK), ..Rules::default() };
    let sidecar = pod.netns().run(|| {
        capture::install(&rules).unwrap();
        app::start(config, tables).unwrap()
    });
    pod.sidecar = Some(sidecar.unwrap().shared);
    let identity = mesh.identity(&pod.pod.name);
    pod.shared().dialer.identity.replace(identity, mesh.bundle()).unwrap();
}

fn applications(bare: &MeshPod) {
    let answers = |port, answer: Option<&'static str>| {
        origin::tcp(bare, port, move |stream| {
            let mut requests = Reader::new(stream);
            let _ = requests.request();
            match answer {
                // Until the sidecar gives up.
                None => drop(requests.rest()),
                Some(answer) => requests.stream().write_all(answer.as_bytes()).unwrap(),
            }
        });
    };
    answers(SILENT, None);
    answers(CLOSES, Some(""));
    answers(BREAKS_OFF, Some("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"));
    answers(BABBLES, Some("220 mail.example ESMTP\r\n"));
    origin::tcp(bare, ENDLESS, |stream| {
        let mut requests = Reader::new(stream);
        if requests.request().is_err() {
            // HTTP/2: silent.
            return drop(requests.rest());
        }
        let _ = requests.stream().write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while requests.stream().write_all(&[0; 65_536]).is_ok() {}
    });
}

fn outbound(server: &MeshPod, bare: &MeshPod) -> Tables {
    let mut known = tables::nothing("client");
    let inbound = Arc::get_mut(known.inbound.as_mut().unwrap()).unwrap();
    inbound.mesh.egress = Egress::Deny;
    for cause in Cause::ALL {
        let plain = |port| vec![tables::plain(bare.v4(port))];
        let meshed = |port, identity: &str| vec![tables::meshed(server.v4(port), identity)];
        match cause {
            Cause::EgressDenied => {
                known.outbound.insert(vip(cause), Destination::from(Answer::DoesNotExist));
            }
            Cause::ConnectRefused => lead(&mut known, cause, plain(NOBODY), settings(), |_| {}),
            Cause::ConnectTimeout => {
                let connect_timeout = Duration::from_millis(100);
                // No pod has this address.
                let nowhere = vec![tables::plain(SocketAddr::from(([10, 77, 0, 200], 80)))];
                lead(&mut known, cause, nowhere, Settings { connect_timeout, ..settings() }, |_| {});
            }
            Cause::TlsFailure => {
                lead(&mut known, cause, meshed(8080, "spiffe://mesh.test/ns/shop/sa/else"), settings(), |_| {})
            }
            Cause::NoEndpoints => lead(&mut known, cause, vec![], settings(), |_| {}),
            Cause::AllEjected => {
                let outlier = outlier::Settings {
                    consecutive_failures: 1,
                    max_ejected_percent: 100,
                    ..outlier::Settings::default()
                };
                lead(
                    &mut known,
                    cause,
                    plain(CLOSES),
                    Settings { outlier: Some(outlier), panic_percent: 0, ..settings() },
                    |_| {},
                );
            }
            Cause::Overflow => {
                let limits = breaker::Limits { requests: 0, ..breaker::Limits::default() };
                lead(&mut known, cause, plain(CLOSES), Settings { limits, ..settings() }, |_| {});
            }
            Cause::RequestTimeout => {
                let timeout = Some(Duration::from_millis(50));
                lead(&mut known, cause, plain(SILENT), settings(), |rule| rule.request_timeout = timeout);
            }
            Cause::PerTryTimeout => {
                let timeout = Some(Duration::from_millis(50));
                lead(&mut known, cause, plain(SILENT), settings(), |rule| rule.try_timeout = timeout);
            }
            Cause::IdleTimeout => {
                let timeout = Some(Duration::from_millis(50));
                lead(&mut known, cause, plain(SILENT), settings(), |rule| rule.idle_timeout = timeout);
            }
            Cause::DownstreamClosed => lead(&mut known, cause, plain(ENDLESS), settings(), |_| {}),
            Cause::ResetAfterResponse => lead(&mut known, cause, plain(BREAKS_OFF), settings(), |_| {}),
            Cause::Undelivered => lead(&mut known, cause, meshed(8090, &server.spiffe_id()), settings(), |_| {}),
            Cause::Denied => lead(&mut known, cause, meshed(8080, &server.spiffe_id()), settings(), |_| {}),
            Cause::RateLimited => lead(&mut known, cause, meshed(8070, &server.spiffe_id()), settings(), |_| {}),
            Cause::ConcurrencyLimited => lead(&mut known, cause, meshed(8072, &server.spiffe_id()), settings(), |_| {}),
            Cause::RateLimitUnavailable => {
                lead(&mut known, cause, meshed(8071, &server.spiffe_id()), settings(), |_| {})
            }
            Cause::UpstreamProtocolError => lead(&mut known, cause, plain(BABBLES), settings(), |_| {}),
            Cause::InvalidBackend => {
                lead(&mut known, cause, vec![], settings(), |rule| rule.backends[0].cluster = None)
            }
            Cause::FaultInjected => {
                let abort = Abort { status: AbortStatus::Http(cause.status()), per_million: 1_000_000 };
                let fault = Fault { delay: None, abort: Some(abort), headers: vec![] };
                lead(&mut known, cause, plain(CLOSES), settings(), |rule| rule.fault = Some(Box::new(fault)));
            }
            Cause::NoRoute => {
                let rule = Arc::new(tables::rule(vec![]));
                let matches = RouteMatch { method: Some(Method::PATCH), ..RouteMatch::default() };
                let routes = vec![Route { matches, rule }];
                tables::destination_with(&mut known, vip(cause), Protocol::Http, routes, None);
            }
            Cause::ResetBeforeResponse
            | Cause::ProtocolError
            | Cause::ProtocolMismatch
            | Cause::ConfigUnavailable
            | Cause::TlsRequired
            | Cause::Loop => lead(&mut known, cause, plain(CLOSES), settings(), |_| {}),
        }
    }
    known
}

/// Nothing is ejected unless a cause asks for it.
fn settings() -> Settings {
    Settings { outlier: None, ..Settings::default() }
}

fn lead(known: &mut Tables, cause: Cause, to: Vec<Endpoint>, settings: Settings, adapt: impl FnOnce(&mut Rule)) {
    let mut rule = tables::rule(vec![(1, tables::cluster(cause.name(), to, settings))]);
    adapt(&mut rule);
    tables::destination(known, vip(cause), Protocol::Http, rule);
}

/// A request whose path is the cause.
fn request(cause: Cause, grpc: bool) -> String {
    let (method, kind) = if grpc { ("POST", "Content-Type: application/grpc\r\n") } else { ("GET", "") };
    format!("{method} /{} HTTP/1.1\r\nHost: api\r\n{kind}\r\n", cause.name())
}

fn send(pod: &MeshPod, to: SocketAddr, bytes: &str) -> Reader<std::net::TcpStream> {
    let mut stream = talk::connect(pod, to);
    stream.write_all(bytes.as_bytes()).unwrap();
    Reader::new(stream)
}

/// Requests counted with this cause and status.
fn counted(pod: &MeshPod, direction: &str, cause: Cause, status: u16) -> f64 {
    let labels = [
        format!("direction=\"{direction}\""),
        format!("cause=\"{}\"", cause.name()),
        format!("response_code=\"{status}\""),
    ];
    metrics::sum(&metrics::page(pod), "heddle_requests_total", &labels.each_ref().map(String::as_str))
}

/// One more request is counted with this cause and status, and has its line, than before `provoke`.
fn told<T>(
    log: &Captured,
    (pod, direction): (&MeshPod, &str),
    cause: Cause,
    status: u16,
    provoke: impl FnOnce() -> T,
) -> T {
    let path = format!("/{}", cause.name());
    let lines = || {
        let lines = log.json();
        let ours = lines.iter().filter(|line| {
            line["path"] == path.as_str() && line["direction"] == direction && line["cause"] == cause.name()
        });
        ours.filter(|line| line["status"] == status).count()
    };
    let before = (counted(pod, direction, cause, status), lines());
    let provoked = provoke();
    eventually(&format!("{cause:?} {status} is counted and logged once by {direction}"), || {
        let now = (counted(pod, direction, cause, status), lines());
        (now == (before.0 + 1.0, before.1 + 1)).then_some(())
    });
    provoked
}

/// What the mesh's own answer looks like.
fn assert_answer(answer: &Message, cause: Cause, grpc: bool) {
    let status = if grpc { 200 } else { cause.status().as_u16() };
    assert_eq!((answer.status(), answer.field("x-heddle-error")), (status, Some(cause.name())), "{answer:?}");
    let code = cause.grpc_status().to_string();
    assert_eq!(answer.field("grpc-status"), grpc.then_some(code.as_str()), "{answer:?}");
    assert_eq!(answer.field("x-heddle-undelivered"), None, "{answer:?}");
    let link = format!("<{}>; rel=\"help\"", cause.page());
    assert_eq!(answer.field("link"), Some(link.as_str()), "{answer:?}");
    if !grpc {
        assert_eq!(answer.text(), format!("heddle: {cause}\nsee {}\n", cause.page()));
    }
}

#[test]
fn status_header_metric_and_log_agree_on_every_cause() {
    let log = Captured::begin();
    let mesh = Mesh::new();
    let pods = pods(&mesh);
    for cause in Cause::ALL {
        for grpc in [false, true] {
            provoke(&log, &pods, cause, grpc);
        }
    }
}

fn provoke(log: &Captured, Pods { client, server, bare }: &Pods, cause: Cause, grpc: bool) {
    let status = if grpc { 200 } else { cause.status().as_u16() };
    let outbound = (client, "outbound");
    let answered = |by, bytes: &str| {
        let answer = told(log, by, cause, status, || send(client, vip(cause), bytes).response(false).unwrap());
        assert_answer(&answer, cause, grpc);
    };
    match seen(cause) {
        Seen::Answered => answered(outbound, &request(cause, grpc)),
        Seen::AnsweredInbound => answered((server, "inbound"), &request(cause, grpc)),
        Seen::AnsweredTo(bytes) => {
            let kind = if grpc { "Content-Type: application/grpc\r\n" } else { "" };
            answered(outbound, &format!("{bytes}{kind}\r\n"));
        }
        Seen::AnsweredLater(withdrawn) => {
            let mut answers = send(client, vip(cause), &request(cause, grpc));
            let first = answers.response(false).unwrap();
            if withdrawn {
                let mut known = (**client.shared().tables.load()).clone();
                let destination = known.outbound.remove(&vip(cause)).unwrap();
                client.shared().tables.publish(known.clone());
                let again = request(cause, grpc);
                let later = told(log, outbound, cause, status, || {
                    answers.stream().write_all(again.as_bytes()).unwrap();
                    answers.response(false).unwrap()
                });
                assert_eq!(first.field("x-heddle-error"), Some("reset_before_response"));
                assert_answer(&later, cause, grpc);
                known.outbound.insert(vip(cause), destination);
                client.shared().tables.publish(known);
            } else {
                answered(outbound, &request(cause, grpc));
            }
        }
        Seen::BrokenOff => {
            let answer =
                told(log, outbound, cause, 200, || send(client, vip(cause), &request(cause, grpc)).response(false));
            assert!(matches!(answer, Err(Broken::CutOff(message)) if message.body == b"half"));
        }
        Seen::Nobody if grpc => told(log, outbound, cause, 499, || before_an_answer(client, cause)),
        Seen::Nobody => told(log, outbound, cause, 200, || {
            let mut answers = send(client, vip(cause), &request(cause, grpc));
            // Left with more unread, so that the sidecar's next write is refused.
            answers.bytes(1).unwrap();
        }),
        Seen::Closed(bytes) => closed(log, client, "outbound", cause, || talk::exchange(client, vip(cause), bytes)),
        Seen::ClosedInbound(port) => {
            let bytes = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            closed(log, server, "inbound", cause, || talk::exchange(bare, server.v4(port), bytes));
        }
    }
}

/// Leaves a request over HTTP/2 that is under way; over HTTP/1 that is not noticed before there is something to write.
/// It is counted under 499.
fn before_an_answer(client: &MeshPod, cause: Cause) {
    let path = format!("/{}", cause.name());
    let pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", "api"), (":path", path.as_str())];
    let stream = h2c::open_by_hand(client, vip(cause), &pseudo, b"");
    let cluster = format!("cluster=\"shop/{}/80\"", cause.name());
    eventually("the request is under way", || {
        let labels = [cluster.as_str(), "kind=\"requests\""];
        (metrics::sum(&metrics::page(client), "heddle_circuit_breaker_open", &labels) == 1.0).then_some(())
    });
    drop(stream);
}

/// One more connection is refused with this cause than before `provoke`, and has its line; nothing was answered.
fn closed(log: &Captured, pod: &MeshPod, direction: &str, cause: Cause, provoke: impl FnOnce() -> Vec<u8>) {
    let labels = [format!("direction=\"{direction}\""), format!("cause=\"{}\"", cause.name())];
    let refused = || {
        let labels = labels.each_ref().map(String::as_str);
        let counted = metrics::sum(&metrics::page(pod), "heddle_downstream_connections_refused_total", &labels);
        let lines = log.json();
        let ours = lines.iter().filter(|line| line["original_destination"].is_string());
        let ours = ours.filter(|line| line["direction"] == direction && line["cause"] == cause.name());
        (counted, ours.count())
    };
    let before = refused();
    let answer = provoke();
    assert!(answer.is_empty(), "{cause:?}: {}", String::from_utf8_lossy(&answer));
    eventually(&format!("{cause:?} is counted and logged"), || {
        (refused() == (before.0 + 1.0, before.1 + 1)).then_some(())
    });
}
