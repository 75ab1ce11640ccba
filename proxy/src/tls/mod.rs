//! Mutual TLS between sidecars: TLS 1.3, workload identity on both ends, told from the application's own TLS by
//! ALPN.
//!
//! A sidecar *offers* a `heddle-*` name in front of the ordinary one, and the ordinary one is *negotiated*: the
//! server tells a sidecar by what it offers, and Envoy, which picks its codec by what was negotiated, fits on either
//! side. Certificates and verification are `heddle-certs`'; here they meet connections.

mod accept;
mod control_plane;
mod dial;
pub mod hello;
mod identity;
pub mod unverified;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use accept::accept;
pub use control_plane::{ControlPlane, Error as ControlPlaneError};
pub use dial::dial;
use heddle_certs::peer::peer_identity;
use heddle_certs::verify;
pub use hello::Hello;
pub use identity::{Current, Held};
use rustls::pki_types::CertificateDer;
use rustls::{CommonState, HandshakeKind};

/// What a connection between sidecars carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Alpn {
    /// What the client offers, first choice first.
    pub fn offered(self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = match self {
            Self::Http1 => &[b"heddle-http/1.1", b"http/1.1"],
            Self::Http2 => &[b"heddle-h2", b"h2"],
            Self::Tcp => &[b"heddle-tcp"],
        };
        names.iter().map(|name| name.to_vec()).collect()
    }

    /// The one name a server may answer with.
    pub fn negotiated(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
            Self::Tcp => b"heddle-tcp",
        }
    }

    /// What a negotiated name says.
    pub fn from_negotiated(name: Option<&[u8]>) -> Option<Self> {
        [Self::Http1, Self::Http2, Self::Tcp].into_iter().find(|alpn| Some(alpn.negotiated()) == name)
    }
}

/// Who is at the other end of a mutual TLS connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// SPIFFE ID.
    pub principal: Arc<str>,
    /// Kubernetes namespace in it.
    pub namespace: Option<Arc<str>>,
    /// SHA-256 of the leaf certificate, hexadecimal.
    pub certificate_hash: String,
    /// When the connection must end: an hour after the leaf expired.
    pub ends: Instant,
    /// The handshake was a resumption.
    pub resumed: bool,
}

/// Why a handshake gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This workload has no certificate yet.
    #[error("this sidecar has no certificate yet; can it reach the control plane?")]
    NoCertificate,
    /// What TLS said, or the network.
    #[error("TLS handshake failed: {0}")]
    Handshake(#[from] std::io::Error),
    /// The configuration cannot be made.
    #[error("TLS configuration: {0}")]
    Config(#[from] rustls::Error),
    /// It took too long.
    #[error("TLS handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// Another ALPN name than a sidecar answers.
    #[error("the peer negotiated ALPN {0:?}, which no sidecar does")]
    Alpn(String),
    /// The certificate names no workload.
    #[error("peer certificate: {0}")]
    Peer(#[from] heddle_certs::peer::Error),
    /// A resumed session's certificate is no longer good.
    #[error("resumed session: {0}")]
    Resumed(verify::Error),
}

impl Error {
    /// As metrics name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Handshake(_) => "handshake",
            Self::Config(_) => "config",
            Self::Timeout => "timeout",
            Self::Alpn(_) => "alpn",
            Self::Peer(_) => "peer",
            Self::Resumed(_) => "resumed",
        }
    }
}

/// Who the other end of a finished handshake is. A resumed session skipped verification, so its chain is verified
/// again by `recheck`, at the time of now.
fn peer(
    connection: &CommonState,
    recheck: impl FnOnce(&[CertificateDer<'_>], SystemTime) -> Result<(), verify::Error>,
) -> Result<Peer, Error> {
    let chain = connection.peer_certificates().unwrap_or_default();
    let now = SystemTime::now();
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    if resumed {
        recheck(chain, now).map_err(Error::Resumed)?;
    }
    let peer = peer_identity(chain)?;
    let left = peer.not_after.duration_since(now).unwrap_or_default() + AFTER_EXPIRY;
    Ok(Peer {
        principal: peer.id.to_string().into(),
        namespace: Some(peer.id.namespace().into()),
        certificate_hash: peer.certificate_hash_hex(),
        // A certificate from the far future must not overflow the clock.
        ends: Instant::now() + left.min(LONGEST_CONNECTION),
        resumed,
    })
}

/// How long a connection may outlive its peer's certificate. Chosen: far above any request, far below a leaf's life.
const AFTER_EXPIRY: Duration = Duration::from_secs(3600);
/// A year: no connection lives longer.
const LONGEST_CONNECTION: Duration = Duration::from_secs(365 * 24 * 3600);
/// Chosen: as the limit on the bytes that precede it; a client that stalls must not hold memory.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
