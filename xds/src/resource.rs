//! What travels: the four resource types, their type URLs, one encoded resource and its version, and the listener names a
//! sidecar subscribes to.
//!
//! A resource is encoded once, when the control plane builds it; every stream shares its bytes. This module does not look
//! inside them. Called by everything in this crate, by the control plane's emitters and by the sidecar's `sync`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

/// A resource type. The order of the variants is the order in which new and changed resources are delivered, so that what
/// is named arrives before what names it (xDS transport protocol, "Making updates eventually consistent").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `envoy.config.cluster.v3.Cluster`, CDS.
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`, EDS.
    Endpoints,
    /// `envoy.config.listener.v3.Listener`, LDS.
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`, RDS.
    Route,
}

impl Kind {
    /// Every kind, in the order of delivery for what is new or changed: CDS, EDS, LDS, RDS.
    pub const DELIVERY: [Kind; 4] = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Route];

    /// Every kind, in the order in which removals follow after all deliveries: what names others goes first.
    pub const REMOVAL: [Kind; 4] = [Kind::Listener, Kind::Route, Kind::Cluster, Kind::Endpoints];

    /// The type URL of this kind's `Any`.
    pub const fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => CLUSTER_TYPE_URL,
            Kind::Endpoints => ENDPOINTS_TYPE_URL,
            Kind::Listener => LISTENER_TYPE_URL,
            Kind::Route => ROUTE_TYPE_URL,
        }
    }

    /// The kind with this type URL; none for a type that is not carried here.
    pub fn from_type_url(url: &str) -> Option<Kind> {
        Kind::DELIVERY.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a first request without names means all of them, and a state-of-the-world response is the full state: true
    /// for LDS and CDS (xDS transport protocol, "How the client specifies what resources to return" and "Deleting
    /// resources").
    pub const fn is_root(self) -> bool {
        matches!(self, Kind::Listener | Kind::Cluster)
    }

    /// The short name used in metrics and logs: `cds`, `eds`, `lds`, `rds`.
    pub const fn short_name(self) -> &'static str {
        match self {
            Kind::Cluster => "cds",
            Kind::Endpoints => "eds",
            Kind::Listener => "lds",
            Kind::Route => "rds",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

/// One resource, encoded. Cloning it copies no bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The name clients subscribe to, at most [`crate::protocol::MAX_NAME_BYTES`] bytes.
    pub name: Arc<str>,
    /// Stable hash of `bytes`, and of what it goes [`with`](Self::with): 16 hexadecimal digits: the same on every replica and after every restart.
    pub version: Arc<str>,
    /// The message encoded: the `value` of the `Any` that travels.
    pub bytes: Bytes,
    /// The objects it was made from, each `<Kind>/<namespace>/<name>`. Stays on the server, for status.
    pub sources: Arc<[Arc<str>]>,
}

impl Resource {
    /// Encodes `message`. Its encoding has to be deterministic: a map field holds at most one entry, because prost's maps
    /// have no order.
    pub fn encode(name: impl Into<Arc<str>>, message: &impl Message, sources: impl Into<Arc<[Arc<str>]>>) -> Self {
        Self::from_bytes(name, message.encode_to_vec().into(), sources)
    }

    /// A resource from bytes that are encoded already.
    pub fn from_bytes(name: impl Into<Arc<str>>, bytes: Bytes, sources: impl Into<Arc<[Arc<str>]>>) -> Self {
        Self { name: name.into(), version: version_of(&bytes), bytes, sources: sources.into() }
    }

    /// This resource, delivered again whenever `other` changes: the version says both.
    pub fn with(self, other: &Self) -> Self {
        let version = version_of(format!("{} {}", self.version, other.version).as_bytes());
        Self { version, ..self }
    }
}

/// The listener that describes a workload's own inbound side.
pub const INBOUND: &str = "inbound";

/// Subscribes to every resource of a type (xDS transport protocol, "Wildcard").
pub const WILDCARD: &str = "*";

/// The listener name of an original destination: `outbound/10.0.0.1:80`, `outbound/[2001:db8::1]:80` (RFC 5952). An
/// IPv4-mapped IPv6 address is named as the IPv4 address it is; scope and flow label are left out.
pub fn outbound(destination: SocketAddr) -> String {
    let canonical = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    format!("{OUTBOUND_PREFIX}{canonical}")
}

/// The original destination a listener name stands for; none unless the name is exactly what [`outbound`] writes, so that
/// one destination has one name.
pub fn parse_outbound(name: &str) -> Option<SocketAddr> {
    let destination: SocketAddr = name.strip_prefix(OUTBOUND_PREFIX)?.parse().ok()?;
    (outbound(destination) == name).then_some(destination)
}

/// The version of an encoding: FNV-1a, 64 bits, as 16 hexadecimal digits.
pub fn version_of(bytes: &[u8]) -> Arc<str> {
    let mut hash = Fnv::new();
    hash.write(bytes);
    hash.version()
}

/// FNV-1a with 64 bits: stable over processes, machines and compilers, which the standard library's hasher is not
/// (draft-eastlake-fnv, section 2). Not against an adversary: only the control plane's own encodings are hashed.
#[derive(Clone, Debug)]
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Self {
        Self(FNV_OFFSET_BASIS)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    }

    pub(crate) fn version(&self) -> Arc<str> {
        format!("{:016x}", self.0).into()
    }
}

