//! Requests that are too many: rate limits of the port, once it is known who asks. What this process counts comes first, so that a
//! service is not asked about what is refused anyway.

mod service;

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, header};

use super::body::Body;
use super::error::{self, Cause};
use super::route;
use crate::authz::{self, Facts};
use crate::concurrency::Place;
use crate::rate_limit::Room;
use crate::tables::rate_limit::{Concurrency, Counter, LimitBy, RateLimit};
use crate::worker::Worker;

/// The answer, and why, if a limit has no room for the request. What earlier limits gave is not given back: a client that is held
/// back by one should not be let off the others.
pub async fn refuse(
    worker: &Rc<Worker>,
    limits: &[RateLimit],
    facts: &Facts<'_>,
    headers: &HeaderMap,
    grpc: bool,
) -> Option<(Cause, Response<Body>)> {
    let count = &worker.shared.metrics.rate_limits;
    let mut asking = false;
    for limit in limits.iter().filter(|limit| is_counted(limit, facts, headers)) {
        let Counter::Local(buckets) = &limit.counter else {
            asking = true;
            continue;
        };
        let value = value(&limit.by, facts, headers);
        let (room, crowded) = buckets.take(value.as_deref(), worker.shared.started.elapsed());
        if crowded {
            count.crowded();
        }
        match room {
            Room::Taken => count.allowed(),
            Room::After(_) if limit.dry_run => count.would_refuse(&limit.name),
            Room::After(wait) => {
                count.refused(&limit.name);
                return Some((Cause::RateLimited, answer(wait, grpc)));
            }
        }
    }
    if asking { service::refuse(worker, limits, facts, headers, grpc).await } else { None }
}

/// Places among those that are let in at once; or that one limit has none.
pub fn enter(worker: &Worker, limits: &[Concurrency]) -> Result<Vec<Place>, Cause> {
    let now = worker.shared.started.elapsed();
    let count = &worker.shared.metrics.rate_limits;
    let mut places = Vec::with_capacity(limits.len());
    for limit in limits {
        match limit.controller.enter(now) {
            Some(place) => {
                count.allowed();
                places.push(place);
            }
            None if limit.dry_run => count.would_refuse(&limit.name),
            None => {
                count.refused(&limit.name);
                return Err(Cause::ConcurrencyLimited);
            }
        }
    }
    Ok(places)
}

/// Whether `limit` counts the request.
pub fn is_counted(limit: &RateLimit, facts: &Facts<'_>, headers: &HeaderMap) -> bool {
    let mut wanted = limit.headers.iter();
    wanted.all(|(name, value)| route::header_matches(headers.get_all(name), value))
        && authz::counts(&limit.counts, facts)
}

/// How long the request would have to wait for room in `limit`, at `now` after the process began; nothing is taken. A service is not
/// asked: that would count.
pub fn wait(limit: &RateLimit, facts: &Facts<'_>, headers: &HeaderMap, now: Duration) -> Option<Duration> {
    match &limit.counter {
        Counter::Local(buckets) => buckets.wait(value(&limit.by, facts, headers).as_deref(), now),
        Counter::Service(..) => None,
    }
}

/// That which has a bucket of its own.
fn value<'f>(by: &LimitBy, facts: &Facts<'f>, headers: &'f HeaderMap) -> Option<Cow<'f, [u8]>> {
    match by {
        LimitBy::Nothing => None,
        LimitBy::Identity => facts.principal.map(|id| Cow::Borrowed(id.as_bytes())),
        LimitBy::SourceIp => Some(Cow::Owned(facts.ip.to_string().into_bytes())),
        LimitBy::Header(name) => headers.get(name).map(|value| Cow::Borrowed(value.as_bytes())),
    }
}

fn answer(wait: Duration, grpc: bool) -> Response<Body> {
    let mut response = error::response(Cause::RateLimited, grpc);
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}
