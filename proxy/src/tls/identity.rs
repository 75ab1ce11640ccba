//! This workload's certificate and the mesh's roots, as handshakes need them; replaced whole when either changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwapOption, Guard};
use heddle_certs::bundle::Bundle;
use heddle_certs::credential::Identity;
use heddle_certs::identity::SpiffeId;
use heddle_certs::tls::{client_config, server_config};
use heddle_certs::verify::{self, ClientAuth};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

use super::Alpn;

/// Most client configurations kept; beyond it they are made anew. Chosen: one per set of identities and protocol, so
/// more than a thousand services called.
const MAX_CLIENT_CONFIGS: usize = 4_096;

/// The identity in force. Written by the control thread, read at every handshake.
#[derive(Default)]
pub struct Current(ArcSwapOption<Held>);

impl Current {
    /// What is in force; `None` until the first certificate.
    pub fn load(&self) -> Option<Arc<Held>> {
        self.0.load_full()
    }

    /// Puts a certificate and roots in force. Configurations, sessions and tickets begin anew, so none outlives the
    /// roots it was made under.
    ///
    /// # Errors
    /// If no TLS server can be made of it; what was in force stays.
    pub fn replace(&self, identity: Identity, roots: Arc<Bundle>) -> Result<(), rustls::Error> {
        let mut server = server_config(&identity, roots.clone(), ClientAuth::Required)?;
        server.alpn_protocols = [Alpn::Http2, Alpn::Http1, Alpn::Tcp].map(|alpn| alpn.negotiated().to_vec()).to_vec();
        let principal = identity.id().to_string().into();
        let held = Held {
            principal,
            identity,
            roots,
            server: Arc::new(server),
            clients: Mutex::default(),
            handshakes: AtomicU64::new(0),
        };
        self.0.store(Some(Arc::new(held)));
        Ok(())
    }

    /// This workload's SPIFFE ID.
    pub fn principal(&self) -> Option<Arc<str>> {
        let held: Guard<_> = self.0.load();
        held.as_ref().map(|held| held.principal.clone())
    }
}

/// One certificate with its roots, and the configurations made of them.
pub struct Held {
    principal: Arc<str>,
    identity: Identity,
    roots: Arc<Bundle>,
    server: Arc<ServerConfig>,
    clients: Mutex<HashMap<ClientKey, Arc<ClientConfig>>>,
    handshakes: AtomicU64,
}

/// Whom a client configuration expects, and what it carries.
type ClientKey = (Arc<[Arc<str>]>, Alpn);

impl Held {
    /// The certificate.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Handshakes completed with this certificate.
    pub fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// A handshake was completed with it.
    pub(super) fn used(&self) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// The roots.
    pub fn roots(&self) -> &Arc<Bundle> {
        &self.roots
    }

    /// For accepting.
    pub(super) fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// For dialling a workload that is one of `expected`. One configuration per set and protocol, shared by all
    /// workers, so that sessions are resumed only where the same identities are expected.
    pub(super) fn client(&self, expected: &Arc<[Arc<str>]>, alpn: Alpn) -> Result<Arc<ClientConfig>, rustls::Error> {
        // A panic while holding the lock leaves the map whole: every change is one insert.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (expected.clone(), alpn);
        if let Some(config) = clients.get(&key) {
            return Ok(config.clone());
        }
        let ids: Result<Arc<[SpiffeId]>, _> = expected.iter().map(|id| SpiffeId::parse(id)).collect();
        let ids = ids.map_err(|error| rustls::Error::General(format!("expected identity: {error}")))?;
        let mut config = client_config(&self.identity, self.roots.clone(), ids)?;
        config.alpn_protocols = alpn.offered();
        let config = Arc::new(config);
        if clients.len() < MAX_CLIENT_CONFIGS {
            clients.insert(key, config.clone());
        }
        Ok(config)
    }

    /// Verifies the certificate of a client's resumed session again.
    pub(super) fn recheck_client(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), verify::Error> {
        verify::recheck(chain, &self.roots, now).map(|_| ())
    }

    /// Verifies the certificate of a server's resumed session again, and who it is.
    pub(super) fn recheck_server(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &Arc<[Arc<str>]>,
        now: SystemTime,
    ) -> Result<(), verify::Error> {
        let ids: Arc<[SpiffeId]> = expected.iter().filter_map(|id| SpiffeId::parse(id).ok()).collect();
        verify::recheck_server(chain, &self.roots, &ids, now).map(|_| ())
    }
}
