//! Believing a peer: its chain leads to a root of the bundle, is in time, is meant for TLS, and names an identity that
//! is expected here. Names in DNS play no part.
//!
//! rustls calls the two verifiers on full handshakes only. On a *resumed* session it asks nobody and takes the chain
//! of the old one, so whoever accepts or dials a connection must call [`recheck`] (or [`recheck_server`] with the
//! expected identities) when `handshake_kind()` is `Resumed`, before the first byte of application data.
//!
//! Left out: trust domains other than the bundle's, revocation lists (leaves live hours). Called by [`crate::tls`] and,
//! after resumption, by the proxy and the control plane.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerMisbehaved, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::Bundle;
use crate::identity::{SpiffeId, TrustDomain};
use crate::{clock, crypto, peer};

pub use crate::peer::{Peer, peer_identity};

/// Why a peer is not believed. Each is the peer's fault or a missing root here; none is worth a retry with the same
/// certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The leaf names no workload.
    #[error(transparent)]
    Leaf(#[from] peer::Error),
    /// The chain leads to no root of the bundle, or a certificate in it is expired or not meant for this.
    #[error("certificate {serial} of `{id}`: {error} (bundle {bundle})")]
    Chain {
        /// Who the leaf says it is.
        id: SpiffeId,
        /// Serial number, hexadecimal.
        serial: String,
        /// What webpki says.
        error: Box<webpki::Error>,
        /// Version of the bundle it was held against.
        bundle: String,
    },
    /// The chain is good, the identity is of another trust domain.
    #[error("`{id}` is not of trust domain `{expected}`")]
    TrustDomain {
        /// Who the leaf says it is.
        id: SpiffeId,
        /// The bundle's trust domain.
        expected: TrustDomain,
    },
    /// The chain is good, but this server should be somebody else.
    #[error("server is `{id}`; expected {}", listed(expected))]
    Unexpected {
        /// Who the leaf says it is.
        id: SpiffeId,
        /// Who may stand there.
        expected: Arc<[SpiffeId]>,
    },
}

