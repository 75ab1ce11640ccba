//! Fidelity of HTTP/1: what application and client see of each other through two sidecars is what they see direct.
//!
//! Each exchange is made twice, once between pods without sidecars, and compared. Not compared, because it is not
//! kept: the order between fields of different names, `Connection` and what it names, chunk boundaries. Added when
//! missing: `x-request-id` and `traceparent`.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex};

use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::service::{Service, vip};
use heddle_tests::wire::{self, Message, Reader, Record};
use heddle_tests::{origin, talk};

/// What the mesh adds to a request.
const ADDED: [&str; 3] = ["x-request-id", "traceparent", "x-forwarded-client-cert"];

/// The same origin twice: behind two sidecars, and behind none.
struct Both {
    service: Service,
    plain: (MeshPod, MeshPod),
    seen: [Record; 2],
    /// Given to every request but `/again`.
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Both {
    fn new(mesh: &Mesh) -> Self {
        let service = Service::new(mesh);
        let plain = (mesh.pod("plain-client", 4), mesh.pod("plain-server", 5));
        let answer = Arc::<Mutex<Vec<u8>>>::default();
        let origin = |pod: &MeshPod| {
            let answer = answer.clone();
            let answer = move |request: &Message| match request.target() {
                "/again" => wire::ok("again"),
                _ => answer.lock().unwrap().clone(),
            };
            wire::origin(pod, 8080, answer)
        };
        let seen = [origin(&service.server), origin(&plain.1)];
        Self { service, plain, seen, answer }
    }

    /// What origin and client see, meshed and direct.
    fn exchange(&self, request: &[u8], answer: &[u8]) -> [(Message, Message); 2] {
        *self.answer.lock().unwrap() = answer.to_vec();
        let ends = [(&self.service.client, vip()), (&self.plain.0, self.plain.1.v4(8080))];
        let exchange = |at: usize| {
            let (client, to) = ends[at];
            let response = once_and_again(client, to, request);
            let mut seen = self.seen[at].take();
            assert_eq!(seen.len(), 2, "{seen:?}");
            (seen.swap_remove(0).unwrap(), response)
        };
        [exchange(0), exchange(1)]
    }

    /// Both are the same, but for what is not kept.
    fn assert_same(&self, request: impl AsRef<[u8]>, answer: impl AsRef<[u8]>) {
        let (request, answer) = (request.as_ref(), answer.as_ref());
        let [(meshed_request, meshed_response), (request_direct, response_direct)] = self.exchange(request, answer);
        let name = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        assert_eq!(kept(meshed_request, &ADDED), kept(request_direct, &[]), "what the application sees of {name}");
        let name = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        assert_eq!(kept(meshed_response, &[]), kept(response_direct, &[]), "what the client sees of {name}");
    }
}

/// Sends `request`, then another on the same connection: its answer proves where the first one ended.
fn once_and_again(client: &MeshPod, to: SocketAddr, request: &[u8]) -> Message {
    let mut stream = talk::connect(client, to);
    stream.write_all(request).unwrap();
    let mut answers = Reader::new(stream);
    let response = answers.response(request.starts_with(b"HEAD "));
    let response = response.unwrap_or_else(|end| panic!("{end:?} after {}", String::from_utf8_lossy(request)));
    answers.stream().write_all(b"GET /again HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
    let again = answers.response(false).map(|response| response.text());
    assert_eq!(again, Ok("again".to_owned()), "after {}", String::from_utf8_lossy(request));
    response
}

/// A message without what is not kept and without `added`, fields sorted by name and, within a name, as they came.
fn kept(mut message: Message, added: &[&str]) -> Message {
    message.fields.retain(|(name, _)| {
        let name = name.to_ascii_lowercase();
        name != "connection" && !added.contains(&name.as_str())
    });
    message.fields.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    message
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: api\r\n{fields}\r\n")
}

/// Octets of every value, in an order that shows any that is lost or doubled.
fn octets(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31) ^ (at >> 8)) as u8).collect()
}

fn chunked(body: &[u8], chunk: usize) -> Vec<u8> {
    let mut framed = Vec::new();
    for chunk in body.chunks(chunk) {
        framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
    }
    framed.extend_from_slice(b"0\r\n\r\n");
    framed
}

