//! The mesh as it is now, and the resources made of it, each encoded once.
//!
//! Translation hands in the newest state; what differs is found one Service and one workload at a time, the resources made
//! of these are thrown away, and every stream is woken once, however many changes came since it last looked. Resources are
//! made when a stream asks for them and shared by all that ask for the same, so work and memory follow what is used. A slow
//! client holds up nobody: nothing is queued here.
//!
//! What a resource depends on is in its name: `outbound/<ip>:<port>` on whoever has that address, `<namespace>/<service>/…`
//! on that Service, `<namespace>/workload/<name>/…` on that workload, `inbound` on the asking workload; so a change forgets
//! by prefix. Writer: [`crate::mesh`]. Readers: [`crate::ads`], [`crate::issue`], [`crate::admin`].

mod cache;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use heddle_xds::resource::{INBOUND, Kind, Resource, parse_outbound};
use tokio::sync::watch;

use crate::emit::index::Destination;
use crate::emit::{self, Index, grpc};
use crate::model::{Endpoints, Model, Place, Preference, ServiceName, SpiffeId, WorkloadName};
use crate::objects::Touched;
use crate::translate::Translation;
use cache::{Asker, Cache, Differs, Key, Targets};

/// The newest snapshot and the resources made of it.
#[derive(Debug)]
pub struct Publisher {
    /// None until the source was read whole. Written by [`Publisher::publish`] only.
    current: RwLock<Option<Arc<Snapshot>>>,
    cache: Mutex<Cache>,
    targets: Mutex<Targets>,
    /// The current snapshot's generation; 0 before the first.
    generation: watch::Sender<u64>,
    /// How often something was published, statuses that nobody subscribes to included.
    published: watch::Sender<u64>,
}

/// The mesh at one moment.
#[derive(Debug)]
pub struct Snapshot {
    generation: u64,
    translation: Arc<Translation>,
    index: Index,
    changed_at: Instant,
}

/// A resource and when it last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The resource.
    pub resource: Resource,
    /// When the change that made it so was seen.
    pub since: Instant,
}

/// An answer of [`Publisher::ask`].
#[derive(Debug)]
pub enum Answer<T> {
    /// No change is waited for.
    Final(T),
    /// A change within so long from the first question on may bring another.
    For(Duration, T),
}

impl Default for Publisher {
    fn default() -> Self {
        Self {
            current: RwLock::default(),
            cache: Mutex::default(),
            targets: Mutex::default(),
            generation: watch::Sender::new(0),
            published: watch::Sender::new(0),
        }
    }
}

