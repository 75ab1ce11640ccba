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
    pub fn decided(&self, decision: &Decision) {
        let (name, policy) = match decision {
            Decision::Allow => ("allow", None),
            Decision::Deny(policy) => ("deny", policy.as_deref()),
            Decision::WouldDeny(policy) => ("would_deny", policy.as_deref()),
        };
        self.decisions.with_label_values(&[name, policy.unwrap_or_default()]).inc();
    }
}
