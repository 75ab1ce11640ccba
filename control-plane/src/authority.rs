//! What this control plane signs with: the authorities and the token key, kept in a directory, exchanged by their schedule,
//! and its own server certificate, renewed in time. No restart is needed for any of it.
//!
//! `<state>/` holds what [`heddle_certs::state`] describes and some files more: `bundle.pem`, the roots for clients,
//! `trust-domain`, and `brought` if the authority is the user's. All files of it are exchanged at once. A step of a rotation is written to disk before it is used, so no
//! certificate is ever signed by a key that a restart would not know. One control plane for each directory, held by a lock.
//!
//! Whom it signs for is not decided here: that is [`crate::issue`]. Made by [`crate::app`], which also spawns
//! [`Authority::keep`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use heddle_certs::bundle;
use heddle_certs::bundle::Bundle;
use heddle_certs::ca::{self, Signed};
use heddle_certs::credential::Identity;
use heddle_certs::csr::Csr;
use heddle_certs::identity::{self, SpiffeId, TrustDomain};
use heddle_certs::rotate::retry_after;
use heddle_certs::slots::{self, Change, Schedule};
use heddle_certs::state::{self, Files, State};
use heddle_certs::store::{self, Directory};
use heddle_certs::token::{self, Claims, TokenKey};
use tokio::sync::watch;

use crate::config::Config;
use crate::metrics::Metrics;

/// Everything that is signed with, and who this control plane is.
#[derive(Debug)]
pub struct Authority {
    trust_domain: TrustDomain,
    schedule: Schedule,
    /// The user's own authority: no root is made here to follow it.
    brought: bool,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    directory: Directory,
    /// Written by [`Authority::keep`] only, after the directory was.
    state: RwLock<State>,
    /// The last value is in force. Written by [`Authority::keep`] only.
    current: watch::Sender<Current>,
    metrics: Metrics,
    _lock: File,
}

/// Who this control plane is and whom it believes, at one moment.
#[derive(Debug, Clone)]
pub struct Current {
    /// Its own certificate.
    pub identity: Identity,
    /// The roots everybody believes.
    pub bundle: Arc<Bundle>,
}

