//! Certificate requests (PKCS #10, RFC 2986): making one beside a new key, and reading one from outside.
//!
//! Of a request only the public key is used. Its signature must prove that the sender holds the private key; a name
//! it asks for may only repeat the identity its sender was authorised for; everything else in it (subject, other
//! extensions, attributes) is ignored, never copied. Making is called by sidecar and agent, reading by the control
//! plane before [`crate::ca::Authority::sign`].

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use webpki::aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS9_EXTENSION_REQUEST, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_X509_EXT_SUBJECT_ALT_NAME,
};
use x509_parser::prelude::FromDer;

use crate::bundle::encode_pem;
use crate::identity::{self, SpiffeId};

/// A new key and the request that proves it. The key never leaves the process that made it.
pub struct KeyRequest {
    /// P-256, PKCS #8 (RFC 5958).
    pub key: PrivateKeyDer<'static>,
    /// DER, for `SignRequest.csr`.
    pub csr: Vec<u8>,
}

/// A request whose signature was verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Csr {
    public_key: rcgen::SubjectPublicKeyInfo,
    requested: Option<SpiffeId>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Over [`MAX_BYTES`].
    #[error("certificate request is {0} bytes; the limit is {MAX_BYTES}")]
    TooLarge(usize),
    /// Not PKCS #10, or bytes follow it.
    #[error("certificate request: {0}")]
    Malformed(&'static str),
    /// Another kind of key.
    #[error("certificate request: the public key is not ECDSA on P-256 or P-384; make one of these")]
    Key,
    /// Another signature algorithm.
    #[error("certificate request: signature algorithm {0} is not ecdsa-with-SHA256 or ecdsa-with-SHA384")]
    Algorithm(String),
    /// The sender does not hold the private key.
    #[error("certificate request: the signature does not match the public key in it")]
    Signature,
    /// It asks for names a workload cannot have.
    #[error("certificate request: subjectAltName must be absent or one URI, the workload's SPIFFE ID; {0}")]
    Names(&'static str),
    /// Its URI is no mesh identity.
    #[error("certificate request: subjectAltName: {0}")]
    Identity(#[from] identity::Error),
    /// It asks to be somebody else.
    #[error("certificate request asks for `{requested}`, but its sender is authorised as `{authorised}`")]
    OtherIdentity {
        /// What it asks for.
        requested: SpiffeId,
        /// Who its sender is.
        authorised: SpiffeId,
    },
    /// No key could be made.
    #[error("no new key: {0}")]
    Generate(String),
}

impl KeyRequest {
    /// Makes a P-256 key and a request for `id`, with an empty subject.
    pub fn generate(id: &SpiffeId) -> Result<Self, Error> {
        let generate = |error: rcgen::Error| Error::Generate(error.to_string());
        let key = KeyPair::generate().map_err(generate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // A SpiffeId is ASCII, see identity.rs.
        let uri = id.as_str().try_into().map_err(generate)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let csr = params.serialize_request(&key).map_err(generate)?;
        Ok(Self { csr: csr.der().to_vec(), key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }

    /// The request as PEM, for tools.
    pub fn csr_pem(&self) -> String {
        encode_pem(PEM_LABEL, &self.csr)
    }
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").field("csr_bytes", &self.csr.len()).finish_non_exhaustive()
    }
}

impl Csr {
    /// Parses PEM with the label `CERTIFICATE REQUEST` (RFC 7468 §7), at most [`MAX_BYTES`].
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        if text.len() > MAX_BYTES {
            return Err(Error::TooLarge(text.len()));
        }
        let block = pem::parse(text).map_err(|_| Error::Malformed("not PEM (RFC 7468)"))?;
        if block.tag() != PEM_LABEL {
            return Err(Error::Malformed("the PEM label is not `CERTIFICATE REQUEST`"));
        }
        Self::from_der(block.contents())
    }

    /// Parses DER, at most [`MAX_BYTES`], and verifies its signature (proof of possession, RFC 2986 §3).
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        if der.len() > MAX_BYTES {
            return Err(Error::TooLarge(der.len()));
        }
        let Ok((rest, request)) = X509CertificationRequest::from_der(der) else {
            return Err(Error::Malformed("not PKCS #10 (RFC 2986) in DER"));
        };
        if !rest.is_empty() {
            return Err(Error::Malformed("bytes after the request"));
        }
        let spki = request.certification_request_info.subject_pki.raw;
        supported_key(&request)?;
        verify(&request, spki)?;
        let public_key = rcgen::SubjectPublicKeyInfo::from_der(spki).map_err(|_| Error::Key)?;
        Ok(Self { public_key, requested: requested(&request)? })
    }

    /// The identity it asks for, if it asks.
    pub fn requested(&self) -> Option<&SpiffeId> {
        self.requested.as_ref()
    }

    /// Errors if it asks for another identity than `authorised`.
    pub fn allow(&self, authorised: &SpiffeId) -> Result<(), Error> {
        match &self.requested {
            Some(requested) if requested != authorised => {
                Err(Error::OtherIdentity { requested: requested.clone(), authorised: authorised.clone() })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn public_key(&self) -> &rcgen::SubjectPublicKeyInfo {
        &self.public_key
    }
}

impl fmt::Debug for Csr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csr").field("requested", &self.requested).finish_non_exhaustive()
    }
}

fn supported_key(request: &X509CertificationRequest<'_>) -> Result<(), Error> {
    let algorithm = &request.certification_request_info.subject_pki.algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let known = curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384);
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && known { Ok(()) } else { Err(Error::Key) }
}

fn verify(request: &X509CertificationRequest<'_>, spki: &[u8]) -> Result<(), Error> {
    let oid = &request.signature_algorithm.algorithm;
    let algorithms = if *oid == OID_SIG_ECDSA_WITH_SHA256 {
        [ECDSA_P256_SHA256, ECDSA_P384_SHA256]
    } else if *oid == OID_SIG_ECDSA_WITH_SHA384 {
        [ECDSA_P256_SHA384, ECDSA_P384_SHA384]
    } else {
        return Err(Error::Algorithm(oid.to_id_string()));
    };
    let spki = SubjectPublicKeyInfoDer::from(spki);
    let key = webpki::RawPublicKeyEntity::try_from(&spki).map_err(|_| Error::Key)?;
    let message = request.certification_request_info.raw;
    let signature = &request.signature_value.data;
    // At most one of the two fits the key's curve; the other is refused before any arithmetic.
    let verified = algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok());
    if verified { Ok(()) } else { Err(Error::Signature) }
}

fn requested(request: &X509CertificationRequest<'_>) -> Result<Option<SpiffeId>, Error> {
    let attributes = request.certification_request_info.iter_attributes();
    let mut asks = attributes.filter(|attribute| attribute.oid == OID_PKCS9_EXTENSION_REQUEST);
    let Some(ask) = asks.next() else { return Ok(None) };
    if asks.next().is_some() {
        return Err(Error::Malformed("more than one extensionRequest attribute (RFC 2985 §5.4.2)"));
    }
    let ParsedCriAttribute::ExtensionRequest(ask) = ask.parsed_attribute() else {
        return Err(Error::Malformed("extensionRequest cannot be read"));
    };
    let mut found = ask.extensions.iter().filter(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    let Some(extension) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(Error::Names("it is there twice"));
    }
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        return Err(Error::Names("it is malformed"));
    };
    match names.general_names[..] {
        [GeneralName::URI(uri)] => Ok(Some(SpiffeId::parse(uri)?)),
        [_] => Err(Error::Names("it has a name of another kind")),
        _ => Err(Error::Names("it has another number of names")),
    }
}

