//! Circuit breaking: how much may be open towards one cluster at once, over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::tables::cluster::{ClusterState, Settings};

/// Most that may be open at once, for the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests sent and not answered in full.
    pub requests: u32,
    /// Retries under way.
    pub retries: u32,
}

/// Chosen: Envoy's 1,024 trips healthy services with slow answers, which is why Istio lifts it to 2³²−1 and so has
/// no limit at all. These hold memory (about 20 KiB a connection) below 200 MiB at the very worst.
impl Default for Limits {
    fn default() -> Self {
        Self { connections: 10_000, pending: 1_000, requests: 10_000, retries: 100 }
    }
}

/// What is open now.
#[derive(Debug, Default)]
pub struct Counts {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// What a [`Permit`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A TCP connection.
    Connections,
    /// A request waiting for a connection.
    Pending,
    /// A request under way.
    Requests,
    /// A retry under way.
    Retries,
}

impl Kind {
    /// Every kind, once.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Pending, Self::Requests, Self::Retries];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }
}

impl Counts {
    fn of(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Connections => &self.connections,
            Kind::Pending => &self.pending,
            Kind::Requests => &self.requests,
            Kind::Retries => &self.retries,
        }
    }

    /// How many of `kind` are open now.
    pub fn open(&self, kind: Kind) -> u32 {
        self.of(kind).load(Ordering::Relaxed)
    }
}

/// Leave to have one more open; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    state: Arc<ClusterState>,
    kind: Kind,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.state.breaker.of(self.kind).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leave to open one more of `kind`, or `None` at the limit.
pub fn permit(state: &Arc<ClusterState>, settings: &Settings, kind: Kind) -> Option<Permit> {
    let limit = limit(state, settings, kind);
    let before = state.breaker.of(kind).fetch_add(1, Ordering::Relaxed);
    let permit = Permit { state: state.clone(), kind };
    (before < limit).then_some(permit)
}

/// Most of `kind` that may be open now.
pub fn limit(state: &ClusterState, settings: &Settings, kind: Kind) -> u32 {
    match kind {
        Kind::Connections => settings.limits.connections,
        Kind::Pending => settings.limits.pending,
        Kind::Requests => settings.limits.requests,
        Kind::Retries => retry_limit(state, settings),
    }
}

/// The budget: a share of the active requests, a floor below which it never falls, and the hard limit.
fn retry_limit(state: &ClusterState, settings: &Settings) -> u32 {
    let active = u64::from(state.breaker.open(Kind::Requests));
    let share = active * u64::from(settings.retry_budget_percent) / 100;
    let budget = u32::try_from(share).unwrap_or(u32::MAX).max(settings.retry_budget_floor);
    budget.min(settings.limits.retries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_a_dropped_permit_makes_room() {
        let state = Arc::<ClusterState>::default();
        let limits = Limits { requests: 2, ..Limits::default() };
        let settings = Settings { limits, ..Settings::default() };
        let take = || permit(&state, &settings, Kind::Requests);
        let first = take().unwrap();
        let _second = take().unwrap();
        assert!(take().is_none());
        assert_eq!(state.breaker.open(Kind::Requests), 2, "a refusal takes nothing");
        drop(first);
        assert!(take().is_some());
    }

    #[test]
    fn retries_are_a_share_of_active_requests_above_a_floor() {
        let state = Arc::<ClusterState>::default();
        let settings = Settings::default();
        assert_eq!(retry_limit(&state, &settings), 3);
        let _active: Vec<_> = (0..50).filter_map(|_| permit(&state, &settings, Kind::Requests)).collect();
        assert_eq!(retry_limit(&state, &settings), 10);
    }
}
