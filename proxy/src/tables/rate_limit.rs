//! Rate limits in force on a port.

use std::sync::Arc;

use http::HeaderName;

use super::policy::Rule;
use super::route::StringMatch;
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
    /// Of the whole process; kept over changes of everything else.
    pub buckets: Arc<Buckets>,
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
        let same =
            |old: &&Self| old.name == self.name && old.by == self.by && old.buckets.rate() == self.buckets.rate();
        if let Some(old) = before.iter().find(same) {
            self.buckets = old.buckets.clone();
        }
    }
}
