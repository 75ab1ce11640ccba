//! The cluster as admission needs it: namespaces from what is read anyway, roots by [`Roots`], events by [`Notices`].

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use tokio::sync::watch;

use super::Cluster;
use super::notices::{Notice, Notices};
use crate::cluster::Clients;
use crate::cluster::roots::Roots;
use crate::inject::{INJECT, Namespace};
use crate::objects::name_of;
use crate::source::Snapshot;

/// A real cluster.
pub struct Live {
    /// What was read of it.
    snapshots: watch::Receiver<Snapshot>,
    namespaces: Api<core::Namespace>,
    roots: Roots,
    notices: Notices,
}

impl Live {
    /// The cluster of `clients`.
    pub fn new(clients: &Clients, snapshots: watch::Receiver<Snapshot>, roots: Roots, notices: Notices) -> Self {
        Self { snapshots, namespaces: Api::all(clients.calls.clone()), roots, notices }
    }
}

impl Cluster for Live {
    fn known_namespace(&self, name: &str) -> Option<Namespace> {
        self.snapshots.borrow().objects.namespaces.get("", name).map(|found| facts(found))
    }

    fn namespace<'c>(&'c self, name: &'c str) -> BoxFuture<'c, Result<Namespace, String>> {
        Box::pin(async move {
            let found = tokio::time::timeout(NAMESPACE_WAIT, self.namespaces.get(name)).await;
            match found {
                Ok(Ok(found)) => Ok(facts(&found)),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("the API server has not answered within {NAMESPACE_WAIT:?}")),
            }
        })
    }

    fn ensure_roots<'c>(&'c self, namespace: &'c str) -> BoxFuture<'c, Result<(), String>> {
        Box::pin(async move { self.roots.ensure(namespace).await.map_err(|error| error.to_string()) })
    }

    fn tell(&self, notice: Notice) {
        self.notices.tell(notice);
    }
}

fn facts(namespace: &core::Namespace) -> Namespace {
    let labels = namespace.metadata.labels.as_ref();
    let inject = labels.and_then(|labels| labels.get(INJECT)).cloned();
    Namespace { name: name_of(&namespace.metadata).to_owned(), inject }
}

/// For one namespace. Chosen: it is asked for in the first moments of a namespace only, and the API server waits for us.
const NAMESPACE_WAIT: Duration = Duration::from_secs(3);
