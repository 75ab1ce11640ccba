//! Plaintext HTTP/1.1 through two sidecars with capture, tables written by hand: it arrives, both sidecars count it,
//! and what hyper lets through does not reach the application twice.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::{Read, Write};

use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::{eventually, metrics, origin, tables, talk};

use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::cluster::Settings;
use heddle_proxy::tables::listener::Protocol;

/// Client and server with `workers` each, the Service `10.96.0.1:80` and `[fd96::1]:80` leading to the server.
fn two_pods(mesh: &Mesh, workers: usize) -> (MeshPod, MeshPod) {
    let (mut client, mut server) = (mesh.pod("client", 2), mesh.pod("server", 3));
    origin::echo(&server, 8080, "server");
    server.sidecar(workers, tables::inbound("server", tables::port(Protocol::Http, TlsMode::Permissive)));
    let mut known = tables::nothing("client");
    for (vip, endpoint) in [(VIP4, server.v4(8080)), (VIP6, server.v6(8080))] {
        let cluster = tables::cluster("api", vec![tables::plain(endpoint)], Settings::default());
        tables::destination(&mut known, vip.parse().unwrap(), Protocol::Http, tables::rule(vec![(1, cluster)]));
    }
    client.sidecar(workers, known);
    (client, server)
}

const VIP4: &str = "10.96.0.1:80";
const VIP6: &str = "[fd96::1]:80";

#[test]
fn requests_arrive_over_both_families_and_both_sidecars_count_them() {
    for workers in [1, 3] {
        let mesh = Mesh::new();
        let (client, server) = two_pods(&mesh, workers);
        for vip in [VIP4, VIP6] {
            let response = talk::get(&client, vip.parse().unwrap(), "/hello?a=b");
            assert_eq!(response.status(), 200, "{response:?}");
            assert!(response.body.contains("GET /hello?a=b"), "{response:?}");
        }
        let counted = |page: String, direction: &str| {
            let labels = [direction, "response_code=\"200\"", "destination_service=\"api\""];
            metrics::sum(&page, "heddle_requests_total", &labels) == 2.0
        };
        eventually("both sidecars count two requests", || {
            let outbound = counted(metrics::page(&client), "direction=\"outbound\"");
            let inbound = counted(metrics::page(&server), "direction=\"inbound\"");
            (outbound && inbound).then_some(())
        });
    }
}

#[test]
fn a_connection_from_outside_to_the_sidecars_own_ports_is_closed_and_counted() {
    let mesh = Mesh::new();
    let (_, server) = two_pods(&mesh, 1);
    let stranger = mesh.pod("stranger", 9);
    for port in [15001, 15006] {
        let answer = talk::exchange(&stranger, server.v4(port), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    eventually("both are counted", || {
        let page = metrics::page(&server);
        let count = metrics::sum(&page, "heddle_downstream_connections_refused_total", &["cause=\"loop\""]);
        (count == 2.0).then_some(())
    });
}

#[test]
fn a_pod_reaches_itself_by_its_own_address_and_through_a_service() {
    let mesh = Mesh::new();
    let mut both = mesh.pod("both", 2);
    origin::echo(&both, 8080, "myself");
    let port = tables::port(Protocol::Http, TlsMode::Permissive);
    let mut known = tables::inbound("both", port);
    let cluster = tables::cluster("api", vec![tables::plain(both.v4(8080))], Settings::default());
    tables::destination(&mut known, VIP4.parse().unwrap(), Protocol::Http, tables::rule(vec![(1, cluster)]));
    both.sidecar(1, known);
    let through_service = talk::get(&both, VIP4.parse().unwrap(), "/vip");
    assert!(through_service.body.contains("GET /vip"), "{through_service:?}");
    let by_address = talk::get(&both, both.v4(8080), "/direct");
    assert!(by_address.body.contains("GET /direct"), "{by_address:?}");
}

#[test]
fn a_request_on_a_connection_whose_destination_was_forgotten_asks_for_it_again() {
    let mesh = Mesh::new();
    let (mut client, mut server) = (mesh.pod("client", 2), mesh.pod("server", 3));
    origin::echo(&server, 8080, "server");
    server.sidecar(1, tables::inbound("server", tables::port(Protocol::Http, TlsMode::Permissive)));
    let vip = VIP4.parse().unwrap();
    let known = || {
        let mut known = tables::nothing("client");
        let cluster = tables::cluster("api", vec![tables::plain(server.v4(8080))], Settings::default());
        tables::destination(&mut known, vip, Protocol::Http, tables::rule(vec![(1, cluster)]));
        known
    };
    let mut wishes = client.sidecar(1, known());
    let mut stream = talk::connect(&client, vip);
    let mut answered = || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        let mut rest = [0; 4096];
        let _ = stream.read(&mut rest).unwrap();
        String::from_utf8_lossy(&head).into_owned()
    };
    assert_eq!(answered(), "HTTP/1.1 200");
    client.shared().tables.publish(tables::nothing("client"));
    let shared = client.shared().clone();
    let again = known();
    let control_plane = std::thread::spawn(move || {
        let wish = wishes.blocking_recv();
        shared.tables.publish(again);
        wish
    });
    assert_eq!(answered(), "HTTP/1.1 200");
    assert_eq!(control_plane.join().unwrap(), Some(vip));
}
