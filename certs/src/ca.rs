//! One certificate authority: a signing key, its certificate, and the act of signing a request.
//!
//! Decides lifetimes and writes the profile; does not decide who the sender is (the control plane does, from its
//! token) nor which authority signs today ([`crate::slots`] does). Everything it signs passes [`crate::check`] before
//! it is handed out. Pure in `now`; randomness only for keys and serial numbers. Called by the control plane.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::bundle::{Bundle, certificate_pem, encode_pem};
use crate::credential::{self, Identity};
use crate::csr::{self, Csr};
use crate::identity::{self, SpiffeId, TrustDomain};
use crate::profile::{self, Validity};
use crate::{bundle, check, clock, crypto, verify};

/// A signing key with its certificate chain: a root made here, or what a user brought (a root, or an intermediate
/// with the certificates up to its root).
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    /// The certificate of the signing key; then, for an intermediate, those between it and the root.
    signers: Vec<CertificateDer<'static>>,
    /// Equal to the first signer unless that is an intermediate.
    root: CertificateDer<'static>,
    /// No leaf outlives the earliest end in the chain.
    not_after: SystemTime,
    not_before: SystemTime,
}

/// A signed leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// DER, leaf first, then intermediates; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's only identity.
    pub id: SpiffeId,
    /// First second of validity.
    pub not_before: SystemTime,
    /// Last second of validity.
    pub not_after: SystemTime,
    /// Lower-case hexadecimal.
    pub serial_hex: String,
}

