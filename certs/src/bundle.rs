//! The trust bundle: the roots a workload believes at this moment, and a version that is equal wherever they are.
//!
//! Holds one trust domain; bundles of foreign trust domains (federation) are left out. Does not decide which roots
//! belong in it: that is [`crate::slots`]. Called by the control plane (to send it), by the proxy (to verify with it)
//! and by the agent (to write it).

use std::fmt;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::TrustDomain;
use crate::{clock, crypto};

/// Roots of one trust domain: 1 to [`MAX_ROOTS`], no duplicates, in the order of their SHA-256. Immutable.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    roots: Vec<Root>,
    anchors: Vec<TrustAnchor<'static>>,
    version: String,
}

/// One root, with what is asked about it often.
#[derive(Clone, PartialEq, Eq)]
struct Root {
    der: CertificateDer<'static>,
    sha256: [u8; 32],
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why some bytes are no bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No root at all: everybody would be refused.
    #[error("trust bundle of `{0}`: no root; at least one is needed")]
    Empty(TrustDomain),
    /// More than [`MAX_ROOTS`].
    #[error("trust bundle: {0} roots; the limit is {MAX_ROOTS}")]
    TooMany(usize),
    /// A root or the whole text is over its limit.
    #[error("trust bundle: {what} is {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The PEM is broken.
    #[error("trust bundle: not PEM (RFC 7468): {0}")]
    Pem(String),
    /// A PEM block of another kind; a private key here would be a leak.
    #[error("trust bundle: PEM block {index} is `{label}`; only `CERTIFICATE` belongs here")]
    Label {
        /// Which block, from 1.
        index: usize,
        /// Its label.
        label: String,
    },
    /// A certificate that cannot be a root.
    #[error("trust bundle: root {index}: {reason}")]
    Root {
        /// Which certificate, from 1.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Bundle {
    /// Makes a bundle of roots (DER), in any order; duplicates are dropped.
    pub fn new<'a>(
        trust_domain: TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'a>>,
    ) -> Result<Self, Error> {
        let mut read = Vec::new();
        for (i, der) in roots.into_iter().enumerate() {
            read.push(Root::read(i + 1, der.into_owned())?);
            if read.len() > MAX_ROOTS * 2 {
                return Err(Error::TooMany(read.len()));
            }
        }
        read.sort_by_key(|root| root.sha256);
        read.dedup_by_key(|root| root.sha256);
        if read.is_empty() {
            return Err(Error::Empty(trust_domain));
        }
        if read.len() > MAX_ROOTS {
            return Err(Error::TooMany(read.len()));
        }
        let mut anchors = Vec::with_capacity(read.len());
        for (i, root) in read.iter().enumerate() {
            let unusable = |_| Error::Root { index: i + 1, reason: "webpki cannot use it as a trust anchor" };
            anchors.push(webpki::anchor_from_trusted_cert(&root.der).map_err(unusable)?.to_owned());
        }
        let version = version(&trust_domain, &read);
        Ok(Self { trust_domain, roots: read, anchors, version })
    }

    /// Parses PEM text, at most [`MAX_PEM_BYTES`]; text between blocks is ignored (RFC 7468 §2).
    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, Error> {
        if text.len() > MAX_PEM_BYTES {
            return Err(Error::TooLarge { what: "PEM text", bytes: text.len(), limit: MAX_PEM_BYTES });
        }
        let blocks = pem::parse_many(text).map_err(|error| Error::Pem(error.to_string()))?;
        for (i, block) in blocks.iter().enumerate() {
            if block.tag() != "CERTIFICATE" {
                return Err(Error::Label { index: i + 1, label: block.tag().into() });
            }
        }
        Self::new(trust_domain, blocks.into_iter().map(|block| CertificateDer::from(block.into_contents())))
    }

    /// PEM text with LF line ends, one block a root.
    pub fn to_pem(&self) -> String {
        self.roots().map(|root| certificate_pem(root)).collect()
    }

    /// The trust domain all these roots speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots, in the order of their SHA-256.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// 32 hexadecimal digits over trust domain and roots: the same bundle has the same version everywhere.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// When the first of the roots ends.
    pub fn first_end(&self) -> SystemTime {
        // Never empty, see `new`; with no root there would be nothing left to end.
        self.roots.iter().map(|root| root.not_after).min().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The anchors that are in time at `now`. webpki takes an anchor as trusted whatever its dates, so this is where
    /// an ended root stops to count.
    pub(crate) fn anchors_at(&self, now: SystemTime) -> std::borrow::Cow<'_, [TrustAnchor<'static>]> {
        let in_time = |root: &Root| root.not_before <= now && now <= root.not_after;
        if self.roots.iter().all(in_time) {
            return self.anchors.as_slice().into();
        }
        let pairs = self.roots.iter().zip(&self.anchors);
        pairs.filter(|(root, _)| in_time(root)).map(|(_, anchor)| anchor.clone()).collect::<Vec<_>>().into()
    }
}

impl Root {
    fn read(index: usize, der: CertificateDer<'static>) -> Result<Self, Error> {
        if der.len() > MAX_ROOT_BYTES {
            return Err(Error::TooLarge { what: "a root", bytes: der.len(), limit: MAX_ROOT_BYTES });
        }
        let bad = |reason| Error::Root { index, reason };
        let (rest, parsed) = X509Certificate::from_der(&der).map_err(|_| bad("not an X.509 certificate in DER"))?;
        if !rest.is_empty() {
            return Err(bad("bytes after the certificate"));
        }
        if !parsed.is_ca() {
            return Err(bad("basicConstraints is not cA=TRUE, so it cannot sign workloads"));
        }
        let usage = parsed.key_usage().map_err(|_| bad("keyUsage is malformed or there twice"))?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(bad("keyUsage lacks keyCertSign"));
        }
        let second = |time: x509_parser::time::ASN1Time| clock::at(u64::try_from(time.timestamp()).unwrap_or(0));
        let not_before = second(parsed.validity().not_before);
        let not_after = second(parsed.validity().not_after);
        Ok(Self { sha256: crypto::sha256(&der), not_before, not_after, der })
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots: Vec<String> = self.roots.iter().map(|root| crypto::hex(&root.sha256[..8])).collect();
        let mut debug = f.debug_struct("Bundle");
        debug.field("trust_domain", &self.trust_domain).field("version", &self.version).field("roots", &roots).finish()
    }
}

