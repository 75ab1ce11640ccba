//! Decisions of rate limits.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Counts of decisions, where there are limits.
pub struct RateLimits {
    decisions: IntCounterVec,
    allowed: IntCounter,
    crowded: IntCounter,
    asked: IntCounterVec,
}

impl RateLimits {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Requests asked of limits of RateLimitPolicies, by decision and refusing limit.";
        let decisions = IntCounterVec::new(Opts::new("heddle_rate_limit_total", help), &["decision", "limit"])?;
        let help = "Requests that shared a bucket because a limit had too many values.";
        let crowded = IntCounter::new("heddle_rate_limit_crowded_total", help)?;
        registry.register(Box::new(decisions.clone()))?;
        let help = "Questions to services of RateLimitPolicies, by cluster and what came of them.";
        let asked = IntCounterVec::new(Opts::new("heddle_rate_limit_asked_total", help), &["cluster", "outcome"])?;
        registry.register(Box::new(crowded.clone()))?;
        registry.register(Box::new(asked.clone()))?;
        Ok(Self { allowed: decisions.with_label_values(&["allow", ""]), decisions, crowded, asked })
    }

    /// There was room.
    pub fn allowed(&self) {
        self.allowed.inc();
    }

    /// There was none at `limit`.
    pub fn refused(&self, limit: &str) {
        self.decisions.with_label_values(&["deny", limit]).inc();
    }

    /// There was none at `limit`, which is in dry run.
    pub fn would_refuse(&self, limit: &str) {
        self.decisions.with_label_values(&["would_deny", limit]).inc();
    }

    /// A service was asked: `answered`, or the name of what went wrong.
    pub fn asked(&self, cluster: &str, outcome: &str) {
        self.asked.with_label_values(&[cluster, outcome]).inc();
    }

    /// A value had no bucket of its own.
    pub fn crowded(&self) {
        self.crowded.inc();
    }
}
