//! What the mesh knows of one original destination.

use std::net::SocketAddr;
use std::sync::Arc;

use super::cluster::Cluster;
use super::route::RouteTable;

/// How bytes on a port are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Not declared: decided per connection from its first bytes.
    Detect,
    /// Declared HTTP (1.1 or 2, told apart by the HTTP/2 preface); other bytes are a protocol mismatch.
    Http,
    /// Declared HTTP/2 (gRPC included); other bytes are a protocol mismatch.
    Http2,
    /// Declared opaque: relayed, never parsed.
    Tcp,
}

/// One `outbound/<ip>:<port>`: a Service's port, or a workload's own address and port.
#[derive(Debug)]
pub struct Listener {
    /// The destination as the application dialled it.
    pub address: SocketAddr,
    /// Declared protocol of the port.
    pub protocol: Protocol,
    /// Routes for HTTP; `None` where the port can carry no HTTP ([`Protocol::Tcp`]).
    pub http: Option<Arc<RouteTable>>,
    /// Where opaque connections go; `None` where the port carries HTTP only.
    pub tcp: Option<Shares>,
}

/// Clusters by weight.
#[derive(Debug)]
pub struct Shares(Vec<Share>);

/// A share of opaque connections.
#[derive(Debug)]
pub struct Share {
    /// Relative to the others, above 0.
    pub weight: u32,
    /// `None`: the reference is invalid, and this share is closed (Gateway API, `TCPRouteRule.backendRefs`).
    pub cluster: Option<Arc<Cluster>>,
}

impl Shares {
    /// These shares; there is at least one.
    pub fn new(shares: Vec<Share>) -> Self {
        Self(shares)
    }

    /// The cluster of one connection.
    pub fn choose(&self, rng: &mut fastrand::Rng) -> Option<&Arc<Cluster>> {
        let [first, rest @ ..] = self.0.as_slice() else { return None };
        if rest.is_empty() {
            return first.cluster.as_ref();
        }
        let total: u32 = self.0.iter().map(|share| share.weight).sum();
        let mut ticket = rng.u32(..total.max(1));
        let chosen = self.0.iter().find(|share| {
            let hit = ticket < share.weight;
            ticket = ticket.saturating_sub(share.weight);
            hit
        });
        chosen?.cluster.as_ref()
    }

    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.0.iter().filter_map(|share| share.cluster.as_ref())
    }
}
