//! Objects from the API server of a cluster.
//!
//! Each kind is listed in pages and then watched, by a task of its own ([`kube::runtime::watcher`]); what they see comes together
//! in one place ([`gather`]), which hands out a new snapshot as soon as it has taken in whatever has arrived meanwhile. So a
//! change goes on at once, a burst of changes goes on together, and while the mesh is translated newer events gather.
//!
//! Nothing is handed out before every kind was listed to its end; a watch that breaks withdraws nothing; an object that cannot
//! be read is named and changes nothing that worked. A kind the API server does not know (Gateway API's definitions may not be
//! installed) is not waited for, and is picked up when it appears.

mod gather;
mod read;

use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use gateway_api::experimental::grpcroutes::GrpcRoute;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::referencegrants::ReferenceGrant;
use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::tlsroutes::TlsRoute;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::ApiResource;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Snapshot;
use crate::api::{
    AuthorizationPolicy, FaultInjection, GROUP, MeshTlsPolicy, RateLimitPolicy, TrafficPolicy, VERSION, Workload,
};
use crate::cluster::{Clients, GONE, NOT_FOUND, backoff, refused_with, watch_config};
use crate::metrics::Metrics;
use crate::objects::{KINDS, Kind, ObjectKey, Pod};
use gather::{Event, Gathered};
use read::{Read, Readable};

/// A cluster under watch. Dropping it ends the watch; the snapshots stay as they are.
#[derive(Debug)]
pub struct Watch {
    snapshots: watch::Receiver<Snapshot>,
    _tasks: JoinSet<()>,
}

impl Watch {
    /// Snapshots as they come; not whole at first.
    pub fn snapshots(&self) -> watch::Receiver<Snapshot> {
        self.snapshots.clone()
    }
}

/// Begins to read and watch every kind the mesh is made of. Must be called within a tokio runtime.
pub fn watch(clients: &Clients, metrics: Metrics) -> Watch {
    let (events, received) = mpsc::channel(EVENTS);
    let (sender, snapshots) = watch::channel(Snapshot { waiting: KINDS.into(), ..Snapshot::default() });
    let mut tasks = JoinSet::new();
    for kind in KINDS {
        let follower =
            Follower { kind, client: clients.watches.clone(), events: events.clone(), metrics: metrics.clone() };
        match kind {
            Kind::Namespace => tasks.spawn(follower.run::<Namespace>()),
            Kind::ServiceAccount => tasks.spawn(follower.run::<ServiceAccount>()),
            Kind::Service => tasks.spawn(follower.run::<Service>()),
            Kind::Pod => tasks.spawn(follower.run::<Pod>()),
            Kind::EndpointSlice => tasks.spawn(follower.run::<EndpointSlice>()),
            Kind::HttpRoute => tasks.spawn(follower.run::<HttpRoute>()),
            Kind::GrpcRoute => tasks.spawn(follower.run::<GrpcRoute>()),
            Kind::TlsRoute => tasks.spawn(follower.run::<TlsRoute>()),
            Kind::TcpRoute => tasks.spawn(follower.run::<TcpRoute>()),
            Kind::ReferenceGrant => tasks.spawn(follower.run::<ReferenceGrant>()),
            Kind::Workload => tasks.spawn(follower.run::<Workload>()),
            Kind::TrafficPolicy => tasks.spawn(follower.run::<TrafficPolicy>()),
            Kind::FaultInjection => tasks.spawn(follower.run::<FaultInjection>()),
            Kind::AuthorizationPolicy => tasks.spawn(follower.run::<AuthorizationPolicy>()),
            Kind::RateLimitPolicy => tasks.spawn(follower.run::<RateLimitPolicy>()),
            Kind::MeshTlsPolicy => tasks.spawn(follower.run::<MeshTlsPolicy>()),
        };
    }
    tasks.spawn(gather(received, sender));
    Watch { snapshots, _tasks: tasks }
}

