//! Mutual TLS between sidecars: identity arrives, modes hold, opaque and server-first protocols work with no setting,
//! and what cannot be trusted is refused.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::{Read, Write};
use std::sync::Arc;

use heddle_proxy::tables::cluster::Settings;
use heddle_proxy::tables::listener::Protocol;
use heddle_proxy::tables::policy::{Operation, Policy, PolicySet, Rule, Source, TextMatch};
use heddle_proxy::tables::{Port, TlsMode};
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::{eventually, metrics, origin, tables, talk};

const VIP: &str = "10.96.0.1:80";

/// Client and server with sidecars and certificates; `VIP` leads to the server's port 8080 over mutual TLS.
fn two_pods(mesh: &Mesh, outbound: Protocol, port: Port) -> (MeshPod, MeshPod) {
    let (mut client, mut server) = (mesh.pod("client", 2), mesh.pod("server", 3));
    server.meshed_sidecar(mesh, 1, tables::inbound("server", port));
    let mut known = tables::nothing("client");
    let endpoint = tables::meshed(server.v4(8080), &server.spiffe_id());
    let cluster = tables::cluster("api", vec![endpoint], Settings::default());
    tables::destination(&mut known, VIP.parse().unwrap(), outbound, tables::rule(vec![(1, cluster)]));
    client.meshed_sidecar(mesh, 1, known);
    (client, server)
}

fn strict() -> Port {
    tables::port(Protocol::Detect, TlsMode::Strict)
}

#[test]
fn the_application_sees_who_called_and_nobody_can_forge_it() {
    let mesh = Mesh::new();
    let (client, server) = two_pods(&mesh, Protocol::Detect, strict());
    origin::echo(&server, 8080, "server");
    let forged =
        "GET / HTTP/1.1\r\nHost: api\r\nX-Forwarded-Client-Cert: URI=spiffe://forged\r\nConnection: close\r\n\r\n";
    let response = talk::request(&client, VIP.parse().unwrap(), forged);
    assert_eq!(response.status(), 200, "{response:?}");
    let expected = format!("By={};Hash=", server.spiffe_id());
    assert!(response.body.contains(&expected), "{response:?}");
    assert!(response.body.contains(&format!("URI={}", client.spiffe_id())), "{response:?}");
    assert!(!response.body.contains("forged"), "{response:?}");
    eventually("the server's sidecar counts the caller's identity", || {
        let principal = format!("source_principal=\"{}\"", client.spiffe_id());
        let labels = [principal.as_str(), "connection_security_policy=\"mutual_tls\"", "source_namespace=\"shop\""];
        (metrics::sum(&metrics::page(&server), "heddle_requests_total", &labels) == 1.0).then_some(())
    });
}

#[test]
fn strict_refuses_plaintext_and_permissive_takes_it() {
    for (mode, answered) in [(TlsMode::Strict, false), (TlsMode::Permissive, true), (TlsMode::Disable, true)] {
        let mesh = Mesh::new();
        let (_client, server) = two_pods(&mesh, Protocol::Detect, tables::port(Protocol::Detect, mode));
        origin::echo(&server, 8080, "server");
        let stranger = mesh.pod("stranger", 9);
        let request = "GET / HTTP/1.1\r\nHost: api\r\nX-Forwarded-Client-Cert: forged\r\nConnection: close\r\n\r\n";
        let answer = String::from_utf8(talk::exchange(&stranger, server.v4(8080), request)).unwrap();
        assert_eq!(answer.starts_with("HTTP/1.1 200"), answered, "{mode:?}: {answer}");
        assert!(!answer.contains("forged"), "{answer}");
        if !answered {
            let labels = ["cause=\"tls_required\""];
            let name = "heddle_downstream_connections_refused_total";
            eventually("it is counted", || (metrics::sum(&metrics::page(&server), name, &labels) == 1.0).then_some(()));
        }
    }
}

