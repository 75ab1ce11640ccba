//! Who a certificate says its holder is: one SPIFFE ID, read strictly.
//!
//! Reads the leaf only and believes nothing: whether the chain leads to a trusted root, is in time and belongs to the
//! expected identity is [`crate::verify`]'s question. Called by the verifiers, by [`crate::credential`] and by the
//! proxy for what it logs and authorizes.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{self, SpiffeId};
use crate::{clock, crypto};

/// What a leaf says about its holder. Cheap to keep per connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The only URI in the leaf.
    pub id: SpiffeId,
    /// First second the leaf is valid.
    pub not_before: SystemTime,
    /// Last second the leaf is valid.
    pub not_after: SystemTime,
    /// Serial number, lower-case hexadecimal without separators.
    pub serial_hex: String,
    /// SHA-256 of the leaf's DER: `Hash=` in `x-forwarded-client-cert` is its hexadecimal.
    pub certificate_sha256: [u8; 32],
}

impl Peer {
    /// [`Peer::certificate_sha256`] as 64 lower-case hexadecimal digits.
    pub fn certificate_hash_hex(&self) -> String {
        crypto::hex(&self.certificate_sha256)
    }
}

/// Why a leaf names no workload (X.509-SVID §2, §4.1, §5.2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The chain has no certificate.
    #[error("certificate chain is empty; the leaf comes first")]
    Empty,
    /// The chain is over [`MAX_CHAIN`].
    #[error("certificate chain has {0} certificates; the limit is {MAX_CHAIN}")]
    TooLong(usize),
    /// The leaf is not one DER certificate.
    #[error("certificate (leaf): not an X.509 certificate in DER")]
    Malformed,
    /// The subject alternative names are there twice, or one cannot be read.
    #[error("certificate {serial}: subjectAltName is malformed or there more than once")]
    Names {
        /// Serial number, hexadecimal.
        serial: String,
    },
    /// Not exactly one URI.
    #[error("certificate {serial}: subjectAltName has {count} URIs; a SPIFFE certificate has exactly one")]
    Uris {
        /// Serial number, hexadecimal.
        serial: String,
        /// How many URIs there are.
        count: usize,
    },
    /// The URI is not a mesh identity.
    #[error("certificate {serial}: subjectAltName: {error}")]
    Identity {
        /// Serial number, hexadecimal.
        serial: String,
        /// What is wrong with the URI.
        error: identity::Error,
    },
    /// A certificate authority's certificate in the place of a leaf.
    #[error("certificate {serial}: {field} makes it an authority's; a workload's certificate must not sign others")]
    Authority {
        /// Serial number, hexadecimal.
        serial: String,
        /// The field that says so.
        field: &'static str,
    },
    /// keyUsage is not there or does not allow TLS signatures.
    #[error("certificate {serial}: keyUsage must contain digitalSignature")]
    KeyUsage {
        /// Serial number, hexadecimal.
        serial: String,
    },
}

/// Reads the first certificate of `chain` (DER, leaf first).
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Peer, Error> {
    if chain.len() > MAX_CHAIN {
        return Err(Error::TooLong(chain.len()));
    }
    let der = chain.first().ok_or(Error::Empty)?;
    let (rest, leaf) = X509Certificate::from_der(der).map_err(|_| Error::Malformed)?;
    if !rest.is_empty() {
        return Err(Error::Malformed);
    }
    let serial = crypto::hex(&leaf.serial.to_bytes_be());
    not_an_authority(&leaf, &serial)?;
    let uri = only_uri(&leaf, &serial)?;
    let id = SpiffeId::parse(uri).map_err(|error| Error::Identity { serial: serial.clone(), error })?;
    let second = |time: x509_parser::time::ASN1Time| clock::at(u64::try_from(time.timestamp()).unwrap_or(0));
    Ok(Peer {
        id,
        not_before: second(leaf.validity().not_before),
        not_after: second(leaf.validity().not_after),
        serial_hex: serial,
        certificate_sha256: crypto::sha256(der),
    })
}

/// X.509-SVID §4.1 and §4.3 for leaves.
fn not_an_authority(leaf: &X509Certificate<'_>, serial: &str) -> Result<(), Error> {
    let authority = |field| Error::Authority { serial: serial.into(), field };
    let constraints = leaf.basic_constraints().map_err(|_| Error::Malformed)?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(authority("basicConstraints cA=TRUE"));
    }
    let usage = leaf.key_usage().map_err(|_| Error::Malformed)?;
    let Some(usage) = usage else { return Err(Error::KeyUsage { serial: serial.into() }) };
    if usage.value.key_cert_sign() {
        return Err(authority("keyUsage keyCertSign"));
    }
    if usage.value.crl_sign() {
        return Err(authority("keyUsage cRLSign"));
    }
    if !usage.value.digital_signature() {
        return Err(Error::KeyUsage { serial: serial.into() });
    }
    Ok(())
}

/// X.509-SVID §2: exactly one URI; names of other kinds (the control plane's DNS names) may stand beside it.
fn only_uri<'a>(leaf: &'a X509Certificate<'_>, serial: &str) -> Result<&'a str, Error> {
    let malformed = || Error::Names { serial: serial.into() };
    let mut extensions = leaf.iter_extensions().filter(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    let Some(extension) = extensions.next() else { return Err(Error::Uris { serial: serial.into(), count: 0 }) };
    if extensions.next().is_some() {
        return Err(malformed());
    }
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { return Err(malformed()) };
    let mut uris = Vec::new();
    for name in &names.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(malformed()),
            _ => {}
        }
    }
    match uris[..] {
        [uri] => Ok(uri),
        _ => Err(Error::Uris { serial: serial.into(), count: uris.len() }),
    }
}

/// Certificates a chain may have: leaf and intermediates. Chosen: webpki builds paths of at most six issuers, and
/// deployed hierarchies have one or two.
pub const MAX_CHAIN: usize = 6;
