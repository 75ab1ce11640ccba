//! Which authority signs, which root is published early, which is still believed: rotation of the root with no
//! restart and no refused peer.
//!
//! ```text
//!               Prepared                  Promoted                          Retired
//!   current ───────────────▶ current   ───────────────▶ current (was next) ─────────▶ current
//!               next made,    next      lead is over:    retired (was        its last
//!               published               next signs       current)            leaf ended
//! ```
//!
//! The bundle always holds all of them, so it changes only at *prepared* and *retired*; between a root's publication
//! and its first leaf lies the schedule's lead, in which every sidecar receives it. A state machine in `now`: it does
//! nothing by itself, reads no clock and stores nothing ([`crate::state`] does). Called by the control plane, by one
//! replica at a time.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use crate::bundle::{self, Bundle};
use crate::ca::{self, Authority, Signed};
use crate::credential::Identity;
use crate::csr::Csr;
use crate::identity::{SpiffeId, TrustDomain};
use crate::profile::BACKDATE;
use crate::{clock, crypto};

/// Current authority, perhaps the next, and roots that are only believed any more.
#[derive(Debug)]
pub struct Slots {
    schedule: Schedule,
    current: Authority,
    next: Option<Next>,
    retired: Vec<Retired>,
}

/// How long things last. All of it can be set; [`Schedule::default`] is for production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Life of a root made here. Default [`ca::ROOT_LIFETIME`].
    pub root_lifetime: Duration,
    /// How long before the end of the current root the next is made. `None`: only when asked ([`Slots::prepare`]),
    /// right for an authority the user brought. Default: one year.
    pub prepare_before_end: Option<Duration>,
    /// How long the next root is published before it signs, unless the current one ends so soon that half of what is
    /// left is shorter. Default: 7 days, so that machines that were off for some days still know it.
    pub publish_lead: Duration,
    /// Longest life of a leaf; a retired root stays for as long. At most, and by default, [`ca::MAX_LEAF_LIFETIME`].
    pub leaf_lifetime: Duration,
}

/// Published, signs nothing yet.
#[derive(Debug)]
pub struct Next {
    /// It will sign.
    pub authority: Authority,
    /// Since when its root is in the bundle.
    pub published_at: SystemTime,
}

/// Signs nothing any more; leaves it signed may still be in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// The root, DER.
    pub root: CertificateDer<'static>,
    /// When the last of its leaves has ended.
    pub until: SystemTime,
}

/// One step that was taken. Roots are named by the SHA-256 of their DER, hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A next root was made: the bundle has changed, publish it.
    Prepared {
        /// The next root.
        root: String,
    },
    /// The next root signs from now on; the bundle is unchanged.
    Promoted {
        /// The root that signs.
        root: String,
        /// The root that does not any more.
        retired: String,
    },
    /// A retired root is not believed any more: the bundle has changed, publish it.
    Retired {
        /// The root that is gone.
        root: String,
    },
}

/// Why a step failed; the state is then as before that step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The next authority could not be made.
    #[error("next root: {0}")]
    Prepare(#[from] ca::Error),
    /// A next root is there already.
    #[error("root {0} is already prepared; it signs once its lead is over")]
    AlreadyPrepared(String),
    /// The authority given is for somebody else.
    #[error("authority is for trust domain `{found}`; this control plane signs for `{expected}`")]
    TrustDomain {
        /// The given authority's.
        found: TrustDomain,
        /// The current one's.
        expected: TrustDomain,
    },
}

impl Slots {
    /// Begins with `current` alone.
    pub fn new(current: Authority, schedule: Schedule) -> Self {
        Self::restore(current, None, Vec::new(), schedule)
    }

    /// Goes on from a stored state.
    pub fn restore(current: Authority, next: Option<Next>, retired: Vec<Retired>, schedule: Schedule) -> Self {
        Self { schedule, current, next, retired }
    }

