//! The client's end: calling a sidecar.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Alpn, Current, Error, HANDSHAKE_TIMEOUT, Peer, peer};

/// Makes `tcp` a connection to a workload that must show one of the SPIFFE IDs in `expected`.
///
/// # Errors
/// If it is another, or none.
pub async fn dial(
    current: &Current,
    tcp: TcpStream,
    expected: &Arc<[Arc<str>]>,
    alpn: Alpn,
) -> Result<(TlsStream<TcpStream>, Peer), Error> {
    let held = current.load().ok_or(Error::NoCertificate)?;
    let config = held.client(expected, alpn)?;
    // Resumption is looked up by this name; identity is what the verifier checks. No name travels: an
    // address is never sent as SNI (RFC 6066 §3).
    let name = ServerName::IpAddress(tcp.peer_addr()?.ip().into());
    let handshake = TlsConnector::from(config).connect(name, tcp);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| Error::Timeout)??;
    let connection = stream.get_ref().1;
    let negotiated = connection.alpn_protocol();
    if negotiated != Some(alpn.negotiated()) {
        return Err(Error::Alpn(String::from_utf8_lossy(negotiated.unwrap_or_default()).into_owned()));
    }
    let peer = peer(connection, |chain, now| held.recheck_server(chain, expected, now))?;
    held.used();
    Ok((stream, peer))
}
