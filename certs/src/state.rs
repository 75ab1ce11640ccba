//! What a control plane must keep: authorities, retired roots, the token key, as named pieces of bytes. The same names
//! serve a Secret's `data` and a directory's files.
//!
//! | Name | Content |
//! |---|---|
//! | `ca.crt`, `ca.key` | current authority: chain (signing certificate first, root last) and key, PEM |
//! | `next.crt`, `next.key` | next authority, if one is prepared |
//! | `retired.crt` | retired roots, PEM, if any |
//! | `slots.json` | when the next was published, until when each retired root is believed, in seconds since 1970 |
//! | `token.key` | key of the join tokens, PEM |
//!
//! A user who brings an authority writes `ca.crt` and `ca.key`; the rest is added. Pure: [`crate::store`] moves the
//! bytes. Called by the control plane.

use std::collections::BTreeMap;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::bundle::certificate_pem;
use crate::ca::{self, Authority};
use crate::clock;
use crate::identity::TrustDomain;
use crate::slots::{Next, Retired, Schedule, Slots};
use crate::token::{self, TokenKey};

/// Names and bytes, as in a Secret's `data` (decoded) or the files of a directory.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Everything a control plane signs with.
#[derive(Debug)]
pub struct State {
    /// The authorities.
    pub slots: Slots,
    /// The key of the join tokens.
    pub token_key: TokenKey,
}

