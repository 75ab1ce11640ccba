//! What this control plane signs with: the authorities and the token key, kept in a directory or a Secret, exchanged by their
//! schedule, and its own server certificate, renewed in time. No restart is needed for any of it.
//!
//! The store holds what [`heddle_certs::state`] describes and some pieces more ([`kept`]), all exchanged at once. A step of a
//! rotation is written before it is used, so no certificate is ever signed by a key that a restart would not know. A directory has
//! one control plane, held by a lock. A Secret is all replicas': the one that holds the lease exchanges what is due, the others
//! take over what they see there, and each has a server certificate of its own.
//!
//! Whom it signs for is not decided here: that is [`crate::issue`]. Made by [`crate::app`], which also spawns
//! [`Authority::keep`].

mod directory;
mod kept;

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
use heddle_certs::state;
use heddle_certs::store::{self, Directory};
use heddle_certs::token::{self, Claims, TokenKey};
use tokio::sync::watch;

use crate::cluster::backoff;
use crate::cluster::lease::Lead;
use crate::cluster::secret::{self, Secret};
use crate::config::Config;
use crate::metrics::Metrics;
use directory::Locked;
use kept::{BUNDLE_PEM, Kept, TOKEN_KEY, TRUST_DOMAIN};

/// Everything that is signed with, and who this control plane is.
#[derive(Debug)]
pub struct Authority {
    trust_domain: TrustDomain,
    schedule: Schedule,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    store: Store,
    /// Written by [`Authority::keep`] only, after the store was.
    kept: RwLock<Kept>,
    /// The last value is in force. Written by [`Authority::keep`] only.
    current: watch::Sender<Current>,
    metrics: Metrics,
}

