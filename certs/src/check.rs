//! An independent check of what was made: reads the finished bytes with other parsers (x509-parser, webpki) than the
//! writer and compares every field of [`crate::profile`]'s table. A bug in the writer stops the certificate here,
//! before anybody trusts it.
//!
//! Only for certificates this crate made: a user's own root may look otherwise. Called by [`crate::ca`] on everything
//! it signs, and by tests.

use std::net::IpAddr;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_SUBJECT_ALT_NAME, OID_X509_EXT_SUBJECT_KEY_IDENTIFIER, Oid,
};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use crate::identity::{SpiffeId, TrustDomain};
use crate::profile::{SERIAL_BYTES, Validity};
use crate::{clock, crypto};

/// A field that is not what the profile says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{certificate} certificate: {field} is {found}; expected {expected}")]
pub struct Error {
    /// `root` or `leaf`.
    pub certificate: &'static str,
    /// The field, as RFC 5280 spells it.
    pub field: &'static str,
    /// What is there.
    pub found: String,
    /// What the profile says.
    pub expected: String,
}

/// What a leaf must say. Everything else follows from the profile.
#[derive(Debug, Clone, Copy)]
pub struct Leaf<'a> {
    /// The one URI.
    pub id: &'a SpiffeId,
    /// DNS names, in order; empty for a workload.
    pub dns_names: &'a [String],
    /// Addresses, in order; empty for a workload.
    pub addresses: &'a [IpAddr],
    /// First second of validity.
    pub not_before: SystemTime,
    /// Last second of validity.
    pub not_after: SystemTime,
}

/// Checks a self-signed root made for `trust_domain`, valid from `not_before` until `not_after`.
pub fn root(
    der: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<(), Error> {
    let check = Check { certificate: "root" };
    let cert = check.parse(der)?;
    check.common(&cert, Validity { not_before, not_after })?;
    check.same("signature", cert.signature_algorithm.algorithm.to_id_string().as_str(), ECDSA_WITH_SHA256)?;
    check.same("issuer", cert.issuer().as_raw(), cert.subject().as_raw())?;
    check.that("subject", cert.subject().iter_rdn().next().is_some(), "empty", "O and CN")?;
    check.curve(&cert, &[OID_EC_P256])?;
    check.extensions(&cert, ROOT_EXTENSIONS)?;
    check.names(&cert, &[Name::Uri(trust_domain.to_uri())])?;
    check.key_usage(&cert, KEY_CERT_SIGN | CRL_SIGN)?;
    check.constraints(&cert, true, Some(0))?;
    let (subject, authority) = check.key_identifiers(&cert)?;
    check.same("authorityKeyIdentifier", authority, subject)?;
    let spki = SubjectPublicKeyInfoDer::from(cert.public_key().raw);
    let key = webpki::RawPublicKeyEntity::try_from(&spki);
    let signed = key.and_then(|key| {
        key.verify_signature(ECDSA_P256_SHA256, cert.tbs_certificate.as_ref(), &cert.signature_value.data)
    });
    check.that("signatureValue", signed.is_ok(), "wrong", "the root's own signature")
}

/// Checks a leaf signed by `issuer`.
pub fn leaf(der: &CertificateDer<'_>, issuer: &CertificateDer<'_>, expected: &Leaf<'_>) -> Result<(), Error> {
    let check = Check { certificate: "leaf" };
    let cert = check.parse(der)?;
    let signer = Check { certificate: "issuer" }.parse(issuer)?;
    check.common(&cert, Validity { not_before: expected.not_before, not_after: expected.not_after })?;
    check.same("issuer", cert.issuer().as_raw(), signer.subject().as_raw())?;
    check.that("subject", cert.subject().iter_rdn().next().is_none(), "not empty", "empty")?;
    check.curve(&cert, &[OID_EC_P256, OID_NIST_EC_P384])?;
    check.extensions(&cert, LEAF_EXTENSIONS)?;
    let mut names = vec![Name::Uri(expected.id.to_string())];
    names.extend(expected.dns_names.iter().cloned().map(Name::Dns));
    names.extend(expected.addresses.iter().copied().map(Name::Address));
    check.names(&cert, &names)?;
    check.key_usage(&cert, DIGITAL_SIGNATURE)?;
    check.extended_key_usage(&cert)?;
    check.constraints(&cert, false, None)?;
    let (_, authority) = check.key_identifiers(&cert)?;
    if let Ok((signer_identifier, _)) = (Check { certificate: "issuer" }).key_identifiers(&signer) {
        check.same("authorityKeyIdentifier", authority, signer_identifier)?;
    }
    signed_by(&check, der, issuer, expected.not_before)
}

/// webpki's opinion: signature, dates, purposes, critical extensions.
fn signed_by(
    check: &Check,
    der: &CertificateDer<'_>,
    issuer: &CertificateDer<'_>,
    at: SystemTime,
) -> Result<(), Error> {
    let algorithms = crypto::provider().signature_verification_algorithms.all;
    let verified = webpki::anchor_from_trusted_cert(issuer).and_then(|anchor| {
        let leaf = webpki::EndEntityCert::try_from(der)?;
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            leaf.verify_for_usage(algorithms, std::slice::from_ref(&anchor), &[], clock::unix(at), usage, None, None)?;
        }
        Ok(())
    });
    verified.map_err(|error| check.error("signatureValue", error.to_string(), "a chain webpki accepts".into()))
}