    /// The trust domain all slots sign for.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.current.trust_domain()
    }

    /// The authority that signs. Sign through [`Slots::sign`], which keeps the leaf within the schedule.
    pub fn current(&self) -> &Authority {
        &self.current
    }

    /// The authority that will sign.
    pub fn next(&self) -> Option<&Next> {
        self.next.as_ref()
    }

    /// The roots that are only believed.
    pub fn retired(&self) -> &[Retired] {
        &self.retired
    }

    /// The schedule in force.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// Signs with the current authority, `lifetime` clamped to the schedule's.
    pub fn sign(&self, request: &Csr, id: &SpiffeId, lifetime: Duration, now: SystemTime) -> Result<Signed, ca::Error> {
        self.current.sign(request, id, lifetime.min(self.schedule.leaf_lifetime()), now)
    }

    /// The control plane's own identity by the current authority, `lifetime` clamped to the schedule's: one that lived
    /// longer would outlive its retired root. Make a new one after [`Change::Promoted`].
    pub fn issue_control_plane(
        &self,
        dns_names: &[String],
        addresses: &[IpAddr],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Identity, ca::Error> {
        let lifetime = lifetime.min(self.schedule.leaf_lifetime());
        self.current.issue_control_plane(dns_names, addresses, lifetime, now)
    }

    /// All roots a workload must believe now.
    pub fn bundle(&self) -> Result<Bundle, bundle::Error> {
        let next = self.next.iter().map(|next| next.authority.root().clone());
        let retired = self.retired.iter().map(|retired| retired.root.clone());
        let current = std::iter::once(self.current.root().clone());
        Bundle::new(self.trust_domain().clone(), current.chain(next).chain(retired))
    }

    /// Takes every step that is due at `now`, in order; says which.
    pub fn advance(&mut self, now: SystemTime) -> Result<Vec<Change>, Error> {
        let mut changes = Vec::new();
        while let Some(change) = self.step(now)? {
            changes.push(change);
        }
        Ok(changes)
    }

    /// Makes the next root now, whatever the schedule says; it signs after the lead.
    pub fn prepare(&mut self, now: SystemTime) -> Result<Change, Error> {
        let authority = Authority::generate(self.trust_domain(), self.schedule.root_lifetime, now)?;
        self.prepare_with(authority, now)
    }

    /// [`Slots::prepare`] with an authority the user brought.
    pub fn prepare_with(&mut self, authority: Authority, now: SystemTime) -> Result<Change, Error> {
        if let Some(next) = &self.next {
            return Err(Error::AlreadyPrepared(next.authority.root_hash_hex()));
        }
        if authority.trust_domain() != self.trust_domain() {
            let (found, expected) = (authority.trust_domain().clone(), self.trust_domain().clone());
            return Err(Error::TrustDomain { found, expected });
        }
        let root = authority.root_hash_hex();
        self.next = Some(Next { authority, published_at: now });
        Ok(Change::Prepared { root })
    }

    /// When [`Slots::advance`] next has something to do; `None`: never by itself.
    pub fn next_step_at(&self) -> Option<SystemTime> {
        let retire = self.retired.iter().map(|retired| retired.until + RETIRE_AFTER).min();
        [retire, self.promote_at(), self.prepare_at()].into_iter().flatten().min()
    }

    fn step(&mut self, now: SystemTime) -> Result<Option<Change>, Error> {
        if let Some(over) = self.retired.iter().position(|retired| retired.until + RETIRE_AFTER <= now) {
            let root = crypto::hex(&crypto::sha256(&self.retired.remove(over).root));
            return Ok(Some(Change::Retired { root }));
        }
        if self.promote_at().is_some_and(|at| at <= now)
            && let Some(next) = self.next.take()
        {
            return Ok(Some(self.promote(next.authority, now)));
        }
        if self.prepare_at().is_some_and(|at| at <= now) {
            return self.prepare(now).map(Some);
        }
        Ok(None)
    }

    fn promote(&mut self, authority: Authority, now: SystemTime) -> Change {
        let old = std::mem::replace(&mut self.current, authority);
        let last_leaf = (now + self.schedule.leaf_lifetime()).min(old.not_after());
        // The same root stays believed as the current one's if an intermediate under it was exchanged.
        if old.root() != self.current.root() {
            let until = clock::at(clock::seconds(last_leaf));
            self.retired.push(Retired { root: old.root().clone(), until });
        }
        Change::Promoted { root: self.current.root_hash_hex(), retired: old.root_hash_hex() }
    }

    fn promote_at(&self) -> Option<SystemTime> {
        let published = self.next.as_ref()?.published_at;
        let left = self.current.not_after().duration_since(published).unwrap_or_default();
        Some(published + self.schedule.publish_lead.min(left / 2))
    }

    fn prepare_at(&self) -> Option<SystemTime> {
        let before = self.schedule.prepare_before_end.filter(|_| self.next.is_none())?;
        // Never in the first half of the root's life: a lead longer than the life would rotate without end.
        let (begin, end) = (self.current.not_before(), self.current.not_after());
        let life = end.duration_since(begin).unwrap_or_default();
        Some(end - before.min(life / 2))
    }
}