/// Where it is kept.
#[derive(Debug)]
enum Store {
    /// A directory of this control plane alone.
    Directory(Locked),
    /// A Secret of all replicas, and which of them holds the lease.
    Secret(Box<Secret>, watch::Receiver<Lead>),
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
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// The Secret cannot be used.
    #[error(transparent)]
    Secret(#[from] secret::Error),
    /// A directory of somebody else's control plane cannot be read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What is kept makes no state.
    #[error(transparent)]
    State(#[from] Box<state::Error>),
    /// It is kept for another mesh.
    #[error(
        "what is kept was made for trust domain `{found}`, but --trust-domain is `{expected}`; roots cannot be taken over: use \
         another --state or --root-secret"
    )]
    TrustDomain {
        /// As it says itself.
        found: String,
        /// As configured.
        expected: TrustDomain,
    },
    /// It cannot be used, and where it is.
    #[error("{place}: {error}")]
    At {
        /// The directory or the Secret.
        place: String,
        /// What is wrong.
        error: Box<Error>,
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
    /// Keys could not be made.
    #[error("making keys did not finish")]
    Unfinished,
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
    pub fn open(config: &Config, state: &Path, metrics: Metrics, now: SystemTime) -> Result<Self, Error> {
        let directory = Locked::open(state)?;
        let files = directory.read()?;
        let at = |error| Error::At { place: state.display().to_string(), error: Box::new(error) };
        let kept = match &files {
            Some(files) => Kept::read(files, &config.trust_domain, config.schedule(), now),
            None => Kept::generate(&config.trust_domain, config.schedule(), now),
        };
        let kept = kept.map_err(at)?;
        let complete = kept.to_files()?;
        if files.as_ref() != Some(&complete) || directory.is_unfinished() {
            directory.replace(&complete)?;
        }
        Self::with(config, Store::Directory(directory), kept, metrics, now)
    }

    /// Reads the Secret, or makes it with a new root and token key, whichever replica comes first. One with `ca.crt` and `ca.key`
    /// alone is a user's own authority, which is completed and never exchanged. An API server that is away is waited for.
    ///
    /// # Errors
    /// If what is in the Secret does not fit `config`.
    pub async fn open_secret(
        config: &Config,
        secret: Secret,
        lead: watch::Receiver<Lead>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let mut failures = 0;
        let kept = loop {
            match read_or_make(config, &secret).await {
                Ok(kept) => break kept,
                Err(Error::Secret(error)) => {
                    if failures == 0 || !matches!(error, secret::Error::Conflict(_)) {
                        tracing::warn!(%error, "waiting for the root's Secret");
                    }
                    tokio::time::sleep(backoff(failures, fastrand::f64())).await;
                    failures += 1;
                }
                Err(error) => {
                    let secret::Place { namespace, name } = secret.place();
                    return Err(Error::At { place: format!("Secret {namespace}/{name}"), error: Box::new(error) });
                }
            }
        };
        Self::with(config, Store::Secret(Box::new(secret), lead), kept, metrics, SystemTime::now())
    }

    fn with(config: &Config, store: Store, kept: Kept, metrics: Metrics, now: SystemTime) -> Result<Self, Error> {
        let (names, addresses) = config.split_server_names();
        let schedule = config.schedule();
        let current = current(&kept, &names, &addresses, schedule, now)?;
        metrics.rotated(current.bundle.first_end(), current.identity.not_after());
        Ok(Self {
            trust_domain: config.trust_domain.clone(),
            schedule,
            names,
            addresses,
            store,
            kept: RwLock::new(kept),
            current: watch::Sender::new(current),
            metrics,
        })
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
        let kept = self.read();
        let signed = kept.state.slots.sign(request, id, lifetime, now)?;
        Ok((signed, self.current.borrow().bundle.clone()))
    }

    /// Reads a join token.
    ///
    /// # Errors
    /// As [`TokenKey::verify`].
    pub fn verify_token(&self, token: &str, now: SystemTime) -> Result<Claims, token::Error> {
        self.read().state.token_key.verify(token, &self.trust_domain, now)
    }

    /// Exchanges roots and the own certificate when they are due, and takes over what another replica has exchanged, for ever. A
    /// failure is logged, counted and tried again.
    pub async fn keep(self: Arc<Self>) {
        let mut failures = 0;
        let mut renew = self.renew_at();
        let mut news = News::of(&self.store);
        loop {
            let now = SystemTime::now();
            let wait = if failures > 0 {
                let ends = self.current.borrow().identity.not_after();
                retry_after(failures, fastrand::f64(), now, ends)
            } else {
                let due = self.next_step_at().map_or(renew, |step| step.min(renew));
                due.duration_since(now).unwrap_or_default().min(MAX_SLEEP)
            };
            let look_again = tokio::select! {
                () = tokio::time::sleep(wait) => failures > 0,
                () = news.come() => true,
            };
            match self.round(look_again, renew).await {
                Ok(renewed) => {
                    failures = 0;
                    if renewed {
                        renew = self.renew_at();
                    }
                }
                Err(error) => {
                    failures += 1;
                    self.metrics.rotation_failed();
                    tracing::error!(%error, failures, "certificates of the control plane cannot be exchanged");
                }
            }
        }
    }

    async fn round(&self, look_again: bool, renew: SystemTime) -> Result<bool, Error> {
        let taken = if look_again { self.look_again(SystemTime::now()).await? } else { false };
        let renewed = self.exchange(renew, SystemTime::now()).await?;
        Ok(taken || renewed)
    }

    /// Takes what is due at `now`; whether the own certificate was renewed.
    pub(crate) async fn exchange(&self, renew_at: SystemTime, now: SystemTime) -> Result<bool, Error> {
        let changes = self.rotate(now).await?;
        for change in &changes {
            tracing::info!(?change, "roots");
        }
        if changes.is_empty() && now < renew_at {
            return Ok(false);
        }
        self.renew(now)?;
        Ok(true)
    }

    /// Advances a copy, writes it, and only then takes it over.
    async fn rotate(&self, now: SystemTime) -> Result<Vec<Change>, Error> {
        if self.next_step_at().is_none_or(|due| now < due) {
            return Ok(Vec::new());
        }
        let files = self.read().to_files()?;
        let (trust_domain, schedule) = (self.trust_domain.clone(), self.schedule);
        // Keys are made.
        let advanced = tokio::task::spawn_blocking(move || {
            let mut next = Kept::read(&files, &trust_domain, schedule, now)?;
            let changes = next.state.slots.advance(now)?;
            let files = next.to_files()?;
            Ok::<_, Error>((next, changes, files))
        });
        let (next, changes, files) = advanced.await.map_err(|_| Error::Unfinished)??;
        match &self.store {
            // Some small files, a few times a year.
            Store::Directory(directory) => directory.replace(&files)?,
            Store::Secret(secret, _) => secret.replace(&files).await?,
        }
        self.replace(next);
        Ok(changes)
    }

    /// Reads the Secret again, and takes over what another has written there; whether there was something. One that was taken
    /// away is made again, and one that a user has changed is completed, by the replica that holds the lease.
    async fn look_again(&self, now: SystemTime) -> Result<bool, Error> {
        let Store::Secret(secret, lead) = &self.store else { return Ok(false) };
        let leads = lead.borrow().is_mine();
        let known = self.read().to_files()?;
        let Some(files) = secret.read().await? else {
            if leads {
                secret.create(&known).await?;
                tracing::warn!("the root's Secret was gone; it is there again");
            }
            return Ok(false);
        };
        if files == known {
            return Ok(false);
        }
        let next = Kept::read(&files, &self.trust_domain, self.schedule, now)?;
        let complete = next.to_files()?;
        if complete != files {
            if !leads {
                // Without a token key each replica would make its own.
                return Ok(false);
            }
            secret.replace(&complete).await?;
        }
        self.replace(next);
        self.renew(now)?;
        tracing::info!("took over what the root's Secret holds now");
        Ok(true)
    }

    /// A new certificate of its own, by the authority that signs now.
    fn renew(&self, now: SystemTime) -> Result<(), Error> {
        let current = current(&self.read(), &self.names, &self.addresses, self.schedule, now)?;
        self.metrics.rotated(current.bundle.first_end(), current.identity.not_after());
        self.current.send_replace(current);
        Ok(())
    }

    /// When roots are next to be exchanged, if that is this replica's to do.
    fn next_step_at(&self) -> Option<SystemTime> {
        match &self.store {
            Store::Directory(_) => self.read().state.slots.next_step_at(),
            Store::Secret(_, lead) if lead.borrow().is_mine() => self.read().state.slots.next_step_at(),
            Store::Secret(..) => None,
        }
    }

    fn renew_at(&self) -> SystemTime {
        self.current.borrow().identity.renew_at(fastrand::f64())
    }

    /// What is kept is replaced whole, so what a panic left is still whole.
    fn read(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, next: Kept) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

fn current(
    kept: &Kept,
    names: &[String],
    addresses: &[IpAddr],
    schedule: Schedule,
    now: SystemTime,
) -> Result<Current, Error> {
    let slots = &kept.state.slots;
    let identity = slots.current().issue_control_plane(names, addresses, schedule.leaf_lifetime, now)?;
    Ok(Current { identity, bundle: Arc::new(slots.bundle()?) })
}

/// One try of [`Authority::open_secret`].
async fn read_or_make(config: &Config, secret: &Secret) -> Result<Kept, Error> {
    let found = secret.read().await?;
    let now = SystemTime::now();
    let kept = match found.as_ref().filter(|files| kept::has_authority(files)) {
        Some(files) => Kept::read(files, &config.trust_domain, config.schedule(), now)?,
        None => Kept::generate(&config.trust_domain, config.schedule(), now)?,
    };
    let complete = kept.to_files()?;
    if found.as_ref() != Some(&complete) {
        // Of several replicas one succeeds; the others are told of a conflict, and read what it has written.
        secret.replace(&complete).await?;
        let secret::Place { namespace, name } = secret.place();
        tracing::info!(namespace, name, brought = kept.brought, "the root's Secret is complete");
    }
    Ok(kept)
}

/// What may make the next round due before its time.
struct News {
    secret: Option<(watch::Receiver<u64>, watch::Receiver<Lead>)>,
}

impl News {
    fn of(store: &Store) -> Self {
        match store {
            Store::Directory(_) => Self { secret: None },
            Store::Secret(secret, lead) => Self { secret: Some((secret.changes(), lead.clone())) },
        }
    }

    /// Waits for the Secret to change, or for the lease to come or go.
    async fn come(&mut self) {
        let Some((changes, lead)) = &mut self.secret else { return std::future::pending().await };
        let ended = tokio::select! {
            changed = changes.changed() => changed.is_err(),
            changed = lead.changed() => changed.is_err(),
        };
        if ended {
            // The control plane ends.
            std::future::pending().await
        }
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

/// Longest sleep: timers do not run while a machine sleeps and clocks are set, so the wall clock is looked at again.
/// Chosen: a fraction of the shortest time between renewal and end of a day's leaf.
const MAX_SLEEP: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(state: &Path) -> Config {
        Config::new("unused", state, TrustDomain::parse("mesh.example").unwrap())
    }

    fn open(config: &Config) -> Result<Authority, Error> {
        open_at(config, SystemTime::now())
    }

    fn open_at(config: &Config, now: SystemTime) -> Result<Authority, Error> {
        Authority::open(config, config.state.as_deref().unwrap(), Metrics::new().unwrap(), now)
    }

    fn root(authority: &Authority) -> String {
        authority.read().state.slots.current().root_hash_hex()
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

        assert!(matches!(open(&config), Err(Error::Directory(directory::Error::Locked(_)))));
    }

    #[test]
    fn state_of_another_trust_domain_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        drop(open(&config(directory.path())).unwrap());

        let other = Config { trust_domain: TrustDomain::parse("other").unwrap(), ..config(directory.path()) };

        let error = open(&other).unwrap_err().to_string();
        assert!(error.contains("`mesh.example`") && error.contains(directory.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn an_authority_the_user_brought_is_taken_over_and_kept() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let theirs = open(&config(from.path())).unwrap();
        for name in kept::BROUGHT {
            fs::write(to.path().join(name), fs::read(from.path().join(name)).unwrap()).unwrap();
        }

        let ours = open(&config(to.path())).unwrap();

        assert_eq!(root(&ours), root(&theirs));
        assert_eq!(ours.read().state.slots.next_step_at(), None, "nothing follows it by itself");
        drop(ours);
        assert_eq!(root(&open(&config(to.path())).unwrap()), root(&theirs));
        assert!(fs::symlink_metadata(to.path().join("ca.key")).unwrap().is_symlink());
    }

    #[tokio::test]
    async fn a_rotation_is_on_disk_before_it_signs() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            leaf_lifetime: Duration::from_secs(30),
            root_lifetime: Duration::from_secs(10_000),
            root_lead: Duration::from_secs(100),
            ..config(directory.path())
        };
        let authority = open(&config).unwrap();
        let (old, begin) = (root(&authority), SystemTime::now());

        let later = begin + Duration::from_secs(1_000_000);
        assert!(authority.exchange(later, begin + Duration::from_secs(6_000)).await.unwrap());
        assert_eq!(authority.current().borrow().bundle.roots().len(), 2);
        assert_eq!(root(&authority), old, "the next root signs only after its lead");
        authority.exchange(begin, begin + Duration::from_secs(6_200)).await.unwrap();

        let new = root(&authority);
        assert_ne!(new, old);
        drop(authority);
        let later = begin + Duration::from_secs(6_300);
        assert_eq!(root(&open_at(&config, later).unwrap()), new);
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