/// Why nothing was signed or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request asks for somebody else.
    #[error(transparent)]
    Request(#[from] csr::Error),
    /// The identity belongs to another trust domain.
    #[error("`{id}` is not of trust domain `{trust_domain}`; this authority signs for no other")]
    TrustDomain {
        /// Who asks.
        id: SpiffeId,
        /// Whom the authority signs for.
        trust_domain: TrustDomain,
    },
    /// Less than [`MIN_LEAF_LIFETIME`] is left of the authority.
    #[error("authority of `{0}` ends in under {min} s; rotate the root", min = MIN_LEAF_LIFETIME.as_secs())]
    Ending(TrustDomain),
    /// Its certificate is not valid yet, so no peer would believe a leaf.
    #[error("authority of `{0}` is not valid yet; compare this machine's clock with notBefore of its certificates")]
    NotBegun(TrustDomain),
    /// A field cannot be written.
    #[error(transparent)]
    Profile(#[from] profile::Error),
    /// The certificate writer or the key generator failed.
    #[error("certificate for `{subject}` cannot be made: {reason}")]
    Make {
        /// Trust domain or identity.
        subject: String,
        /// What the library says.
        reason: String,
    },
    /// What was made is not what the profile says.
    #[error("refused its own work: {0}")]
    Check(#[from] check::Error),
    /// A loaded authority is not usable.
    #[error("authority of `{trust_domain}`: {what}: {reason}")]
    Load {
        /// Whom it would sign for.
        trust_domain: TrustDomain,
        /// `certificate chain` or `private key`.
        what: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The control plane's own name cannot be built.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The control plane's own chain and key do not fit together.
    #[error(transparent)]
    Credential(#[from] credential::Error),
    /// The root cannot be in a bundle.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
}

impl Authority {
    /// Makes a P-256 key and a self-signed root valid from a minute before `now` until `lifetime` after it.
    pub fn generate(trust_domain: &TrustDomain, lifetime: Duration, now: SystemTime) -> Result<Self, Error> {
        let make = |error: rcgen::Error| Error::Make { subject: trust_domain.to_string(), reason: error.to_string() };
        let validity = Validity::starting(now, lifetime);
        let key = KeyPair::generate().map_err(make)?;
        let params = profile::root(trust_domain, validity)?;
        let root = params.self_signed(&key).map_err(make)?.der().clone();
        check::root(&root, trust_domain, validity.not_before, validity.not_after)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            issuer: Issuer::new(params, key),
            signers: vec![root.clone()],
            root,
            not_before: validity.not_before,
            not_after: validity.not_after,
        })
    }

    /// Loads an authority. `chain` is PEM: the signing certificate first, then, if that is an intermediate, those up
    /// to and with the root. `key` is PEM, PKCS #8 or SEC 1 (P-256, P-384). Signs a probe and verifies it with webpki
    /// against the root, so a chain that could not serve anybody is refused here and not at the first handshake.
    pub fn from_pem(trust_domain: &TrustDomain, chain: &[u8], key: &[u8], now: SystemTime) -> Result<Self, Error> {
        let load = |what, reason: String| Error::Load { trust_domain: trust_domain.clone(), what, reason };
        let signers = read_chain(chain).map_err(|reason| load("certificate chain", reason))?;
        let key = std::str::from_utf8(key).map_err(|error| error.to_string());
        let key = key.and_then(|text| KeyPair::from_pem(text).map_err(|error| error.to_string()));
        let key = key.map_err(|reason| load("private key", reason))?;
        Self::assemble(trust_domain, signers, key, now)
    }

    fn assemble(
        trust_domain: &TrustDomain,
        mut signers: Vec<CertificateDer<'static>>,
        key: KeyPair,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let load = |what, reason: &str| Error::Load { trust_domain: trust_domain.clone(), what, reason: reason.into() };
        let Some(root) = signers.last().cloned() else { return Err(load("certificate chain", "it is empty")) };
        let first =
            EndEntityCert::try_from(&signers[0]).map_err(|error| load("certificate chain", &error.to_string()))?;
        if first.subject_public_key_info() != SubjectPublicKeyInfoDer::from(key.subject_public_key_info()) {
            return Err(load("private key", "it is not the key of the first certificate in the chain"));
        }
        let (not_before, not_after) = span(&signers).map_err(|reason| load("certificate chain", &reason))?;
        let issuer = Issuer::from_ca_cert_der(&signers[0], key);
        let issuer = issuer.map_err(|error| load("certificate chain", &error.to_string()))?;
        if signers.len() > 1 {
            signers.pop();
        }
        let authority = Self { trust_domain: trust_domain.clone(), issuer, signers, root, not_before, not_after };
        authority.probe(now)?;
        Ok(authority)
    }

    /// Signs a leaf of a throw-away key and verifies it as a peer would.
    fn probe(&self, now: SystemTime) -> Result<(), Error> {
        let probe = self.trust_domain.control_plane()?;
        let request = csr::KeyRequest::generate(&probe)?;
        // A loaded authority may be near its end or not yet begun; that is for `sign` to say, at its time.
        let at = now.clamp(self.not_before, self.not_after);
        let signed = self.finish(
            profile::leaf(&probe, Validity::starting(at, Duration::ZERO))?,
            Csr::from_der(&request.csr)?.public_key(),
            &probe,
        )?;
        let roots = Bundle::new(self.trust_domain.clone(), [self.root.clone()])?;
        let refused = |error: verify::Error| Error::Load {
            trust_domain: self.trust_domain.clone(),
            what: "certificate chain",
            reason: format!("a leaf it signs does not verify against its last certificate, the root: {error}"),
        };
        verify::recheck(&signed, &roots, at).map(|_| ()).map_err(refused)
    }

    /// Signs `request` for `id`, who was authenticated by the caller. The leaf lives `lifetime` from `now`, clamped to
    /// [`MIN_LEAF_LIFETIME`]..=[`MAX_LEAF_LIFETIME`], and never longer than the authority.
    pub fn sign(&self, request: &Csr, id: &SpiffeId, lifetime: Duration, now: SystemTime) -> Result<Signed, Error> {
        request.allow(id)?;
        let validity = self.validity(id, lifetime, now)?;
        let chain = self.finish(profile::leaf(id, validity)?, request.public_key(), id)?;
        self.checked(chain, id, &[], &[], validity)
    }

    /// Makes the control plane's own identity: SPIFFE ID `/ns/heddle-system/sa/heddle-control-plane`, and the names and
    /// addresses under which clients that check names reach it.
    pub fn issue_control_plane(
        &self,
        dns_names: &[String],
        addresses: &[IpAddr],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Identity, Error> {
        let id = self.trust_domain.control_plane()?;
        let make = |error: rcgen::Error| Error::Make { subject: id.to_string(), reason: error.to_string() };
        let key = KeyPair::generate().map_err(make)?;
        let validity = self.validity(&id, lifetime, now)?;
        let chain = self.finish(profile::server(&id, dns_names, addresses, validity)?, &key, &id)?;
        let signed = self.checked(chain, &id, dns_names, addresses, validity)?;
        Ok(Identity::new(signed.chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())?)
    }

    fn validity(&self, id: &SpiffeId, lifetime: Duration, now: SystemTime) -> Result<Validity, Error> {
        if id.trust_domain_str() != self.trust_domain.as_str() {
            return Err(Error::TrustDomain { id: id.clone(), trust_domain: self.trust_domain.clone() });
        }
        // In whole seconds, as certificates count.
        let now = clock::at(clock::seconds(now));
        if now < self.not_before {
            return Err(Error::NotBegun(self.trust_domain.clone()));
        }
        let left = self.not_after.duration_since(now).unwrap_or_default();
        if left < MIN_LEAF_LIFETIME {
            return Err(Error::Ending(self.trust_domain.clone()));
        }
        let lifetime = lifetime.clamp(MIN_LEAF_LIFETIME, MAX_LEAF_LIFETIME).min(left);
        Ok(Validity::starting(now, lifetime))
    }

    /// Signs; returns the chain a peer gets.
    fn finish(
        &self,
        params: rcgen::CertificateParams,
        key: &impl PublicKeyData,
        id: &SpiffeId,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let leaf = params.signed_by(key, &self.issuer);
        let leaf = leaf.map_err(|error| Error::Make { subject: id.to_string(), reason: error.to_string() })?;
        let intermediates = self.signers.iter().filter(|signer| **signer != self.root).cloned();
        Ok(std::iter::once(leaf.der().clone()).chain(intermediates).collect())
    }

    fn checked(
        &self,
        chain: Vec<CertificateDer<'static>>,
        id: &SpiffeId,
        dns_names: &[String],
        addresses: &[IpAddr],
        validity: Validity,
    ) -> Result<Signed, Error> {
        let Validity { not_before, not_after } = validity;
        let expected = check::Leaf { id, dns_names, addresses, not_before, not_after };
        check::leaf(&chain[0], &self.signers[0], &expected)?;
        let serial = EndEntityCert::try_from(&chain[0]).map(|leaf| crypto::hex(leaf.serial()));
        let serial_hex = serial.map_err(|error| Error::Make { subject: id.to_string(), reason: error.to_string() })?;
        Ok(Signed { id: id.clone(), not_before, not_after, serial_hex, chain })
    }

    /// Whom it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What peers must trust to believe its leaves: belongs in the bundle.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// First second at which the whole chain is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Last second at which the whole chain is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// SHA-256 of the root, 64 hexadecimal digits: names this authority in logs and status.
    pub fn root_hash_hex(&self) -> String {
        crypto::hex(&crypto::sha256(&self.root))
    }

    /// What [`Authority::from_pem`] reads: the signing certificate first, the root last.
    pub fn chain_pem(&self) -> String {
        let root = (self.signers[0] != self.root).then_some(&self.root);
        self.signers.iter().chain(root).map(|certificate| certificate_pem(certificate)).collect()
    }

    /// The signing key, PKCS #8 PEM: a secret.
    pub fn key_pem(&self) -> String {
        let key = self.issuer.key().serialized_der();
        let is_pkcs8 =
            matches!(rustls_pki_types::PrivateKeyDer::try_from(key), Ok(rustls_pki_types::PrivateKeyDer::Pkcs8(_)));
        encode_pem(if is_pkcs8 { "PRIVATE KEY" } else { "EC PRIVATE KEY" }, key)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Authority");
        debug.field("trust_domain", &self.trust_domain).field("root", &self.root_hash_hex()).finish_non_exhaustive()
    }
}

/// How long a leaf lives when its requester says nothing (`lifetime_seconds` 0) or `seconds`; for a control plane
/// whose default is `default`.
pub fn requested_lifetime(seconds: u32, default: Duration) -> Duration {
    let asked = if seconds == 0 { default } else { Duration::from_secs(seconds.into()) };
    asked.clamp(MIN_LEAF_LIFETIME, MAX_LEAF_LIFETIME)
}

fn read_chain(chain: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if chain.len() > bundle::MAX_PEM_BYTES {
        return Err(format!("it is {} bytes; the limit is {}", chain.len(), bundle::MAX_PEM_BYTES));
    }
    let blocks = pem::parse_many(chain).map_err(|error| format!("not PEM (RFC 7468): {error}"))?;
    if let Some(block) = blocks.iter().find(|block| block.tag() != "CERTIFICATE") {
        return Err(format!("a PEM block is `{}`; only `CERTIFICATE` belongs here", block.tag()));
    }
    if blocks.len() > crate::peer::MAX_CHAIN {
        return Err(format!("it has {} certificates; the limit is {}", blocks.len(), crate::peer::MAX_CHAIN));
    }
    Ok(blocks.into_iter().map(|block| CertificateDer::from(block.into_contents())).collect())
}

/// When all of `chain` is valid.
fn span(chain: &[CertificateDer<'_>]) -> Result<(SystemTime, SystemTime), String> {
    let (mut from, mut until) = (SystemTime::UNIX_EPOCH, clock::at(clock::LAST_SECOND));
    for der in chain {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let second = |time: x509_parser::time::ASN1Time| clock::at(u64::try_from(time.timestamp()).unwrap_or(0));
        from = from.max(second(certificate.validity().not_before));
        until = until.min(second(certificate.validity().not_after));
    }
    if from > until { Err("its certificates are never valid at the same time".into()) } else { Ok((from, until)) }
}

/// Life of a leaf unless asked otherwise, and at most. Design: 24 h, so that a stolen key is useless in a day.
pub const MAX_LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Shortest life of a leaf. Chosen: renewal at half of it still leaves room for several tries.
pub const MIN_LEAF_LIFETIME: Duration = Duration::from_secs(30);

/// Life of a root made here. Chosen: 10 years, as other meshes; rotation does not wait for its end.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::csr::KeyRequest;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(2_000_000_000_700)
    }

    fn second(at: SystemTime) -> u64 {
        clock::seconds(at) - 2_000_000_000
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("cluster.local").unwrap()
    }

    fn id(account: &str) -> SpiffeId {
        SpiffeId::new(&domain(), "shop", account).unwrap()
    }

    fn request(account: &str) -> Csr {
        Csr::from_der(&KeyRequest::generate(&id(account)).unwrap().csr).unwrap()
    }

    fn authority(seconds: u64) -> Authority {
        Authority::generate(&domain(), Duration::from_secs(seconds), now()).unwrap()
    }

    fn signed(authority: &Authority, seconds: u64) -> Result<Signed, Error> {
        authority.sign(&request("cart"), &id("cart"), Duration::from_secs(seconds), now())
    }

    #[test]
    fn a_leaf_lives_what_was_asked_between_half_a_minute_and_a_day() {
        let ca = authority(1_000_000);
        let life = |asked| second(signed(&ca, asked).unwrap().not_after);
        assert_eq!((life(60), life(1), life(1_000_000)), (60, 30, 86_400));
        assert_eq!(signed(&ca, 60).unwrap().not_before, clock::at(2_000_000_000 - 60));
        assert_eq!(requested_lifetime(0, Duration::from_secs(60)), Duration::from_secs(60));
        assert_eq!(requested_lifetime(u32::MAX, MAX_LEAF_LIFETIME), MAX_LEAF_LIFETIME);
    }

    #[test]
    fn no_leaf_outlives_its_root_and_a_root_about_to_end_signs_nothing() {
        assert_eq!(second(signed(&authority(100), 3600).unwrap().not_after), 100);
        assert!(matches!(signed(&authority(29), 3600), Err(Error::Ending(_))));
    }

    #[test]
    fn nobody_is_signed_as_somebody_else_or_for_another_trust_domain() {
        let ca = authority(1000);
        let other = ca.sign(&request("admin"), &id("cart"), MAX_LEAF_LIFETIME, now());
        assert!(matches!(other, Err(Error::Request(csr::Error::OtherIdentity { .. }))));
        let foreign = SpiffeId::parse("spiffe://other/ns/shop/sa/cart").unwrap();
        let csr = Csr::from_der(&KeyRequest::generate(&foreign).unwrap().csr).unwrap();
        let refused = ca.sign(&csr, &foreign, MAX_LEAF_LIFETIME, now());
        assert!(matches!(refused, Err(Error::TrustDomain { .. })));
    }

    #[test]
    fn serial_numbers_differ() {
        let ca = authority(1000);
        let (a, b) = (signed(&ca, 60).unwrap(), signed(&ca, 60).unwrap());
        assert_ne!(a.serial_hex, b.serial_hex);
        assert_eq!(a.serial_hex.len(), 32);
    }

    #[test]
    fn the_control_plane_has_its_names_beside_its_identity() {
        let names = ["heddle-control-plane.heddle-system.svc".to_owned()];
        let addresses = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        let made = authority(1000).issue_control_plane(&names, &addresses, MAX_LEAF_LIFETIME, now()).unwrap();
        assert_eq!(made.id().service_account(), "heddle-control-plane");
        let bad = authority(1000).issue_control_plane(&["a b".into()], &[], MAX_LEAF_LIFETIME, now());
        assert!(matches!(bad, Err(Error::Profile(profile::Error::Dns(_)))));
    }

    #[test]
    fn a_root_that_should_live_for_ever_ends_with_the_year_9999() {
        let ca = Authority::generate(&domain(), Duration::MAX, now()).unwrap();
        assert_eq!(ca.not_after(), clock::at(clock::LAST_SECOND));
        signed(&ca, 60).unwrap();
    }

    #[test]
    fn before_its_first_second_an_authority_signs_nothing() {
        let early = now() - Duration::from_secs(61);
        let refused = authority(1000).sign(&request("cart"), &id("cart"), MAX_LEAF_LIFETIME, early);
        assert!(matches!(refused, Err(Error::NotBegun(_))));
    }

    #[test]
    fn debug_output_has_no_key() {
        let ca = authority(1000);
        let key = ca.key_pem();
        let line = key.lines().nth(1).unwrap();
        assert!(!format!("{ca:?}").contains(line));
    }
}
