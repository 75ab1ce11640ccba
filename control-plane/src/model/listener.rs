//! An original destination as clients dial it, and what it leads to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use super::name::{ResourceName, ServiceName, SourceRef, WorkloadName};

/// One port of a Service, or one address and port of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundListener {
    /// Whose port it is.
    pub owner: Owner,
    /// The port clients dial.
    pub port: u16,
    /// The port's name, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_name: Option<Arc<str>>,
    /// Where clients dial it: the Service's cluster IPs with this port, sorted. Empty for a headless Service, whose
    /// clients dial workloads directly; proxyless gRPC finds it by name all the same.
    pub addresses: Vec<SocketAddr>,
    /// How bytes are read.
    pub protocol: Protocol,
    /// Routes; `None` where the port can carry no HTTP ([`Protocol::Tcp`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRoutes>,
    /// Where opaque connections go; `None` where the port carries HTTP only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpRoutes>,
    /// Objects this was made from, sorted.
    pub sources: Vec<SourceRef>,
}

/// Whose port a listener is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// A Service.
    Service(ServiceName),
    /// A workload, dialled by its own address.
    Workload(WorkloadName),
}

/// Which route table a client gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoutes {
    /// For every client whose namespace is not in `consumers`: the producer's routes.
    pub table: ResourceName,
    /// By client namespace: the routes that namespace brought itself; they replace the producer's (GEP-1294,
    /// "Consumer routes").
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub consumers: BTreeMap<Arc<str>, ResourceName>,
}

/// Where the opaque connections of clients go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpRoutes {
    /// For every client whose namespace is not in `consumers`.
    #[serde(flatten)]
    pub everyone: Opaque,
    /// By client namespace: what that namespace's own TLSRoutes or TCPRoute say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub consumers: BTreeMap<Arc<str>, Opaque>,
}

/// What tells opaque connections apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Opaque {
    /// Nothing: they are shared by weight.
    Shares(Vec<TcpShare>),
    /// The server name a TLS client asks for (RFC 6066 §3), in lower case; `*.` before it: every name that ends so, of which
    /// the longest counts. Other connections are closed.
    ServerNames(BTreeMap<Arc<str>, Vec<TcpShare>>),
}

/// A share of opaque connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpShare {
    /// Relative to the others; 0 gets none. At most 1,000,000.
    pub weight: u32,
    /// The cluster; `None`: the reference is invalid, and this share is closed (Gateway API, `TCPRouteRule.backendRefs`).
    pub cluster: Option<ResourceName>,
}

impl OutboundListener {
    /// How bytes from clients in `namespace` are read: where they brought routes of their own to a port that declares
    /// nothing, those routes say what it carries.
    pub fn protocol_for(&self, namespace: &str) -> Protocol {
        let http = self.http.as_ref().is_some_and(|http| http.consumers.contains_key(namespace));
        let tcp = self.tcp.as_ref().is_some_and(|tcp| tcp.consumers.contains_key(namespace));
        match self.protocol {
            Protocol::Detect if http => Protocol::Http,
            Protocol::Detect if tcp => Protocol::Tcp,
            declared => declared,
        }
    }
}

impl TcpRoutes {
    /// Everything to one cluster.
    pub fn all_to(cluster: ResourceName) -> Self {
        let everyone = Opaque::Shares(vec![TcpShare { weight: 1, cluster: Some(cluster) }]);
        Self { everyone, consumers: BTreeMap::new() }
    }

    /// What holds for clients in `namespace`.
    pub fn for_client(&self, namespace: &str) -> &Opaque {
        self.consumers.get(namespace).unwrap_or(&self.everyone)
    }
}

impl HttpRoutes {
    /// The table for clients in `namespace`.
    pub fn for_client(&self, namespace: &str) -> &ResourceName {
        self.consumers.get(namespace).unwrap_or(&self.table)
    }
}

/// How bytes on a port are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// Not declared: decided per connection from its first bytes.
    Detect,
    /// HTTP/1.1 or HTTP/2, told apart by the preface; other bytes are refused.
    Http,
    /// HTTP/2 (gRPC included); other bytes are refused.
    Http2,
    /// Opaque: relayed, never parsed.
    Tcp,
}

impl Protocol {
    /// Whether requests may be found on such a port.
    pub fn may_be_http(self) -> bool {
        match self {
            Self::Detect | Self::Http | Self::Http2 => true,
            Self::Tcp => false,
        }
    }

    /// Whether opaque bytes may be found on such a port.
    pub fn may_be_opaque(self) -> bool {
        match self {
            Self::Detect | Self::Tcp => true,
            Self::Http | Self::Http2 => false,
        }
    }
}