/// One certificate as a PEM block with LF line ends.
pub(crate) fn certificate_pem(der: &[u8]) -> String {
    encode_pem("CERTIFICATE", der)
}

/// One PEM block with LF line ends.
pub(crate) fn encode_pem(label: &str, der: &[u8]) -> String {
    pem::encode_config(&pem::Pem::new(label, der), pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

fn version(trust_domain: &TrustDomain, sorted: &[Root]) -> String {
    let mut bytes = trust_domain.as_str().as_bytes().to_vec();
    // 0 is in no trust domain, so name and hashes cannot run into each other.
    bytes.push(0);
    bytes.extend(sorted.iter().flat_map(|root| root.sha256));
    crypto::hex(&crypto::sha256(&bytes)[..16])
}

/// Roots in one bundle. Chosen: a rotation needs three; room for user roots, while a handshake tries each of them.
pub const MAX_ROOTS: usize = 32;

/// Bytes of one root, DER. Chosen: an RSA-4096 root has 2 KiB.
pub const MAX_ROOT_BYTES: usize = 16 * 1024;

/// Bytes of the PEM text. Chosen: what [`MAX_ROOTS`] large roots take in base64.
pub const MAX_PEM_BYTES: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::ca::{Authority, MAX_LEAF_LIFETIME};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("cluster.local").unwrap()
    }

    fn authority(seconds: u64) -> Authority {
        Authority::generate(&domain(), Duration::from_secs(seconds), now()).unwrap()
    }

    fn root() -> CertificateDer<'static> {
        authority(1000).root().clone()
    }

    #[test]
    fn order_and_duplicates_do_not_matter() {
        let (a, b) = (root(), root());
        let one = Bundle::new(domain(), [a.clone(), b.clone()]).unwrap();
        let other = Bundle::new(domain(), [b.clone(), a.clone(), b]).unwrap();
        assert_eq!((one.version(), one.roots().len()), (other.version(), 2));
        assert_eq!(one, other);
    }

    #[test]
    fn another_root_or_trust_domain_is_another_version() {
        let (a, b) = (root(), root());
        let versions = [
            Bundle::new(domain(), [a.clone()]).unwrap(),
            Bundle::new(domain(), [b]).unwrap(),
            Bundle::new(TrustDomain::parse("other").unwrap(), [a]).unwrap(),
        ];
        assert_ne!(versions[0].version(), versions[1].version());
        assert_ne!(versions[0].version(), versions[2].version());
    }

    #[test]
    fn a_bundle_round_trips_through_pem_with_text_around_it() {
        let bundle = Bundle::new(domain(), [root(), root()]).unwrap();
        let text = format!("# roots of the mesh\n{}# end\n", bundle.to_pem());
        assert_eq!(Bundle::from_pem(domain(), text.as_bytes()).unwrap(), bundle);
    }

    #[test]
    fn only_an_authoritys_certificates_are_roots() {
        let ca = authority(1000);
        let leaf = ca.issue_control_plane(&[], &[], MAX_LEAF_LIFETIME, now()).unwrap().chain()[0].clone();
        assert!(matches!(Bundle::new(domain(), [root(), leaf]), Err(Error::Root { index: 2, .. })));
        let junk = CertificateDer::from(vec![0x30, 0x00]);
        assert!(matches!(Bundle::new(domain(), [junk]), Err(Error::Root { index: 1, .. })));
        let mut trailing = root().to_vec();
        trailing.push(0);
        assert!(matches!(Bundle::new(domain(), [trailing.into()]), Err(Error::Root { .. })));
    }

    #[test]
    fn a_private_key_in_a_bundle_is_refused_by_its_label() {
        let ca = authority(1000);
        let text = format!("{}{}", ca.chain_pem(), ca.key_pem());
        let label = Error::Label { index: 2, label: "PRIVATE KEY".into() };
        assert_eq!(Bundle::from_pem(domain(), text.as_bytes()), Err(label));
    }

    #[test]
    fn empty_and_oversized_bundles_are_refused() {
        assert_eq!(Bundle::from_pem(domain(), b""), Err(Error::Empty(domain())));
        let large = vec![b'x'; MAX_PEM_BYTES + 1];
        assert!(matches!(Bundle::from_pem(domain(), &large), Err(Error::TooLarge { .. })));
        let many: Vec<_> = (0..=MAX_ROOTS).map(|_| root()).collect();
        assert_eq!(Bundle::new(domain(), many), Err(Error::TooMany(MAX_ROOTS + 1)));
    }

    #[test]
    fn a_root_is_an_anchor_only_in_its_time() {
        let (short, long) = (authority(100), authority(1000));
        let bundle = Bundle::new(domain(), [short.root().clone(), long.root().clone()]).unwrap();
        let anchors = |seconds| bundle.anchors_at(now() + Duration::from_secs(seconds)).len();
        assert_eq!((anchors(100), anchors(101), anchors(1001)), (2, 1, 0));
        assert_eq!(bundle.first_end(), now() + Duration::from_secs(100));
    }
}
