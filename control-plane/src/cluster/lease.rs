//! Which replica does what only one may do: exchange roots, write statuses, keep the roots' ConfigMaps.
//!
//! A Lease (`coordination.k8s.io/v1`) as client-go's leader election uses it. Whoever holds it renews it; another takes it when
//! it has not changed for its whole duration *by the taker's own clock*, so no two clocks are compared. A holder that could not
//! renew stops well before another may take over. Every write says which version it was made from, so of two takers one wins.
//! A holder that ends gives it back.
//!
//! [`decide`] is the rule, pure; [`run`] does it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

use super::{CONFLICT, refused_with};
use crate::metrics::Metrics;

/// Where the Lease is and who this replica is.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Namespace of the Lease.
    pub namespace: String,
    /// This replica's pod; the name by which the Lease says who holds it.
    pub identity: String,
    /// To whom the Lease belongs if this replica makes it.
    pub owner: Option<OwnerReference>,
    /// Where other replicas reach this one, if it knows; said in an annotation of the Lease.
    pub address: Option<SocketAddr>,
}

/// Who holds the Lease, as far as this replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lead {
    /// Nobody, or nobody knows.
    #[default]
    Unknown,
    /// This replica.
    Mine,
    /// Another one, at this address if it has said so.
    Other(Option<SocketAddr>),
}

impl Lead {
    /// Whether this replica holds it.
    pub fn is_mine(self) -> bool {
        self == Self::Mine
    }

    /// Where the other replica is that holds it.
    pub fn elsewhere(self) -> Option<SocketAddr> {
        match self {
            Self::Other(address) => address,
            Self::Unknown | Self::Mine => None,
        }
    }
}

/// What to do about a Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is this replica's: write that it still is.
    Renew,
    /// It is nobody's any more.
    Take,
    /// Another holds it.
    Wait,
}

/// The rule. `unchanged_for`: how long this replica has seen the Lease as it is.
fn decide(lease: &LeaseSpec, identity: &str, unchanged_for: Duration) -> Step {
    match lease.holder_identity.as_deref() {
        Some(holder) if holder == identity => Step::Renew,
        None | Some("") => Step::Take,
        Some(_) => {
            let duration = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let duration = duration.map_or(DURATION, Duration::from_secs);
            if unchanged_for >= duration { Step::Take } else { Step::Wait }
        }
    }
}

/// The Lease after a step of this replica.
fn written(before: &LeaseSpec, identity: &str, step: Step, now: Timestamp) -> LeaseSpec {
    let taken = step == Step::Take;
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(now)),
        acquire_time: if taken { Some(MicroTime(now)) } else { before.acquire_time.clone() },
        lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(taken)),
        ..before.clone()
    }
}