impl Publisher {
    /// The mesh now; none before the source was read whole.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rises with every published change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Rises with everything that is published, changes of statuses alone included.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Asks the mesh now and at each change, until the answer is final or not worth waiting for any longer; the last answer
    /// then. `None`: nothing was read yet.
    pub async fn ask<T>(&self, mut question: impl FnMut(&Snapshot) -> Answer<T>) -> Option<T> {
        let begun = tokio::time::Instant::now();
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let (answer, patience) = match question(&*self.snapshot()?) {
                Answer::Final(answer) => return Some(answer),
                Answer::For(patience, answer) => (answer, patience),
            };
            match tokio::time::timeout_at(begun + patience, changes.changed()).await {
                Ok(Ok(())) => {}
                // Over; or the mesh will not change any more.
                Ok(Err(_)) | Err(_) => return Some(answer),
            }
        }
    }

    /// Takes over a new state, of which only `touched` may differ from the last one (`None`: anything may). `changed_at` is
    /// when the change behind it was seen. Streams are woken only if the mesh itself differs; whether it did is returned.
    /// One caller at a time.
    pub fn publish(&self, translation: Translation, touched: Option<&Touched>, changed_at: Instant) -> bool {
        let before = self.snapshot();
        let old = before.as_deref().map(Snapshot::model);
        let difference = Difference::between(old, &translation.model, touched);
        if let Some(before) = before.as_deref().filter(|_| difference.is_empty()) {
            // Statuses may differ: those nobody subscribes to.
            self.replace(Snapshot {
                generation: before.generation,
                translation: Arc::new(translation),
                index: before.index.clone(),
                changed_at: before.changed_at,
            });
            return false;
        }
        let mut index = before.as_deref().map(|before| before.index.clone()).unwrap_or_default();
        difference.apply(old, &translation.model, &mut index);
        let generation = before.as_deref().map_or(0, |before| before.generation) + 1;
        let stale = difference.stale(old, &translation.model);
        self.replace(Snapshot { generation, translation: Arc::new(translation), index, changed_at });
        // After the snapshot: what a reader of the one before still adds is refused by its generation.
        self.cache().advance(generation, &stale);
        self.generation.send_replace(generation);
        true
    }

    /// The resource `client` gets for a name in heddle-proxy's dialect, as `snapshot` has it; `None`: there is none.
    pub fn heddle(&self, snapshot: &Snapshot, client: &WorkloadName, kind: Kind, name: &str) -> Option<Published> {
        let asker = Asker { workload: client, place: snapshot.place(client) };
        if let Some(found) = self.cache().find(snapshot.generation, &asker, kind, name) {
            return Some(found);
        }
        let resource = emit::heddle::lookup(snapshot.model(), &snapshot.index, client, kind, name)?;
        let published = Published { resource, since: snapshot.changed_at };
        let (key, differs) = key(snapshot, &asker, kind, name);
        self.cache().add(snapshot.generation, key, differs, published.clone());
        Some(published)
    }

    /// The resource `workload`, a proxyless gRPC client or server, gets for a name, as `snapshot` has it; `None`: there is none.
    pub fn grpc(
        &self,
        snapshot: &Snapshot,
        workload: &WorkloadName,
        client: &grpc::Client,
        kind: Kind,
        name: &str,
    ) -> Option<Published> {
        if kind == Kind::Listener
            && let Some(address) = grpc::server::listening(name)
        {
            // For nobody else, so it is not kept.
            let inbound = snapshot.model().workloads.get(workload)?.inbound.as_ref()?;
            let resource = grpc::server::listener(name, address, inbound, client);
            return Some(Published { resource, since: snapshot.changed_at });
        }
        let targets = || self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = targets().find(snapshot.generation, client, kind, name) {
            return Some(found);
        }
        let resource = grpc::resource(snapshot.model(), client, kind, name)?;
        let published = Published { resource, since: snapshot.changed_at };
        targets().add(snapshot.generation, client, kind, published.clone());
        Some(published)
    }

    fn replace(&self, snapshot: Snapshot) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(snapshot));
        self.published.send_modify(|published| *published += 1);
    }

    /// Only whole entries are ever put in or taken out, so one left by a panic is usable.
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// The mesh.
    pub fn model(&self) -> &Model {
        &self.translation.model
    }

    /// The mesh, and what became of its objects.
    pub fn translation(&self) -> &Arc<Translation> {
        &self.translation
    }

    /// How many published changes led here.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When the change that led here was seen.
    pub fn changed_at(&self) -> Instant {
        self.changed_at
    }

    /// Whether a workload in `namespace` runs under this identity.
    pub fn runs_as(&self, namespace: &str, identity: &str) -> bool {
        let from = WorkloadName::new(namespace, "");
        let mut workloads = self.model().workloads.range(from..).take_while(|(name, _)| &*name.namespace == namespace);
        workloads.any(|(_, workload)| workload.identity.as_str() == identity)
    }

    /// Where a workload runs.
    pub fn place(&self, workload: &WorkloadName) -> Place {
        self.model().workloads.get(workload).map(|workload| workload.place()).unwrap_or_default()
    }

    /// The identity a workload runs under.
    pub fn identity(&self, workload: &WorkloadName) -> Option<&SpiffeId> {
        self.model().workloads.get(workload).map(|workload| &workload.identity)
    }
}

/// Under what a resource is kept, and whose is another one of that name.
fn key(snapshot: &Snapshot, asker: &Asker<'_>, kind: Kind, name: &str) -> (Key, Differs) {
    if kind == Kind::Listener && name == INBOUND {
        return (Key::Inbound(asker.workload.clone()), Differs::default());
    }
    let mut differs = Differs::default();
    match kind {
        Kind::Listener => {
            if let Some(address) = parse_outbound(name)
                && let Some(Destination::Service(_, listener)) = snapshot.index.destination(snapshot.model(), address)
            {
                differs.namespaces = listener.http.iter().flat_map(|http| http.consumers.keys().cloned()).collect();
            }
        }
        Kind::Endpoints => differs.places = preference(snapshot.model(), name),
        Kind::Route | Kind::Cluster => {}
    }
    let whose = differs.whose(asker, kind);
    (Key::Named { name: name.into(), kind, whose }, differs)
}

