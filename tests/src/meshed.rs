//! A client's pod and a server's pod, each with a sidecar, and what the two sidecars counted between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::cluster::Settings;
use heddle_proxy::tables::listener::Protocol;

use crate::pods::{Mesh, MeshPod};
use crate::{eventually, metrics, tables};

/// Two pods with sidecars and certificates. Nothing is set: every port is detected. The server's sidecar takes nothing
/// but mutual TLS.
pub struct Pair {
    /// Where clients run.
    pub client: MeshPod,
    /// Where the server runs.
    pub server: MeshPod,
    /// The Service's address, IPv4: leads to the same port of the server.
    pub vip: SocketAddr,
    /// The Service's address, IPv6.
    pub vip6: SocketAddr,
    // After the pods on it.
    _mesh: Mesh,
}

impl Pair {
    /// Two pods, `workers` threads in each sidecar, and a Service on `port`.
    pub fn new(workers: usize, port: u16) -> Self {
        let mesh = Mesh::new();
        let (mut client, mut server) = (mesh.pod("client", 2), mesh.pod("server", 3));
        server.meshed_sidecar(
            &mesh,
            workers,
            tables::inbound("server", tables::port(Protocol::Detect, TlsMode::Strict)),
        );
        let vip = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), port);
        let vip6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1)), port);
        let mut known = tables::nothing("client");
        for (service, endpoint) in [(vip, server.v4(port)), (vip6, server.v6(port))] {
            let endpoints = vec![tables::meshed(endpoint, &server.spiffe_id())];
            let rule = tables::rule(vec![(1, tables::cluster("api", endpoints, Settings::default()))]);
            tables::destination(&mut known, service, Protocol::Detect, rule);
        }
        client.meshed_sidecar(&mesh, workers, known);
        Self { client, server, vip, vip6, _mesh: mesh }
    }

    /// Waits until both sidecars have counted `count` requests of `protocol` (`http` or `grpc`) with these labels, all
    /// of them over mutual TLS, and nothing in plaintext.
    pub fn assert_requests(&self, protocol: &str, count: usize, labels: &[&str]) {
        let protocol = format!("protocol=\"{protocol}\"");
        let labels = [labels, &[protocol.as_str()]].concat();
        self.assert_counted("heddle_requests_total", count, &labels);
    }

    /// Waits until both sidecars have counted `count` opaque connections, all of them over mutual TLS, all ended
    /// without a failure, and no HTTP request at all.
    pub fn assert_connections(&self, count: usize) {
        self.assert_counted("heddle_tcp_connections_closed_total", count, &["cause=\"\"", "protocol=\"tcp\""]);
        for pod in [&self.client, &self.server] {
            let page = metrics::page(pod);
            let closed = metrics::sum(&page, "heddle_tcp_connections_closed_total", &[]);
            assert_eq!(closed, count as f64, "{}: others ended with a failure\n{page}", pod.pod.name);
            assert_eq!(metrics::sum(&page, "heddle_requests_total", &[]), 0.0, "{page}");
        }
    }

    /// Waits until both sidecars have counted `count` opaque connections, all of them over mutual TLS, and asks not how
    /// they ended: for programs that end them with a reset.
    pub fn assert_connections_began(&self, count: usize) {
        self.assert_counted("heddle_tcp_connections_opened_total", count, &["protocol=\"tcp\""]);
    }

    /// How many opaque connections the client's sidecar has seen begin, for programs that decide that themselves.
    pub fn connections_begun(&self) -> usize {
        metrics::sum(&metrics::page(&self.client), "heddle_tcp_connections_opened_total", &[]) as usize
    }

    fn assert_counted(&self, name: &str, count: usize, labels: &[&str]) {
        let principal = format!("source_principal=\"{}\"", self.client.spiffe_id());
        let secure = "connection_security_policy=\"mutual_tls\"";
        let outbound = [&["direction=\"outbound\"", secure], labels].concat();
        let inbound = [&["direction=\"inbound\"", secure, principal.as_str()], labels].concat();
        let mut last = [-1.0; 2];
        let what = format!("both sidecars count {count} of {name} with {labels:?}");
        eventually(&what, || {
            let pages = [metrics::page(&self.client), metrics::page(&self.server)];
            let counts = [metrics::sum(&pages[0], name, &outbound), metrics::sum(&pages[1], name, &inbound)];
            // Shown if the test fails.
            if counts != last {
                eprintln!("{name} {labels:?}: {counts:?}, wanted {count}");
                last = counts;
            }
            (counts == [count as f64; 2]).then_some(())
        });
        let page = metrics::page(&self.server);
        let handshakes =
            |outcome| metrics::sum(&page, "heddle_tls_handshakes_total", &["direction=\"inbound\"", outcome]);
        assert!(handshakes("outcome=\"full\"") >= 1.0, "{page}");
        assert_eq!(handshakes("outcome=\"failed\""), 0.0, "{page}");
        for page in [page, metrics::page(&self.client)] {
            let plain = metrics::sum(&page, name, &["connection_security_policy=\"none\""]);
            assert_eq!(plain, 0.0, "something went in plaintext\n{page}");
        }
    }
}