/// Takes in all that has arrived, hands out what is in force then, and waits for more.
async fn gather(mut events: mpsc::Receiver<Event>, snapshots: watch::Sender<Snapshot>) {
    let mut gathered = Gathered::default();
    let mut batch = Vec::with_capacity(EVENTS);
    while events.recv_many(&mut batch, EVENTS).await > 0 {
        batch.drain(..).for_each(|event| gathered.take(event));
        if let Some(snapshot) = gathered.snapshot() {
            log_changes(&snapshots.borrow(), &snapshot);
            snapshots.send_replace(snapshot);
        }
    }
}

fn log_changes(before: &Snapshot, now: &Snapshot) {
    for problem in now.problems.iter().filter(|problem| !before.problems.contains(problem)) {
        tracing::warn!(object = problem.place, error = problem.reason, "not in force as it is now");
    }
    if now.is_whole() && !before.is_whole() {
        tracing::info!(objects = now.objects.keys().len(), "the cluster was read whole");
    }
}

/// Lists and watches one kind, for ever.
struct Follower {
    kind: Kind,
    client: Client,
    events: mpsc::Sender<Event>,
    metrics: Metrics,
}

impl Follower {
    async fn run<K: Readable>(self) {
        let versions: Vec<ApiResource> =
            WATCHED.iter().filter(|watched| watched.kind == self.kind).map(Watched::resource).collect();
        let mut said = false;
        loop {
            for resource in &versions {
                let api = Api::<Read<K>>::all_with(self.client.clone(), resource);
                if self.follow(watcher(api, watch_config())).await.is_none() {
                    // Nobody takes events any more.
                    return;
                }
            }
            self.metrics.source_served(self.kind.name(), false);
            if !said {
                tracing::info!(
                    kind = self.kind.name(),
                    "the API server does not know this kind; it is picked up when it does"
                );
                said = true;
            }
            if self.events.send(Event::NotServed(self.kind)).await.is_err() {
                return;
            }
            tokio::time::sleep(NOT_SERVED_PAUSE).await;
        }
    }

    /// Passes on what a watch sees, until it turns out that the API server does not serve it; `None`: nobody listens.
    async fn follow<K: Readable>(
        &self,
        events: impl Stream<Item = watcher::Result<watcher::Event<Read<K>>>>,
    ) -> Option<()> {
        let mut events = pin!(events);
        let mut failures: u32 = 0;
        while let Some(next) = events.next().await {
            let event = match next {
                Ok(event) => event,
                Err(error) if is_not_served(&error) => return Some(()),
                // Too old to go on from: what follows is a new listing.
                Err(watcher::Error::WatchError(status)) if status.code == GONE => continue,
                Err(error) => {
                    self.failed(failures, &error).await?;
                    failures = failures.saturating_add(1);
                    continue;
                }
            };
            let event = match event {
                watcher::Event::Init => Event::ListingBegins(self.kind),
                watcher::Event::InitDone => {
                    self.metrics.source_served(self.kind.name(), true);
                    Event::ListingEnds(self.kind)
                }
                watcher::Event::InitApply(read) | watcher::Event::Apply(read) => present(read),
                watcher::Event::Delete(read) => Event::Gone(read.key()),
            };
            // That a listing begins says nothing about whether it works.
            if !matches!(event, Event::ListingBegins(_)) {
                failures = 0;
            }
            self.events.send(event).await.ok()?;
        }
        Some(())
    }

    async fn failed(&self, failures: u32, error: &watcher::Error) -> Option<()> {
        self.metrics.source_watch_failed(self.kind.name());
        let kind = self.kind.name();
        if failures == 0 {
            tracing::warn!(kind, %error, "watching failed; what was read stays, and it is tried again");
        } else {
            tracing::debug!(kind, %error, failures, "watching failed");
        }
        self.events.send(Event::Failed(self.kind, error.to_string())).await.ok()?;
        tokio::time::sleep(backoff(failures, fastrand::f64())).await;
        Some(())
    }
}