/// Verifies again what a client presented when the session was first made: chain, dates, purpose, trust domain.
/// `chain` is DER, leaf first, as `peer_certificates()` returns it.
pub fn recheck(chain: &[CertificateDer<'_>], roots: &Bundle, now: SystemTime) -> Result<Peer, Error> {
    verify_chain(chain, roots, clock::unix(now), Side::Client)
}

/// [`recheck`] for a server, with the identities expected there.
pub fn recheck_server(
    chain: &[CertificateDer<'_>],
    roots: &Bundle,
    expected: &Arc<[SpiffeId]>,
    now: SystemTime,
) -> Result<Peer, Error> {
    let peer = verify_chain(chain, roots, clock::unix(now), Side::Server)?;
    is_expected(peer, expected)
}

/// Which half of TLS the certificate's holder played.
#[derive(Debug, Clone, Copy)]
enum Side {
    Server,
    Client,
}

fn verify_chain(chain: &[CertificateDer<'_>], roots: &Bundle, now: UnixTime, side: Side) -> Result<Peer, Error> {
    let peer = peer_identity(chain)?;
    let anchors = roots.anchors_at(clock::at(now.as_secs()));
    let usage = match side {
        Side::Server => KeyUsage::server_auth(),
        Side::Client => KeyUsage::client_auth(),
    };
    let algorithms = crypto::provider().signature_verification_algorithms.all;
    let verified = chain.split_first().ok_or(webpki::Error::BadDer).and_then(|(leaf, intermediates)| {
        let leaf = EndEntityCert::try_from(leaf)?;
        leaf.verify_for_usage(algorithms, &anchors, intermediates, now, usage, None, None).map(|_| ())
    });
    if let Err(error) = verified {
        let bundle = roots.version().into();
        return Err(Error::Chain { id: peer.id, serial: peer.serial_hex, error: Box::new(error), bundle });
    }
    if peer.id.trust_domain_str() != roots.trust_domain().as_str() {
        return Err(Error::TrustDomain { id: peer.id, expected: roots.trust_domain().clone() });
    }
    Ok(peer)
}

fn is_expected(peer: Peer, expected: &Arc<[SpiffeId]>) -> Result<Peer, Error> {
    if expected.contains(&peer.id) {
        return Ok(peer);
    }
    Err(Error::Unexpected { id: peer.id, expected: expected.clone() })
}

/// Believes a server that is one of a fixed set of identities. The set belongs to the client configuration: different
/// sets never share sessions.
#[derive(Debug)]
pub struct ServerVerifier {
    roots: Arc<Bundle>,
    expected: Arc<[SpiffeId]>,
}

impl ServerVerifier {
    /// `expected`: who may answer; an empty set believes nobody.
    pub fn new(roots: Arc<Bundle>, expected: Arc<[SpiffeId]>) -> Self {
        Self { roots, expected }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = joined(end_entity, intermediates);
        let verified = verify_chain(&chain, &self.roots, now, Side::Server);
        verified.and_then(|peer| is_expected(peer, &self.expected)).map_err(alert)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(not_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &crypto::provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a server insists on a client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate, no handshake: between sidecars, and for ADS.
    Required,
    /// A certificate is asked for and verified if sent: the control plane, whose first caller has none yet.
    Optional,
}

/// Believes any client of the bundle's trust domain; who it is, [`peer_identity`] says after the handshake.
#[derive(Debug)]
pub struct ClientVerifier {
    roots: Arc<Bundle>,
    auth: ClientAuth,
}

impl ClientVerifier {
    /// A verifier against `roots`.
    pub fn new(roots: Arc<Bundle>, auth: ClientAuth) -> Self {
        Self { roots, auth }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.auth == ClientAuth::Required
    }

    // Empty: clients have one certificate and need no hint, and roots stay unseen (RFC 8446 §4.2.4: optional).
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = joined(end_entity, intermediates);
        verify_chain(&chain, &self.roots, now, Side::Client).map_err(alert)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(not_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &crypto::provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Borrows both parts as one chain.
fn joined<'a>(end_entity: &'a CertificateDer<'_>, intermediates: &'a [CertificateDer<'_>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(end_entity).chain(intermediates).map(|der| CertificateDer::from(der.as_ref())).collect()
}

/// The rustls error that sends the fitting alert (RFC 8446 §6.2); what has no alert of its own keeps our message.
fn alert(error: Error) -> rustls::Error {
    let fitting = match &error {
        Error::Leaf(peer::Error::Malformed) => Some(CertificateError::BadEncoding),
        Error::Chain { error, .. } => chain_alert(error),
        Error::Leaf(_) | Error::TrustDomain { .. } | Error::Unexpected { .. } => None,
    };
    let certificate = fitting.unwrap_or_else(|| CertificateError::Other(OtherError(Arc::new(error))));
    rustls::Error::InvalidCertificate(certificate)
}

fn chain_alert(error: &webpki::Error) -> Option<CertificateError> {
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            Some(CertificateError::ExpiredContext { time: *time, not_after: *not_after })
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            Some(CertificateError::NotValidYetContext { time: *time, not_before: *not_before })
        }
        webpki::Error::UnknownIssuer => Some(CertificateError::UnknownIssuer),
        webpki::Error::InvalidSignatureForPublicKey => Some(CertificateError::BadSignature),
        _ => None,
    }
}

/// Our reason inside a failed handshake's error, for logs and metrics; `None` if rustls has its own (expired, unknown
/// issuer, ...). rustls itself shows such a reason only as `Debug`.
pub fn reason(error: &rustls::Error) -> Option<&Error> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

/// Never reached: the configurations of [`crate::tls`] negotiate TLS 1.3 only.
fn not_tls12() -> rustls::Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

fn listed(expected: &[SpiffeId]) -> String {
    /// Names in a message: enough to see the mistake.
    const SHOWN: usize = 5;
    if expected.is_empty() {
        return "nobody: no identity is known for this destination".into();
    }
    let shown: Vec<String> = expected.iter().take(SHOWN).map(|id| format!("`{id}`")).collect();
    let more = expected.len().saturating_sub(SHOWN);
    let tail = if more == 0 { String::new() } else { format!(" or {more} more") };
    format!("{}{tail}", shown.join(" or "))
}
