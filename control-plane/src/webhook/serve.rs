//! The server behind [`Webhooks`]: HTTP/2 and HTTP/1.1 over TLS with the certificate that serves xDS too. The API server shows
//! no certificate: what is answered here is no secret, and nothing is changed by asking.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use heddle_certs::tls::open_server_config;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service;

use super::review::{Answer, Request, Review};
use super::{Error, Webhooks};
use crate::authority::Current;
use crate::listen::DRAIN;
use crate::metrics::Admission;

/// Serves until `stopped` turns true.
///
/// # Errors
/// If no TLS configuration can be made of `current`.
pub async fn serve(
    listener: TcpListener,
    mut current: watch::Receiver<Current>,
    webhooks: Webhooks,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), rustls::Error> {
    let metrics = webhooks.metrics.clone();
    let router = router(webhooks);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tls = tls(&current.borrow_and_update())?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Ok(()) = current.changed() => {
                match self::tls(&current.borrow_and_update()) {
                    Ok(new) => tls = new,
                    Err(error) => tracing::error!(%error, "webhooks: the new certificate is not usable; the one before stays"),
                }
                continue;
            }
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics.admission_connection_refused();
            continue;
        };
        tokio::spawn(connection(socket, tls.clone(), router.clone(), stopped.clone(), place));
    }
}

fn tls(current: &Current) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = open_server_config(&current.identity)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn connection(
    socket: TcpStream,
    tls: Arc<ServerConfig>,
    router: Router,
    mut stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    // Only latency suffers where it is refused.
    let _ = socket.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(socket)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "webhooks: TLS handshake failed"),
        Err(_) => return,
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        // A router is always ready.
        async move { router.call(request.map(axum::body::Body::new)).await }
    });
    let stop = async move {
        // An error means that the server is gone.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    // What ends a connection is its client's doing.
    if is_http2 {
        let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
        http.keep_alive_interval(KEEPALIVE_INTERVAL).keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = serving.as_mut() => return,
            () = stop => serving.as_mut().graceful_shutdown(),
        }
        let _ = tokio::time::timeout(DRAIN, serving).await;
    } else {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = serving.as_mut() => return,
            () = stop => serving.as_mut().graceful_shutdown(),
        }
        let _ = tokio::time::timeout(DRAIN, serving).await;
    }
}

/// What the pages share.
#[derive(Clone)]
struct Shared {
    webhooks: Arc<Webhooks>,
    places: Arc<Semaphore>,
}

fn router(webhooks: Webhooks) -> Router {
    let shared = Shared { webhooks: Arc::new(webhooks), places: Arc::new(Semaphore::new(MAX_REQUESTS)) };
    Router::new()
        .route("/inject", post(inject))
        .route("/validate", post(validate))
        .layer(DefaultBodyLimit::max(MAX_REVIEW_BYTES))
        .with_state(shared)
}

async fn inject(State(shared): State<Shared>, body: Bytes) -> Response {
    shared.answer("inject", &body, async |request| shared.webhooks.inject(request).await).await
}

async fn validate(State(shared): State<Shared>, body: Bytes) -> Response {
    shared.answer("validate", &body, async |request| Ok(Webhooks::validate(request))).await
}

impl Shared {
    async fn answer(
        &self,
        webhook: &'static str,
        body: &[u8],
        decide: impl AsyncFnOnce(&Request) -> Result<(Answer, Admission), Error>,
    ) -> Response {
        let begun = Instant::now();
        let (response, outcome) = self.decided(body, decide).await;
        self.webhooks.metrics.admitted(webhook, outcome, begun.elapsed());
        response
    }

    async fn decided(
        &self,
        body: &[u8],
        decide: impl AsyncFnOnce(&Request) -> Result<(Answer, Admission), Error>,
    ) -> (Response, Admission) {
        let no_answer = |status: StatusCode, text: String, outcome| ((status, text + "\n").into_response(), outcome);
        let Ok(_place) = self.places.try_acquire() else {
            let text = format!("{MAX_REQUESTS} requests are being answered already");
            return no_answer(StatusCode::SERVICE_UNAVAILABLE, text, Admission::Overflow);
        };
        let request = match serde_json::from_slice::<Review>(body) {
            Ok(review) => review.request,
            Err(error) => {
                let text = format!("not an AdmissionReview of admission.k8s.io/v1: {error}");
                return no_answer(StatusCode::BAD_REQUEST, text, Admission::Malformed);
            }
        };
        let (answer, outcome) = match tokio::time::timeout(ANSWER_TIMEOUT, decide(&request)).await {
            Ok(Ok(decided)) => decided,
            Ok(Err(error)) => {
                tracing::warn!(%error, "an admission request could not be decided");
                return no_answer(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), Admission::Failed);
            }
            Err(_) => {
                let text = format!("not decided within {ANSWER_TIMEOUT:?}");
                return no_answer(StatusCode::GATEWAY_TIMEOUT, text, Admission::Timeout);
            }
        };
        match answer.to_json(&request.uid) {
            Ok(json) => (([(header::CONTENT_TYPE, "application/json")], json).into_response(), outcome),
            Err(error) => no_answer(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), Admission::Failed),
        }
    }
}

/// Connections at once. Chosen: an API server keeps a few to each webhook; there may be several of them.
const MAX_CONNECTIONS: usize = 256;
/// Requests at once on one connection. Chosen: Go's HTTP/2 client opens another one above.
const MAX_STREAMS: u32 = 128;
/// Requests at once in all. Chosen: each takes well below a millisecond; what waits beyond is a flood.
const MAX_REQUESTS: usize = 256;
/// Bytes of a review. An object has at most 1.5 MiB (etcd's `--max-request-bytes`), and there may be the old one too.
const MAX_REVIEW_BYTES: usize = 4 * 1024 * 1024;
/// For one answer. Chosen: below the 10 s that Kubernetes gives a webhook by default, so that the reason arrives.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a TLS handshake may take. Chosen: as on the port for sidecars.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an HTTP/1 connection may be idle, or take for a request's head. Chosen: above Go's 90 s for idle connections, so
/// that the client closes first.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
/// As on the port for sidecars.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// As on the port for sidecars.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Wait after a failed accept, so that a machine without descriptors is not kept busy by it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
pub(super) fn test_router(webhooks: Webhooks) -> Router {
    router(webhooks)
}