/// Why the pieces make no state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A piece is not there.
    #[error("certificate store: `{0}` is missing")]
    Missing(&'static str),
    /// An authority cannot be loaded or made.
    #[error("certificate store: `{name}`: {error}")]
    Authority {
        /// The piece.
        name: &'static str,
        /// What is wrong with it.
        error: ca::Error,
    },
    /// A piece cannot be read.
    #[error("certificate store: `{name}`: {reason}")]
    Piece {
        /// The piece.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The token key cannot be read or made.
    #[error("certificate store: `{TOKEN_KEY}`: {0}")]
    Token(#[from] token::Error),
}

/// `slots.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Times {
    /// Seconds since 1970.
    next_published_at: Option<u64>,
    /// Seconds since 1970, in the order of `retired.crt`.
    retired_until: Vec<u64>,
}

impl State {
    /// A new root and a new token key.
    pub fn generate(trust_domain: &TrustDomain, schedule: Schedule, now: SystemTime) -> Result<Self, Error> {
        let made = Authority::generate(trust_domain, schedule.root_lifetime, now);
        let current = made.map_err(|error| Error::Authority { name: CA_CRT, error })?;
        Ok(Self { slots: Slots::new(current, schedule), token_key: TokenKey::generate()? })
    }

    /// Reads a stored state. A missing token key is made anew: write [`State::to_files`] back if it differs.
    pub fn from_files(
        trust_domain: &TrustDomain,
        schedule: Schedule,
        files: &Files,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let current = authority(trust_domain, files, (CA_CRT, CA_KEY), now)?.ok_or(Error::Missing(CA_CRT))?;
        let times = match files.get(SLOTS_JSON) {
            Some(json) => serde_json::from_slice(json).map_err(|error| piece(SLOTS_JSON, error))?,
            None => Times::default(),
        };
        let next = authority(trust_domain, files, (NEXT_CRT, NEXT_KEY), now)?.map(|authority| Next {
            authority,
            // Unknown: counts from now, so the lead is never cut short.
            published_at: times.next_published_at.map_or(now, clock::at),
        });
        let token_key = match files.get(TOKEN_KEY) {
            Some(key) => TokenKey::from_pem(key)?,
            None => TokenKey::generate()?,
        };
        Ok(Self { slots: Slots::restore(current, next, retired(files, &times)?, schedule), token_key })
    }

    /// The inverse of [`State::from_files`]. Secret.
    pub fn to_files(&self) -> Files {
        let mut files = Files::new();
        let mut put = |name: &str, text: String| files.insert(name.into(), text.into_bytes());
        put(CA_CRT, self.slots.current().chain_pem());
        put(CA_KEY, self.slots.current().key_pem());
        if let Some(next) = self.slots.next() {
            put(NEXT_CRT, next.authority.chain_pem());
            put(NEXT_KEY, next.authority.key_pem());
        }
        if !self.slots.retired().is_empty() {
            put(RETIRED_CRT, self.slots.retired().iter().map(|retired| certificate_pem(&retired.root)).collect());
        }
        let times = Times {
            next_published_at: self.slots.next().map(|next| clock::seconds(next.published_at)),
            retired_until: self.slots.retired().iter().map(|retired| clock::seconds(retired.until)).collect(),
        };
        put(SLOTS_JSON, serde_json::json!(times).to_string());
        put(TOKEN_KEY, self.token_key.to_pem());
        files
    }
}

fn authority(
    trust_domain: &TrustDomain,
    files: &Files,
    (chain, key): (&'static str, &'static str),
    now: SystemTime,
) -> Result<Option<Authority>, Error> {
    let Some(chain_pem) = files.get(chain) else { return Ok(None) };
    let key_pem = files.get(key).ok_or(Error::Missing(key))?;
    let loaded = Authority::from_pem(trust_domain, chain_pem, key_pem, now);
    loaded.map(Some).map_err(|error| Error::Authority { name: chain, error })
}

fn retired(files: &Files, times: &Times) -> Result<Vec<Retired>, Error> {
    let Some(text) = files.get(RETIRED_CRT) else { return Ok(Vec::new()) };
    let blocks = pem::parse_many(text).map_err(|error| piece(RETIRED_CRT, error))?;
    if blocks.len() != times.retired_until.len() {
        let (roots, until) = (blocks.len(), times.retired_until.len());
        return Err(piece(RETIRED_CRT, format!("has {roots} roots, but `{SLOTS_JSON}` has {until} times")));
    }
    let roots = blocks.into_iter().map(|block| CertificateDer::from(block.into_contents()));
    Ok(roots.zip(&times.retired_until).map(|(root, until)| Retired { root, until: clock::at(*until) }).collect())
}

fn piece(name: &'static str, reason: impl ToString) -> Error {
    Error::Piece { name, reason: reason.to_string() }
}

const CA_CRT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const NEXT_CRT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const RETIRED_CRT: &str = "retired.crt";
const SLOTS_JSON: &str = "slots.json";
const TOKEN_KEY: &str = "token.key";

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("cluster.local").unwrap()
    }

    #[test]
    fn a_state_in_the_middle_of_a_rotation_round_trips() {
        let seconds = Duration::from_secs;
        let schedule = Schedule { publish_lead: seconds(10), leaf_lifetime: seconds(60), ..Schedule::default() };
        let mut state = State::generate(&domain(), schedule, now()).unwrap();
        state.slots.prepare(now()).unwrap();
        state.slots.advance(now() + Duration::from_secs(10)).unwrap();
        state.slots.prepare(now() + Duration::from_secs(11)).unwrap();
        assert_eq!((state.slots.retired().len(), state.slots.next().is_some()), (1, true));

        let files = state.to_files();
        let again = State::from_files(&domain(), schedule, &files, now()).unwrap();

        assert_eq!(again.to_files(), files);
        assert_eq!(again.slots.bundle().unwrap(), state.slots.bundle().unwrap());
        assert_eq!(again.slots.next_step_at(), state.slots.next_step_at());
    }

    #[test]
    fn two_files_of_a_users_own_authority_are_enough() {
        let made = State::generate(&domain(), Schedule::default(), now()).unwrap();
        let mut files = made.to_files();
        files.retain(|name, _| name == CA_CRT || name == CA_KEY);
        let state = State::from_files(&domain(), Schedule::default(), &files, now()).unwrap();
        assert_eq!(state.slots.current().root(), made.slots.current().root());
        assert!(state.to_files().contains_key(TOKEN_KEY));
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let files = State::generate(&domain(), Schedule::default(), now()).unwrap().to_files();
        let load = |change: &dyn Fn(&mut Files)| {
            let mut files = files.clone();
            change(&mut files);
            State::from_files(&domain(), Schedule::default(), &files, now()).unwrap_err().to_string()
        };
        assert!(load(&|files| _ = files.remove(CA_CRT)).contains("`ca.crt` is missing"));
        assert!(load(&|files| _ = files.remove(CA_KEY)).contains("`ca.key` is missing"));
        assert!(load(&|files| _ = files.insert(SLOTS_JSON.into(), b"{".to_vec())).contains("`slots.json`"));
        assert!(load(&|files| _ = files.insert(TOKEN_KEY.into(), b"x".to_vec())).contains("`token.key`"));
        let stranger = State::generate(&domain(), Schedule::default(), now()).unwrap().to_files();
        let mixed = load(&|files| _ = files.insert(CA_KEY.into(), stranger[CA_KEY].clone()));
        assert!(mixed.contains("not the key of the first certificate"), "{mixed}");
        let unpaired = load(&|files| _ = files.insert(RETIRED_CRT.into(), stranger[CA_CRT].clone()));
        assert!(unpaired.contains("has 1 roots"), "{unpaired}");
    }
}
