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
    /// The cluster for opaque bytes; `None` where the port carries HTTP only.
    pub tcp: Option<Arc<Cluster>>,
}
