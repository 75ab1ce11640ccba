//! Hostile HTTP/1: whatever a client sends, the application gets requests that can be read in one way only, and never
//! more of them than were sent.
//!
//! Each case is sent with a well-formed request behind it. Refused means: that status, the connection closed, and the
//! request behind never served. Delivered means: re-framed, as exactly these requests, in this order.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::Write;

use heddle_proxy::balance::outlier;
use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::cluster::Settings;
use heddle_proxy::tables::listener::Protocol;
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::service::{Service, vip};
use heddle_tests::wire::{self, Broken, Message, Reader, Record};
use heddle_tests::{eventually, metrics, tables, talk};

/// Sent behind each case.
const BEHIND: &str = "GET /behind HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";

/// What must become of a case.
enum Outcome {
    /// This status, and nothing whole reaches the application.
    Refused(u16),
    /// No answer at all, and nothing reaches the application.
    Closed,
    /// These bodies arrive, the request behind last.
    Delivered(&'static [&'static str]),
    /// This body arrives, and the connection is closed before the request behind is read.
    Alone(&'static str),
}
use Outcome::{Alone, Closed, Delivered, Refused};

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    outcome: Outcome,
}

fn case(name: &'static str, bytes: impl Into<Vec<u8>>, outcome: Outcome) -> Case {
    Case { name, bytes: bytes.into(), outcome }
}

/// A POST to `/` with these lines behind `Host` and everything after the head.
fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: api\r\n{fields}\r\n{body}")
}