/// A subject alternative name.
#[derive(Debug, PartialEq)]
enum Name {
    Uri(String),
    Dns(String),
    Address(IpAddr),
    Other(String),
}

/// The checks of one certificate; carries its role for messages.
struct Check {
    certificate: &'static str,
}

impl Check {
    fn parse<'a>(&self, der: &'a [u8]) -> Result<X509Certificate<'a>, Error> {
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Ok(certificate),
            _ => Err(self.error("Certificate", "malformed".into(), "one DER certificate".into())),
        }
    }

    fn common(&self, cert: &X509Certificate<'_>, validity: Validity) -> Result<(), Error> {
        self.same("version", &cert.version(), &X509Version::V3)?;
        let positive = cert.raw_serial().first().is_some_and(|first| first & 0x80 == 0);
        self.that("serialNumber", positive, "negative", "positive")?;
        self.same("serialNumber (octets)", &cert.raw_serial().len(), &SERIAL_BYTES)?;
        self.same("signature (inner and outer)", &cert.signature, &cert.signature_algorithm)?;
        let dates = cert.validity();
        let second = |at| i64::try_from(clock::seconds(at)).unwrap_or(i64::MAX);
        self.same("notBefore", &dates.not_before.timestamp(), &second(validity.not_before))?;
        self.same("notAfter", &dates.not_after.timestamp(), &second(validity.not_after))?;
        let unique = cert.issuer_uid.is_none() && cert.subject_uid.is_none();
        self.that("uniqueIdentifiers", unique, "there", "absent")
    }

    fn curve(&self, cert: &X509Certificate<'_>, allowed: &[Oid<'_>]) -> Result<(), Error> {
        let algorithm = &cert.public_key().algorithm;
        let is_ec = algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY;
        self.that("subjectPublicKeyInfo.algorithm", is_ec, "another", "id-ecPublicKey")?;
        let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let known = curve.is_some_and(|curve| allowed.contains(&curve));
        self.that("subjectPublicKeyInfo.parameters", known, "another curve", "secp256r1 (leaf: or secp384r1)")
    }

    /// Exactly these extensions, each once, critical or not as the profile says.
    fn extensions(&self, cert: &X509Certificate<'_>, expected: &[(Oid<'_>, bool)]) -> Result<(), Error> {
        let written = |oid: &Oid<'_>, critical: bool| format!("{oid}{}", if critical { " critical" } else { "" });
        let mut found: Vec<_> = cert.iter_extensions().map(|x| written(&x.oid, x.critical)).collect();
        let mut wanted: Vec<_> = expected.iter().map(|(oid, critical)| written(oid, *critical)).collect();
        found.sort();
        wanted.sort();
        self.same("extensions", &found, &wanted)
    }

    fn names(&self, cert: &X509Certificate<'_>, expected: &[Name]) -> Result<(), Error> {
        let extension = self.extension(cert, "subjectAltName", &OID_X509_EXT_SUBJECT_ALT_NAME)?;
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return Err(self.error("subjectAltName", "malformed".into(), format!("{expected:?}")));
        };
        let found: Vec<Name> = names.general_names.iter().map(name).collect();
        self.same("subjectAltName", found.as_slice(), expected)
    }

    fn key_usage(&self, cert: &X509Certificate<'_>, expected: u16) -> Result<(), Error> {
        let extension = self.extension(cert, "keyUsage", &OID_X509_EXT_KEY_USAGE)?;
        let ParsedExtension::KeyUsage(usage) = extension.parsed_extension() else {
            return Err(self.error("keyUsage", "malformed".into(), format!("{expected:#x}")));
        };
        self.same("keyUsage", &usage.flags, &expected)
    }

    fn extended_key_usage(&self, cert: &X509Certificate<'_>) -> Result<(), Error> {
        let extension = self.extension(cert, "extKeyUsage", &OID_X509_EXT_EXTENDED_KEY_USAGE)?;
        let ParsedExtension::ExtendedKeyUsage(usage) = extension.parsed_extension() else {
            return Err(self.error("extKeyUsage", "malformed".into(), "serverAuth, clientAuth".into()));
        };
        let more = usage.any
            || usage.code_signing
            || usage.email_protection
            || usage.time_stamping
            || usage.ocsp_signing
            || !usage.other.is_empty();
        let exact = usage.server_auth && usage.client_auth && !more;
        self.that("extKeyUsage", exact, "another set", "serverAuth, clientAuth")
    }

    fn constraints(&self, cert: &X509Certificate<'_>, ca: bool, path: Option<u32>) -> Result<(), Error> {
        let extension = self.extension(cert, "basicConstraints", &OID_X509_EXT_BASIC_CONSTRAINTS)?;
        let ParsedExtension::BasicConstraints(constraints) = extension.parsed_extension() else {
            return Err(self.error("basicConstraints", "malformed".into(), format!("cA {ca}")));
        };
        self.same("basicConstraints.cA", &constraints.ca, &ca)?;
        self.same("basicConstraints.pathLenConstraint", &constraints.path_len_constraint, &path)
    }

    /// (subjectKeyIdentifier, authorityKeyIdentifier.keyIdentifier)
    fn key_identifiers<'a>(&self, cert: &'a X509Certificate<'_>) -> Result<(&'a [u8], &'a [u8]), Error> {
        let subject = self.extension(cert, "subjectKeyIdentifier", &OID_X509_EXT_SUBJECT_KEY_IDENTIFIER)?;
        let ParsedExtension::SubjectKeyIdentifier(subject) = subject.parsed_extension() else {
            return Err(self.error("subjectKeyIdentifier", "malformed".into(), "20 octets".into()));
        };
        self.same("subjectKeyIdentifier (octets)", &subject.0.len(), &KEY_IDENTIFIER_BYTES)?;
        let authority = self.extension(cert, "authorityKeyIdentifier", &OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER)?;
        match authority.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(x509_parser::extensions::AuthorityKeyIdentifier {
                key_identifier: Some(authority),
                ..
            }) => Ok((subject.0, authority.0)),
            _ => Err(self.error("authorityKeyIdentifier", "without a keyIdentifier".into(), "a keyIdentifier".into())),
        }
    }

    fn extension<'a, 'b>(
        &self,
        cert: &'a X509Certificate<'b>,
        field: &'static str,
        oid: &Oid<'_>,
    ) -> Result<&'a X509Extension<'b>, Error> {
        let absent = || self.error(field, "absent or there twice".into(), "there once".into());
        cert.get_extension_unique(oid).ok().flatten().ok_or_else(absent)
    }

    fn same<T: PartialEq + std::fmt::Debug + ?Sized>(
        &self,
        field: &'static str,
        found: &T,
        expected: &T,
    ) -> Result<(), Error> {
        if found == expected {
            return Ok(());
        }
        Err(self.error(field, format!("{found:?}"), format!("{expected:?}")))
    }

    fn that(&self, field: &'static str, holds: bool, found: &str, expected: &str) -> Result<(), Error> {
        if holds { Ok(()) } else { Err(self.error(field, found.into(), expected.into())) }
    }

    fn error(&self, field: &'static str, found: String, expected: String) -> Error {
        Error { certificate: self.certificate, field, found, expected }
    }
}

