//! TLS handshakes between sidecars.

use prometheus::{IntCounterVec, Opts, Registry};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::Direction;
use crate::tls::{Error, Peer};

/// Counts of handshakes. Cheap to clone: all clones count together.
#[derive(Clone)]
pub struct Handshakes {
    total: IntCounterVec,
}

impl Handshakes {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let total = IntCounterVec::new(
            Opts::new("heddle_tls_handshakes_total", "Mutual TLS handshakes, by outcome and reason of failure."),
            &["direction", "outcome", "reason"],
        )?;
        registry.register(Box::new(total.clone()))?;
        Ok(Self { total })
    }

    /// A handshake towards an endpoint ended.
    pub fn dialled(&self, result: &Result<(TlsStream<TcpStream>, Peer), Error>) {
        self.ended(Direction::Outbound, result.as_ref().map(|(_, peer)| peer));
    }

    /// A handshake ended.
    pub fn ended(&self, direction: Direction, result: Result<&Peer, &Error>) {
        let (outcome, reason) = match result {
            Ok(peer) if peer.resumed => ("resumed", ""),
            Ok(_) => ("full", ""),
            Err(error) => ("failed", error.name()),
        };
        self.total.with_label_values(&[direction.name(), outcome, reason]).inc();
    }
}
