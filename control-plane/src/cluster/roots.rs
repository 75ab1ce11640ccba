//! The public roots in every namespace: a ConfigMap that pods mount beside their tokens, kept true.
//!
//! The replica that holds the lease writes it wherever it is missing or says something else. A pod may be admitted into a
//! namespace made a moment ago, so any replica makes it at once when it is asked for ([`Roots::ensure`]). Writing is a server-side
//! apply of the one key, so all writers write the same and none disturbs another.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use super::lease::Lead;
use super::{Clients, FIELD_MANAGER, FORBIDDEN, GONE, NOT_FOUND, backoff, refused_with, watch_config};
use crate::authority::Current;
use crate::metrics::Metrics;
use crate::objects::name_of;
use crate::source::Snapshot;

/// The ConfigMaps.
#[derive(Clone)]
pub struct Roots {
    clients: Clients,
    current: watch::Receiver<Current>,
    /// What each namespace's ConfigMap says, as far as is known. Written by the watch and after each write.
    found: Arc<Mutex<BTreeMap<String, Said>>>,
    metrics: Metrics,
}

/// A ConfigMap's roots: a hash tells whether they are the ones that are wanted.
type Said = u64;

/// Why a namespace has no roots.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or is away.
    #[error("ConfigMap {namespace}/{ROOTS}: {error}")]
    Api {
        /// Where it was to be.
        namespace: String,
        /// Why it is not.
        error: Box<kube::Error>,
    },
    /// The API server takes too long.
    #[error("ConfigMap {0}/{ROOTS}: the API server has not taken it within {WRITE_TIMEOUT:?}")]
    Timeout(String),
}

impl Roots {
    /// The roots in `current`, in the cluster of `clients`.
    pub fn new(clients: Clients, current: watch::Receiver<Current>, metrics: Metrics) -> Self {
        Self { clients, current, found: Arc::default(), metrics }
    }

    /// Makes sure that pods of `namespace` can mount the roots. Returns at once where they are known to be there.
    ///
    /// # Errors
    /// If they are not and cannot be put there now.
    pub async fn ensure(&self, namespace: &str) -> Result<(), Error> {
        let bundle = self.bundle();
        if self.found().get(namespace) == Some(&said(&bundle)) {
            return Ok(());
        }
        self.write(namespace, bundle).await
    }

    /// Keeps them true, as long as `lead` says that this is this replica's to do. Never ends.
    pub async fn keep(self, mut snapshots: watch::Receiver<Snapshot>, mut lead: watch::Receiver<Lead>) {
        let (heard, mut changes) = watch::channel(0);
        let follow = self.clone().follow(heard);
        let write = async {
            let mut current = self.current.clone();
            let mut failures: u32 = 0;
            loop {
                changes.mark_unchanged();
                current.mark_unchanged();
                let leads = lead.borrow_and_update().is_mine();
                let snapshot = snapshots.borrow_and_update().clone();
                let failed = leads && !self.write_missing(&snapshot).await;
                failures = if failed { failures.saturating_add(1) } else { 0 };
                let again = async {
                    if failed {
                        tokio::time::sleep(backoff(failures, fastrand::f64())).await;
                    } else {
                        std::future::pending::<()>().await;
                    }
                };
                let namespaces = async {
                    while snapshots.changed().await.is_ok() {
                        if !snapshots.borrow_and_update().objects.namespaces.is_same(&snapshot.objects.namespaces) {
                            return;
                        }
                    }
                    std::future::pending::<()>().await;
                };
                let ended = tokio::select! {
                    changed = changes.changed() => changed.is_err(),
                    changed = current.changed() => changed.is_err(),
                    changed = lead.changed() => changed.is_err(),
                    () = namespaces => false,
                    () = again => false,
                };
                if ended {
                    // The control plane ends.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::join!(follow, write);
    }

    /// Whether all that was missing is there now.
    async fn write_missing(&self, snapshot: &Snapshot) -> bool {
        let bundle = self.bundle();
        let wanted = said(&bundle);
        let missing = missing(snapshot.objects.namespaces.iter().map(|namespace| &**namespace), &self.found(), wanted);
        let writes = futures::stream::iter(missing).map(|namespace| {
            let bundle = bundle.clone();
            async move { self.write(&namespace, bundle).await }
        });
        let failures: Vec<_> =
            writes.buffer_unordered(WRITES_AT_ONCE).filter_map(|result| async { result.err() }).collect().await;
        if let Some(error) = failures.first() {
            tracing::warn!(%error, namespaces = failures.len(), "roots could not be written; it is tried again");
        }
        failures.is_empty()
    }

    async fn write(&self, namespace: &str, bundle: String) -> Result<(), Error> {
        let wanted = said(&bundle);
        let api: Api<ConfigMap> = Api::namespaced(self.clients.calls.clone(), namespace);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let config_map = config_map(bundle, self.clients.owner.clone());
        let patch = Patch::Apply(&config_map);
        let written = tokio::time::timeout(WRITE_TIMEOUT, api.patch(ROOTS, &parameters, &patch)).await;
        let result = match written {
            Ok(Ok(_)) => {
                self.found().insert(namespace.to_owned(), wanted);
                Ok(())
            }
            Ok(Err(error)) if is_ending(&error) => {
                tracing::debug!(namespace, %error, "no roots for a namespace that ends");
                return Ok(());
            }
            Ok(Err(error)) => Err(Error::Api { namespace: namespace.to_owned(), error: Box::new(error) }),
            Err(_) => Err(Error::Timeout(namespace.to_owned())),
        };
        self.metrics.roots_written(result.is_ok());
        result
    }

    /// Learns what the ConfigMaps say, for ever.
    async fn follow(self, heard: watch::Sender<u64>) {
        let client: Client = self.clients.watches.clone();
        let config = watch_config().fields(&format!("metadata.name={ROOTS}"));
        let mut events = std::pin::pin!(watcher(Api::<ConfigMap>::all(client), config));
        let mut listed = BTreeMap::new();
        let mut failures = 0;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed = BTreeMap::new(),
                Ok(watcher::Event::InitApply(config_map)) => {
                    listed.insert(namespace(&config_map), found(&config_map));
                }
                Ok(watcher::Event::InitDone) => {
                    failures = 0;
                    *self.found() = std::mem::take(&mut listed);
                    heard.send_modify(|heard| *heard += 1);
                }
                Ok(watcher::Event::Apply(config_map)) => {
                    failures = 0;
                    self.found().insert(namespace(&config_map), found(&config_map));
                    heard.send_modify(|heard| *heard += 1);
                }
                Ok(watcher::Event::Delete(config_map)) => {
                    self.found().remove(&namespace(&config_map));
                    heard.send_modify(|heard| *heard += 1);
                }
                Err(watcher::Error::WatchError(status)) if status.code == GONE => {}
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "watching the roots' ConfigMaps failed; it is tried again");
                    }
                    tokio::time::sleep(backoff(failures, fastrand::f64())).await;
                    failures += 1;
                }
            }
        }
    }

    fn bundle(&self) -> String {
        self.current.borrow().bundle.to_pem()
    }

    /// Whole entries are put in and taken out, so a map left by a panic is usable.
    fn found(&self) -> MutexGuard<'_, BTreeMap<String, Said>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roots").finish_non_exhaustive()
    }
}