/// Why there is nothing to sign with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be read or written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What is in it makes no state.
    #[error("{}: {error}", directory.display())]
    State {
        /// The state directory.
        directory: PathBuf,
        /// What is wrong.
        error: Box<state::Error>,
    },
    /// Another process works with it.
    #[error("{0} is in use by another control plane; give each its own --state")]
    Locked(PathBuf),
    /// A file beside the state cannot be read or written.
    #[error("{action} {path}: {error}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It was made for another mesh.
    #[error(
        "{directory} was made for trust domain `{found}`, but --trust-domain is `{expected}`; roots cannot be taken over: \
         use another --state",
        directory = directory.display()
    )]
    TrustDomain {
        /// The state directory.
        directory: PathBuf,
        /// As the directory says.
        found: String,
        /// As configured.
        expected: TrustDomain,
    },
    /// No control plane has run with it yet.
    #[error("{}: no control plane has kept its state here yet; start it first", .0.display())]
    Empty(PathBuf),
    /// The control plane's own certificate cannot be made.
    #[error("the control plane's own certificate: {0}")]
    Own(#[from] ca::Error),
    /// The roots make no bundle.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    /// The next root cannot be made.
    #[error(transparent)]
    Slots(#[from] slots::Error),
    /// A token cannot be made.
    #[error(transparent)]
    Token(#[from] token::Error),
    /// A token cannot be for this identity.
    #[error("join token: {0}")]
    Identity(#[from] identity::Error),
}

impl Authority {
    /// Reads the state directory, or makes a new root and token key there. `ca.crt` and `ca.key` that a user laid into a
    /// directory without state are taken over; such an authority is exchanged by its user alone.
    ///
    /// # Errors
    /// If the directory cannot be used, or what is in it does not fit `config`.
    pub fn open(config: &Config, metrics: Metrics, now: SystemTime) -> Result<Self, Error> {
        let (trust_domain, mut schedule) = (config.trust_domain.clone(), config.schedule());
        fs::create_dir_all(&config.state).map_err(io_error("making", &config.state))?;
        let lock = lock(&config.state)?;
        let directory = Directory::new(&config.state);
        let failed = |error| Error::State { directory: config.state.clone(), error: Box::new(error) };
        let files = directory.create_or_read(|| {
            let brought = brought(&config.state)?;
            let state = match &brought {
                Some(files) => State::from_files(&trust_domain, schedule, files, now),
                None => State::generate(&trust_domain, schedule, now),
            };
            to_files(&state.map_err(failed)?, brought.is_some())
        })?;
        check_trust_domain(&config.state, &files, &trust_domain)?;
        let brought = files.contains_key(BROUGHT_MARK);
        if brought {
            schedule.prepare_before_end = None;
        }
        let state = State::from_files(&trust_domain, schedule, &files, now).map_err(failed)?;
        let complete = to_files(&state, brought)?;
        if complete != files || remove_brought(&config.state)? {
            directory.replace(&complete)?;
        }
        let (names, addresses) = config.split_server_names();
        let identity = state.slots.current().issue_control_plane(&names, &addresses, schedule.leaf_lifetime, now)?;
        let bundle = Arc::new(state.slots.bundle()?);
        metrics.rotated(bundle.first_end(), identity.not_after());
        let current = watch::Sender::new(Current { identity, bundle });
        let state = RwLock::new(state);
        Ok(Self { trust_domain, schedule, brought, names, addresses, directory, state, current, metrics, _lock: lock })
    }

    /// Whom it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Life of a leaf whose requester says nothing, and at most.
    pub fn leaf_lifetime(&self) -> Duration {
        self.schedule.leaf_lifetime
    }

    /// Who this control plane is and whom it believes; each exchange wakes the receiver.
    pub fn current(&self) -> watch::Receiver<Current> {
        self.current.subscribe()
    }

    /// Signs a request for `id`, who was authenticated by the caller, with what everybody must believe now.
    ///
    /// # Errors
    /// As [`ca::Authority::sign`].
    pub fn sign(
        &self,
        request: &Csr,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<(Signed, Arc<Bundle>), ca::Error> {
        let state = self.read();
        let signed = state.slots.sign(request, id, lifetime, now)?;
        Ok((signed, self.current.borrow().bundle.clone()))
    }

    /// Reads a join token.
    ///
    /// # Errors
    /// As [`TokenKey::verify`].
    pub fn verify_token(&self, token: &str, now: SystemTime) -> Result<Claims, token::Error> {
        self.read().token_key.verify(token, &self.trust_domain, now)
    }

    /// Exchanges roots and the own certificate when they are due, for ever. A failure is logged, counted and tried again.
    pub async fn keep(self: Arc<Self>) {
        let mut failures = 0;
        let mut renew = self.renew_at();
        loop {
            let now = SystemTime::now();
            let wait = if failures > 0 {
                let ends = self.current.borrow().identity.not_after();
                retry_after(failures, fastrand::f64(), now, ends)
            } else {
                let due = self.read().slots.next_step_at().map_or(renew, |step| step.min(renew));
                due.duration_since(now).unwrap_or_default().min(MAX_SLEEP)
            };
            tokio::time::sleep(wait).await;
            // Keys are made and files are written.
            let this = Arc::clone(&self);
            let done = tokio::task::spawn_blocking(move || this.exchange(renew, SystemTime::now())).await;
            match done {
                Ok(Ok(renewed)) => {
                    failures = 0;
                    if renewed {
                        renew = self.renew_at();
                    }
                }
                Ok(Err(error)) => {
                    failures += 1;
                    self.metrics.rotation_failed();
                    tracing::error!(%error, failures, "certificates of the control plane cannot be exchanged");
                }
                // Only if the exchange panicked or the runtime ends; the latter ends this task too.
                Err(error) => {
                    failures += 1;
                    self.metrics.rotation_failed();
                    tracing::error!(%error, failures, "the exchange of certificates did not finish");
                }
            }
        }
    }

    /// Takes what is due at `now`; whether the own certificate was renewed.
    pub(crate) fn exchange(&self, renew_at: SystemTime, now: SystemTime) -> Result<bool, Error> {
        let changes = self.rotate(now)?;
        for change in &changes {
            tracing::info!(?change, "roots");
        }
        if changes.is_empty() && now < renew_at {
            return Ok(false);
        }
        let state = self.read();
        let issuer = state.slots.current();
        let identity = issuer.issue_control_plane(&self.names, &self.addresses, self.schedule.leaf_lifetime, now)?;
        let bundle = Arc::new(state.slots.bundle()?);
        drop(state);
        self.metrics.rotated(bundle.first_end(), identity.not_after());
        self.current.send_replace(Current { identity, bundle });
        Ok(true)
    }

    /// Advances a copy, writes it, and only then takes it over.
    fn rotate(&self, now: SystemTime) -> Result<Vec<Change>, Error> {
        let files = {
            let state = self.read();
            if state.slots.next_step_at().is_none_or(|due| now < due) {
                return Ok(Vec::new());
            }
            state.to_files()
        };
        let failed = |error| Error::State { directory: self.directory.path().to_owned(), error: Box::new(error) };
        let mut next = State::from_files(&self.trust_domain, self.schedule, &files, now).map_err(failed)?;
        let changes = next.slots.advance(now)?;
        self.directory.replace(&to_files(&next, self.brought)?)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(changes)
    }

    fn renew_at(&self) -> SystemTime {
        self.current.borrow().identity.renew_at(fastrand::f64())
    }

    /// A state is replaced whole, so one left by a panic is still whole.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a join token with the key in `state_directory`: its holder may receive certificates of that service account, as
/// that Pod or Workload, until `lifetime` from now.
///
/// # Errors
/// If no control plane has kept its state there yet, or the parts make no identity.
pub fn join_token(
    state_directory: &Path,
    namespace: &str,
    service_account: &str,
    workload: &str,
    lifetime: Duration,
) -> Result<String, Error> {
    let empty = || Error::Empty(state_directory.to_owned());
    let files = Directory::new(state_directory).read()?.ok_or_else(empty)?;
    let trust_domain = files.get(TRUST_DOMAIN).map(|bytes| String::from_utf8_lossy(bytes)).ok_or_else(empty)?;
    let id = SpiffeId::new(&TrustDomain::parse(trust_domain.trim())?, namespace, service_account)?;
    let key = TokenKey::from_pem(files.get(TOKEN_KEY).ok_or_else(empty)?)?;
    Ok(key.issue(&Claims::new(&id, workload, lifetime, SystemTime::now())?)?)
}

/// Where clients find the roots of a control plane that keeps its state in `state_directory`.
pub fn bundle_path(state_directory: &Path) -> PathBuf {
    state_directory.join(BUNDLE_PEM)
}

fn to_files(state: &State, brought: bool) -> Result<Files, Error> {
    let mut files = state.to_files();
    if brought {
        files.insert(
            BROUGHT_MARK.to_owned(),
            b"The user brought this authority; it is not exchanged by itself.\n".to_vec(),
        );
    }
    files.insert(BUNDLE_PEM.to_owned(), state.slots.bundle()?.to_pem().into_bytes());
    files.insert(TRUST_DOMAIN.to_owned(), format!("{}\n", state.slots.trust_domain()).into_bytes());
    Ok(files)
}

fn check_trust_domain(directory: &Path, files: &Files, expected: &TrustDomain) -> Result<(), Error> {
    let found = files.get(TRUST_DOMAIN).map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    match found {
        Some(found) if found != expected.as_str() => {
            Err(Error::TrustDomain { directory: directory.to_owned(), found, expected: expected.clone() })
        }
        _ => Ok(()),
    }
}

/// `ca.crt` and `ca.key` as plain files: an authority the user brought.
fn brought(directory: &Path) -> Result<Option<Files>, Error> {
    let mut files = Files::new();
    for name in BROUGHT {
        let path = directory.join(name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= MAX_BROUGHT_BYTES => {
                files.insert(name.to_owned(), fs::read(&path).map_err(io_error("reading", &path))?);
            }
            Ok(metadata) => {
                let error = io::Error::other(format!("{} bytes; the limit is {MAX_BROUGHT_BYTES}", metadata.len()));
                return Err(Error::Io { action: "reading", path, error });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::Io { action: "reading", path, error }),
        }
    }
    Ok((!files.is_empty()).then_some(files))
}

/// Removes what [`brought`] took over, which would stand in the way of the next exchange; whether there was something.
fn remove_brought(directory: &Path) -> Result<bool, Error> {
    let mut removed = false;
    for path in BROUGHT.map(|name| directory.join(name)) {
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            fs::remove_file(&path).map_err(io_error("removing", &path))?;
            removed = true;
        }
    }
    Ok(removed)
}

fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join(LOCK);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(io_error("opening", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(Error::Io { action: "locking", path, error }),
    }
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| Error::Io { action, path: path.into(), error }
}

/// For clients: the roots.
const BUNDLE_PEM: &str = "bundle.pem";
/// Whom the state is for, one line.
const TRUST_DOMAIN: &str = "trust-domain";
/// The key of the join tokens, as [`heddle_certs::state`] names it.
const TOKEN_KEY: &str = "token.key";
/// There if the user brought the authority.
const BROUGHT_MARK: &str = "brought";
/// Held while a control plane works with the directory. Begins with a dot: it is none of the state's files.
const LOCK: &str = ".lock";
/// What a user may bring.
const BROUGHT: [&str; 2] = ["ca.crt", "ca.key"];
/// Bytes of each: a chain of large certificates has a tenth of it.
const MAX_BROUGHT_BYTES: u64 = 256 * 1024;
/// Longest sleep: timers do not run while a machine sleeps and clocks are set, so the wall clock is looked at again.
/// Chosen: a fraction of the shortest time between renewal and end of a day's leaf.
const MAX_SLEEP: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(state: &Path) -> Config {
        Config::new("unused", state, TrustDomain::parse("mesh.example").unwrap())
    }

    fn open(config: &Config) -> Result<Authority, Error> {
        Authority::open(config, Metrics::new().unwrap(), SystemTime::now())
    }

    fn root(authority: &Authority) -> String {
        authority.read().slots.current().root_hash_hex()
    }

    #[test]
    fn the_first_start_makes_a_root_and_the_second_takes_it_over() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let first = open(&config).unwrap();
        let (root_before, pem) = (root(&first), first.current().borrow().bundle.to_pem());
        drop(first);

        let second = open(&config).unwrap();

        assert_eq!(root(&second), root_before);
        assert_eq!(fs::read_to_string(bundle_path(directory.path())).unwrap(), pem);
        for secret in ["ca.key", "token.key"] {
            let mode = fs::metadata(directory.path().join(secret)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{secret}");
        }
    }

    #[test]
    fn two_control_planes_do_not_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let _first = open(&config).unwrap();

        assert!(matches!(open(&config), Err(Error::Locked(_))));
    }

    #[test]
    fn state_of_another_trust_domain_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        drop(open(&config(directory.path())).unwrap());

        let other = Config { trust_domain: TrustDomain::parse("other").unwrap(), ..config(directory.path()) };

        let Err(Error::TrustDomain { found, .. }) = open(&other) else { panic!("taken over") };
        assert_eq!(found, "mesh.example");
    }

    #[test]
    fn an_authority_the_user_brought_is_taken_over_and_kept() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let theirs = open(&config(from.path())).unwrap();
        for name in BROUGHT {
            fs::write(to.path().join(name), fs::read(from.path().join(name)).unwrap()).unwrap();
        }

        let ours = open(&config(to.path())).unwrap();

        assert_eq!(root(&ours), root(&theirs));
        assert_eq!(ours.read().slots.next_step_at(), None, "nothing follows it by itself");
        drop(ours);
        assert_eq!(root(&open(&config(to.path())).unwrap()), root(&theirs));
        assert!(fs::symlink_metadata(to.path().join("ca.key")).unwrap().is_symlink());
    }

    #[test]
    fn a_rotation_is_on_disk_before_it_signs() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            leaf_lifetime: Duration::from_secs(30),
            root_lifetime: Duration::from_secs(10_000),
            root_lead: Duration::from_secs(100),
            ..config(directory.path())
        };
        let authority = open(&config).unwrap();
        let (old, begin) = (root(&authority), SystemTime::now());

        let renewed =
            authority.exchange(begin + Duration::from_secs(1_000_000), begin + Duration::from_secs(6_000)).unwrap();
        assert!(renewed);
        assert_eq!(authority.current().borrow().bundle.roots().len(), 2);
        assert_eq!(root(&authority), old, "the next root signs only after its lead");
        authority.exchange(begin, begin + Duration::from_secs(6_200)).unwrap();

        let new = root(&authority);
        assert_ne!(new, old);
        drop(authority);
        let later = begin + Duration::from_secs(6_300);
        assert_eq!(root(&Authority::open(&config, Metrics::new().unwrap(), later).unwrap()), new);
    }

    #[test]
    fn a_token_made_beside_a_running_control_plane_is_believed_by_it() {
        let directory = tempfile::tempdir().unwrap();
        let authority = open(&config(directory.path())).unwrap();

        let token = join_token(directory.path(), "shop", "web", "web-1", Duration::from_secs(60)).unwrap();

        let claims = authority.verify_token(&token, SystemTime::now()).unwrap();
        assert_eq!(claims.identity().unwrap().as_str(), "spiffe://mesh.example/ns/shop/sa/web");
        assert_eq!(claims.workload, "web-1");
    }

    #[test]
    fn there_are_no_tokens_before_the_first_start() {
        let directory = tempfile::tempdir().unwrap();
        let token = join_token(directory.path(), "shop", "web", "web-1", Duration::from_secs(60));
        assert!(matches!(token, Err(Error::Empty(_))));
    }
}
