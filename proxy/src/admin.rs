//! The admin page on loopback and the metrics page on every address.
//!
//! Served by the control thread, apart from the workers, so that probes and scrapes live through a busy data path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::worker::Shared;

/// Starts the control thread with both servers.
///
/// # Errors
/// If the thread, its runtime or a port is not to be had.
pub fn start(shared: Arc<Shared>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let admin = listener(shared.config.admin_address())?;
    let metrics = listener(SocketAddr::from(([0, 0, 0, 0], shared.config.metrics_port)))?;
    thread::Builder::new().name("control".into()).spawn(move || {
        runtime.block_on(async {
            let admin = serve(admin, admin_pages(shared.clone()));
            let metrics = serve(metrics, metrics_pages(shared));
            tokio::join!(admin, metrics)
        });
    })?;
    Ok(())
}

fn listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(listener: std::net::TcpListener, pages: Router) {
    let served = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => axum::serve(listener, pages).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::error!(%error, "the admin server ended");
    }
}

/// Port 15000, loopback only.
fn admin_pages(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/live", get(|| async { "live\n" }))
        .route("/config", get(config))
        .with_state(shared)
}

/// Port 15020, every address.
fn metrics_pages(shared: Arc<Shared>) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/ready", get(ready)).with_state(shared)
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.tables.load().inbound.is_some() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the control plane's answer about this workload\n")
    }
}

async fn config(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(&shared.config).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
