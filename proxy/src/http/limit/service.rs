//! Limits that a service counts for all workloads together: one question about all of a request's limits that the same service
//! counts, over Envoy's protocol (`envoy.service.ratelimit.v3`). The service is a cluster like any other: balanced, over mutual TLS
//! where it has a sidecar, within its circuit breakers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::{is_counted, value};
use crate::authz::Facts;
use crate::http::attempt::{self, Target};
use crate::http::body::{Body, RequestBody};
use crate::http::error::{self, BoxError, Cause};
use crate::http::source::Source;
use crate::rate_limit::wire::{self, Answer, Limit, Value};
use crate::tables::Cluster;
use crate::tables::rate_limit::{Counter, LimitBy, Quota, RateLimit, RateLimitService};
use crate::upstream::{self, Towards};
use crate::worker::Worker;

/// As for limits that this process counts. A service that does not answer has counted nothing.
pub(super) async fn refuse(
    worker: &Rc<Worker>,
    limits: &[RateLimit],
    facts: &Facts<'_>,
    headers: &HeaderMap,
    grpc: bool,
) -> Option<(Cause, Response<Body>)> {
    let counted = limits.iter().filter(|limit| is_counted(limit, facts, headers));
    let mut open: Vec<(&RateLimit, &RateLimitService, Quota)> = counted
        .filter_map(|limit| match &limit.counter {
            Counter::Service(service, quota) => Some((limit, &**service, *quota)),
            Counter::Local(_) => None,
        })
        .collect();
    while let Some((_, service, _)) = open.first().copied() {
        let (together, others): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, other, _)| *other == service);
        open = others;
        let values: Vec<_> = together.iter().map(|(limit, ..)| value(&limit.by, facts, headers)).collect();
        let asked = together.iter().zip(&values).map(|((limit, _, quota), value)| {
            let value = match value {
                Some(value) => Value::Is(value),
                None if limit.by == LimitBy::Nothing => Value::Nothing,
                None => Value::None,
            };
            Limit { name: &limit.name, value, quota: *quota }
        });
        let question = wire::question(&service.domain, asked);
        let refusal = match ask(worker, service, question, headers).await {
            Ok(answer) => judge(worker, &together, &answer, grpc),
            Err(failure) => fail(worker, service, &together, &failure, grpc),
        };
        if refusal.is_some() {
            return refusal;
        }
    }
    None
}

type Asked<'l> = (&'l RateLimit, &'l RateLimitService, Quota);

/// What the answer means for each limit that was asked about.
fn judge(worker: &Worker, asked: &[Asked<'_>], answer: &Answer, grpc: bool) -> Option<(Cause, Response<Body>)> {
    let count = &worker.shared.metrics.rate_limits;
    let mut refusal = None;
    for (index, (limit, ..)) in asked.iter().enumerate() {
        match (answer.over(index), limit.dry_run) {
            (None, _) => count.allowed(),
            (Some(_), true) => count.would_refuse(&limit.name),
            (Some(reset), false) => {
                count.refused(&limit.name);
                refusal.get_or_insert_with(|| (Cause::RateLimited, super::answer(reset, grpc)));
            }
        }
    }
    refusal
}

fn fail(
    worker: &Worker,
    service: &RateLimitService,
    asked: &[Asked<'_>],
    failure: &Failure,
    grpc: bool,
) -> Option<(Cause, Response<Body>)> {
    worker.shared.metrics.rate_limits.asked(&service.cluster, failure.name());
    tracing::debug!(cluster = %service.cluster, %failure, "a rate limit service did not answer");
    let enforced = asked.iter().any(|(limit, ..)| !limit.dry_run);
    let cause = Cause::RateLimitUnavailable;
    (service.deny_on_failure && enforced).then(|| (cause, error::response(cause, grpc)))
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("its cluster is not known")]
    Unknown,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Unreachable(#[from] error::Error),
    #[error("its answer: {0}")]
    Answer(BoxError),
}

impl Failure {
    /// As metrics name it.
    fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Timeout(_) => "timeout",
            Self::Unreachable(error) => error.cause.name(),
            Self::Answer(_) => "invalid",
        }
    }
}

async fn ask(
    worker: &Rc<Worker>,
    service: &RateLimitService,
    question: Bytes,
    headers: &HeaderMap,
) -> Result<Answer, Failure> {
    let cluster = worker.shared.tables.load().asked.get(&service.cluster).cloned().ok_or(Failure::Unknown)?;
    let exchange = exchange(worker, &cluster, service, question, headers.get(TRACEPARENT));
    let response = tokio::time::timeout(service.timeout, exchange).await;
    let response = response.unwrap_or(Err(Failure::Timeout(service.timeout)))?;
    worker.shared.metrics.rate_limits.asked(&service.cluster, "answered");
    Ok(response)
}

async fn exchange(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    service: &RateLimitService,
    question: Bytes,
    trace: Option<&HeaderValue>,
) -> Result<Answer, Failure> {
    let (mut head, ()) = head(service, trace).map_err(|error| Failure::Answer(error.into()))?.into_parts();
    head.version = Version::HTTP_2;
    let target = Target {
        worker,
        cluster,
        rule: None,
        deadline: Some(Instant::now() + service.timeout),
        grpc: true,
        towards: Towards::Network,
        version: upstream::Version::Http2,
        session: None,
        hash: None,
    };
    let body = RequestBody::Full(Some(question));
    let (response, lease) = attempt::send(&target, Source::own(head, body), |_| {}).await?;
    let answer = read(response).await.map_err(Failure::Answer)?;
    lease.complete();
    Ok(answer)
}

fn head(service: &RateLimitService, trace: Option<&HeaderValue>) -> http::Result<Request<()>> {
    let uri = Uri::builder().scheme("http").authority(&*service.authority).path_and_query(METHOD).build()?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers");
    if let Some(trace) = trace {
        request = request.header(TRACEPARENT, trace);
    }
    request.body(())
}

async fn read(response: Response<Incoming>) -> Result<Answer, BoxError> {
    let (head, body) = response.into_parts();
    let collected = Limited::new(body, MAX_ANSWER).collect().await?;
    let status = |fields: &HeaderMap| fields.get("grpc-status").map(|status| status.as_bytes() == b"0");
    let ok = collected.trailers().and_then(status).or_else(|| status(&head.headers)).unwrap_or(false);
    if !head.status.is_success() || !ok {
        return Err(format!("status {}, gRPC {:?}", head.status, collected.trailers().unwrap_or(&head.headers)).into());
    }
    wire::answer(&collected.to_bytes())
}

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const TRACEPARENT: &str = "traceparent";
/// Bytes of an answer. Chosen: a status for each of a port's limits with room to spare.
const MAX_ANSWER: usize = 64 * 1024;