/// Type URL of listeners (LDS).
pub const LISTENER_TYPE_URL: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of route configurations (RDS).
pub const ROUTE_TYPE_URL: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Type URL of clusters (CDS).
pub const CLUSTER_TYPE_URL: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of endpoints (EDS).
pub const ENDPOINTS_TYPE_URL: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type URL of secrets (SDS). Not a [`Kind`]: it appears inside other resources and is not served here.
pub const SECRET_TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// What precedes the address in a listener name.
const OUTBOUND_PREFIX: &str = "outbound/";
/// 64-bit FNV offset basis (draft-eastlake-fnv, section 5).
const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
/// 64-bit FNV prime (draft-eastlake-fnv, section 5).
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::process::Command;

    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::core::v3::Metadata;
    use envoy_types::pb::google::protobuf::{Struct, Value, value};

    use super::*;

    #[test]
    fn hash_agrees_with_the_published_vectors() {
        assert_eq!(&*version_of(b""), "cbf29ce484222325");
        assert_eq!(&*version_of(b"a"), "af63dc4c8601ec8c");
        assert_eq!(&*version_of(b"foobar"), "85944171f73967e8");
    }

    #[test]
    fn outbound_names_are_read_back() {
        for (address, name) in [
            ("10.1.2.3:80", "outbound/10.1.2.3:80"),
            ("[2001:db8::1]:443", "outbound/[2001:db8::1]:443"),
            ("[2001:db8:0:0:1:0:0:1]:443", "outbound/[2001:db8::1:0:0:1]:443"),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(outbound(address), name);
            assert_eq!(parse_outbound(name), Some(address));
        }
        assert_eq!(outbound("[::ffff:10.0.0.1]:80".parse().unwrap()), "outbound/10.0.0.1:80");
    }

    #[test]
    fn a_second_spelling_of_a_destination_is_no_name() {
        for name in [
            "outbound/[2001:DB8::1]:443",
            "outbound/[2001:db8:0::1]:443",
            "outbound/[::ffff:10.0.0.1]:80",
            "outbound/[fe80::1%2]:80",
            "outbound/10.0.0.1",
            "outbound/10.0.0.1:080",
            "outbound/",
            "inbound",
            "10.0.0.1:80",
        ] {
            assert_eq!(parse_outbound(name), None, "{name}");
        }
    }

    #[test]
    fn every_kind_is_found_by_its_type_url() {
        for kind in Kind::DELIVERY {
            assert_eq!(Kind::from_type_url(kind.type_url()), Some(kind));
        }
        assert_eq!(Kind::from_type_url(SECRET_TYPE_URL), None);
    }

    #[test]
    fn two_processes_give_one_encoding_the_same_version() {
        let here = sample().version;
        if let Ok(path) = std::env::var(CHILD) {
            std::fs::write(path, here.as_bytes()).unwrap();
            return;
        }
        let path = std::env::temp_dir().join(format!("heddle-xds-version-{}", std::process::id()));
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "resource::tests::two_processes_give_one_encoding_the_same_version"])
            .env(CHILD, &path)
            .status()
            .unwrap();
        let there = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(status.success());
        assert_eq!(*here, *there);
    }

    fn sample() -> Resource {
        let field = Value { kind: Some(value::Kind::StringValue("mtls".into())) };
        let metadata = Struct { fields: HashMap::from([("heddle".to_owned(), field)]) };
        let cluster = Cluster {
            name: "shop/cart:80".into(),
            metadata: Some(Metadata {
                filter_metadata: HashMap::from([("envoy.transport_socket_match".to_owned(), metadata)]),
                ..Metadata::default()
            }),
            ..Cluster::default()
        };
        Resource::encode("shop/cart:80", &cluster, [Arc::from("Service/shop/cart")])
    }

    /// Set for the second process: the file it writes its version to.
    const CHILD: &str = "HEDDLE_XDS_VERSION_FILE";
}