impl Schedule {
    fn leaf_lifetime(&self) -> Duration {
        self.leaf_lifetime.clamp(ca::MIN_LEAF_LIFETIME, ca::MAX_LEAF_LIFETIME)
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            root_lifetime: ca::ROOT_LIFETIME,
            prepare_before_end: Some(PREPARE_BEFORE_END),
            publish_lead: PUBLISH_LEAD,
            leaf_lifetime: ca::MAX_LEAF_LIFETIME,
        }
    }
}

/// Chosen: a year in which a rotation that fails is noticed and mended.
const PREPARE_BEFORE_END: Duration = Duration::from_secs(365 * 24 * 3600);

/// Chosen: a machine that was off for some days gets the new root before it meets a leaf of it.
const PUBLISH_LEAD: Duration = Duration::from_secs(7 * 24 * 3600);

/// A verifier whose clock is behind still takes the last leaf for valid: the same skew as at a leaf's beginning.
const RETIRE_AFTER: Duration = BACKDATE;

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::csr::KeyRequest;
    use crate::verify;

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000 + seconds)
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("cluster.local").unwrap()
    }

    fn schedule() -> Schedule {
        Schedule {
            root_lifetime: Duration::from_secs(100 * DAY),
            prepare_before_end: Some(Duration::from_secs(20 * DAY)),
            publish_lead: Duration::from_secs(7 * DAY),
            leaf_lifetime: Duration::from_secs(DAY),
        }
    }

    fn slots() -> Slots {
        Slots::new(Authority::generate(&domain(), schedule().root_lifetime, at(0)).unwrap(), schedule())
    }

    fn sign(slots: &Slots, now: SystemTime) -> Signed {
        let id = SpiffeId::new(&domain(), "shop", "cart").unwrap();
        let csr = Csr::from_der(&KeyRequest::generate(&id).unwrap().csr).unwrap();
        slots.sign(&csr, &id, Duration::from_secs(DAY), now).unwrap()
    }

    #[test]
    fn a_root_is_prepared_promoted_and_retired_in_its_time() {
        let mut slots = slots();
        let first = slots.current().root_hash_hex();
        assert_eq!(slots.next_step_at(), Some(at(80 * DAY)));
        assert_eq!(slots.advance(at(80 * DAY) - Duration::from_secs(1)).unwrap(), []);

        let prepared = slots.advance(at(80 * DAY)).unwrap();
        let second = slots.next().unwrap().authority.root_hash_hex();
        assert_eq!(prepared, [Change::Prepared { root: second.clone() }]);
        assert_eq!(slots.current().root_hash_hex(), first);
        assert_eq!(slots.bundle().unwrap().roots().len(), 2);

        assert_eq!(slots.advance(at(87 * DAY) - Duration::from_secs(1)).unwrap(), []);
        let promoted = slots.advance(at(87 * DAY)).unwrap();
        assert_eq!(promoted, [Change::Promoted { root: second.clone(), retired: first.clone() }]);
        assert_eq!(slots.bundle().unwrap().roots().len(), 2);

        assert_eq!(slots.advance(at(88 * DAY + 59)).unwrap(), []);
        assert_eq!(slots.advance(at(88 * DAY + 60)).unwrap(), [Change::Retired { root: first }]);
        assert_eq!(slots.bundle().unwrap().roots().len(), 1);
        assert_eq!(slots.current().root_hash_hex(), second);
    }

    #[test]
    fn at_every_hour_of_a_rotation_every_living_leaf_is_believed_by_bundles_a_lead_old() {
        let mut slots = slots();
        let (mut leaves, mut bundles): (Vec<Signed>, Vec<(SystemTime, Bundle)>) = (Vec::new(), Vec::new());
        for hour in (79 * 24)..(90 * 24) {
            let now = at(hour * HOUR);
            slots.advance(now).unwrap();
            bundles.push((now, slots.bundle().unwrap()));
            leaves.push(sign(&slots, now));
            leaves.retain(|leaf| leaf.not_after >= now);
            let current = &bundles.last().unwrap().1;
            for leaf in &leaves {
                verify::recheck(&leaf.chain, current, now).unwrap();
            }
            // A machine that was off since six days ago, while the lead is seven.
            let stale = bundles.iter().find(|(from, _)| *from + Duration::from_secs(6 * DAY) >= now).unwrap();
            verify::recheck(&leaves.last().unwrap().chain, &stale.1, now).unwrap();
        }
        assert_eq!(slots.retired(), []);
    }

    #[test]
    fn a_root_that_ends_before_the_lead_is_over_is_replaced_at_half_of_what_is_left() {
        let mut slots = slots();
        slots.schedule.prepare_before_end = None;
        assert_eq!(slots.next_step_at(), None);
        slots.prepare(at(98 * DAY)).unwrap();
        assert_eq!(slots.next_step_at(), Some(at(99 * DAY)));
        assert_eq!(slots.advance(at(99 * DAY)).unwrap().len(), 1);
    }

    #[test]
    fn an_ended_root_is_replaced_in_one_step() {
        let mut slots = slots();
        let changes = slots.advance(at(200 * DAY)).unwrap();
        assert!(matches!(changes[..], [Change::Prepared { .. }, Change::Promoted { .. }, Change::Retired { .. }]));
        sign(&slots, at(200 * DAY));
    }

    #[test]
    fn only_one_next_root_is_prepared_and_only_for_the_same_trust_domain() {
        let mut slots = slots();
        let other = Authority::generate(&TrustDomain::parse("other").unwrap(), ca::ROOT_LIFETIME, at(0)).unwrap();
        assert!(matches!(slots.prepare_with(other, at(0)), Err(Error::TrustDomain { .. })));
        slots.prepare(at(0)).unwrap();
        assert!(matches!(slots.prepare(at(1)), Err(Error::AlreadyPrepared(_))));
    }

    #[test]
    fn short_leaves_make_a_short_retirement() {
        let mut slots = slots();
        slots.schedule.leaf_lifetime = Duration::from_secs(60);
        slots.schedule.publish_lead = Duration::from_secs(10);
        assert_eq!(sign(&slots, at(0)).not_after, at(60));
        let own = slots.issue_control_plane(&[], &[], Duration::from_secs(DAY), at(0)).unwrap();
        assert_eq!(own.not_after(), at(60));
        slots.prepare(at(0)).unwrap();
        slots.advance(at(10)).unwrap();
        assert_eq!(slots.next_step_at(), Some(at(10 + 60 + 60)));
    }
}