fn cases() -> Vec<Case> {
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let get = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n");
    let field = |len: usize| format!("Host: api\r\nX-Long: {}\r\n", "a".repeat(len));
    let many = |count: usize| {
        (0..count).fold("Host: api\r\n".to_owned(), |fields, number| fields + &format!("X-{number}: a\r\n"))
    };
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: api\r\n\r\n";
    vec![
        // Two framings (RFC 9112 §6.1, §6.3).
        case(
            "Content-Length, then chunked",
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            Alone("hello"),
        ),
        case(
            "chunked, then Content-Length",
            post("Transfer-Encoding: chunked\r\nContent-Length: 40\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            Alone("hello"),
        ),
        case("two lengths that differ", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"), Refused(400)),
        case(
            "two equal lengths",
            post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
            Delivered(&["hello", ""]),
        ),
        case("a list of equal lengths", post("Content-Length: 5, 5\r\n", "hello"), Refused(400)),
        case("a list of lengths", post("Content-Length: 5, 6\r\n", "hello"), Refused(400)),
        case("a length with a sign", post("Content-Length: +5\r\n", "hello"), Refused(400)),
        case("a negative length", post("Content-Length: -5\r\n", "hello"), Refused(400)),
        case("a length in hexadecimal", post("Content-Length: 0x5\r\n", "hello"), Refused(400)),
        case("an empty length", post("Content-Length:\r\n", ""), Refused(400)),
        case("a length beyond 64 bits", post("Content-Length: 18446744073709551621\r\n", "hello"), Refused(400)),
        case("a length with a letter", post("Content-Length: 5a\r\n", "hello"), Refused(400)),
        case("a length in two words", post("Content-Length: 5 0\r\n", "hello"), Refused(400)),
        // Codings (RFC 9112 §6.1).
        case("gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), Refused(400)),
        case("chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), Refused(400)),
        case("identity", post("Transfer-Encoding: identity\r\n", "0\r\n\r\n"), Refused(400)),
        case("xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), Refused(400)),
        case("chunked twice in a list", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), Refused(400)),
        case(
            "chunked in two fields",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            Refused(400),
        ),
        case("an empty coding", post("Transfer-Encoding:\r\n", "0\r\n\r\n"), Refused(400)),
        case("a quoted coding", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), Refused(400)),
        case("a coding with a parameter", post("Transfer-Encoding: chunked;a=b\r\n", "0\r\n\r\n"), Refused(400)),
        case("a coding behind a vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"), Refused(400)),
        case("Chunked with a capital", post("Transfer-Encoding: Chunked\r\n", "0\r\n\r\n"), Delivered(&["", ""])),
        case("chunked behind a tab", post("Transfer-Encoding:\tchunked\r\n", "0\r\n\r\n"), Delivered(&["", ""])),
        case(
            "chunked with HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        case(
            "a coding with an underscore in its name",
            post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            Delivered(&["0\r\n\r\n", ""]),
        ),
        // Lines and fields (RFC 9112 §2.2, §5.1, §5.2).
        case("a folded field", get("Host: api\r\nX-A: b\r\n c\r\n"), Refused(400)),
        case("a folded first field", get(" Host: api\r\n"), Refused(400)),
        case("a folded Transfer-Encoding", post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), Refused(400)),
        case("bare LF as the end of all lines", "GET / HTTP/1.1\nHost: api\n\n", Delivered(&["", ""])),
        case("bare LF in one field", get("Host: api\r\nX-A: b\nX-C: d\r\n"), Delivered(&["", ""])),
        case("bare CR in a value", get("Host: api\r\nX-A: b\rX-C: d\r\n"), Refused(400)),
        case("NUL in a value", get("Host: api\r\nX-A: b\0c\r\n"), Refused(400)),
        case("space before the colon", get("Host: api\r\nX-A : b\r\n"), Refused(400)),
        case("space before the colon of the length", post("Content-Length : 5\r\n", "hello"), Refused(400)),
        case(
            "space before the colon of the coding",
            post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
            Refused(400),
        ),
        case("a field without a colon", get("Host: api\r\nX-A\r\n"), Refused(400)),
        case("a field without a name", get("Host: api\r\n: b\r\n"), Refused(400)),
        case("a name with a space", get("Host: api\r\nX A: b\r\n"), Refused(400)),
        case("a name with a control", get("Host: api\r\nX\x01A: b\r\n"), Refused(400)),
        case("a name in UTF-8", get("Host: api\r\nX-é: b\r\n"), Refused(400)),
        // Request lines (RFC 9112 §3).
        case("two spaces before the target", "GET  / HTTP/1.1\r\nHost: api\r\n\r\n", Refused(400)),
        case("two spaces before the version", "GET /  HTTP/1.1\r\nHost: api\r\n\r\n", Refused(400)),
        case("a tab in the request line", "GET\t/ HTTP/1.1\r\nHost: api\r\n\r\n", Refused(400)),
        case("a space in the target", "GET /a b HTTP/1.1\r\nHost: api\r\n\r\n", Refused(400)),
        case("an angle bracket in the target", "GET /<> HTTP/1.1\r\nHost: api\r\n\r\n", Refused(400)),
        case("a back quote in the target", "GET /` HTTP/1.1\r\nHost: api\r\n\r\n", Refused(400)),
        case("another minor version", "GET / HTTP/1.2\r\nHost: api\r\n\r\n", Refused(400)),
        case("another major version", "GET / HTTP/3.0\r\nHost: api\r\n\r\n", Refused(400)),
        case("a version in small letters", "GET / http/1.1\r\nHost: api\r\n\r\n", Closed),
        case("a fragment in the target", "GET /a#b HTTP/1.1\r\nHost: api\r\n\r\n", Delivered(&["", ""])),
        case("CONNECT", "CONNECT api:80 HTTP/1.1\r\nHost: api:80\r\n\r\n", Refused(400)),
        case("a method with a bracket", "G[T / HTTP/1.1\r\nHost: api\r\n\r\n", Refused(400)),
        // Hosts (RFC 9112 §3.2).
        case("no Host", get(""), Refused(400)),
        case("two Hosts", get("Host: api\r\nHost: other\r\n"), Refused(400)),
        case("two equal Hosts", get("Host: api\r\nHost: api\r\n"), Refused(400)),
        case("a Host with a space", get("Host: a b\r\n"), Refused(400)),
        case("a Host with a path", get("Host: api/x\r\n"), Refused(400)),
        case("a Host with a user", get("Host: user@api\r\n"), Refused(400)),
        case("a list of Hosts", get("Host: api, other\r\n"), Refused(400)),
        case("a Host with a letter for port", get("Host: api:x\r\n"), Refused(400)),
        case("absolute-form against Host", "GET http://other/ HTTP/1.1\r\nHost: api\r\n\r\n", Delivered(&["", ""])),
        case("absolute-form with a user", "GET http://user@other/ HTTP/1.1\r\nHost: api\r\n\r\n", Refused(400)),
        case("absolute-form without Host", "GET http://other/ HTTP/1.1\r\n\r\n", Refused(400)),
        // Sizes.
        case("a field of 70,000 octets", get(&field(70_000)), Refused(431)),
        case("a field of 60,000 octets", get(&field(60_000)), Delivered(&["", ""])),
        case("201 fields", get(&many(200)), Refused(431)),
        case(
            "a target of 70,000 octets",
            format!("GET /{} HTTP/1.1\r\nHost: api\r\n\r\n", "a".repeat(70_000)),
            Refused(431),
        ),
        // Chunks (RFC 9112 §7.1).
        case("a chunk size with 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n"), Refused(400)),
        case("a chunk size with a sign", chunked("+5\r\nhello\r\n0\r\n\r\n"), Refused(400)),
        case("a chunk size with a letter", chunked("5g\r\nhello\r\n0\r\n\r\n"), Refused(400)),
        case("an empty chunk size", chunked("\r\nhello\r\n0\r\n\r\n"), Refused(400)),
        case("a chunk size beyond 64 bits", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"), Refused(400)),
        case("a chunk size behind a space", chunked(" 5\r\nhello\r\n0\r\n\r\n"), Refused(400)),
        case("a chunk longer than its size", chunked("5\r\nhelloo\r\n0\r\n\r\n"), Refused(400)),
        case("a chunk size ended by LF", chunked("5\nhello\r\n0\r\n\r\n"), Refused(400)),
        case("a chunk ended by LF", chunked("5\r\nhello\n0\r\n\r\n"), Refused(400)),
        case("a chunk extension", chunked("5;a=b\r\nhello\r\n0\r\n\r\n"), Delivered(&["hello", ""])),
        case("a chunk extension with LF", chunked("5;a\nhello\r\n0\r\n\r\n"), Refused(400)),
        case("a chunk size behind zeros", chunked("000005\r\nhello\r\n0\r\n\r\n"), Delivered(&["hello", ""])),
        // Trailers (RFC 9110 §6.5.1).
        case(
            "a trailer that frames",
            post("Transfer-Encoding: chunked\r\nTrailer: content-length\r\n", "0\r\nContent-Length: 5\r\n\r\n"),
            Delivered(&["", ""]),
        ),
        case(
            "a trailer that names a host",
            post("Transfer-Encoding: chunked\r\nTrailer: host\r\n", "0\r\nHost: other\r\n\r\n"),
            Delivered(&["", ""]),
        ),
        case("a broken trailer", chunked("0\r\nX A: b\r\n\r\n"), Refused(400)),
        // Connection options that would change framing or routing (RFC 9110 §7.6.1).
        case("Connection names Host", get("Host: api\r\nConnection: host\r\n"), Delivered(&["", ""])),
        case(
            "Connection names Content-Length",
            post(&format!("Connection: content-length\r\nContent-Length: {}\r\n", smuggled.len()), smuggled),
            Delivered(&["GET /smuggled HTTP/1.1\r\nHost: api\r\n\r\n", ""]),
        ),
        case(
            "Connection names Transfer-Encoding",
            post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            Delivered(&["hello", ""]),
        ),
        // A body where none is expected.
        case(
            "a GET with a request as its body",
            format!("GET / HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
            Delivered(&["GET /smuggled HTTP/1.1\r\nHost: api\r\n\r\n", ""]),
        ),
        case(
            "an unknown expectation",
            post("Expect: 200-ok\r\nContent-Length: 5\r\n", "hello"),
            Delivered(&["hello", ""]),
        ),
        case(
            "an upgrade to HTTP/2",
            get(
                "Host: api\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            ),
            Delivered(&["", ""]),
        ),
    ]
}

/// Sends a case from `from` to `to` and says what differs from its outcome.
fn judge(case: &Case, from: &MeshPod, to: std::net::SocketAddr, record: &Record) -> Result<(), String> {
    let mut stream = talk::connect(from, to);
    // A refused connection may be reset before everything was written.
    let _ = stream.write_all(&case.bytes).and_then(|()| stream.write_all(BEHIND.as_bytes()));
    let mut answers = Reader::new(stream);
    let mut statuses = Vec::new();
    let end = loop {
        match answers.response(false) {
            Ok(answer) => statuses.push(answer.status()),
            Err(end) => break end,
        }
    };
    // What follows a request that the client saw fail is awaited with one that succeeds.
    assert_eq!(talk::get(from, to, "/settled").status(), 200);
    let mut came = record.take();
    let settled = |came: &Result<Message, Broken>| came.as_ref().is_ok_and(|message| message.target() == "/settled");
    let at = came.iter().position(settled).ok_or("the request that settles did not come")?;
    drop(came.remove(at));
    if end != Broken::End {
        return Err(format!("answers end with {end:?} after {statuses:?}"));
    }
    for came in &came {
        match came {
            Ok(message) => canonical(message)?,
            Err(Broken::Ambiguous(what)) => return Err(format!("ambiguous for the application: {what}")),
            Err(Broken::CutOff(_) | Broken::End) => {}
        }
    }
    let whole: Vec<_> = came.iter().flatten().collect();
    let bodies: Vec<_> = whole.iter().map(|message| message.text()).collect();
    let targets: Vec<_> = whole.iter().map(|message| message.target() == "/behind").collect();
    let as_due = match case.outcome {
        Refused(status) => statuses == [status] && whole.is_empty(),
        Closed => statuses.is_empty() && came.is_empty(),
        Alone(body) => statuses == [200] && bodies == [body] && targets == [false],
        Delivered(due) => {
            let behind = targets.iter().enumerate().all(|(at, behind)| *behind == (at + 1 == due.len()));
            statuses == vec![200; due.len()] && bodies == due && behind && came.len() == whole.len()
        }
    };
    if as_due { Ok(()) } else { Err(format!("answers {statuses:?}, application saw {came:?}")) }
}

/// What a trailer or a `Connection` option may not do.
fn canonical(message: &Message) -> Result<(), String> {
    let forbidden = ["content-length", "transfer-encoding", "host", "trailer", "connection"];
    let trailers: Vec<_> = message.trailers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    match trailers.iter().find(|name| forbidden.contains(&name.as_str())) {
        Some(name) => Err(format!("forbidden trailer {name}")),
        None => Ok(()),
    }
}

fn table(from: &MeshPod, to: std::net::SocketAddr, record: &Record) {
    let mut wrong = Vec::new();
    for case in cases() {
        if let Err(what) = judge(&case, from, to, record) {
            wrong.push(format!("{}: {what}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn through_two_sidecars_the_application_has_one_reading() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let record = wire::origin(&service.server, 8080, |_| wire::ok(""));
    table(&service.client, vip(), &record);
}

#[test]
fn a_body_that_breaks_off_is_broken_off_for_the_application_and_the_endpoint_is_not_blamed() {
    let mesh = Mesh::new();
    let port = tables::port(Protocol::Http, TlsMode::Strict);
    // One failure of the endpoint would eject it, and nothing would be served any more.
    let outlier =
        outlier::Settings { consecutive_failures: 1, max_ejected_percent: 100, ..outlier::Settings::default() };
    let outlier = Some(outlier);
    let service = Service::with(
        &mesh,
        Protocol::Http,
        port,
        Settings { outlier, panic_percent: 0, ..Settings::default() },
        |_| {},
    );
    let record = wire::origin(&service.server, 8080, |_| wire::ok(""));
    // A beginning above what is kept for another attempt, so that it has left before the rest does not come.
    let begun = "a".repeat(100_000);
    let length = post("Content-Length: 200000\r\n", &begun);
    let chunks = post("Transfer-Encoding: chunked\r\n", &format!("186a0\r\n{begun}\r\n"));
    for head in [length, chunks] {
        let mut stream = talk::connect(&service.client, vip());
        stream.write_all(head.as_bytes()).unwrap();
        drop(stream);
        let came = eventually("the origin sees the end", || record.take().pop());
        let Err(Broken::CutOff(message)) = came else { panic!("a body without an end: {came:?}") };
        assert!(begun.starts_with(&message.text()), "nothing else than what was sent");
    }
    // The same from a client that stays.
    let wrong = post("Transfer-Encoding: chunked\r\n", &format!("186a0\r\n{begun}\r\nwrong\r\n"));
    let refused = talk::request(&service.client, vip(), &wrong);
    assert_eq!((refused.status(), refused.field("x-heddle-error")), (400, Some("protocol_error")), "{refused:?}");
    let came = eventually("the origin sees the end", || record.take().pop());
    assert!(matches!(came, Err(Broken::CutOff(message)) if begun.starts_with(&message.text())));
    assert_eq!(talk::get(&service.client, vip(), "/").status(), 200);
    let page = metrics::page(&service.client);
    assert_eq!(metrics::sum(&page, "heddle_outlier_ejections_total", &[]), 0.0, "{page}");
    let closed = metrics::sum(&page, "heddle_requests_total", &["cause=\"downstream_closed\""]);
    assert_eq!(closed, 2.0, "{page}");
}

#[test]
fn from_a_client_without_a_sidecar_the_application_has_one_reading() {
    let mesh = Mesh::new();
    let port = tables::port(Protocol::Http, TlsMode::Permissive);
    let service = Service::with(&mesh, Protocol::Http, port, Settings::default(), |_| {});
    let record = wire::origin(&service.server, 8080, |_| wire::ok(""));
    let stranger = mesh.pod("stranger", 9);
    table(&stranger, service.server.v4(8080), &record);
}