#[test]
fn methods_and_targets_arrive_as_they_were_sent() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    for method in ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "BREW", "get"] {
        both.assert_same(format!("{method} /a HTTP/1.1\r\nHost: api\r\n\r\n"), wire::ok(""));
    }
    both.assert_same("OPTIONS * HTTP/1.1\r\nHost: api\r\n\r\n", wire::ok(""));
    for target in [
        "/",
        "//",
        "/a%2Fb//c/../d/./e",
        "/%zz",
        "/?",
        "/a?b=c&b=d&e=%00+%20",
        "/a;b=c?d=/e?f",
        "/~!$&'()*+,;=:@",
        "/\"[]^{|}\\",
        "/caf\u{e9}",
    ] {
        both.assert_same(format!("GET {target} HTTP/1.1\r\nHost: api\r\n\r\n"), wire::ok(""));
    }
    for host in ["api", "API.Shop:80", "api.shop.", "[fd00::1]:8080", "10.0.0.1", ""] {
        both.assert_same(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), wire::ok(""));
    }
}

#[test]
fn statuses_reasons_and_responses_without_bodies_arrive_as_they_were_sent() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    for status in
        ["200 OK", "200 Sehr gut, danke", "200 ", "202 Accepted", "404 ", "418 I'm a teapot", "500 No", "599 x"]
    {
        both.assert_same(get(""), format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nhi"));
        both.assert_same(
            get(""),
            format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
        );
    }
    // A 304 keeps no Content-Length, which hyper holds back.
    for bodiless in ["204 No Content\r\n", "304 Not Modified\r\n", "304 Not Modified\r\nETag: \"a\"\r\n"] {
        both.assert_same(get(""), format!("HTTP/1.1 {bodiless}\r\n"));
    }
    for fields in ["Content-Length: 1000\r\n", "Content-Length: 0\r\n", ""] {
        both.assert_same("HEAD / HTTP/1.1\r\nHost: api\r\n\r\n", format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
    }
    both.assert_same(get(""), "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn fields_keep_their_case_their_values_and_their_order_within_a_name() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    let fields = "X-lower: 1\r\nx-UPPER: a\r\nAccept: b\r\naccept: c\r\nACCEPT: d\r\nEmpty:\r\nSpaces: a  b\tc\r\n\
                  Cookie: a=1\r\nCookie: b=2\r\nDate: long ago\r\nServer: mine\r\nVia: 1.1 a\r\nSet-Cookie: a=1; Path=/\r\n\
                  Set-Cookie: b=2\r\nset-cookie: c=3\r\nUser-Agent: x/1 (y; z)\r\n_under: 1\r\nx.y: 1\r\n1: 1\r\nX-Forwarded-For: 1.2.3.4\r\n";
    both.assert_same(get(fields), format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"));
    let latin1 = [b"GET / HTTP/1.1\r\nHost: api\r\nX-Name: caf\xe9 \xff\r\n\r\n".as_slice()].concat();
    both.assert_same(latin1, b"HTTP/1.1 200 OK\r\nX-Name: caf\xe9 \xff\r\nContent-Length: 0\r\n\r\n");
    let long = format!("X-Long: {}\r\n", "a".repeat(50_000));
    both.assert_same(get(&long), format!("HTTP/1.1 200 OK\r\n{long}Content-Length: 0\r\n\r\n"));
    let many: String = (0..150).map(|number| format!("X-{number}: {number}\r\n")).collect();
    both.assert_same(get(&many), format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n"));
}

#[test]
fn bodies_arrive_byte_for_byte_in_their_framing() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    for len in [0, 1, 1000, 65_536, 65_537, 3_000_000] {
        let body = octets(len);
        let head = format!("Content-Length: {len}\r\n\r\n");
        let request = [format!("POST / HTTP/1.1\r\nHost: api\r\n{head}").as_bytes(), &body].concat();
        let answer = [format!("HTTP/1.1 200 OK\r\n{head}").as_bytes(), &body].concat();
        both.assert_same(request, answer);
        let head = "Transfer-Encoding: chunked\r\n\r\n";
        for chunk in [1 + len / 3, 1 + len / 1000] {
            let body = chunked(&body, chunk);
            let request = [format!("POST / HTTP/1.1\r\nHost: api\r\n{head}").as_bytes(), &body].concat();
            let answer = [format!("HTTP/1.1 200 OK\r\n{head}").as_bytes(), &body].concat();
            both.assert_same(request, answer);
        }
    }
    // A body where one is rare.
    both.assert_same("GET / HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nhi", wire::ok("hi"));
    both.assert_same("DELETE / HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nhi", wire::ok("hi"));
}

#[test]
fn announced_trailers_arrive_in_both_directions() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    let framed =
        "Transfer-Encoding: chunked\r\nTrailer: X-Sum, X-Other\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n";
    let request = format!("POST / HTTP/1.1\r\nHost: api\r\nTE: trailers\r\n{framed}");
    let [(seen, got), direct] = both.exchange(request.as_bytes(), format!("HTTP/1.1 200 OK\r\n{framed}").as_bytes());
    let trailers = |message: Message| {
        let mut fields: Vec<_> = message.trailers.into_iter().map(|(n, v)| (n.to_ascii_lowercase(), v)).collect();
        fields.sort();
        (message.body, fields)
    };
    assert_eq!((trailers(seen), trailers(got)), (trailers(direct.0), trailers(direct.1)));
}

#[test]
fn a_response_ended_by_the_end_of_its_connection_arrives_whole_and_one_cut_off_does_not_look_whole() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let body = octets(200_000);
    let whole = body.clone();
    origin::tcp(&service.server, 8080, move |stream| {
        let mut requests = Reader::new(stream);
        let request = requests.request().unwrap();
        let length = if request.target() == "/cut" { "Content-Length: 200001\r\n" } else { "" };
        let head = format!("HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n");
        let _ = requests.stream().write_all(&[head.as_bytes(), &whole].concat());
    });
    let mut stream = talk::connect(&service.client, vip());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
    let mut answers = Reader::new(stream);
    assert_eq!(answers.response(false).unwrap().body, body);
    answers.stream().write_all(b"GET /cut HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
    assert!(matches!(answers.response(false), Err(wire::Broken::CutOff(message)) if message.body.len() <= 200_000));
}

#[test]
fn fields_of_one_hop_end_there_and_all_others_travel() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    let fields = "Connection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\n\
                  TE: gzip\r\nX-End: 1\r\nProxy-Authorization: Basic YQ==\r\n";
    let answer = "HTTP/1.1 200 OK\r\nConnection: X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nX-End: 1\r\n\
                  Proxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
    let [(seen, got), _] = both.exchange(get(fields).as_bytes(), answer.as_bytes());
    for gone in ["connection", "x-private", "keep-alive", "proxy-connection", "te"] {
        assert_eq!((seen.field(gone), got.field(gone)), (None, None), "{gone}");
    }
    assert_eq!((seen.field("x-end"), got.field("x-end")), (Some("1"), Some("1")));
    assert_eq!(
        (seen.field("proxy-authorization"), got.field("proxy-authenticate")),
        (Some("Basic YQ=="), Some("Basic"))
    );
    let [(seen, _), _] = both.exchange(get("TE: trailers\r\n").as_bytes(), &wire::ok(""));
    assert_eq!(seen.field("te"), Some("trailers"), "gRPC asks for it");
}

#[test]
fn what_only_the_mesh_may_say_cannot_be_said_by_client_or_application() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    let forged = "X-Forwarded-Client-Cert: URI=spiffe://forged\r\nx-forwarded-client-cert: URI=spiffe://forged\r\n";
    let answer = "HTTP/1.1 503 Mine\r\nx-heddle-error: overflow\r\nx-heddle-undelivered: true\r\nx-heddle-draining: true\r\nContent-Length: 0\r\n\r\n";
    // Two requests at the origin: this one and the one behind it, so it was not sent again.
    let [(seen, got), _] = both.exchange(get(forged).as_bytes(), answer.as_bytes());
    let identities = seen.all("x-forwarded-client-cert");
    assert!(matches!(identities[..], [one] if !one.contains("forged") && one.contains("sa/client")), "{identities:?}");
    assert_eq!(got.start, "HTTP/1.1 503 Mine");
    let said = ["x-heddle-error", "x-heddle-undelivered", "x-heddle-draining"].map(|name| got.field(name));
    assert_eq!(said, [None; 3]);
}

