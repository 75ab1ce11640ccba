//! Sending one request upstream, as often as it is safe and allowed.
//!
//! A failure that certainly never reached the application is always tried again, at most twice, on another
//! endpoint where there is one. A reused connection that closed before any byte of a response is tried again once
//! if the method is idempotent (RFC 9110 §9.2.2). Everything else is tried again by the route's policy, within the
//! retry budget. Nothing is ever tried again after response headers went downstream.

mod hedge;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;

use super::deadline::{self, earliest};
use super::error::{Cause, Error, Fault, X_HEDDLE_DRAINING, X_HEDDLE_ERROR, X_HEDDLE_UNDELIVERED};
use super::idle;
use super::source::Source;
use crate::balance::breaker::{self, Kind, Permit};
use crate::balance::{self, Nothing, leaving, outlier};
use crate::tables::cluster::{Cluster, Endpoint, EndpointTls};
use crate::tables::route::{RetryPolicy, Rule};
use crate::upstream::{self, Lease, Towards, Version};
use crate::worker::Worker;

/// Tells the application which attempt a request is, from the second on.
pub const X_HEDDLE_ATTEMPT: HeaderName = HeaderName::from_static("x-heddle-attempt");
/// Retries of what was never delivered. Chosen: enough to leave two dead endpoints behind.
const MAX_UNDELIVERED_RETRIES: u32 = 2;

/// What one request needs to be sent.
pub struct Target<'r> {
    /// The worker it runs on.
    pub worker: &'r Rc<Worker>,
    /// Where it goes.
    pub cluster: &'r Arc<Cluster>,
    /// Timeouts and retries; `None` towards the application, which has none.
    pub rule: Option<&'r Rule>,
    /// When its response must have ended.
    pub deadline: Option<Instant>,
    /// It is gRPC: its server is told how long it has.
    pub grpc: bool,
    /// Inbound: the cluster is the application beside us.
    pub towards: Towards,
    /// The version it leaves in.
    pub version: Version,
    /// Where its session is: tried first, if it takes requests.
    pub session: Option<SocketAddr>,
    /// Of the request, where a hash chooses.
    pub hash: Option<u64>,
}

/// Sends the request; returns when the head of a response is there that will not be tried again. Meanwhile `tried` is told
/// each endpoint that is tried: the request counts for that one also if no answer comes.
pub async fn send(
    target: &Target<'_>,
    mut source: Source,
    mut tried: impl FnMut(&Endpoint),
) -> Result<(Response<Incoming>, Lease), Error> {
    let cluster = target.cluster;
    let request_permit = breaker::permit(&cluster.state, &cluster.settings, Kind::Requests).ok_or(Cause::Overflow)?;
    let policy = target.rule.and_then(|rule| rule.retry.as_ref());
    let mut tries = Tries::default();
    loop {
        let endpoint = pick(target, &tries.endpoints)?;
        tries.endpoints.push(endpoint.id());
        tried(&endpoint);
        let outcome = match target.rule.and_then(|rule| rule.hedge.as_ref()).filter(|_| source.has_twins()) {
            Some(hedge) => hedge::race(target, hedge, endpoint, &source, &mut tries, &mut tried).await,
            None => attempt(target, endpoint, &mut source, tries.endpoints.len(), tries.permit.take()).await,
        };
        let retry = match &outcome {
            Ok((response, _)) => policy.filter(|policy| asks_for_retry(policy, response)).map(|_| Retry::ByPolicy),
            Err(failed) => failed.retry(&source, policy),
        };
        let again = retry.is_some_and(|retry| {
            source.can_send_again() && !passed(target.deadline) && tries.allow(retry, policy, cluster)
        });
        if !again {
            source.commit();
            let (response, lease) = outcome.map_err(|failed| failed.error)?;
            return Ok((response, lease.with_request(request_permit)));
        }
        let reason = retry.map_or("", Retry::name);
        target.worker.shared.metrics.retries.record(&cluster.name, reason);
        if let (Some(Retry::ByPolicy), Some(policy)) = (retry, policy) {
            back_off(target, policy, tries.by_policy).await;
        }
    }
}

fn pick(target: &Target<'_>, tried: &[u64]) -> Result<Arc<Endpoint>, Error> {
    let Target { worker, cluster, session, hash, .. } = target;
    let in_session = session.filter(|_| tried.is_empty());
    if let Some(endpoint) = in_session.and_then(|address| balance::at(cluster, address, worker.shared.now())) {
        return Ok(endpoint);
    }
    let mut view = balance::View {
        loads: &worker.loads.borrow(),
        rng: &mut worker.rng.borrow_mut(),
        now: Instant::now(),
        now_ms: worker.shared.now(),
        hash: *hash,
    };
    balance::pick(cluster, tried, &mut view).map_err(|nothing| match nothing {
        Nothing::NoEndpoints => Cause::NoEndpoints.into(),
        Nothing::AllEjected => Cause::AllEjected.into(),
    })
}

