//! Pages about the control plane on its admin port.
//!
//! | Path | For | What |
//! |---|---|---|
//! | `/live`, `/ready` | everybody | 200; `/ready` says 503 until the mesh was read |
//! | `/metrics` | everybody | Prometheus text |
//! | `/status` | loopback | YAML: files and objects that cannot be read; each object's conditions and what clients say of it |
//! | `/model` | loopback | YAML: the mesh as it was understood |
//! | `/clients` | loopback | YAML: the ADS streams that are open |
//! | `/config` | loopback | JSON: the settings in force |
//! | `/explain` | loopback | POST, JSON: what `heddle explain` wants to know of the mesh, [`crate::explain`] |
//!
//! What only loopback gets tells how the mesh is built, so it is for whoever is on the machine or comes through
//! `kubectl port-forward`. Nothing here changes anything. Served by [`crate::app`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use heddle_xds::server::Protocol;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tonic::codegen::Service;

use crate::config::Config;
use crate::feedback::Counts;
use crate::metrics::Metrics;
use crate::model::SourceRef;
use crate::objects::ObjectKey;
use crate::status::Status;
use crate::{ads, explain as asked, source};

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Pages {
    /// Settings.
    pub config: Arc<Config>,
    /// Mesh, clients and what they say.
    pub shared: Arc<ads::Shared>,
    /// Objects as they were last read.
    pub source: watch::Receiver<source::Snapshot>,
    /// Counters.
    pub metrics: Metrics,
}

impl Pages {
    fn router(self) -> Router {
        let local = Router::new()
            .route("/status", get(status))
            .route("/model", get(model))
            .route("/clients", get(clients))
            .route("/config", get(config))
            .route("/explain", post(explain))
            .layer(middleware::from_fn(loopback_only));
        Router::new()
            .route("/live", get(|| async { "live\n" }))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .merge(local)
            .with_state(self)
    }
}

/// Serves the pages until `stopped` turns true.
pub async fn serve(listener: TcpListener, pages: Pages, mut stopped: watch::Receiver<bool>) {
    let router = pages.router();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        let Ok((socket, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (router, mut stopped) = (router.clone(), stopped.clone());
        tokio::spawn(async move {
            let _place = place;
            let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let mut request = request.map(axum::body::Body::new);
                request.extensions_mut().insert(ConnectInfo(peer));
                let mut router = router.clone();
                // A router is always ready.
                async move { router.call(request).await }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            let connection = http.serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                // A client's fault, seen by the client.
                _ = connection => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        });
    }
}

async fn loopback_only(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    if peer.ip().to_canonical().is_loopback() {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "this page answers loopback only; try `kubectl port-forward`\n").into_response()
    }
}

async fn ready(State(pages): State<Pages>) -> (StatusCode, String) {
    if pages.shared.publisher.snapshot().is_some() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let waiting = pages.source.borrow().waiting.clone();
    let kinds: Vec<_> = waiting.iter().map(|kind| kind.name()).collect();
    (StatusCode::SERVICE_UNAVAILABLE, format!("the mesh is not read yet; waiting for: {}\n", kinds.join(", ")))
}

async fn metrics(State(pages): State<Pages>) -> Response {
    match pages.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn config(State(pages): State<Pages>) -> Response {
    axum::Json(&*pages.config).into_response()
}

/// One answer for each question, in order, all of one state of the mesh.
async fn explain(State(pages): State<Pages>, body: String) -> Response {
    let Some(snapshot) = pages.shared.publisher.snapshot() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the mesh is not read yet\n").into_response();
    };
    let questions: Vec<asked::Ask> = match serde_json::from_str(&body) {
        Ok(questions) => questions,
        Err(error) => {
            return (StatusCode::BAD_REQUEST, format!("the question cannot be read: {error}\n")).into_response();
        }
    };
    let publisher = &pages.shared.publisher;
    let manifests = pages.config.manifests.as_deref();
    let replies = questions.iter().map(|question| match question {
        asked::Ask::Places(names) => asked::Reply::Places(asked::places_in(manifests, names)),
        other => asked::answer(publisher, &snapshot, other),
    });
    axum::Json(replies.collect::<Vec<_>>()).into_response()
}

async fn model(State(pages): State<Pages>) -> Response {
    match pages.shared.publisher.snapshot() {
        Some(snapshot) => yaml(snapshot.model()),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the mesh is not read yet\n").into_response(),
    }
}

async fn status(State(pages): State<Pages>) -> Response {
    let source = pages.source.borrow().clone();
    let snapshot = pages.shared.publisher.snapshot();
    let statuses = snapshot.as_deref().map(|snapshot| &snapshot.translation().statuses);
    let counts = pages.shared.feedback.counts();
    let mut objects: BTreeMap<ObjectKey, ObjectPage<'_>> = BTreeMap::new();
    for (key, status) in statuses.into_iter().flatten() {
        objects.entry(key.clone()).or_default().status = Some(status);
    }
    for key in source.objects.keys() {
        let name = SourceRef::new(key.kind.name(), &key.namespace, &key.name).to_string();
        if let Some(counts) = counts.get(name.as_str()) {
            objects.entry(key).or_default().clients = Some(counts);
        }
    }
    yaml(&StatusPage {
        generation: snapshot.as_deref().map_or(0, |snapshot| snapshot.generation()),
        waiting: source.waiting.iter().map(|kind| kind.name()).collect(),
        problems: source.problems.iter().map(ToString::to_string).collect(),
        ignored: &source.ignored,
        objects: objects.into_iter().map(|(key, page)| (key.to_string(), page)).collect(),
    })
}

/// `/status`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusPage<'p> {
    /// How many changes of the mesh were published.
    generation: u64,
    /// Kinds of which not everything was read yet; nothing is served while there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<&'static str>,
    /// Files and objects that are not in force as they are now, each with its reason.
    problems: Vec<String>,
    /// Documents of kinds that are not read.
    ignored: &'p [String],
    /// By `<Kind> <namespace>/<name>`: objects with a status, or with clients that said something.
    objects: BTreeMap<String, ObjectPage<'p>>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectPage<'p> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'p Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<&'p Counts>,
}

async fn clients(State(pages): State<Pages>) -> Response {
    let clients: Vec<_> = pages.shared.clients().iter().map(|client| ClientPage::of(client)).collect();
    yaml(&clients)
}

/// One entry of `/clients`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClientPage {
    workload: String,
    identity: String,
    dialect: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    /// Seconds since 1970.
    since: u64,
}

impl ClientPage {
    fn of(client: &ads::Client) -> Self {
        Self {
            workload: client.workload.to_string(),
            identity: client.caller.identity.to_string(),
            dialect: client.caller.dialect.name(),
            protocol: client.protocol().map(|protocol| match protocol {
                Protocol::Delta => "delta",
                Protocol::StateOfTheWorld => "stateOfTheWorld",
            }),
            address: client.address,
            version: client.version.clone(),
            since: seconds(client.since),
        }
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn yaml(value: &impl Serialize) -> Response {
    match serde_saphyr::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/yaml")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Connections at once. Chosen: scrapers, probes and a few people; one above is closed.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may take for a request's head, idle time before it included. Chosen: twice a scrape interval.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait after a failed accept, so that a machine without descriptors is not kept busy by it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
