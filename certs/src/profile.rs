//! Every field of every certificate Heddle makes, with the sentence of the specification it comes from.
//!
//! | Field | Root | Leaf (workload, control plane) | Source |
//! |---|---|---|---|
//! | version | 3 | 3 | RFC 5280 §4.1.2.1 |
//! | serialNumber | 126 random bits, positive, 16 octets | same | RFC 5280 §4.1.2.2: positive, at most 20 octets |
//! | signature | ecdsa-with-SHA256 | that of the signing key | RFC 5758 §3.2 |
//! | issuer | itself | subject of the signing certificate | RFC 5280 §4.1.2.4 |
//! | validity | from [`BACKDATE`] before now, 10 years by default | from [`BACKDATE`] before now, at most 24 h after now | RFC 5280 §4.1.2.5 |
//! | subject | O=Heddle, CN=Heddle root and 8 digits of the serial | empty | RFC 5280 §4.1.2.6; roots of one mesh stay distinguishable |
//! | subjectPublicKeyInfo | P-256 | the request's: P-256 or P-384 | RFC 5480 |
//! | subjectAltName | URI of the trust domain | one URI, the SPIFFE ID, critical since subject is empty; the control plane's also DNS names and addresses | X.509-SVID §2, §4.2; RFC 5280 §4.2.1.6 |
//! | keyUsage, critical | keyCertSign, cRLSign | digitalSignature | X.509-SVID §4.3; RFC 5280 §4.2.1.3 |
//! | extKeyUsage | none | serverAuth, clientAuth | X.509-SVID §4.4 |
//! | basicConstraints, critical | cA, pathLen 0 | cA false | X.509-SVID §4.1; RFC 5280 §4.2.1.9 |
//! | subjectKeyIdentifier | first 160 bits of SHA-256 over the subjectPublicKeyInfo | same | RFC 5280 §4.2.1.2 (any method that is unique per key), RFC 7093 §2 |
//! | authorityKeyIdentifier | its own | the signing certificate's | RFC 5280 §4.2.1.1 |
//!
//! Left out: name constraints on URIs (X.509-SVID §4.2 allows them, few verifiers read them), CRLs and OCSP (leaves
//! live hours), certificate policies. Called by [`crate::ca`]; what comes out is checked by [`crate::check`].

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType,
};

use crate::identity::{SpiffeId, TrustDomain};
use crate::{clock, crypto};

/// When a certificate is valid, both ends included, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Validity {
    /// From [`BACKDATE`] before `now` until `lifetime` after it, both rounded down to a second.
    pub(crate) fn starting(now: SystemTime, lifetime: Duration) -> Self {
        let now = clock::seconds(now);
        let not_before = clock::at(now.saturating_sub(BACKDATE.as_secs()));
        Self { not_before, not_after: clock::at(now.saturating_add(lifetime.as_secs())) }
    }
}

/// Why a field cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A time before 1970 or after 9999.
    #[error("certificate: {field} is outside the years X.509 can write (1970 to 9999); check the clock")]
    Time {
        /// notBefore or notAfter.
        field: &'static str,
    },
    /// A name that is not ASCII, not a DNS name, or empty.
    #[error("certificate: subjectAltName `{0}` is not a DNS name in ASCII")]
    Dns(String),
    /// No entropy for a serial number.
    #[error("certificate: no random serial number: the operating system gives no entropy")]
    Entropy,
}

/// A self-signed root of `trust_domain`.
pub(crate) fn root(trust_domain: &TrustDomain, validity: Validity) -> Result<CertificateParams, Error> {
    let serial = serial()?;
    let mut params = base(serial, validity)?;
    params.distinguished_name.push(DnType::OrganizationName, "Heddle");
    params.distinguished_name.push(DnType::CommonName, format!("Heddle root {}", crypto::hex(&serial[..4])));
    params.subject_alt_names = vec![SanType::URI(ascii(&trust_domain.to_uri())?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A leaf that is `id` and nobody else.
pub(crate) fn leaf(id: &SpiffeId, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = base(serial()?, validity)?;
    params.subject_alt_names = vec![SanType::URI(ascii(id.as_str())?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// A leaf for a server that is also reached by clients which check names: gRPC and Envoy for ADS, the API server for
/// webhooks.
pub(crate) fn server(
    id: &SpiffeId,
    dns_names: &[String],
    addresses: &[IpAddr],
    validity: Validity,
) -> Result<CertificateParams, Error> {
    let mut params = leaf(id, validity)?;
    for name in dns_names {
        let valid = rustls_pki_types::DnsName::try_from(name.as_str()).is_ok();
        if !valid {
            return Err(Error::Dns(name.clone()));
        }
        params.subject_alt_names.push(SanType::DnsName(ascii(name)?));
    }
    params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    Ok(params)
}

fn base(serial: [u8; SERIAL_BYTES], validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.not_before = clock::date(validity.not_before).ok_or(Error::Time { field: "notBefore" })?;
    params.not_after = clock::date(validity.not_after).ok_or(Error::Time { field: "notAfter" })?;
    params.serial_number = Some(serial.to_vec().into());
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Positive (first bit 0) and always 16 octets long (second bit 1).
fn serial() -> Result<[u8; SERIAL_BYTES], Error> {
    let mut serial = crypto::random::<SERIAL_BYTES>().map_err(|_| Error::Entropy)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

fn ascii(name: &str) -> Result<Ia5String, Error> {
    Ia5String::try_from(name).map_err(|_| Error::Dns(name.into()))
}

/// How far before now a certificate begins, so that a peer whose clock is behind accepts it. Chosen: clocks kept by
/// NTP differ by far less than a minute.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// Octets of a serial number. RFC 5280 §4.1.2.2 allows 20; CA/Browser Forum asks for at least 64 random bits.
pub(crate) const SERIAL_BYTES: usize = 16;
