//! The Secret that holds what a control plane signs with: read, made, watched, and written by its version.
//!
//! It knows nothing of what is in it. Every write names the version it was made from, so that of two writers one is told to look
//! again. Used by [`crate::authority`].

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt;
use heddle_certs::state::Files;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::PostParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, watcher};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{CONFLICT, Clients, GONE, NOT_FOUND, backoff, owner, refused_with, watch_config};

/// One Secret by name.
#[derive(Debug)]
pub struct Secret {
    api: Api<v1::Secret>,
    place: Place,
    /// What it is made from: the version of the last read or write, and what it holds that is none of ours.
    known: Mutex<Option<v1::Secret>>,
    owner: Option<OwnerReference>,
    changes: watch::Receiver<u64>,
    _follower: JoinSet<()>,
}

/// Where a Secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Why a Secret could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or is away.
    #[error("{action} Secret {}/{}: {error}", place.namespace, place.name)]
    Api {
        /// What was tried.
        action: &'static str,
        /// Which.
        place: Place,
        /// Why not.
        error: Box<kube::Error>,
    },
    /// Somebody else has changed it meanwhile.
    #[error("Secret {}/{} was changed by somebody else meanwhile; it is read again", .0.namespace, .0.name)]
    Conflict(Place),
}

impl Secret {
    /// Begins to watch the Secret `place`, which need not exist. Must be called within a tokio runtime.
    pub fn open(clients: &Clients, place: Place) -> Self {
        let (sender, changes) = watch::channel(0);
        let mut follower = JoinSet::new();
        follower.spawn(follow(Api::namespaced(clients.watches.clone(), &place.namespace), place.name.clone(), sender));
        let api = Api::namespaced(clients.calls.clone(), &place.namespace);
        let owner = clients.owner.clone();
        Self { api, place, known: Mutex::default(), owner, changes, _follower: follower }
    }

    /// Which it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Rises when the Secret may be another than before: [`Secret::read`] says what it is. (An event of a watch may be older than
    /// what was written here meanwhile, so what it holds is not believed.)
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// What it holds now; `None`: it is not there. One that a former installation made becomes this one's.
    ///
    /// # Errors
    /// If the API server cannot say.
    pub async fn read(&self) -> Result<Option<Files>, Error> {
        let found = self.api.get_opt(&self.place.name).await.map_err(|error| self.failed("reading", error))?;
        let found = match (found, &self.owner) {
            (Some(found), Some(owner)) if owner::is_orphan(&found.metadata, owner) => {
                Some(self.adopt(found, owner).await?)
            }
            (found, _) => found,
        };
        let files = found.as_ref().map(files);
        self.know(found);
        Ok(files)
    }

    /// Before it is deleted with its former owner.
    async fn adopt(&self, mut secret: v1::Secret, owner: &OwnerReference) -> Result<v1::Secret, Error> {
        secret.metadata.owner_references = Some(vec![owner.clone()]);
        match self.api.replace(&self.place.name, &PostParams::default(), &secret).await {
            Ok(adopted) => Ok(adopted),
            Err(error) if refused_with(&error, CONFLICT) || refused_with(&error, NOT_FOUND) => {
                Err(Error::Conflict(self.place.clone()))
            }
            Err(error) => Err(self.failed("writing", error)),
        }
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is there already; or the API server refuses.
    pub async fn create(&self, files: &Files) -> Result<(), Error> {
        let metadata = ObjectMeta {
            name: Some(self.place.name.clone()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/part-of".to_owned(), "heddle".to_owned())])),
            owner_references: self.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        let secret = v1::Secret { metadata, data: Some(data(files)), ..v1::Secret::default() };
        match self.api.create(&PostParams::default(), &secret).await {
            Ok(made) => {
                self.know(Some(made));
                Ok(())
            }
            Err(error) if refused_with(&error, CONFLICT) => Err(Error::Conflict(self.place.clone())),
            Err(error) => Err(self.failed("making", error)),
        }
    }

    /// Exchanges what was last read or written for `files`, all at once.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is not any more what was last read or written; or the API server refuses.
    pub async fn replace(&self, files: &Files) -> Result<(), Error> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(mut secret) = known else { return self.create(files).await };
        secret.data = Some(data(files));
        match self.api.replace(&self.place.name, &PostParams::default(), &secret).await {
            Ok(written) => {
                self.know(Some(written));
                Ok(())
            }
            Err(error) if refused_with(&error, CONFLICT) || refused_with(&error, NOT_FOUND) => {
                Err(Error::Conflict(self.place.clone()))
            }
            Err(error) => Err(self.failed("writing", error)),
        }
    }

    fn know(&self, mut secret: Option<v1::Secret>) {
        if let Some(secret) = &mut secret {
            secret.metadata.managed_fields = None;
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = secret;
    }

    fn failed(&self, action: &'static str, error: kube::Error) -> Error {
        Error::Api { action, place: self.place.clone(), error: Box::new(error) }
    }
}

fn files(secret: &v1::Secret) -> Files {
    let data = secret.data.iter().flatten();
    data.map(|(name, bytes)| (name.clone(), bytes.0.clone())).collect()
}

fn data(files: &Files) -> BTreeMap<String, ByteString> {
    files.iter().map(|(name, bytes)| (name.clone(), ByteString(bytes.clone()))).collect()
}

/// Watches one Secret's metadata, for ever.
async fn follow(api: Api<PartialObjectMeta<v1::Secret>>, name: String, changes: watch::Sender<u64>) {
    let config = watch_config().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(api, config));
    let mut failures = 0;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(watcher::Event::InitDone | watcher::Event::Apply(_) | watcher::Event::Delete(_)) => {
                failures = 0;
                changes.send_modify(|changes| *changes += 1);
            }
            Err(watcher::Error::WatchError(status)) if status.code == GONE => {}
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(name, %error, "watching the Secret failed; it is tried again");
                }
                tokio::time::sleep(backoff(failures, fastrand::f64())).await;
                failures += 1;
            }
        }
    }
}
