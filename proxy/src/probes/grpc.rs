//! gRPC probes: `grpc.health.v1.Health/Check`, without TLS as the kubelet asks it, and on whatever connection
//! [`crate::health`] asks it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Error};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Failure, dial};
use crate::upstream::Dialer;

/// Asks for the health of `service`.
///
/// # Errors
/// If it cannot be asked, or is not SERVING.
pub(super) async fn check(dialer: &Dialer, address: SocketAddr, service: &str) -> Result<(), Failure> {
    let tcp = dial(dialer, address).await?;
    let channel = channel(tcp, &address.to_string()).await;
    let channel = channel.map_err(|error| Failure::Protocol { address, reason: error.to_string() })?;
    ask(channel, service).await.map_err(|no| Failure::NotServing { address, answer: no.to_string() })
}

/// gRPC on one connection, which is all there is: when it breaks, calls fail.
///
/// # Errors
/// If it broke meanwhile, or `authority` is none.
pub async fn channel<S>(io: S, authority: &str) -> Result<Channel, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
    // One connection was made, and one is asked for.
    let io = Arc::new(std::sync::Mutex::new(Some(hyper_util::rt::TokioIo::new(io))));
    let connector = tower::service_fn(move |_| {
        let io = io.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        std::future::ready(io.ok_or_else(|| std::io::Error::other("the connection ended")))
    });
    endpoint.connect_with_connector(connector).await
}

/// An answer that is not SERVING, or none.
#[derive(Debug, thiserror::Error)]
pub enum No {
    /// That of the health service.
    #[error("{0}")]
    Status(&'static str),
    /// That of a server without it.
    #[error("that it does not know grpc.health.v1.Health")]
    Unknown,
    /// Another gRPC status.
    #[error("{0:?}: {1}")]
    Failed(Code, String),
    /// None: the connection broke.
    #[error("nothing: {0}")]
    Broken(String),
}

/// Asks for the health of `service`; empty: of the server as a whole.
///
/// # Errors
/// If it does not answer SERVING.
pub async fn ask(channel: Channel, service: &str) -> Result<(), No> {
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES).check(request).await {
        Ok(response) if response.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(response) => Err(No::Status(response.get_ref().status().as_str_name())),
        // What the transport said, as no server can.
        Err(status) if std::error::Error::source(&status).is_some() => Err(No::Broken(status.message().to_owned())),
        Err(status) if status.code() == Code::Unimplemented => Err(No::Unknown),
        Err(status) => Err(No::Failed(status.code(), status.message().to_owned())),
    }
}

/// The answer is one number.
const MAX_ANSWER_BYTES: usize = 1024;
