//! The admin page on loopback and the metrics page on every address.
//!
//! Served by a thread of their own, apart from the workers, so that probes and scrapes live through a busy data path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use heddle_xds::resource::Kind;

use crate::drain::Phase;
use crate::metrics::Snapshot;
use crate::sync::Counts;
use crate::worker::{PoolSizes, Shared};
use crate::{listen, logging};

/// Starts the thread with both servers.
///
/// # Errors
/// If the thread, its runtime or a port is not to be had.
pub fn start(shared: Arc<Shared>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let admin = listener(shared.config.admin_address())?;
    let metrics = listen::bind(shared.config.metrics_port)?;
    thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async {
            for listener in metrics {
                tokio::spawn(serve(listener, metrics_pages(shared.clone())));
            }
            tokio::spawn(expire_series(shared.clone()));
            serve(admin, admin_pages(shared)).await;
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
        .route("/tables", get(tables))
        .route("/log-level", get(log_level).put(set_log_level))
        .route("/drain", post(drain))
        .with_state(shared)
}

/// Port 15020, every address.
fn metrics_pages(shared: Arc<Shared>) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/ready", get(ready)).with_state(shared)
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.config.control_plane.is_some() && shared.dialer.identity.load().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for a certificate\n")
    } else if shared.tables.load().inbound.is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the control plane's answer about this workload\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn config(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(&shared.config).into_response()
}

/// What the control plane has said, as the data path sees it.
async fn tables(State(shared): State<Arc<Shared>>) -> String {
    format!("{:#?}\n", **shared.tables.load())
}

async fn log_level() -> String {
    format!("{}\n", logging::filter())
}

/// The body is a filter in `tracing`'s syntax, such as `info` or `heddle_proxy=debug`.
async fn set_log_level(filter: String) -> (StatusCode, String) {
    match logging::set_filter(filter.trim()) {
        Ok(()) => (StatusCode::OK, log_level().await),
        Err(error) => (StatusCode::BAD_REQUEST, format!("log filter `{}`: {error}\n", filter.trim())),
    }
}

/// Begins draining: everything is served on, and told to go elsewhere. Returns at once.
async fn drain(State(shared): State<Arc<Shared>>) -> &'static str {
    shared.drain.advance(Phase::Draining);
    "draining\n"
}

async fn expire_series(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(EXPIRY_INTERVAL);
    loop {
        ticks.tick().await;
        let mut in_use = shared.applications.names();
        in_use.extend(shared.tables.load().clusters().iter().map(|cluster| cluster.name.clone()));
        shared.metrics.expire(shared.now(), |cluster| in_use.contains(cluster));
    }
}

/// How often idle series are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// What is true now, for one scrape.
fn snapshot(shared: &Shared) -> prometheus::Result<Snapshot> {
    let snapshot = Snapshot::new()?;
    for cluster in shared.tables.load().clusters() {
        snapshot.cluster(&cluster);
    }
    let sum = |size: fn(&PoolSizes) -> &AtomicUsize| {
        shared.pool_sizes.iter().map(|sizes| size(sizes).load(Ordering::Relaxed)).sum()
    };
    snapshot.pools(sum(|sizes| &sizes.idle_http1), sum(|sizes| &sizes.http2));
    if let Some(held) = shared.dialer.identity.load() {
        let identity = held.identity();
        let expires = identity.not_after().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        snapshot.certificate(&identity.id().to_string(), identity.serial_hex(), expires, held.handshakes());
    }
    add_xds(&snapshot, &shared.xds);
    Ok(snapshot)
}

fn add_xds(snapshot: &Snapshot, counts: &Counts) {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    snapshot.xds_state("connected", counts.connected.load(Ordering::Relaxed).into());
    snapshot.xds_state("destinations", read(&counts.destinations));
    snapshot.xds_event("destination_limit", read(&counts.limit_hits));
    snapshot.xds_event("destination_unused", read(&counts.unused));
    snapshot.xds_event("partial_publication", read(&counts.partial));
    snapshot.xds_event("disconnect", read(&counts.disconnects));
    for kind in Kind::DELIVERY {
        let of = counts.of(kind);
        let version = of.version.load(Ordering::Relaxed);
        snapshot.xds_kind(kind.short_name(), read(&of.ack), read(&of.nack), read(&of.held), version);
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match snapshot(&shared).and_then(|snapshot| shared.metrics.text(snapshot)) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