/// Why a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    NeverDelivered,
    StaleConnection,
    ByPolicy,
}

impl Retry {
    /// As metrics name it.
    fn name(self) -> &'static str {
        match self {
            Self::NeverDelivered => "never_delivered",
            Self::StaleConnection => "stale_connection",
            Self::ByPolicy => "policy",
        }
    }
}

/// What was tried so far.
#[derive(Default)]
struct Tries {
    endpoints: Vec<u64>,
    undelivered: u32,
    stale: u32,
    by_policy: u32,
    /// Leave from the retry budget, until the next attempt holds it.
    permit: Option<Permit>,
}

impl Tries {
    fn allow(&mut self, retry: Retry, policy: Option<&RetryPolicy>, cluster: &Arc<Cluster>) -> bool {
        match retry {
            Retry::NeverDelivered => {
                self.undelivered += 1;
                self.undelivered <= MAX_UNDELIVERED_RETRIES
            }
            Retry::StaleConnection => {
                self.stale += 1;
                self.stale <= 1
            }
            Retry::ByPolicy => {
                self.by_policy += 1;
                self.permit = breaker::permit(&cluster.state, &cluster.settings, Kind::Retries);
                policy.is_some_and(|policy| self.by_policy <= policy.retries) && self.permit.is_some()
            }
        }
    }
}

/// What became of an attempt.
type Outcome = Result<(Response<Incoming>, Lease), Failed>;

/// An attempt that brought no response.
struct Failed {
    error: Error,
    /// No byte of the request can have reached the application.
    never_delivered: bool,
    /// The connection had been used before, so the other side may have closed it while it lay idle.
    reused: bool,
}

impl Failed {
    fn retry(&self, source: &Source, policy: Option<&RetryPolicy>) -> Option<Retry> {
        let broke = self.error.cause == Cause::ResetBeforeResponse;
        if self.never_delivered {
            Some(Retry::NeverDelivered)
        } else if broke && self.reused && source.idempotent {
            Some(Retry::StaleConnection)
        } else {
            let by_policy = policy.is_some_and(|policy| policy.connection_failures)
                && (broke || self.error.cause == Cause::PerTryTimeout);
            by_policy.then_some(Retry::ByPolicy)
        }
    }
}

fn asks_for_retry(policy: &RetryPolicy, response: &Response<Incoming>) -> bool {
    let grpc_status = response.headers().get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    policy.codes.contains(&response.status()) || grpc_status.is_some_and(|code| policy.grpc_codes.contains(&code))
}

async fn attempt(
    target: &Target<'_>,
    endpoint: Arc<Endpoint>,
    source: &mut Source,
    number: usize,
    retry_permit: Option<Permit>,
) -> Outcome {
    let Target { worker, cluster, .. } = target;
    let begun = Instant::now();
    let mut under_way = UnderWay::begin(worker, endpoint.id());
    let outcome = exchange(target, &endpoint, source, number, begun).await;
    let answered = outcome.as_ref().ok().filter(|(response, _)| !is_refused_by_policy(&endpoint, response));
    // From when the request left: what a new connection cost says nothing about the next request.
    under_way.latency = answered.map(|(_, lease)| lease.lent.elapsed());
    let latency = under_way.latency;
    drop(under_way);
    let became = match &outcome {
        Ok(_) => answered.map(|(response, _)| outlier::Outcome::of(response.status())),
        Err(failed) => {
            let failure = failed.error.cause.fault() == Fault::Upstream && failed.error.cause != Cause::Overflow;
            failure.then_some(outlier::Outcome::NoResponse)
        }
    };
    if let Some(became) = became {
        let now = worker.shared.now();
        let ejected = outlier::note(cluster, &endpoint, became, latency, now);
        worker.shared.metrics.outliers.ejected(&cluster.name, &ejected);
    }
    if let Ok((response, _)) = &outcome
        && let Some(length) = rest_asked_for(response)
    {
        leaving::rest(cluster, &endpoint, worker.shared.now(), length);
    }
    drop(retry_permit);
    outcome
}

/// The sidecar there has refused it for a limit: neither how soon nor that it did says anything of the endpoint.
fn is_refused_by_policy(endpoint: &Endpoint, response: &Response<Incoming>) -> bool {
    let limits = [Cause::RateLimited, Cause::RateLimitUnavailable, Cause::ConcurrencyLimited];
    let said = response.headers().get(X_HEDDLE_ERROR).filter(|_| endpoint.tls != EndpointTls::Plaintext);
    said.is_some_and(|said| limits.iter().any(|cause| said == cause.name()))
}

