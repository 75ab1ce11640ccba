//! Load reports of proxyless gRPC (LRS), which nobody here reads: a client is let in and never told to report anything, so it
//! waits for as long as its connection lives.
//!
//! It is there for grpc-java, which counts the requests under way, and so breaks a circuit, only in clusters whose load is to
//! be reported; [`crate::emit::grpc`] names this service to such clients. Served by [`crate::app`] beside ADS.

use std::pin::Pin;

use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingService;
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use heddle_xds::server::PeerIdentity;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::ads::Port;

pub use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingServiceServer;

/// The service of one port.
#[derive(Debug, Clone, Copy)]
pub struct Loads(pub Port);

#[tonic::async_trait]
impl LoadReportingService for Loads {
    type StreamLoadStatsStream = Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let named = request.extensions().get::<PeerIdentity>().is_some_and(|peer| peer.spiffe_id.is_some());
        if self.0 == Port::Tls && !named {
            return Err(Status::unauthenticated("no client certificate"));
        }
        // What comes is read and forgotten; the end of it is the end.
        let unheard = request.into_inner().filter_map(|message| message.err().map(Err));
        Ok(Response::new(Box::pin(unheard)))
    }
}

/// Bytes of a request. Chosen: a node with its metadata many times over.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