/// What of a client's place decides about a Service port's endpoints.
fn preference(model: &Model, name: &str) -> Preference {
    let mut parts = name.split('/');
    let (Some(namespace), Some(service)) = (parts.next(), parts.next()) else { return Preference::None };
    let service = model.services.get(&ServiceName::new(namespace, service));
    let endpoints = service.and_then(|service| service.endpoints.values().find(|found| found.name.as_str() == name));
    endpoints.map(Endpoints::preference).unwrap_or_default()
}

/// The Services and workloads that differ between two models.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    services: BTreeSet<ServiceName>,
    workloads: BTreeSet<WorkloadName>,
}

impl Difference {
    fn between(old: Option<&Model>, new: &Model, touched: Option<&Touched>) -> Self {
        let empty = Model::default();
        let old = old.unwrap_or(&empty);
        let (services, workloads) = match touched {
            Some(touched) => (touched.services.clone(), touched.workloads.clone()),
            None => (
                old.services.keys().chain(new.services.keys()).cloned().collect(),
                old.workloads.keys().chain(new.workloads.keys()).cloned().collect(),
            ),
        };
        Self {
            services: differing(services, |name| (old.services.get(name), new.services.get(name))),
            workloads: differing(workloads, |name| (old.workloads.get(name), new.workloads.get(name))),
        }
    }

    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.workloads.is_empty()
    }

    fn apply(&self, old: Option<&Model>, new: &Model, index: &mut Index) {
        for name in &self.services {
            let before = old.and_then(|old| old.services.get(name));
            index.replace_service(before.map(|service| &**service), new.services.get(name).map(|service| &**service));
        }
        for name in &self.workloads {
            let before = old.and_then(|old| old.workloads.get(name));
            index.replace_workload(
                before.map(|workload| &**workload),
                new.workloads.get(name).map(|workload| &**workload),
            );
        }
    }

    /// What was made of them, and what others could have answered at an address they had or have now.
    fn stale(&self, old: Option<&Model>, new: &Model) -> Stale {
        let mut stale = Stale::default();
        for name in &self.services {
            stale.prefixes.push(format!("{name}/"));
            let models = old.into_iter().chain([new]).filter_map(|model| model.services.get(name));
            let addresses = models.flat_map(|service| &service.listeners).flat_map(|listener| &listener.addresses);
            stale.names.extend(addresses.map(|address| heddle_xds::resource::outbound(*address)));
        }
        for name in &self.workloads {
            stale.prefixes.push(format!("{}/workload/{}/", name.namespace, name.name));
            stale.inbound.push(name.clone());
            let models = old.into_iter().chain([new]).filter_map(|model| model.workloads.get(name));
            stale.prefixes.extend(models.flat_map(|workload| &workload.addresses).map(|ip| outbound_prefix(*ip)));
        }
        stale
    }
}

/// What a change makes of no use.
#[derive(Debug, Default)]
struct Stale {
    names: Vec<String>,
    prefixes: Vec<String>,
    inbound: Vec<WorkloadName>,
}

fn differing<'m, N: Ord, T: PartialEq + 'm>(
    names: BTreeSet<N>,
    both: impl Fn(&N) -> (Option<&'m Arc<T>>, Option<&'m Arc<T>>),
) -> BTreeSet<N> {
    // `Arc`'s equality compares contents; pointers first, for most are shared.
    let same = |name: &N| match both(name) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new) || old == new,
        (None, None) => true,
        _ => false,
    };
    names.into_iter().filter(|name| !same(name)).collect()
}

/// How the listener names of all ports of an address begin.
fn outbound_prefix(ip: IpAddr) -> String {
    let mut name = heddle_xds::resource::outbound(SocketAddr::new(ip, 0));
    // The port 0 is the last digit.
    name.pop();
    name
}

#[cfg(test)]
mod tests;