/// Bytes of a request, DER or PEM. Chosen: one with a P-384 key and a SPIFFE ID of the greatest length has under 3 KiB.
pub const MAX_BYTES: usize = 16 * 1024;

/// RFC 7468 §7.
const PEM_LABEL: &str = "CERTIFICATE REQUEST";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::string::Ia5String;

    use super::*;

    fn id() -> SpiffeId {
        SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap()
    }

    fn asking(names: Vec<SanType>) -> Result<Csr, Error> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        Csr::from_der(params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der())
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(Ia5String::try_from(text).unwrap())
    }

    #[test]
    fn a_request_made_here_is_read_here_in_both_forms() {
        let request = KeyRequest::generate(&id()).unwrap();
        let der = Csr::from_der(&request.csr).unwrap();
        assert_eq!(Csr::from_pem(request.csr_pem().as_bytes()).unwrap(), der);
        assert_eq!(der.requested(), Some(&id()));
        der.allow(&id()).unwrap();
    }

    #[test]
    fn a_request_without_a_name_is_allowed_and_one_with_anothers_is_not() {
        asking(Vec::new()).unwrap().allow(&id()).unwrap();
        let admin = asking(vec![uri("spiffe://cluster.local/ns/shop/sa/admin")]).unwrap();
        assert!(matches!(admin.allow(&id()), Err(Error::OtherIdentity { .. })));
    }

    #[test]
    fn names_a_workload_cannot_have_are_refused() {
        assert!(matches!(asking(vec![uri(id().as_str()), uri(id().as_str())]), Err(Error::Names(_))));
        assert!(matches!(asking(vec![SanType::DnsName("a.b".try_into().unwrap())]), Err(Error::Names(_))));
        assert!(matches!(asking(vec![SanType::IpAddress([127, 0, 0, 1].into())]), Err(Error::Names(_))));
        assert!(matches!(asking(vec![uri("https://a/b")]), Err(Error::Identity(_))));
    }

    #[test]
    fn a_request_over_the_limit_or_with_bytes_behind_it_is_refused() {
        assert_eq!(Csr::from_der(&vec![0; MAX_BYTES + 1]), Err(Error::TooLarge(MAX_BYTES + 1)));
        let mut csr = KeyRequest::generate(&id()).unwrap().csr;
        csr.push(0);
        assert!(matches!(Csr::from_der(&csr), Err(Error::Malformed(_))));
    }

    #[test]
    fn a_key_that_is_not_the_signers_is_refused() {
        let (mut mine, other) = (KeyRequest::generate(&id()).unwrap().csr, KeyRequest::generate(&id()).unwrap().csr);
        // The uncompressed point (04 and 64 bytes) follows the curve's OID and the BIT STRING's header.
        let curve = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04];
        let at = mine.windows(curve.len()).position(|window| window == curve).unwrap() + curve.len();
        mine[at..at + 64].copy_from_slice(&other[at..at + 64]);
        assert_eq!(Csr::from_der(&mine), Err(Error::Signature));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Csr::from_der(&bytes).is_err());
        }

        #[test]
        fn no_changed_byte_is_accepted_with_another_meaning(at: prop::sample::Index, to: u8) {
            let mut csr = KeyRequest::generate(&id()).unwrap().csr;
            let at = at.index(csr.len());
            csr[at] = to;
            if let Ok(read) = Csr::from_der(&csr) {
                prop_assert_eq!(read.requested(), Some(&id()));
            }
        }
    }
}
