//! Limits that a service counts for all workloads together: one question about all of a request's limits that the same service
//! counts, over Envoy's protocol (`envoy.service.ratelimit.v3`). The service is a cluster like any other: balanced, over mutual TLS
//! where it has a sidecar, within its circuit breakers.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use envoy_types::pb::envoy::r#type::v3::RateLimitUnit;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use prost::Message;

use super::{answer, is_counted, value};
use crate::authz::Facts;
use crate::http::attempt::{self, Target};
use crate::http::body::{Body, RequestBody};
use crate::http::error::{self, BoxError, Cause};
use crate::http::source::Source;
use crate::tables::Cluster;
use crate::tables::rate_limit::{Counter, LimitBy, Quota, RateLimit, RateLimitService, Unit};
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
        let descriptors = together.iter().map(|(limit, _, quota)| descriptor(limit, *quota, facts, headers));
        let question = RateLimitRequest {
            domain: service.domain.to_string(),
            descriptors: descriptors.collect(),
            ..RateLimitRequest::default()
        };
        let refusal = match ask(worker, service, &question, headers).await {
            Ok(response) => judge(worker, &together, &response, grpc),
            Err(failure) => fail(worker, service, &together, &failure, grpc),
        };
        if refusal.is_some() {
            return refusal;
        }
    }
    None
}

type Asked<'l> = (&'l RateLimit, &'l RateLimitService, Quota);

/// Entries as Envoys of the mesh send them, so that all count together.
fn descriptor(limit: &RateLimit, quota: Quota, facts: &Facts<'_>, headers: &HeaderMap) -> RateLimitDescriptor {
    let entry = |key: &str, value: Cow<'_, str>| Entry { key: key.to_owned(), value: value.into_owned() };
    let mut entries = vec![entry("limit", Cow::Borrowed(&limit.name))];
    match value(&limit.by, facts, headers) {
        Some(value) => entries.push(entry("value", String::from_utf8_lossy(&value))),
        None if limit.by == LimitBy::Nothing => {}
        None => entries.push(entry("none", Cow::Borrowed("yes"))),
    }
    let unit = match quota.unit {
        Unit::Second => RateLimitUnit::Second,
        Unit::Minute => RateLimitUnit::Minute,
        Unit::Hour => RateLimitUnit::Hour,
        Unit::Day => RateLimitUnit::Day,
    };
    let told = RateLimitOverride { requests_per_unit: quota.requests, unit: unit as i32 };
    RateLimitDescriptor { entries, limit: Some(told), ..RateLimitDescriptor::default() }
}

/// What the answer means: each limit has a status, in the order of the question.
fn judge(
    worker: &Worker,
    asked: &[Asked<'_>],
    response: &RateLimitResponse,
    grpc: bool,
) -> Option<(Cause, Response<Body>)> {
    let count = &worker.shared.metrics.rate_limits;
    let mut refusal = None;
    for (index, (limit, ..)) in asked.iter().enumerate() {
        let status = response.statuses.get(index);
        let is_over = status.map_or(response.overall_code, |status| status.code) == Code::OverLimit as i32;
        match (is_over, limit.dry_run) {
            (false, _) => count.allowed(),
            (true, true) => count.would_refuse(&limit.name),
            (true, false) => {
                count.refused(&limit.name);
                refusal.get_or_insert_with(|| (Cause::RateLimited, answer(until_reset(status), grpc)));
            }
        }
    }
    refusal
}

/// A second if the service does not say.
fn until_reset(status: Option<&DescriptorStatus>) -> Duration {
    let told = status.and_then(|status| status.duration_until_reset.as_ref()).map(|told| told.seconds);
    Duration::from_secs(told.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default().max(1))
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
    question: &RateLimitRequest,
    headers: &HeaderMap,
) -> Result<RateLimitResponse, Failure> {
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
    question: &RateLimitRequest,
    trace: Option<&HeaderValue>,
) -> Result<RateLimitResponse, Failure> {
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
    let body = RequestBody::Full(Some(message(question)));
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

/// A message as gRPC sends it: not compressed, its length before it (gRPC `PROTOCOL-HTTP2.md`).
fn message(question: &RateLimitRequest) -> Bytes {
    let length = question.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Fails only for want of room, and a `BytesMut` grows.
    let _ = question.encode(&mut bytes);
    bytes.freeze()
}

async fn read(response: Response<Incoming>) -> Result<RateLimitResponse, BoxError> {
    let (head, body) = response.into_parts();
    let collected = Limited::new(body, MAX_ANSWER).collect().await?;
    let status = |fields: &HeaderMap| fields.get("grpc-status").map(|status| status.as_bytes() == b"0");
    let ok = collected.trailers().and_then(status).or_else(|| status(&head.headers)).unwrap_or(false);
    if !head.status.is_success() || !ok {
        return Err(format!("status {}, gRPC {:?}", head.status, collected.trailers().unwrap_or(&head.headers)).into());
    }
    let bytes = collected.to_bytes();
    match bytes.split_at_checked(PREFIX) {
        Some(([0, length @ ..], message))
            if usize::try_from(u32::from_be_bytes(length.try_into()?))? == message.len() =>
        {
            Ok(RateLimitResponse::decode(message)?)
        }
        _ => Err("is not one message".into()),
    }
}

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const TRACEPARENT: &str = "traceparent";
/// Before each message of gRPC.
const PREFIX: usize = 5;
/// Bytes of an answer. Chosen: a status for each of a port's limits with room to spare.
const MAX_ANSWER: usize = 64 * 1024;
