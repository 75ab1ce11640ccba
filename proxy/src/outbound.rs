//! One connection of the application, on its way out.

use std::rc::Rc;

use crate::http::error::Cause;
use crate::http::request::Connection;
use crate::http::serve;
use crate::listen::Accepted;
use crate::metrics::Direction;
use crate::tables::{Destination, Protocol};
use crate::worker::Worker;

/// Serves the connection to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let metrics = &worker.shared.metrics.connections;
    let Some(_open) = metrics.open(Direction::Outbound, worker.shared.config.max_connections) else {
        return metrics.refused(Direction::Outbound, Cause::Overflow);
    };
    let Accepted { stream, peer, original_dst } = accepted;
    let destination = worker.shared.tables.load().outbound.get(&original_dst).cloned();
    let protocol = match destination {
        Some(Destination::Exists(listener)) => listener.protocol,
        Some(Destination::DoesNotExist) | None => {
            return metrics.refused(Direction::Outbound, Cause::ConfigUnavailable);
        }
    };
    match protocol {
        Protocol::Http => {
            let connection = Connection::outbound(worker.clone(), peer, original_dst);
            serve::http1(connection, stream).await;
        }
        Protocol::Detect | Protocol::Http2 | Protocol::Tcp => {
            metrics.refused(Direction::Outbound, Cause::ProtocolMismatch);
        }
    }
}