#[test]
fn a_server_that_speaks_first_needs_no_setting_and_half_close_works() {
    for protocol in [Protocol::Detect, Protocol::Tcp] {
        let mesh = Mesh::new();
        let (client, server) = two_pods(&mesh, protocol, strict());
        origin::greets(&server, 8080, "220 ready\r\n");
        let mut stream = talk::connect(&client, VIP.parse().unwrap());
        let mut greeting = [0; 11];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        stream.write_all(b"quit").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(talk::read_to_end(&mut stream), b"QUIT");
        eventually("both count an opaque connection", || {
            let closed =
                |pod| metrics::sum(&metrics::page(pod), "heddle_tcp_connections_closed_total", &["cause=\"\""]);
            (closed(&client) == 1.0 && closed(&server) == 1.0).then_some(())
        });
    }
}

#[test]
fn a_client_that_speaks_first_with_other_bytes_is_relayed() {
    let mesh = Mesh::new();
    let (client, server) = two_pods(&mesh, Protocol::Detect, strict());
    origin::greets(&server, 8080, "");
    let answer = talk::exchange_half_closed(&client, VIP.parse().unwrap(), "GET key\r\n");
    assert_eq!(answer, b"GET KEY\r\n");
}

#[test]
fn http_from_a_slow_client_is_still_http() {
    let mesh = Mesh::new();
    let (client, server) = two_pods(&mesh, Protocol::Detect, strict());
    origin::echo(&server, 8080, "server");
    let mut stream = talk::connect(&client, VIP.parse().unwrap());
    // Silent until the tentative connection to the server is there.
    eventually("the server's sidecar sees the tentative connection", || {
        let page = metrics::page(&server);
        (metrics::sum(&page, "heddle_tls_handshakes_total", &["outcome=\"full\""]) >= 1.0).then_some(())
    });
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n").unwrap();
    let response = talk::Response::parse(&talk::read_to_end(&mut stream));
    assert!(response.body.contains("GET /slow"), "{response:?}");
    assert!(response.body.contains("x-forwarded-client-cert"), "{response:?}");
}

#[test]
fn the_applications_own_tls_is_relayed_and_wrapped_where_the_endpoint_is_meshed() {
    let mesh = Mesh::new();
    let (client, server) = two_pods(&mesh, Protocol::Detect, strict());
    origin::greets(&server, 8080, "");
    // A ClientHello without ALPN, as bytes; the origin shouts it back.
    let hello = [22, 3, 1, 0, 5, 1, 0, 0, 1, b'a'];
    let answer = talk::exchange_half_closed(&client, VIP.parse().unwrap(), hello);
    assert_eq!(answer, [22, 3, 1, 0, 5, 1, 0, 0, 1, b'A'], "through two sidecars");
    let stranger = mesh.pod("stranger", 9);
    let answer = talk::exchange_half_closed(&stranger, server.v4(8080), hello);
    assert!(answer.is_empty(), "STRICT refuses it without a sidecar: {answer:?}");
}

#[test]
fn a_server_with_another_identity_is_never_spoken_to_and_never_in_plaintext() {
    let mesh = Mesh::new();
    let (mut client, mut server) = (mesh.pod("client", 2), mesh.pod("server", 3));
    origin::echo(&server, 8080, "server");
    server.meshed_sidecar(&mesh, 1, tables::inbound("server", tables::port(Protocol::Detect, TlsMode::Permissive)));
    let mut known = tables::nothing("client");
    let endpoint = tables::meshed(server.v4(8080), "spiffe://mesh.test/ns/shop/sa/somebody-else");
    let cluster = tables::cluster("api", vec![endpoint], Settings::default());
    tables::destination(&mut known, VIP.parse().unwrap(), Protocol::Http, tables::rule(vec![(1, cluster)]));
    client.meshed_sidecar(&mesh, 1, known);
    let response = talk::get(&client, VIP.parse().unwrap(), "/");
    assert_eq!((response.status(), response.field("x-heddle-error")), (503, Some("tls_failure")), "{response:?}");
    assert_eq!(metrics::sum(&metrics::page(&server), "heddle_requests_total", &[]), 0.0);
}

