//! rustls configurations for mesh mTLS: TLS 1.3 only, hybrid key exchange first, peers believed by identity.
//!
//! A configuration holds one identity, one bundle and one set of tickets, and none of them ever changes: when the
//! certificate is renewed or the bundle changes, build a new configuration and swap it in. Tickets die with it, since
//! every server configuration has its own ticket keys and every client configuration its own empty session store.
//! Resumption is still no proof: see [`crate::verify::recheck`].
//!
//! ALPN is the caller's: set `alpn_protocols` before the `Arc`. Called by the proxy (`tls/`), the control plane's
//! server set-up, and the clients of both.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::GetRandomFailed;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::SingleCertAndKey;
use rustls::ticketer::TicketRotator;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use crate::bundle::Bundle;
use crate::credential::Identity;
use crate::crypto;
use crate::identity::SpiffeId;
use crate::verify::{ClientAuth, ClientVerifier, ServerVerifier};

/// A server that is `identity` and believes clients of `roots`. No ALPN yet. Errors: no entropy for ticket keys.
pub fn server_config(identity: &Identity, roots: Arc<Bundle>, auth: ClientAuth) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(ClientVerifier::new(roots, auth)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.ticketer = ticketer()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
    Ok(config)
}

/// A server that is `identity` and asks nobody for a certificate: for callers from outside the mesh, who check its name. No
/// ALPN yet. Errors: no entropy for ticket keys.
pub fn open_server_config(identity: &Identity) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.ticketer = ticketer()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
    Ok(config)
}

/// A client that is `identity` and believes a server of `roots` that is one of `expected`. No ALPN yet. The server
/// name given to rustls is not checked; it is the key of the session store, so give the endpoint's address.
pub fn client_config(
    identity: &Identity,
    roots: Arc<Bundle>,
    expected: Arc<[SpiffeId]>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(roots, expected)));
    let config = builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    Ok(with_sessions(config))
}

/// A client without a certificate yet: only for the first call to the control plane, which is `expected`.
pub fn bootstrap_client_config(roots: Arc<Bundle>, expected: Arc<[SpiffeId]>) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(roots, expected)))
        .with_no_client_auth();
    Ok(with_sessions(config))
}

fn with_sessions(mut config: ClientConfig) -> ClientConfig {
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
    config
}

/// Ticket keys that change every [`TICKET_KEY_SECONDS`]; the one before is still read, so no ticket lives longer than
/// twice that.
fn ticketer() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    Ok(Arc::new(TicketRotator::new(TICKET_KEY_SECONDS, fresh_key)?))
}

/// rustls' ticket format behind a key that the rotator throws away long before the format's own rotation.
fn fresh_key() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    let key = Ticketer::new().map_err(|_| GetRandomFailed)?;
    Ok(Box::new(TicketKey(key)))
}

/// One ticket key: the rotator wants a box, rustls makes an `Arc`.
#[derive(Debug)]
struct TicketKey(Arc<dyn ProducesTickets>);

impl ProducesTickets for TicketKey {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        TICKET_KEY_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

/// Seconds one ticket key is used to write tickets; it reads them for as long again, so a ticket lives at most 1 h.
const TICKET_KEY_SECONDS: u32 = 30 * 60;

/// Tickets sent after a full handshake. Chosen: one; a sidecar keeps its connections and each ticket costs an
/// encryption and some 1.5 KB on the wire, for it contains the client's chain.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// Server addresses a client configuration remembers sessions of. Chosen: the endpoints of large services; the least
/// recently added is dropped.
const CLIENT_SESSIONS: usize = 256;
