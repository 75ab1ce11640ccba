//! What the mesh knows of one original destination.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Sources;
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
    pub tcp: Option<Opaque>,
    /// What it was made from.
    pub sources: Sources,
}

/// What tells opaque connections apart.
#[derive(Debug)]
pub enum Opaque {
    /// Nothing.
    Shares(Shares),
    /// The server name a TLS client asks for; other connections are closed.
    ServerNames(ServerNames),
}

/// Shares by server name (RFC 6066 §3).
#[derive(Debug, Default)]
pub struct ServerNames {
    exact: HashMap<Box<str>, Shares>,
    /// Without the `*.` before them.
    wildcards: HashMap<Box<str>, Shares>,
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

impl Listener {
    /// Where connections go of which nothing but their destination is known.
    pub fn shares(&self) -> Option<&Shares> {
        match &self.tcp {
            Some(Opaque::Shares(shares)) => Some(shares),
            Some(Opaque::ServerNames(_)) | None => None,
        }
    }
}

impl Opaque {
    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let (alone, named) = match self {
            Self::Shares(shares) => (Some(shares), None),
            Self::ServerNames(names) => (None, Some(names.exact.values().chain(names.wildcards.values()))),
        };
        alone.into_iter().chain(named.into_iter().flatten()).flat_map(Shares::clusters)
    }
}

impl ServerNames {
    /// Adds `name`, in lower case; `*.` before it: every name that ends so.
    pub fn add(&mut self, name: &str, shares: Shares) {
        match name.strip_prefix("*.") {
            Some(end) => self.wildcards.insert(end.into(), shares),
            None => self.exact.insert(name.into(), shares),
        };
    }

    /// Where connections for `name`, in lower case, go: the longest that it ends with counts.
    pub fn find(&self, name: &str) -> Option<&Shares> {
        let ends = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        self.exact.get(name).or_else(|| ends.into_iter().find_map(|end| self.wildcards.get(end)))
    }
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

    /// Each of them.
    pub fn all(&self) -> &[Share] {
        &self.0
    }

    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.0.iter().filter_map(|share| share.cluster.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_name_counts_and_then_the_longest_end() {
        let mut names = ServerNames::default();
        for (weight, name) in [(1, "a.example.com"), (2, "*.example.com"), (3, "*.b.example.com"), (4, "*.com")] {
            names.add(name, Shares::new(vec![Share { weight, cluster: None }]));
        }
        let found = |name| names.find(name).map(|shares| shares.0[0].weight);
        assert_eq!(found("a.example.com"), Some(1));
        assert_eq!(found("x.a.example.com"), Some(2));
        assert_eq!(found("x.b.example.com"), Some(3));
        assert_eq!(found("b.example.com"), Some(2));
        assert_eq!(found("example.com"), Some(4));
        assert_eq!((found("com"), found(""), found("example.org")), (None, None, None));
    }
}
