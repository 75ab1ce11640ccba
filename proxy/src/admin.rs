//! The admin page on loopback and the metrics page on every address.
//!
//! Served by a thread of their own, apart from the workers, so that probes and scrapes live through a busy data path. The
//! metrics page's port has the application's probes too, see [`crate::probes`]; questions to endpoints begin here ([`crate::health`]).

mod explain;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use heddle_xds::resource::Kind;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;

use crate::drain::Phase;
use crate::metrics::Snapshot;
use crate::probes::Answer;
use crate::sync::Counts;
use crate::worker::{PoolSizes, Shared};
use crate::{health, listen, logging};

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
                tokio::spawn(serve_everywhere(listener, shared.clone()));
            }
            tokio::spawn(expire_series(shared.clone()));
            tokio::spawn(health::run(shared.clone()));
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

/// Serves port 15020: pages, and probes, whose answer may be that the connection is closed.
async fn serve_everywhere(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the metrics server ended"),
    };
    let pages = metrics_pages(shared.clone());
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            shared.metrics.probes.connection_refused();
            continue;
        };
        tokio::spawn(serve_one(stream, place, pages.clone(), shared.clone()));
    }
}

async fn serve_one(stream: TcpStream, place: OwnedSemaphorePermit, pages: Router, shared: Arc<Shared>) {
    let _place = place;
    // The address the kubelet came to is the one it would have probed.
    let Ok(local) = stream.local_addr() else { return };
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (pages, shared) = (pages.clone(), shared.clone());
        async move {
            match request.uri().path().strip_prefix(PROBE_PATH) {
                Some(name) => probe(&shared, name, local.ip(), request.headers()).await,
                // Never fails.
                None => Ok(pages.oneshot(request).await.unwrap_or_else(|never| match never {})),
            }
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    // What ends a connection is the client's own doing, or an answer.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

/// An error closes the connection without a word.
async fn probe(shared: &Shared, name: &str, pod: IpAddr, headers: &HeaderMap) -> io::Result<Response> {
    match shared.probes.answer(name, &shared.dialer, pod, headers).await {
        Answer::Say(status, text) => Ok((status, text).into_response()),
        Answer::Close => Err(io::Error::other("the hook was not delivered")),
    }
}

/// What probes are asked under; `control-plane/src/inject/probes.rs` has the same.
const PROBE_PATH: &str = "/probe/";
/// Connections at once. Chosen: all probes of a pod, some scrapers and some people.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may take for a request's head, idle time before it included. Chosen: twice a scrape interval.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait after a failed accept, so that a machine without descriptors is not kept busy by it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Port 15000, loopback only.
fn admin_pages(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/live", get(|| async { "live\n" }))
        .route("/config", get(config))
        .route("/tables", get(tables))
        .route("/explain", get(explain::get).post(explain::post))
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
    if let Some(inbound) = &shared.tables.load().inbound {
        for (port, limit) in inbound.concurrency() {
            let port = port.map_or_else(|| "other".to_owned(), |port| port.to_string());
            snapshot.concurrency(&limit.name, &port, limit.controller.limit());
        }
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