#[test]
fn trace_context_and_request_id_travel_untouched_or_are_begun() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    let given = "X-Request-Id: mine\r\nTraceparent: 00-given\r\nTracestate: a=b\r\n";
    let [(seen, _), (direct, _)] = both.exchange(get(given).as_bytes(), &wire::ok(""));
    assert_eq!(kept(seen, &["x-forwarded-client-cert"]), kept(direct, &[]));
    let [(seen, _), _] = both.exchange(get("").as_bytes(), &wire::ok(""));
    assert_eq!((seen.all("x-request-id").len(), seen.all("traceparent").len()), (1, 1), "{seen:?}");
}

#[test]
fn a_client_that_waits_for_continue_gets_it_once_and_its_body_arrives() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let seen = Record::default();
    let record = seen.clone();
    origin::tcp(&service.server, 8080, move |stream| {
        let mut requests = Reader::new(stream);
        while let Ok(head) = requests.request_head() {
            if head.target() == "/refused" {
                let refusal = b"HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                return requests.stream().write_all(refusal).unwrap();
            }
            requests.stream().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            record.push(requests.body_of(head, true));
            requests.stream().write_all(&wire::ok("done")).unwrap();
        }
    });
    let head = |target: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: api\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    };
    let mut stream = talk::connect(&service.client, vip());
    stream.write_all(head("/").as_bytes()).unwrap();
    let mut answers = Reader::new(stream);
    assert_eq!(answers.response(false).unwrap().status(), 100);
    answers.stream().write_all(b"hello").unwrap();
    let last = answers.response(false).unwrap();
    assert_eq!((last.status(), last.text().as_str()), (200, "done"));
    assert_eq!(seen.only().text(), "hello");
    // The refusal reaches a client whether or not it was told to go on.
    answers.stream().write_all(head("/refused").as_bytes()).unwrap();
    let mut refusal = answers.response(false).unwrap();
    if refusal.status() == 100 {
        refusal = answers.response(false).unwrap();
    }
    assert_eq!(refusal.start, "HTTP/1.1 417 No");
}

