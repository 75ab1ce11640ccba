//! One Service with one endpoint, called over mutual TLS; everything about it can be set.

use std::net::SocketAddr;

use heddle_proxy::tables::cluster::Settings;
use heddle_proxy::tables::listener::Protocol;
use heddle_proxy::tables::route::Rule;
use heddle_proxy::tables::{Port, TlsMode};

use crate::pods::{Mesh, MeshPod};
use crate::tables;

/// The Service's address.
pub fn vip() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 1], 80))
}

/// Two pods with sidecars and certificates; [`vip`] leads from the client to the server's port 8080.
pub struct Service {
    /// Who calls.
    pub client: MeshPod,
    /// Who is called.
    pub server: MeshPod,
}

impl Service {
    /// HTTP is declared on both sides, mutual TLS is required, nothing else is set.
    pub fn new(mesh: &Mesh) -> Self {
        Self::with(mesh, Protocol::Http, tables::port(Protocol::Http, TlsMode::Strict), Settings::default(), |_| {})
    }

    /// With a declared protocol and settings for the client, a port for the server, and the rule adapted.
    pub fn with(
        mesh: &Mesh,
        outbound: Protocol,
        port: Port,
        settings: Settings,
        adapt: impl FnOnce(&mut Rule),
    ) -> Self {
        let (mut client, mut server) = (mesh.pod("client", 2), mesh.pod("server", 3));
        server.meshed_sidecar(mesh, 1, tables::inbound("server", port));
        let mut known = tables::nothing("client");
        let endpoint = tables::meshed(server.v4(8080), &server.spiffe_id());
        let mut rule = tables::rule(vec![(1, tables::cluster("api", vec![endpoint], settings))]);
        adapt(&mut rule);
        tables::destination(&mut known, vip(), outbound, rule);
        client.meshed_sidecar(mesh, 1, known);
        Self { client, server }
    }
}
