//! One connection to the application, on its way in.

use std::rc::Rc;

use crate::http::error::Cause;
use crate::http::request::Connection;
use crate::http::serve;
use crate::listen::Accepted;
use crate::metrics::Direction;
use crate::tables::Protocol;
use crate::worker::Worker;

/// Serves the connection to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let metrics = &worker.shared.metrics.connections;
    let Some(_open) = metrics.open(Direction::Inbound, worker.shared.config.max_connections) else {
        return metrics.refused(Direction::Inbound, Cause::Overflow);
    };
    let Accepted { stream, peer, original_dst } = accepted;
    let Some(inbound) = worker.shared.tables.load().inbound.clone() else {
        return metrics.refused(Direction::Inbound, Cause::ConfigUnavailable);
    };
    let port = inbound.port(original_dst.port());
    match port.protocol {
        Protocol::Http => {
            let application = worker.shared.applications.cluster(original_dst, port);
            let connection = Connection::inbound(worker.clone(), peer, original_dst, application);
            serve::http1(connection, stream).await;
        }
        Protocol::Detect | Protocol::Http2 | Protocol::Tcp => {
            metrics.refused(Direction::Inbound, Cause::ProtocolMismatch);
        }
    }
}