fn present<K: Readable>(read: Read<K>) -> Event {
    let key: ObjectKey = read.key();
    let (object, observed) = read.into_parts();
    Event::Present(key, object, observed)
}

fn is_not_served(error: &watcher::Error) -> bool {
    let error = match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => error,
        watcher::Error::WatchError(_) | watcher::Error::WatchFailed(_) | watcher::Error::NoResourceVersion => {
            return false;
        }
    };
    refused_with(error, NOT_FOUND)
}

/// A kind as the API server serves it.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    /// What it is to the mesh.
    pub kind: Kind,
    /// Its API group, empty for the core's.
    pub group: &'static str,
    /// Its name in paths and in rules of access.
    pub plural: &'static str,
    version: &'static str,
}

impl Watched {
    fn resource(&self) -> ApiResource {
        let Self { kind, group, version, plural } = self;
        let api_version = if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
        ApiResource {
            group: (*group).to_owned(),
            version: (*version).to_owned(),
            api_version,
            kind: kind.name().to_owned(),
            plural: (*plural).to_owned(),
        }
    }
}

/// How the API server serves a kind.
pub(crate) fn resource(kind: Kind) -> Option<ApiResource> {
    WATCHED.iter().find(|watched| watched.kind == kind).map(Watched::resource)
}

const fn watched(kind: Kind, group: &'static str, version: &'static str, plural: &'static str) -> Watched {
    Watched { kind, group, plural, version }
}

const GATEWAY: &str = crate::api::target::GATEWAY_GROUP;

/// Everything that is listed and watched, in all namespaces. Of one kind in two versions the first that is served is read.
pub const WATCHED: [Watched; 17] = [
    watched(Kind::Namespace, "", "v1", "namespaces"),
    watched(Kind::ServiceAccount, "", "v1", "serviceaccounts"),
    watched(Kind::Service, "", "v1", "services"),
    watched(Kind::Pod, "", "v1", "pods"),
    watched(Kind::EndpointSlice, "discovery.k8s.io", "v1", "endpointslices"),
    watched(Kind::HttpRoute, GATEWAY, "v1", "httproutes"),
    watched(Kind::GrpcRoute, GATEWAY, "v1", "grpcroutes"),
    watched(Kind::TlsRoute, GATEWAY, "v1", "tlsroutes"),
    watched(Kind::TcpRoute, GATEWAY, "v1alpha2", "tcproutes"),
    watched(Kind::ReferenceGrant, GATEWAY, "v1", "referencegrants"),
    watched(Kind::ReferenceGrant, GATEWAY, "v1beta1", "referencegrants"),
    watched(Kind::Workload, GROUP, VERSION, "workloads"),
    watched(Kind::TrafficPolicy, GROUP, VERSION, "trafficpolicies"),
    watched(Kind::FaultInjection, GROUP, VERSION, "faultinjections"),
    watched(Kind::AuthorizationPolicy, GROUP, VERSION, "authorizationpolicies"),
    watched(Kind::RateLimitPolicy, GROUP, VERSION, "ratelimitpolicies"),
    watched(Kind::MeshTlsPolicy, GROUP, VERSION, "meshtlspolicies"),
];

/// Events that wait to be put together. Chosen: a page; a watch whose events find no place waits.
const EVENTS: usize = 512;
/// How long until an unknown kind is asked for again. Chosen: definitions are installed once, and people look on.
const NOT_SERVED_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_watched_under_its_own_name() {
        for kind in KINDS {
            let of: Vec<_> = WATCHED.iter().filter(|watched| watched.kind == kind).collect();
            assert!(!of.is_empty(), "{kind}");
            for watched in of {
                let resource = watched.resource();
                let singular = resource.kind.to_lowercase();
                let stem = singular.trim_end_matches(['y', 's']);
                assert!(resource.plural.starts_with(stem), "{resource:?}");
            }
        }
    }
}
