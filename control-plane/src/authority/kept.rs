//! What a control plane keeps, as named pieces of bytes: [`heddle_certs::state`]'s and some more.
//!
//! | Name | Content |
//! |---|---|
//! | `bundle.pem` | the roots, for clients |
//! | `trust-domain` | whom the state is for, one line |
//! | `brought` | there if the authority is the user's |
//!
//! Pure. Used by [`super::Authority`], whichever store holds the bytes.

use std::time::SystemTime;

use heddle_certs::identity::TrustDomain;
use heddle_certs::slots::Schedule;
use heddle_certs::state::{Files, State};

use super::Error;

/// A state, and whether its authority is the user's.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) state: State,
    /// No root is made here to follow it.
    pub(super) brought: bool,
}

impl Kept {
    /// A new root and token key.
    pub(super) fn generate(trust_domain: &TrustDomain, schedule: Schedule, now: SystemTime) -> Result<Self, Error> {
        let state = State::generate(trust_domain, schedule, now).map_err(|error| Error::State(Box::new(error)))?;
        Ok(Self { state, brought: false })
    }

    /// What is kept. An authority that says nothing of a trust domain was laid there by a user.
    pub(super) fn read(
        files: &Files,
        trust_domain: &TrustDomain,
        mut schedule: Schedule,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let found = files.get(TRUST_DOMAIN).map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
        let brought = files.contains_key(BROUGHT_MARK) || found.is_none();
        if let Some(found) = found.filter(|found| found != trust_domain.as_str()) {
            return Err(Error::TrustDomain { found, expected: trust_domain.clone() });
        }
        if brought {
            schedule.prepare_before_end = None;
        }
        let state =
            State::from_files(trust_domain, schedule, files, now).map_err(|error| Error::State(Box::new(error)))?;
        Ok(Self { state, brought })
    }

    /// The inverse of [`Kept::read`]. Secret.
    pub(super) fn to_files(&self) -> Result<Files, Error> {
        let mut files = self.state.to_files();
        if self.brought {
            let text = b"The user brought this authority; it is not exchanged by itself.\n".to_vec();
            files.insert(BROUGHT_MARK.to_owned(), text);
        }
        files.insert(BUNDLE_PEM.to_owned(), self.state.slots.bundle()?.to_pem().into_bytes());
        files.insert(TRUST_DOMAIN.to_owned(), format!("{}\n", self.state.slots.trust_domain()).into_bytes());
        Ok(files)
    }
}

/// Whether there is an authority among the pieces. A Secret may have been made empty, for somebody to fill.
pub(super) fn has_authority(files: &Files) -> bool {
    BROUGHT.iter().any(|name| files.contains_key(*name))
}

/// For clients: the roots.
pub(super) const BUNDLE_PEM: &str = "bundle.pem";
/// Whom the state is for, one line.
pub(super) const TRUST_DOMAIN: &str = "trust-domain";
/// The key of the join tokens, as [`heddle_certs::state`] names it.
pub(super) const TOKEN_KEY: &str = "token.key";
/// There if the user brought the authority.
const BROUGHT_MARK: &str = "brought";
/// What a user may bring.
pub(super) const BROUGHT: [&str; 2] = ["ca.crt", "ca.key"];

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::parse("mesh.example").unwrap()
    }

    #[test]
    fn what_is_kept_round_trips() {
        let now = SystemTime::now();
        let files = Kept::generate(&domain(), Schedule::default(), now).unwrap().to_files().unwrap();
        let again = Kept::read(&files, &domain(), Schedule::default(), now).unwrap();
        assert!(!again.brought);
        assert_eq!(again.to_files().unwrap(), files);
    }

    #[test]
    fn two_pieces_alone_are_a_users_own_authority_and_stay_so() {
        let now = SystemTime::now();
        let mut files = Kept::generate(&domain(), Schedule::default(), now).unwrap().to_files().unwrap();
        files.retain(|name, _| BROUGHT.contains(&name.as_str()));
        let theirs = Kept::read(&files, &domain(), Schedule::default(), now).unwrap();
        assert!(theirs.brought);
        assert_eq!(theirs.state.slots.next_step_at(), None, "nothing follows it by itself");

        let again = Kept::read(&theirs.to_files().unwrap(), &domain(), Schedule::default(), now).unwrap();

        assert!(again.brought);
    }

    #[test]
    fn what_is_kept_for_another_trust_domain_is_refused_by_name() {
        let now = SystemTime::now();
        let files = Kept::generate(&domain(), Schedule::default(), now).unwrap().to_files().unwrap();
        let other = Kept::read(&files, &TrustDomain::parse("other").unwrap(), Schedule::default(), now);
        let Err(Error::TrustDomain { found, .. }) = other else { panic!("taken over") };
        assert_eq!(found, "mesh.example");
    }
}