#[test]
fn http_1_0_is_served_with_and_without_keep_alive_and_leaves_as_1_1_with_a_host() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let seen = wire::origin(&service.server, 8080, |_| {
        b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n".to_vec()
    });
    let old = talk::request(&service.client, vip(), "GET /a HTTP/1.0\r\n\r\n");
    assert_eq!((old.status_line.as_str(), old.body.as_str()), ("HTTP/1.0 200 Fine", "hi"), "{old:?}");
    assert_eq!(old.field("transfer-encoding"), None, "HTTP/1.0 has no chunks");
    let request = seen.only();
    assert_eq!((request.start.as_str(), request.field("host")), ("GET /a HTTP/1.1", Some("10.96.0.1:80")));
    let named = talk::request(&service.client, vip(), "POST /b HTTP/1.0\r\nHost: api\r\nContent-Length: 2\r\n\r\nab");
    assert_eq!(named.body, "hi");
    let request = seen.only();
    assert_eq!((request.field("host"), request.text().as_str()), (Some("api"), "ab"));
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    wire::origin(&service.server, 8080, |request| wire::ok(&format!("{} {}", request.target(), request.text())));
    let requests: String = (0..50)
        .map(|number| match number % 3 {
            0 => format!("GET /{number} HTTP/1.1\r\nHost: api\r\n\r\n"),
            1 => format!("POST /{number} HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nab"),
            _ => format!(
                "POST /{number} HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
            ),
        })
        .collect();
    let mut stream = talk::connect(&service.client, vip());
    stream.write_all(requests.as_bytes()).unwrap();
    let mut answers = Reader::new(stream);
    for number in 0..50 {
        let body = if number % 3 == 0 { "" } else { "ab" };
        assert_eq!(answers.response(false).unwrap().text(), format!("/{number} {body}"));
    }
}

#[test]
fn a_client_that_closes_its_sending_side_is_still_answered() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    wire::origin(&service.server, 8080, |_| wire::ok("answered"));
    let request = "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nab";
    let answer = talk::exchange_half_closed(&service.client, vip(), request);
    assert_eq!(talk::Response::parse(&answer).body, "answered");
}

#[test]
fn an_upgraded_connection_carries_bytes_both_ways_to_its_end() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh);
    let seen = Record::default();
    let record = seen.clone();
    origin::tcp(&service.server, 8080, move |stream| {
        let mut requests = Reader::new(stream);
        record.push(requests.request());
        // The first bytes of the new protocol come in the same segment as the end of the old one.
        let switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello";
        requests.stream().write_all(switched).unwrap();
        let said = requests.rest();
        requests.stream().write_all(&said).unwrap();
    });
    let mut stream = talk::connect(&service.client, vip());
    let upgrade = "GET /chat HTTP/1.1\r\nHost: api\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).unwrap();
    let mut answers = Reader::new(stream);
    let switched = answers.response(false).unwrap();
    assert_eq!(switched.start, "HTTP/1.1 101 Switching Protocols");
    assert_eq!(switched.field("upgrade"), Some("websocket"), "{switched:?}");
    assert_eq!(switched.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(answers.bytes(5).unwrap(), b"hello");
    let said = octets(1_000_000);
    answers.stream().write_all(&said).unwrap();
    answers.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(answers.rest(), said, "echoed once the client has ended, so each side's end travels alone");
    let request = seen.only();
    assert_eq!((request.field("upgrade"), request.field("sec-websocket-version")), (Some("websocket"), Some("13")));
    assert!(request.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")), "{request:?}");
}

#[test]
fn an_upgrade_the_application_does_not_want_is_an_ordinary_request() {
    let mesh = Mesh::new();
    let both = Both::new(&mesh);
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    both.assert_same(get(fields), "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 3\r\n\r\nno\n");
}