/// How long an endpoint that takes no more asks to be left alone (RFC 9110 §10.2.3). Seconds only: clocks differ.
fn rest_asked_for(response: &Response<Incoming>) -> Option<Duration> {
    let full = matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let seconds = response.headers().get(header::RETRY_AFTER).filter(|_| full)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// One request under way at an endpoint, also if its client goes away and nobody waits for it any more.
struct UnderWay<'w> {
    worker: &'w Worker,
    endpoint: u64,
    latency: Option<Duration>,
}

impl<'w> UnderWay<'w> {
    fn begin(worker: &'w Worker, endpoint: u64) -> Self {
        worker.loads.borrow_mut().begin(endpoint);
        Self { worker, endpoint, latency: None }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.worker.loads.borrow_mut().end(self.endpoint, self.latency, Instant::now());
    }
}

async fn exchange(
    target: &Target<'_>,
    endpoint: &Arc<Endpoint>,
    source: &mut Source,
    number: usize,
    begun: Instant,
) -> Result<(Response<Incoming>, Lease), Failed> {
    let Target { worker, cluster, .. } = target;
    let lent = upstream::lend(worker, cluster, endpoint.clone(), target.version, target.towards).await;
    let mut lease =
        lent.map_err(|error| Failed { never_delivered: error.cause.never_delivered(), error, reused: false })?;
    let reused = lease.reused;
    let failed = |error: Error, never_delivered| Failed { error, never_delivered, reused };
    let Some(mut request) = source.request() else {
        return Err(failed(Cause::ResetBeforeResponse.into(), false));
    };
    let try_deadline = target.rule.and_then(|rule| rule.try_timeout).map(|limit| begun + limit);
    let limit = earliest(target.deadline, try_deadline);
    if number > 1 && target.towards == Towards::Network {
        request.headers_mut().insert(X_HEDDLE_ATTEMPT, HeaderValue::from(number));
    }
    if let Some(limit) = limit.filter(|_| target.grpc) {
        deadline::tell(request.headers_mut(), limit.saturating_duration_since(Instant::now()));
    }
    let sent = match (limit, target.rule.and_then(|rule| rule.idle_timeout)) {
        (None, None) => lease.send(request).await,
        (limit, idle) => match idle::within(limit, idle, &source.progress, lease.send(request)).await {
            Ok(sent) => sent,
            Err(idle::Over::Idle) => return Err(failed(Cause::IdleTimeout.into(), false)),
            Err(idle::Over::Limit) if passed(target.deadline) => {
                return Err(failed(Cause::RequestTimeout.into(), false));
            }
            Err(idle::Over::Limit) => return Err(failed(Cause::PerTryTimeout.into(), false)),
        },
    };
    let mut response = sent.map_err(|mut error| match error.take_message() {
        _ if let Some(cause) = source.broken.get() => failed(Error::new(cause, error.into_error()), false),
        Some(unsent) => {
            source.restore(unsent);
            failed(Error::new(Cause::ResetBeforeResponse, error.into_error()), true)
        }
        None => {
            let error = error.into_error();
            let unprocessed = refused_unprocessed(&error);
            let cause = if unprocessed {
                Cause::Undelivered
            } else if error.is_parse() {
                Cause::UpstreamProtocolError
            } else {
                Cause::ResetBeforeResponse
            };
            failed(Error::new(cause, error), unprocessed)
        }
    })?;
    if matches!(endpoint.tls, EndpointTls::Mtls(_)) {
        if response.headers_mut().remove(X_HEDDLE_DRAINING).is_some() {
            leaving::note(cluster, endpoint, worker.shared.now());
        }
        if response.headers().contains_key(X_HEDDLE_UNDELIVERED) {
            return Err(failed(Cause::Undelivered.into(), true));
        }
    }
    Ok((response, lease))
}

/// HTTP/2's ways to say that a request was not looked at: REFUSED_STREAM, or a GOAWAY whose last stream lies below
/// (RFC 9113 §8.7).
fn refused_unprocessed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    })
}

/// Waits a random part of an exponentially growing interval: full jitter (Brooker, "Exponential Backoff And
/// Jitter", 2015).
async fn back_off(target: &Target<'_>, policy: &RetryPolicy, retries: u32) {
    let ceiling = policy.backoff_base.saturating_mul(1 << retries.clamp(1, 16)).min(policy.backoff_max);
    let share = target.worker.rng.borrow_mut().f64();
    tokio::time::sleep(ceiling.mul_f64(share)).await;
}

fn passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline.saturating_duration_since(Instant::now()) == Duration::ZERO)
}
