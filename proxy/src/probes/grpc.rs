//! gRPC probes: `grpc.health.v1.Health/Check` without TLS, as the kubelet asks it.

use std::net::SocketAddr;
use std::sync::Arc;

use tonic::Code;
use tonic::transport::Endpoint;
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
    let protocol = |reason: String| Failure::Protocol { address, reason };
    let tcp = dial(dialer, address).await?;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| protocol(error.to_string()))?;
    // One connection was made, and one is asked for.
    let tcp = Arc::new(std::sync::Mutex::new(Some(hyper_util::rt::TokioIo::new(tcp))));
    let connector = tower::service_fn(move |_| {
        let tcp = tcp.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        std::future::ready(tcp.ok_or_else(|| std::io::Error::other("the connection ended")))
    });
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| protocol(error.to_string()))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES).check(request).await {
        Ok(response) if response.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(response) => {
            Err(Failure::NotServing { address, answer: response.get_ref().status().as_str_name().to_owned() })
        }
        Err(status) if status.code() == Code::Unimplemented => {
            Err(Failure::NotServing { address, answer: "that it does not know grpc.health.v1.Health".to_owned() })
        }
        Err(status) => {
            Err(Failure::NotServing { address, answer: format!("{:?}: {}", status.code(), status.message()) })
        }
    }
}

/// The answer is one number.
const MAX_ANSWER_BYTES: usize = 1024;