#[test]
fn without_an_answer_of_the_control_plane_a_mesh_address_is_refused_and_others_are_relayed() {
    let mesh = Mesh::new();
    let (client, server) = two_pods(&mesh, Protocol::Detect, tables::port(Protocol::Detect, TlsMode::Permissive));
    origin::echo(&server, 8081, "server");
    let answer = talk::exchange(&client, server.v4(8081), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.is_empty(), "inside the mesh's networks: {}", String::from_utf8_lossy(&answer));
    eventually("it is counted", || {
        let name = "heddle_downstream_connections_refused_total";
        (metrics::sum(&metrics::page(&client), name, &["cause=\"config_unavailable\""]) == 1.0).then_some(())
    });
}

#[test]
fn policies_decide_requests_and_open_connections() {
    let deny_admin = Policy {
        name: "shop/admin".into(),
        dry_run: false,
        rules: vec![Rule {
            from: vec![Source { not_principals: vec![TextMatch::Exact("x".into())], ..Source::default() }],
            to: vec![Operation { paths: vec![TextMatch::Prefix("/admin".into())], ..Operation::default() }],
        }],
    };
    let policies = || PolicySet { deny: vec![], allow: vec![] };
    let mesh = Mesh::new();
    let port = Port { policies: PolicySet { deny: vec![deny_admin], ..policies() }, ..strict() };
    let (client, server) = two_pods(&mesh, Protocol::Detect, port);
    origin::echo(&server, 8080, "server");
    assert_eq!(talk::get(&client, VIP.parse().unwrap(), "/public").status(), 200);
    for path in ["/admin/x", "//admin", "/public/../admin", "/%61dmin", "/public/..%2fadmin"] {
        let response = talk::get(&client, VIP.parse().unwrap(), path);
        assert_eq!((response.status(), response.field("x-heddle-error")), (403, Some("denied")), "{path} {response:?}");
    }

    // Opaque bytes, first allowed, then revoked while the connection is open.
    let (mut client, mut server) = (mesh.pod("client", 4), mesh.pod("server", 5));
    origin::greets(&server, 8080, "hello");
    server.meshed_sidecar(&mesh, 1, tables::inbound("server", Port { policies: policies(), ..strict() }));
    let mut known = tables::nothing("client");
    let cluster =
        tables::cluster("api", vec![tables::meshed(server.v4(8080), &server.spiffe_id())], Settings::default());
    tables::destination(&mut known, VIP.parse().unwrap(), Protocol::Tcp, tables::rule(vec![(1, cluster)]));
    client.meshed_sidecar(&mesh, 1, known);
    let mut stream = talk::connect(&client, VIP.parse().unwrap());
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).unwrap();
    let deny_all = Policy { name: "shop/nobody".into(), dry_run: false, rules: vec![Rule::default()] };
    let denied = Port { policies: PolicySet { deny: vec![deny_all], allow: vec![] }, ..strict() };
    server.shared().tables.publish(tables::inbound("server", denied));
    assert_eq!(talk::read_to_end(&mut stream), b"", "the open connection is cut");
    let answer = talk::exchange(&client, VIP.parse().unwrap(), "x");
    assert_eq!(answer, b"", "a new one is refused");
}

#[test]
fn a_removed_root_ends_resumption() {
    let mesh = Mesh::new();
    let (client, server) = two_pods(&mesh, Protocol::Detect, strict());
    origin::greets(&server, 8080, "hi");
    let greeted = |client: &MeshPod| talk::exchange_half_closed(client, VIP.parse().unwrap(), "a");
    assert_eq!(greeted(&client), b"hiA");
    assert_eq!(greeted(&client), b"hiA");
    let resumed = |pod| metrics::sum(&metrics::page(pod), "heddle_tls_handshakes_total", &["outcome=\"resumed\""]);
    assert!(resumed(&server) >= 1.0, "the second handshake is a resumption");
    let other = Mesh::new();
    let identity = mesh.identity("server");
    server.shared().dialer.identity.replace(identity, Arc::clone(&other.bundle())).unwrap();
    let before = resumed(&server);
    assert_eq!(greeted(&client), b"", "the client's root is gone, its ticket is worth nothing");
    assert_eq!(resumed(&server), before);
}
