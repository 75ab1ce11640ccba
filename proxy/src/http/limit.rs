//! Requests that are too many: rate limits of the port, one after another, once it is known who asks.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, header};

use super::body::Body;
use super::error::{self, Cause};
use super::route;
use crate::authz::{self, Facts};
use crate::metrics::RateLimits;
use crate::rate_limit::Room;
use crate::tables::rate_limit::{LimitBy, RateLimit};

/// The answer, if a limit has no room for the request, at `now` after the process began. What earlier limits gave is not given
/// back: a client that is held back by one should not be let off the others.
pub fn refuse(
    limits: &[RateLimit],
    facts: &Facts<'_>,
    headers: &HeaderMap,
    grpc: bool,
    now: Duration,
    count: &RateLimits,
) -> Option<Response<Body>> {
    for limit in limits.iter().filter(|limit| is_counted(limit, facts, headers)) {
        let (room, crowded) = limit.buckets.take(value(&limit.by, facts, headers).as_deref(), now);
        if crowded {
            count.crowded();
        }
        match room {
            Room::Taken => count.allowed(),
            Room::After(_) if limit.dry_run => count.would_refuse(&limit.name),
            Room::After(wait) => {
                count.refused(&limit.name);
                return Some(answer(wait, grpc));
            }
        }
    }
    None
}

/// Whether `limit` counts the request.
pub fn is_counted(limit: &RateLimit, facts: &Facts<'_>, headers: &HeaderMap) -> bool {
    let mut wanted = limit.headers.iter();
    wanted.all(|(name, value)| route::header_matches(headers.get_all(name), value))
        && authz::counts(&limit.counts, facts)
}

/// How long the request would have to wait for room in `limit`, at `now` after the process began; nothing is taken.
pub fn wait(limit: &RateLimit, facts: &Facts<'_>, headers: &HeaderMap, now: Duration) -> Option<Duration> {
    limit.buckets.wait(value(&limit.by, facts, headers).as_deref(), now)
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