/// Tries to hold the Lease until `stopped` turns true, then gives it back; `lead` says who holds it.
pub async fn run(
    client: Client,
    candidate: Candidate,
    lead: watch::Sender<Lead>,
    metrics: Metrics,
    mut stopped: watch::Receiver<bool>,
) {
    let mut election = Election {
        api: Api::namespaced(client, &candidate.namespace),
        candidate,
        seen: None,
        renewed: None,
        lead,
        metrics,
    };
    loop {
        let pause = election.round().await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    election.give_back().await;
}

struct Election {
    api: Api<Lease>,
    candidate: Candidate,
    /// The Lease as it was last seen, and since when it has been so.
    seen: Option<(Lease, Instant)>,
    /// When the last renewal that succeeded was begun.
    renewed: Option<Instant>,
    lead: watch::Sender<Lead>,
    metrics: Metrics,
}

impl Election {
    /// One look and, where it is due, one write; how long until the next.
    async fn round(&mut self) -> Duration {
        let begun = Instant::now();
        match tokio::time::timeout(ROUND_TIMEOUT.min(self.left()), self.step(begun)).await {
            Ok(Ok(lead)) => {
                if lead.is_mine() {
                    self.renewed = Some(begun);
                }
                self.tell(lead);
                if lead.is_mine() { RENEW_PAUSE } else { LOOK_PAUSE }
            }
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_) => self.failed("the API server does not answer"),
        }
    }

    /// How long this replica may go on as the holder without renewing.
    fn left(&self) -> Duration {
        match self.renewed {
            Some(renewed) if self.lead.borrow().is_mine() => RENEW_DEADLINE.saturating_sub(renewed.elapsed()),
            _ => Duration::MAX,
        }
    }

    async fn step(&mut self, now: Instant) -> kube::Result<Lead> {
        let Some(found) = self.api.get_opt(LEASE).await? else { return self.create().await };
        let since = match &self.seen {
            Some((seen, since)) if seen.metadata.resource_version == found.metadata.resource_version => *since,
            _ => now,
        };
        let spec = found.spec.clone().unwrap_or_default();
        self.seen = Some((found.clone(), since));
        let step = decide(&spec, &self.candidate.identity, now.duration_since(since));
        if step == Step::Wait {
            return Ok(Lead::Other(address(&found)));
        }
        // The version it was read in stays in its metadata: another write in between is a conflict.
        let mut lease = Lease { spec: Some(written(&spec, &self.candidate.identity, step, Timestamp::now())), ..found };
        self.say_address(&mut lease.metadata);
        match self.api.replace(LEASE, &PostParams::default(), &lease).await {
            Ok(_) => Ok(Lead::Mine),
            Err(error) if refused_with(&error, CONFLICT) => Ok(Lead::Unknown),
            Err(error) => Err(error),
        }
    }

    fn say_address(&self, metadata: &mut ObjectMeta) {
        let annotations = metadata.annotations.get_or_insert_default();
        match self.candidate.address {
            Some(address) => drop(annotations.insert(ADDRESS.to_owned(), address.to_string())),
            None => drop(annotations.remove(ADDRESS)),
        }
    }

    async fn create(&self) -> kube::Result<Lead> {
        let mut metadata = ObjectMeta {
            name: Some(LEASE.to_owned()),
            owner_references: self.candidate.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        self.say_address(&mut metadata);
        let spec = written(&LeaseSpec::default(), &self.candidate.identity, Step::Take, Timestamp::now());
        match self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await {
            Ok(_) => Ok(Lead::Mine),
            Err(error) if refused_with(&error, CONFLICT) => Ok(Lead::Unknown),
            Err(error) => Err(error),
        }
    }

    /// A holder goes on until it may no longer be one; how long until the next try.
    fn failed(&self, error: &str) -> Duration {
        self.metrics.lease_failed();
        tracing::warn!(error, "the lease cannot be read or renewed");
        let left = self.left();
        if left.is_zero() {
            self.tell(Lead::Unknown);
            return LOOK_PAUSE;
        }
        LOOK_PAUSE.min(left)
    }

    fn tell(&self, now: Lead) {
        let before = self.lead.send_replace(now);
        if before.is_mine() != now.is_mine() {
            let held = now.is_mine();
            self.metrics.leading(held);
            let identity = &self.candidate.identity;
            tracing::info!(identity, "this replica {} the lease", if held { "holds" } else { "no longer holds" });
        }
    }

    async fn give_back(&self) {
        if !self.lead.borrow().is_mine() {
            return;
        }
        self.tell(Lead::Unknown);
        match tokio::time::timeout(GIVE_BACK_TIMEOUT, self.empty()).await {
            Ok(Ok(())) => tracing::info!("the lease was given back"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the lease could not be given back; another takes it when it is over")
            }
            Err(_) => tracing::warn!("the lease could not be given back in time; another takes it when it is over"),
        }
    }

    async fn empty(&self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(LEASE).await? else { return Ok(()) };
        if let Some(spec) = lease.spec.as_mut()
            && spec.holder_identity.as_ref() == Some(&self.candidate.identity)
        {
            spec.holder_identity = Some(String::new());
            self.api.replace(LEASE, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

fn address(lease: &Lease) -> Option<SocketAddr> {
    lease.metadata.annotations.as_ref()?.get(ADDRESS)?.parse().ok()
}

/// Annotation: where the holder is reached by other replicas.
const ADDRESS: &str = "heddle.dev/address";
/// Its name.
pub const LEASE: &str = "heddle-control-plane";
/// How long a holder that says nothing keeps it. As client-go's default.
const DURATION: Duration = Duration::from_secs(15);
/// How long a holder that cannot renew goes on. As client-go's default: another may take over 5 s later at the earliest.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two renewals. Chosen: two may fail.
const RENEW_PAUSE: Duration = Duration::from_secs(4);
/// Between two looks of a replica that waits. As client-go's default; one that ends gives the Lease back, so it is also how long
/// a planned change takes.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// Time for one look with its write. Chosen: a holder's round that takes so long still leaves a second one before its deadline.
const ROUND_TIMEOUT: Duration = Duration::from_secs(4);
/// Time for giving it back. Chosen: an end must not be held up by an API server that is away.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn another_holder_is_waited_for_until_it_has_said_nothing_for_the_whole_duration() {
        let seconds = Duration::from_secs;
        assert_eq!(decide(&held_by("a"), "b", seconds(0)), Step::Wait);
        assert_eq!(decide(&held_by("a"), "b", seconds(14)), Step::Wait);
        assert_eq!(decide(&held_by("a"), "b", seconds(15)), Step::Take);
    }

    #[test]
    fn what_is_ones_own_is_renewed_and_what_was_given_back_is_taken_at_once() {
        assert_eq!(decide(&held_by("a"), "a", DURATION * 2), Step::Renew);
        assert_eq!(decide(&held_by(""), "a", Duration::ZERO), Step::Take);
        assert_eq!(decide(&LeaseSpec::default(), "a", Duration::ZERO), Step::Take);
    }

    #[test]
    fn a_renewal_keeps_when_it_was_taken_and_a_change_of_holder_is_counted() {
        let (then, now) = (Timestamp::from_second(1_000).unwrap(), Timestamp::from_second(1_005).unwrap());
        let taken = written(&held_by("a"), "b", Step::Take, then);
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("b"), Some(4)));
        let renewed = written(&taken, "b", Step::Renew, now);
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(4), &Some(MicroTime(then))));
        assert_eq!(renewed.renew_time, Some(MicroTime(now)));
    }

    #[test]
    fn a_holder_stops_well_before_another_may_begin() {
        // No try of a holder lasts longer, nor is it waited for the next one longer, than it may still go on.
        assert!(RENEW_DEADLINE + Duration::from_secs(3) <= DURATION);
        assert!(RENEW_PAUSE + ROUND_TIMEOUT < RENEW_DEADLINE, "one try may fail");
    }
}
