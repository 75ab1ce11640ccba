//! Facts of a chain of `inbound` → [`RateLimit`].

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::Deserialize;

use super::read::{Error, Within, at_most};
use crate::concurrency::{Bounds, Controller};
use crate::rate_limit::{Buckets, Rate};
use crate::tables::policy::Rule;
use crate::tables::rate_limit::{Concurrency, Counter, LimitBy, Quota, RateLimit, RateLimitService, Unit};
use crate::tables::route::StringMatch;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Facts {
    name: Arc<str>,
    dry_run: bool,
    requests: u32,
    per_nanos: u64,
    burst: u32,
    /// Control planes before 0.2 know none.
    service: Option<ServiceFact>,
    by: ByFact,
    counts: Rule,
    #[serde(default)]
    headers: Vec<HeaderFact>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceFact {
    cluster: Arc<str>,
    authority: Arc<str>,
    domain: Arc<str>,
    timeout_nanos: u64,
    deny_on_failure: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum ByFact {
    Nothing,
    Identity,
    SourceIp,
    Header(String),
}

#[derive(Deserialize)]
struct HeaderFact {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConcurrencyFacts {
    name: Arc<str>,
    dry_run: bool,
    minimum: u32,
    maximum: u32,
    buffer_percent: u32,
    interval_nanos: u64,
}

/// How many requests a port takes at once, with nothing measured.
pub(super) fn concurrency(facts: Vec<ConcurrencyFacts>) -> Result<Vec<Concurrency>, Error> {
    at_most("concurrency", &facts, MAX_LIMITS)?;
    let read = |(index, facts): (usize, ConcurrencyFacts)| {
        if facts.minimum == 0 || facts.minimum > facts.maximum || facts.interval_nanos == 0 {
            let wrong = Error::new("minimum", "must be above 0 and at most the maximum, and intervalNanos above 0");
            return Err(wrong).nth("concurrency", index);
        }
        let bounds = Bounds {
            minimum: facts.minimum,
            maximum: facts.maximum,
            buffer_percent: facts.buffer_percent,
            interval: Duration::from_nanos(facts.interval_nanos),
        };
        let controller = Arc::new(Controller::new(bounds));
        Ok(Concurrency { name: facts.name, dry_run: facts.dry_run, controller })
    };
    facts.into_iter().enumerate().map(read).collect()
}

/// The limits of a port, with full buckets.
pub(super) fn limits(facts: Vec<Facts>) -> Result<Vec<RateLimit>, Error> {
    at_most("rateLimits", &facts, MAX_LIMITS)?;
    facts.into_iter().enumerate().map(|(index, facts)| limit(facts).nth("rateLimits", index)).collect()
}

fn limit(facts: Facts) -> Result<RateLimit, Error> {
    let numbers = [("requests", facts.requests == 0), ("perNanos", facts.per_nanos == 0), ("burst", facts.burst == 0)];
    if let Some((field, _)) = numbers.into_iter().find(|(_, is_zero)| *is_zero) {
        return Err(Error::new(field, "is 0, must be above"));
    }
    at_most("counts.from", &facts.counts.from, MAX_VALUES)?;
    at_most("counts.to", &facts.counts.to, MAX_VALUES)?;
    at_most("headers", &facts.headers, MAX_VALUES)?;
    let per = Duration::from_nanos(facts.per_nanos);
    let by = match facts.by {
        ByFact::Nothing => LimitBy::Nothing,
        ByFact::Identity => LimitBy::Identity,
        ByFact::SourceIp => LimitBy::SourceIp,
        ByFact::Header(name) => LimitBy::Header(header_name("by.header", &name)?),
    };
    let headers = facts
        .headers
        .into_iter()
        .map(|header| Ok((header_name("headers", &header.name)?, StringMatch::Exact(header.value))));
    Ok(RateLimit {
        name: facts.name,
        dry_run: facts.dry_run,
        by,
        counts: facts.counts,
        headers: headers.collect::<Result<_, Error>>()?,
        counter: match facts.service {
            None => Counter::Local(Arc::new(Buckets::new(Rate::new(facts.requests, per, facts.burst)))),
            Some(service) => {
                let unit =
                    Unit::of(per).ok_or_else(|| Error::new("perNanos", "is no unit that a service counts by"))?;
                Counter::Service(Arc::new(counting(service)?), Quota { requests: facts.requests, unit })
            }
        },
    })
}

fn counting(facts: ServiceFact) -> Result<RateLimitService, Error> {
    for (field, empty) in [("cluster", facts.cluster.is_empty()), ("authority", facts.authority.is_empty())] {
        if empty {
            return Err(Error::new(&format!("service.{field}"), "is empty"));
        }
    }
    Ok(RateLimitService {
        cluster: facts.cluster,
        authority: facts.authority,
        domain: facts.domain,
        timeout: Duration::from_nanos(facts.timeout_nanos),
        deny_on_failure: facts.deny_on_failure,
    })
}

fn header_name(field: &str, name: &str) -> Result<HeaderName, Error> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| Error::new(field, format!("{name:?} is no header's name")))
}

/// Limits of one port. Chosen: 16 policies with all that one may have.
const MAX_LIMITS: usize = 256;
/// As RateLimitPolicy allows.
const MAX_VALUES: usize = 64;