fn name(name: &GeneralName<'_>) -> Name {
    match name {
        GeneralName::URI(uri) => Name::Uri((*uri).into()),
        GeneralName::DNSName(dns) => Name::Dns((*dns).into()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => Name::Address(v4.into()),
            (_, Ok(v6)) => Name::Address(v6.into()),
            _ => Name::Other(format!("{name}")),
        },
        _ => Name::Other(format!("{name}")),
    }
}

/// RFC 5758 §3.2.
const ECDSA_WITH_SHA256: &str = "1.2.840.10045.4.3.2";

/// Octets: RFC 7093 §2.
const KEY_IDENTIFIER_BYTES: usize = 20;

// Bits of keyUsage (RFC 5280 §4.2.1.3) as x509-parser numbers them: bit n of the BIT STRING has the value 2^n.
const DIGITAL_SIGNATURE: u16 = 1;
const KEY_CERT_SIGN: u16 = 1 << 5;
const CRL_SIGN: u16 = 1 << 6;

/// (extension, critical), see the profile's table.
const ROOT_EXTENSIONS: &[(Oid<'static>, bool)] = &[
    (OID_X509_EXT_SUBJECT_ALT_NAME, false),
    (OID_X509_EXT_KEY_USAGE, true),
    (OID_X509_EXT_BASIC_CONSTRAINTS, true),
    (OID_X509_EXT_SUBJECT_KEY_IDENTIFIER, false),
    (OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, false),
];

/// (extension, critical), see the profile's table.
const LEAF_EXTENSIONS: &[(Oid<'static>, bool)] = &[
    (OID_X509_EXT_SUBJECT_ALT_NAME, true),
    (OID_X509_EXT_KEY_USAGE, true),
    (OID_X509_EXT_EXTENDED_KEY_USAGE, false),
    (OID_X509_EXT_BASIC_CONSTRAINTS, true),
    (OID_X509_EXT_SUBJECT_KEY_IDENTIFIER, false),
    (OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, false),
];

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

    use super::*;
    use crate::profile;

    fn id() -> SpiffeId {
        SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap()
    }

    fn validity() -> Validity {
        Validity::starting(UNIX_EPOCH + Duration::from_secs(2_000_000_000), Duration::from_secs(3600))
    }

    /// The field the check names after `change` was made to a good leaf.
    fn leaf_after(change: impl FnOnce(&mut CertificateParams)) -> Option<&'static str> {
        let key = KeyPair::generate().unwrap();
        let params = profile::root(&id().trust_domain(), validity()).unwrap();
        let root = params.self_signed(&key).unwrap();
        let mut params = profile::leaf(&id(), validity()).unwrap();
        change(&mut params);
        let issuer = Issuer::from_ca_cert_der(root.der(), key).unwrap();
        let made = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let Validity { not_before, not_after } = validity();
        let expected = Leaf { id: &id(), dns_names: &[], addresses: &[], not_before, not_after };
        leaf(made.der(), root.der(), &expected).err().map(|error| error.field)
    }

    /// The same for a root.
    fn root_after(change: impl FnOnce(&mut CertificateParams)) -> Option<&'static str> {
        let mut params = profile::root(&id().trust_domain(), validity()).unwrap();
        change(&mut params);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let Validity { not_before, not_after } = validity();
        root(made.der(), &id().trust_domain(), not_before, not_after).err().map(|error| error.field)
    }

    #[test]
    fn what_the_profile_writes_passes() {
        assert_eq!((leaf_after(|_| {}), root_after(|_| {})), (None, None));
    }

    #[test]
    fn every_changed_field_of_a_leaf_is_named() {
        let day = time::Duration::days(1);
        assert_eq!(leaf_after(|p| p.not_before -= day), Some("notBefore"));
        assert_eq!(leaf_after(|p| p.not_after += day), Some("notAfter"));
        assert_eq!(leaf_after(|p| p.serial_number = Some(7_u64.into())), Some("serialNumber (octets)"));
        let common_name = |p: &mut CertificateParams| p.distinguished_name.push(rcgen::DnType::CommonName, "x");
        assert_eq!(leaf_after(common_name), Some("subject"));
        let dns = SanType::DnsName("a.b".try_into().unwrap());
        assert_eq!(leaf_after(|p| p.subject_alt_names.push(dns)), Some("subjectAltName"));
        assert_eq!(leaf_after(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)), Some("keyUsage"));
        assert_eq!(leaf_after(|p| _ = p.extended_key_usages.pop()), Some("extKeyUsage"));
        let signing = ExtendedKeyUsagePurpose::CodeSigning;
        assert_eq!(leaf_after(|p| p.extended_key_usages.push(signing)), Some("extKeyUsage"));
        let authority = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert_eq!(leaf_after(|p| p.is_ca = authority), Some("basicConstraints.cA"));
        assert_eq!(leaf_after(|p| p.is_ca = IsCa::NoCa), Some("extensions"));
        assert_eq!(leaf_after(|p| p.use_authority_key_identifier_extension = false), Some("extensions"));
        let extension = rcgen::CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
        assert_eq!(leaf_after(|p| p.custom_extensions.push(extension)), Some("extensions"));
    }

    #[test]
    fn every_changed_field_of_a_root_is_named() {
        let path = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert_eq!(root_after(|p| p.is_ca = path), Some("basicConstraints.pathLenConstraint"));
        assert_eq!(root_after(|p| _ = p.key_usages.pop()), Some("keyUsage"));
        assert_eq!(root_after(|p| p.subject_alt_names.clear()), Some("extensions"));
        assert_eq!(root_after(|p| p.distinguished_name = rcgen::DistinguishedName::new()), Some("subject"));
    }

    #[test]
    fn a_leaf_of_another_issuer_fails_at_the_signature_or_before() {
        let made = |account: &str| {
            let key = KeyPair::generate().unwrap();
            let root = profile::root(&id().trust_domain(), validity()).unwrap().self_signed(&key).unwrap();
            let issuer = Issuer::from_ca_cert_der(root.der(), key).unwrap();
            let id = SpiffeId::new(&id().trust_domain(), "shop", account).unwrap();
            let leaf = profile::leaf(&id, validity()).unwrap().signed_by(&KeyPair::generate().unwrap(), &issuer);
            (leaf.unwrap(), root)
        };
        let ((leaf_made, _), (_, other)) = (made("cart"), made("cart"));
        let Validity { not_before, not_after } = validity();
        let expected = Leaf { id: &id(), dns_names: &[], addresses: &[], not_before, not_after };
        assert_eq!(leaf(leaf_made.der(), other.der(), &expected).unwrap_err().field, "issuer");
    }
}
