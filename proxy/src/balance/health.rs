//! Active health checks: what an endpoint answered when it was asked whether it is well.
//!
//! [`crate::health`] asks, on the control thread alone; every worker reads. Pure.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery};

use crate::tables::cluster::{Cluster, Endpoint};

/// How endpoints of a cluster are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub question: Question,
    /// From one answer to the next question.
    pub interval: Duration,
    /// How long an answer may take, connection included.
    pub timeout: Duration,
    /// Failures in a row after which an endpoint is not well, at least 1.
    pub unhealthy_threshold: u32,
    /// Successes in a row after which it is well again, at least 1.
    pub healthy_threshold: u32,
}

/// What endpoints are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// For a connection.
    Tcp,
    /// `GET` of a path.
    Http {
        /// Of the request.
        authority: Authority,
        /// Of the request.
        path: PathAndQuery,
        /// Status codes that say yes, each range with its ends.
        expected: Vec<(u16, u16)>,
        /// In HTTP/2 rather than HTTP/1.1.
        http2: bool,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// Of the request.
        authority: Authority,
        /// The gRPC service; empty: the server as a whole.
        service: String,
    },
}

/// What is known of one endpoint. Well until it has said otherwise: whoever announced it says that it is ready.
#[derive(Debug, Default)]
pub struct State {
    asked: AtomicBool,
    unwell: AtomicBool,
    /// Answers in a row that speak against what is held of it.
    in_a_row: AtomicU32,
}

impl State {
    /// Whether it may get requests.
    pub fn is_well(&self) -> bool {
        !self.unwell.load(Ordering::Relaxed)
    }

    /// Takes an answer; `Some` if it is well now and was not, or the other way round. The very first answer decides alone.
    pub fn note(&self, check: &Check, well: bool) -> Option<bool> {
        let first = !self.asked.swap(true, Ordering::Relaxed);
        if well == self.is_well() {
            self.in_a_row.store(0, Ordering::Relaxed);
            return None;
        }
        let threshold = if well { check.healthy_threshold } else { check.unhealthy_threshold };
        let in_a_row = self.in_a_row.load(Ordering::Relaxed) + 1;
        if in_a_row < threshold && !first {
            self.in_a_row.store(in_a_row, Ordering::Relaxed);
            return None;
        }
        self.unwell.store(!well, Ordering::Relaxed);
        self.in_a_row.store(0, Ordering::Relaxed);
        Some(well)
    }

    /// Forgets all answers: nobody asks any more.
    pub fn forget(&self) {
        self.asked.store(false, Ordering::Relaxed);
        self.unwell.store(false, Ordering::Relaxed);
        self.in_a_row.store(0, Ordering::Relaxed);
    }
}

/// Whether an endpoint of the cluster may be unwell: mostly none is.
pub fn any_unwell(cluster: &Cluster) -> bool {
    cluster.state.unwell.load(Ordering::Relaxed) > 0
}

/// Counts anew who is not well, after an answer or a change of the endpoints.
pub fn count(cluster: &Cluster) {
    let set = cluster.endpoints.load();
    let unwell = set.active().iter().filter(|endpoint| !is_well(endpoint)).count();
    cluster.state.unwell.store(u32::try_from(unwell).unwrap_or(u32::MAX), Ordering::Relaxed);
}

fn is_well(endpoint: &Endpoint) -> bool {
    endpoint.state.health.is_well()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answers: &[bool]) -> Vec<Option<bool>> {
        let check = Check {
            question: Question::Tcp,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        };
        let state = State::default();
        answers.iter().map(|well| state.note(&check, *well)).collect()
    }

    #[test]
    fn thresholds_count_answers_in_a_row() {
        assert_eq!(
            told(&[true, false, false, true, false, false, false]),
            [None, None, None, None, None, None, Some(false)]
        );
        assert_eq!(told(&[false, true, false, true, true]), [Some(false), None, None, None, Some(true)]);
    }

    #[test]
    fn the_first_answer_decides_alone() {
        assert_eq!(told(&[false]), [Some(false)]);
        assert_eq!(told(&[true, false]), [None, None]);
    }
}
