//! Copies of requests to other clusters (Gateway API `HTTPRequestMirrorFilter`).
//!
//! A copy is sent beside its request and never holds it up: by its own connections and limits, at most once but for what
//! was never delivered. Nobody waits for its response, which is read and thrown away.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::Body as _;

use super::attempt::{self, Target};
use super::body::RequestBody;
use super::client_body::ClientBody;
use super::error::Error;
use super::request::upstream_version;
use super::source::Source;
use super::tee::{Feed, tee};
use super::translate;
use crate::tables::Cluster;
use crate::tables::route::Mirror;
use crate::upstream::Towards;
use crate::worker::Worker;

/// Sends what `mirrors` want of a request, and returns what must be fed with its body. `head` has lost its hop-by-hop
/// fields.
pub fn start<'m>(
    worker: &Rc<Worker>,
    mirrors: impl Iterator<Item = &'m Mirror>,
    head: &Parts,
    body: &ClientBody,
) -> Vec<Feed> {
    let mut feeds = Vec::new();
    for mirror in mirrors {
        if worker.rng.borrow_mut().u32(..MILLION) >= mirror.per_million {
            continue;
        }
        let body = if body.is_end_stream() {
            RequestBody::Empty
        } else {
            let (feed, tap) = tee(body.size_hint());
            feeds.push(feed);
            RequestBody::Copy(tap)
        };
        tokio::task::spawn_local(send(worker.clone(), mirror.cluster.clone(), head.clone(), body));
    }
    feeds
}

async fn send(worker: Rc<Worker>, cluster: Arc<Cluster>, head: Parts, body: RequestBody) {
    let outcome = match tokio::time::timeout(PATIENCE, exchange(&worker, &cluster, head, body)).await {
        Ok(Ok(())) => "answered",
        Ok(Err(error)) => error.cause.name(),
        Err(_) => "request_timeout",
    };
    worker.shared.metrics.mirrors.record(&cluster.name, outcome);
}

async fn exchange(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    mut head: Parts,
    body: RequestBody,
) -> Result<(), Error> {
    let version = upstream_version(cluster, head.version);
    translate::request(&mut head, version)?;
    let target = Target {
        worker,
        cluster,
        rule: None,
        deadline: Some(Instant::now() + PATIENCE),
        grpc: false,
        towards: Towards::Network,
        version,
        session: None,
        hash: None,
    };
    let (response, lease) = attempt::send(&target, Source::own(head, body), |_| {}).await?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return Ok(());
        }
    }
    lease.complete();
    Ok(())
}

/// Shares are counted in millionths.
const MILLION: u32 = 1_000_000;
/// From a copy's beginning to the end of its response. Envoy's default for a route.
const PATIENCE: Duration = Duration::from_secs(15);
