//! Decisions of authorization policies.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::authz::Decision;

/// Counts of decisions, where there are policies.
pub struct Authorization {
    decisions: IntCounterVec,
}

impl Authorization {
    /// Registers the metrics of this area.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Requests and opaque connections decided by AuthorizationPolicies, by decision and deciding policy.";
        let decisions = IntCounterVec::new(Opts::new("heddle_authorization_total", help), &["decision", "policy"])?;
        registry.register(Box::new(decisions.clone()))?;
        Ok(Self { decisions })
    }

    /// A decision was made.
    pub fn decided(&self, decision: &Decision<'_>) {
        let policy = match decision {
            // One series: which ALLOW policy it was is no question of metrics.
            Decision::Allow(_) => None,
            Decision::Deny(by) | Decision::WouldDeny(by) => *by,
        };
        let policy = policy.map(|by| &*by.policy.name).unwrap_or_default();
        self.decisions.with_label_values(&[decision.name(), policy]).inc();
    }
}
