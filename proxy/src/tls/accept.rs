//! The server's end: a sidecar calls.

use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Alpn, Current, Error, HANDSHAKE_TIMEOUT, Peer, peer};
use crate::stream::Stream;

/// Completes the handshake that a sidecar began on `stream`; the peer has shown a certificate of this mesh.
///
/// # Errors
/// If it does not complete; the peer was told what TLS tells.
pub async fn accept(current: &Current, stream: Stream) -> Result<(TlsStream<Stream>, Peer, Alpn), Error> {
    let held = current.load().ok_or(Error::NoCertificate)?;
    let handshake = TlsAcceptor::from(Arc::clone(held.server())).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| Error::Timeout)??;
    let connection = stream.get_ref().1;
    let peer = peer(connection, |chain, now| held.recheck_client(chain, now))?;
    let negotiated = connection.alpn_protocol();
    let alpn = Alpn::from_negotiated(negotiated)
        .ok_or_else(|| Error::Alpn(String::from_utf8_lossy(negotiated.unwrap_or_default()).into_owned()))?;
    held.used();
    Ok((stream, peer, alpn))
}
