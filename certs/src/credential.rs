//! What a workload holds to be somebody: chain, private key, and what the leaf says.
//!
//! Checks that key and chain belong together and that the leaf names a workload; whether the chain is trusted is the
//! peer's question. Made by sidecar, agent and control plane after a certificate was issued; used by [`crate::tls`].

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::bundle::{certificate_pem, encode_pem};
use crate::identity::SpiffeId;
use crate::peer::{self, Peer, peer_identity};
use crate::{crypto, rotate};

/// Chain and key of one workload. Cheap to clone; the key is not shown by `Debug`.
#[derive(Clone)]
pub struct Identity {
    peer: Peer,
    certified: Arc<CertifiedKey>,
    key: Arc<PrivateKeyDer<'static>>,
}

/// Why chain and key are no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The leaf names no workload.
    #[error(transparent)]
    Leaf(#[from] peer::Error),
    /// The key cannot be read, or is another one than the leaf's.
    #[error("private key of `{id}`: {error}")]
    Key {
        /// Who the leaf says it is.
        id: SpiffeId,
        /// What rustls says.
        error: rustls::Error,
    },
    /// PEM that is not what it should be.
    #[error("{what}: not PEM (RFC 7468): {error}")]
    Pem {
        /// `chain` or `private key`.
        what: &'static str,
        /// What the parser says.
        error: rustls_pki_types::pem::Error,
    },
}

impl Identity {
    /// Puts together `chain` (DER, leaf first, no root) and the leaf's private key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, Error> {
        let peer = peer_identity(&chain)?;
        let certified = CertifiedKey::from_der(chain, key.clone_key(), &crypto::provider());
        let certified = certified.map_err(|error| Error::Key { id: peer.id.clone(), error })?;
        Ok(Self { peer, certified: Arc::new(certified), key: Arc::new(key) })
    }

    /// Reads chain and key (PKCS #8, or SEC 1) from PEM text.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).take(peer::MAX_CHAIN + 1).collect();
        let certificates = certificates.map_err(|error| Error::Pem { what: "chain", error })?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| Error::Pem { what: "private key", error })?;
        Self::new(certificates, key)
    }

    /// Who this is.
    pub fn id(&self) -> &SpiffeId {
        &self.peer.id
    }

    /// DER, leaf first, no root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// First second the leaf is valid.
    pub fn not_before(&self) -> SystemTime {
        self.peer.not_before
    }

    /// Last second the leaf is valid.
    pub fn not_after(&self) -> SystemTime {
        self.peer.not_after
    }

    /// The leaf's serial number, lower-case hexadecimal.
    pub fn serial_hex(&self) -> &str {
        &self.peer.serial_hex
    }

    /// What peers read in the leaf.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// When to ask for the next one; `jitter` in 0..1, see [`rotate::renew_at`].
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        rotate::renew_at(self.peer.not_before, self.peer.not_after, jitter)
    }

    /// The chain as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        self.chain().iter().map(|certificate| certificate_pem(certificate)).collect()
    }

    /// The private key as PEM: a secret, for files with mode 0600 only.
    pub fn key_pem(&self) -> String {
        let label = match *self.key {
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        encode_pem(label, self.key.secret_der())
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("leaf", &self.peer).finish_non_exhaustive()
    }
}
