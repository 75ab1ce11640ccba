//! Rate limits in force on a port.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::policy::Rule;
use super::route::StringMatch;
use crate::concurrency::Controller;
use crate::rate_limit::Buckets;

/// One limit.
#[derive(Debug)]
pub struct RateLimit {
    /// `<namespace>/<policy>#<index>`.
    pub name: Arc<str>,
    /// Counted, never enforced.
    pub dry_run: bool,
    /// Of what each value has a bucket of its own.
    pub by: LimitBy,
    /// Which requests count.
    pub counts: Rule,
    /// Headers that a request must have to count.
    pub headers: Vec<(HeaderName, StringMatch)>,
    /// Who counts.
    pub counter: Counter,
}

/// Who counts the requests of a limit.
#[derive(Debug)]
pub enum Counter {
    /// This process, whatever worker serves; kept over changes of everything else.
    Local(Arc<Buckets>),
    /// A service, for all workloads together.
    Service(Arc<RateLimitService>, Quota),
}

/// A service that counts for all workloads together (`envoy.service.ratelimit.v3`).
#[derive(Debug, PartialEq, Eq)]
pub struct RateLimitService {
    /// The name of its cluster.
    pub cluster: Arc<str>,
    /// The host it is asked as.
    pub authority: Arc<str>,
    /// What it keeps these limits under.
    pub domain: Arc<str>,
    /// How long a request waits for it.
    pub timeout: Duration,
    /// Whether a request is refused that it did not count.
    pub deny_on_failure: bool,
}

/// What a service is told that a limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// So many requests.
    pub requests: u32,
    /// In each of these.
    pub unit: Unit,
}

/// Lengths by which services count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
    /// 86,400 s.
    Day,
}

impl Unit {
    /// The one of this length.
    pub fn of(length: Duration) -> Option<Self> {
        match (length.as_secs(), length.subsec_nanos()) {
            (1, 0) => Some(Self::Second),
            (60, 0) => Some(Self::Minute),
            (3_600, 0) => Some(Self::Hour),
            (86_400, 0) => Some(Self::Day),
            _ => None,
        }
    }
}

/// How many requests are let in at once.
#[derive(Debug)]
pub struct Concurrency {
    /// `<namespace>/<policy>`.
    pub name: Arc<str>,
    /// Counted, never enforced.
    pub dry_run: bool,
    /// Of the whole process; kept over changes of everything else.
    pub controller: Arc<Controller>,
}

impl Concurrency {
    /// Goes on where `before` is, if that has the same bounds.
    pub fn keep(&mut self, before: &[Self]) {
        let same = |old: &&Self| old.name == self.name && old.controller.bounds() == self.controller.bounds();
        if let Some(old) = before.iter().find(same) {
            self.controller = old.controller.clone();
        }
    }
}

/// Of what each value has a bucket of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitBy {
    /// One bucket for all.
    Nothing,
    /// The caller's SPIFFE ID.
    Identity,
    /// The caller's address.
    SourceIp,
    /// This header.
    Header(HeaderName),
}

impl RateLimit {
    /// Goes on counting where `before` is, if that is the same limit.
    pub fn keep(&mut self, before: &[Self]) {
        let Counter::Local(buckets) = &mut self.counter else { return };
        let same = before.iter().filter(|old| old.name == self.name && old.by == self.by);
        let kept = same.filter_map(|old| match &old.counter {
            Counter::Local(old) => Some(old),
            Counter::Service(..) => None,
        });
        if let Some(old) = kept.into_iter().find(|old| old.rate() == buckets.rate()) {
            *buckets = old.clone();
        }
    }
}