/// Namespaces that are to have roots and do not say the wanted ones.
fn missing<'n>(
    namespaces: impl Iterator<Item = &'n Namespace>,
    found: &BTreeMap<String, Said>,
    wanted: Said,
) -> Vec<String> {
    let staying = namespaces.filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
    let names = staying.map(|namespace| name_of(&namespace.metadata));
    names.filter(|name| found.get(*name) != Some(&wanted)).map(str::to_owned).collect()
}

fn config_map(bundle: String, owner: Option<OwnerReference>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOTS.to_owned()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/part-of".to_owned(), "heddle".to_owned())])),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(BUNDLE_PEM.to_owned(), bundle)])),
        ..ConfigMap::default()
    }
}

fn namespace(config_map: &ConfigMap) -> String {
    config_map.metadata.namespace.clone().unwrap_or_default()
}

fn found(config_map: &ConfigMap) -> Said {
    let bundle = config_map.data.as_ref().and_then(|data| data.get(BUNDLE_PEM));
    said(bundle.map_or("", String::as_str))
}

fn said(bundle: &str) -> Said {
    let mut hasher = DefaultHasher::new();
    bundle.hash(&mut hasher);
    hasher.finish()
}

/// Nothing can be made in a namespace that is gone or going.
fn is_ending(error: &kube::Error) -> bool {
    let going = refused_with(error, FORBIDDEN)
        && matches!(error, kube::Error::Api(status) if status.message.contains("is being terminated"));
    going || refused_with(error, NOT_FOUND)
}

/// Name of the ConfigMap in each namespace.
pub const ROOTS: &str = "heddle-roots";
/// Its key: the roots, PEM.
pub const BUNDLE_PEM: &str = "bundle.pem";
/// Writes under way at once. Chosen: new roots reach a thousand namespaces within seconds, and the API server has others to serve.
const WRITES_AT_ONCE: usize = 8;
/// Time for one write. Chosen: an admission request that needs it has ten seconds at most.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn namespace(name: &str, ending: bool) -> Namespace {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            deletion_timestamp: ending.then_some(Time(Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        };
        Namespace { metadata, ..Namespace::default() }
    }

    #[test]
    fn roots_are_missing_where_nothing_or_something_else_is_said_and_the_namespace_stays() {
        let namespaces = ["true", "old", "none"].map(|name| namespace(name, false));
        let ending = namespace("ending", true);
        let found = BTreeMap::from([("true".to_owned(), said("new")), ("old".to_owned(), said("old"))]);

        let missing = missing(namespaces.iter().chain([&ending]), &found, said("new"));

        assert_eq!(missing, ["old", "none"]);
    }

    #[test]
    fn what_is_written_is_what_is_found() {
        assert_eq!(found(&config_map("pem".to_owned(), None)), said("pem"));
        assert_ne!(found(&ConfigMap::default()), said("pem"));
    }
}
