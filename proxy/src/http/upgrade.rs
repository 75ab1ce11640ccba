//! HTTP/1.1 upgrades (WebSocket and others): after a 101 both connections become opaque bytes.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::metrics::Record;
use crate::upstream::Lease;

/// Both ends of a switched connection, each there once hyper has let go of it.
pub struct Streams {
    /// Towards the client.
    pub downstream: OnUpgrade,
    /// Towards the server.
    pub upstream: OnUpgrade,
    /// Counts as a request under way until the end.
    pub lease: Lease,
}

/// Relays between both ends until they are done.
pub async fn relay(streams: Streams, mut record: Record) {
    let (Ok(downstream), Ok(upstream)) = (streams.downstream.await, streams.upstream.await) else { return };
    let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
    // How the ends closed is theirs to know; both directions have been handed on as far as they came.
    if let Ok((up, down)) = tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await {
        record.request_bytes.set(record.request_bytes.get() + up);
        record.response_bytes += down;
    }
    record.complete = true;
    drop(streams.lease);
}
