//! What was told, what waits for what, and what is in force. Pure: updates, wishes and the time come in; names to
//! subscribe to and whole tables go out.
//!
//! ```text
//!   listener ──names──► route table ──names──► cluster = settings (CDS) + endpoints (EDS)
//!       └─────────────────names (opaque bytes)────┤
//!   inbound ──────────────names (what it asks)────┘
//! ```
//!
//! Rules:
//! - A cluster is in force once settings and endpoints have both been answered. New settings make a new [`Cluster`]
//!   with the old one's state; new endpoints replace the list inside it, and nothing is published for them.
//! - A new route table is put in force once all clusters it names are answered, a new listener once its route table is
//!   in force and its cluster answered. Until then the old one serves. After [`PATIENCE`] they are put in force with
//!   what there is (counted): a cluster without an answer has no endpoints.
//! - "Does not exist" takes a listener out of force at once. Of what listeners lead to, what is in force stays while
//!   something in force leads to it: the control plane tells of the change that makes it superfluous first.
//! - What no listener leads to is dropped and unsubscribed. A destination is dropped after [`UNUSED_KNOWN`] without
//!   use, one that does not exist or was never answered after [`UNUSED_UNKNOWN`].
//! - `inbound` is in force at once: what its clusters should be asked before they are there is not answered.
//! - `inbound` is always subscribed to, and kept even if the control plane says that there is none: policies do not
//!   end because an object was deleted under a running pod.

mod entry;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use heddle_xds::delta::client::{Added, Update};
use heddle_xds::nack::Reject;
use heddle_xds::resource::{INBOUND, Kind, outbound, parse_outbound};

use self::entry::{ClusterEntry, RouteEntry, RouteSource, Told, Wanted, next_endpoints};
use super::counts::{Counts, count};
use super::{cluster, endpoints, inbound, listener, read, route};
use crate::tables::{Answer, Destination, Inbound, Millis, Seen, Tables};

/// Everything one sidecar was told.
#[derive(Debug)]
pub struct Core {
    counts: Arc<Counts>,
    inbound: Option<Arc<Inbound>>,
    destinations: BTreeMap<SocketAddr, Wanted>,
    routes: HashMap<Arc<str>, RouteEntry>,
    clusters: HashMap<Arc<str>, ClusterEntry>,
    /// Hashes of name and version of what is held, for [`Counts`].
    held: HashMap<(Kind, Arc<str>), u32>,
    /// What the xDS client was told to subscribe to.
    subscribed: BTreeSet<(Kind, Arc<str>)>,
    /// What it is to be told before anything else: a destination that was dropped and is wanted again has to be
    /// unsubscribed in between, or it would not be answered anew.
    dropped: Vec<Command>,
    /// What leads to what changed since the last [`Core::take_commands`].
    redrawn: bool,
    /// Something in force changed since the last [`Core::take_tables`].
    unpublished: bool,
}

/// One name the xDS client is to subscribe to, or not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The resource's kind.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// Whether it is wanted from now on.
    pub wanted: bool,
}

impl Core {
    /// Nothing told yet; only `inbound` is wanted.
    pub fn new(counts: Arc<Counts>) -> Self {
        Self {
            counts,
            inbound: None,
            destinations: BTreeMap::new(),
            routes: HashMap::new(),
            clusters: HashMap::new(),
            held: HashMap::new(),
            subscribed: BTreeSet::new(),
            dropped: Vec::new(),
            redrawn: true,
            unpublished: false,
        }
    }

    /// Somebody dialled `destination`.
    pub fn wish(&mut self, destination: SocketAddr, now: Millis) {
        if let Some(wanted) = self.destinations.get(&destination) {
            wanted.seen.touch(now);
            return;
        }
        if self.destinations.len() >= MAX_DESTINATIONS {
            count(&self.counts.limit_hits);
            let Some(least) = self.least_used_unknown() else { return };
            self.drop_destination(least);
        }
        let seen = Arc::new(Seen::default());
        seen.touch(now);
        let name = outbound(destination).into();
        self.destinations.insert(destination, Wanted { name, seen, told: Told::Nothing, waiting: None, live: None });
        self.counts.destinations.store(self.destinations.len() as u64, Ordering::Relaxed);
        self.redrawn = true;
    }

    /// The control plane's word. Returns what is refused of it. What is not subscribed to any more is left alone.
    pub fn apply(&mut self, update: &Update, now: Millis) -> Vec<Reject> {
        let kind = update.kind;
        let mut rejects = Vec::new();
        let mut settled = true;
        for added in &update.added {
            if !self.subscribed.contains(&(kind, added.name.clone())) {
                continue;
            }
            match self.take(kind, added, now) {
                Ok(in_force) => {
                    settled &= in_force;
                    self.hold(kind, &added.name, Some(&added.version));
                }
                Err(read::Error { field, reason }) => {
                    rejects.push(Reject { name: added.name.clone(), field: shown(field), reason });
                }
            }
        }
        for name in &update.removed {
            if self.subscribed.contains(&(kind, name.clone())) {
                self.remove(kind, name);
                self.hold(kind, name, None);
                settled = false;
            }
        }
        let counts = self.counts.of(kind);
        count(if rejects.is_empty() { &counts.ack } else { &counts.nack });
        if !settled {
            self.settle(now);
        }
        rejects
    }

    /// Time has passed: what waited too long is put in force, what nobody uses is dropped.
    pub fn tick(&mut self, now: Millis) {
        self.drop_unused(now);
        self.settle(now);
    }

    /// What the xDS client is to be told since the last call.
    pub fn take_commands(&mut self) -> Vec<Command> {
        let mut commands = std::mem::take(&mut self.dropped);
        if !std::mem::take(&mut self.redrawn) {
            return commands;
        }
        let wanted = self.wanted();
        let gone: Vec<_> = self.subscribed.difference(&wanted).cloned().collect();
        let new: Vec<_> = wanted.difference(&self.subscribed).cloned().collect();
        for (kind, name) in gone {
            self.forget(kind, &name);
            commands.push(Command { kind, name, wanted: false });
        }
        commands.extend(new.into_iter().map(|(kind, name)| Command { kind, name, wanted: true }));
        self.subscribed = wanted;
        commands
    }

    /// The tables to publish; `None`: what was published last still holds.
    pub fn take_tables(&mut self) -> Option<Tables> {
        if !std::mem::take(&mut self.unpublished) {
            return None;
        }
        let outbound = self.destinations.iter().filter_map(|(address, wanted)| {
            let (_, answer) = wanted.live.as_ref()?;
            Some((*address, Destination { answer: answer.clone(), seen: wanted.seen.clone() }))
        });
        let asked = self.inbound.iter().flat_map(|inbound| inbound.clusters()).filter_map(|name| {
            let live = self.clusters.get(name)?.live.clone()?;
            Some((name.clone(), live))
        });
        Some(Tables { inbound: self.inbound.clone(), outbound: outbound.collect(), asked: asked.collect() })
    }

    /// Reads one resource. True if it is in force with that.
    fn take(&mut self, kind: Kind, added: &Added, now: Millis) -> Result<bool, read::Error> {
        let (name, bytes) = (&added.name, &added.bytes);
        match kind {
            Kind::Listener if **name == *INBOUND => {
                let mut parsed = inbound::parse(name, bytes)?;
                if let Some(before) = &self.inbound {
                    parsed.keep(before);
                }
                self.inbound = Some(Arc::new(parsed));
                self.unpublished = true;
                self.redrawn = true;
                return Ok(true);
            }
            Kind::Listener => {
                let parsed = listener::parse(name, bytes)?;
                if let Some(wanted) = self.wanted_by_name(name) {
                    wanted.told = Told::Is(parsed);
                    wanted.waiting.get_or_insert(now);
                }
                self.redrawn = true;
            }
            Kind::Route => {
                let source = RouteSource { bytes: bytes.clone(), clusters: route::clusters(name, bytes)? };
                let entry = self.routes.entry(name.clone()).or_default();
                entry.told = Told::Is(source);
                entry.waiting.get_or_insert(now);
                self.redrawn = true;
            }
            Kind::Cluster => {
                let parsed = cluster::parse(name, bytes)?;
                self.clusters.entry(name.clone()).or_default().settings = Told::Is(parsed);
            }
            Kind::Endpoints => {
                let parsed = endpoints::parse(name, bytes)?;
                let entry = self.clusters.entry(name.clone()).or_default();
                if let Some(live) = &entry.live {
                    live.endpoints.store(Arc::new(next_endpoints(live, &parsed, &live.identities, now)));
                }
                let was_answered = entry.endpoints.is_answered();
                entry.endpoints = Told::Is(parsed);
                return Ok(was_answered && entry.live.is_some());
            }
        }
        Ok(false)
    }

    fn remove(&mut self, kind: Kind, name: &Arc<str>) {
        self.redrawn = true;
        match kind {
            Kind::Listener if **name == *INBOUND => {
                tracing::warn!(
                    "the control plane knows no inbound resource for this workload; the last one stays in force"
                );
            }
            Kind::Listener => {
                if let Some(wanted) = self.wanted_by_name(name) {
                    wanted.told = Told::Absent;
                    wanted.waiting = None;
                    wanted.live = Some((None, Answer::DoesNotExist));
                    self.unpublished = true;
                }
            }
            Kind::Route => {
                let entry = self.routes.entry(name.clone()).or_default();
                entry.told = Told::Absent;
                entry.waiting = None;
            }
            Kind::Cluster => self.clusters.entry(name.clone()).or_default().settings = Told::Absent,
            Kind::Endpoints => self.clusters.entry(name.clone()).or_default().endpoints = Told::Absent,
        }
    }

    fn wanted_by_name(&mut self, name: &str) -> Option<&mut Wanted> {
        self.destinations.get_mut(&parse_outbound(name)?)
    }

    /// The destination to give up for another one.
    fn least_used_unknown(&self) -> Option<SocketAddr> {
        let unknown = self.destinations.iter().filter(|(_, wanted)| !wanted.is_known());
        unknown.min_by_key(|(_, wanted)| wanted.last_used()).map(|(address, _)| *address)
    }

    fn drop_unused(&mut self, now: Millis) {
        let unused = self.destinations.iter().filter(|(_, wanted)| {
            let patience = if wanted.is_known() { UNUSED_KNOWN } else { UNUSED_UNKNOWN };
            is_over(Millis(wanted.last_used()), patience, now)
        });
        let unused: Vec<SocketAddr> = unused.map(|(address, _)| *address).collect();
        for address in unused {
            self.drop_destination(address);
            count(&self.counts.unused);
        }
    }

    fn drop_destination(&mut self, address: SocketAddr) {
        let Some(Wanted { name, .. }) = self.destinations.remove(&address) else { return };
        self.counts.destinations.store(self.destinations.len() as u64, Ordering::Relaxed);
        if self.subscribed.remove(&(Kind::Listener, name.clone())) {
            self.forget(Kind::Listener, &name);
            self.dropped.push(Command { kind: Kind::Listener, name, wanted: false });
        }
        self.unpublished = true;
        self.redrawn = true;
    }

    /// Every name that something wanted leads to, in force or not yet.
    fn wanted(&self) -> BTreeSet<(Kind, Arc<str>)> {
        let mut wanted = BTreeSet::from([(Kind::Listener, Arc::from(INBOUND))]);
        let mut routes: HashSet<&Arc<str>> = HashSet::new();
        let mut clusters: HashSet<&Arc<str>> = self.inbound.iter().flat_map(|inbound| inbound.clusters()).collect();
        for destination in self.destinations.values() {
            wanted.insert((Kind::Listener, destination.name.clone()));
            let live = destination.live.as_ref().and_then(|(parsed, _)| parsed.as_ref());
            for parsed in destination.told.as_ref().into_iter().chain(live) {
                routes.extend(&parsed.routes);
                clusters.extend(parsed.tcp_clusters());
            }
        }
        for entry in routes.iter().filter_map(|name| self.routes.get(*name)) {
            let live = entry.live.as_ref().map(|live| &live.source);
            for source in entry.told.as_ref().into_iter().chain(live) {
                clusters.extend(&source.clusters);
            }
        }
        wanted.extend(routes.into_iter().map(|name| (Kind::Route, name.clone())));
        for name in clusters {
            // Endpoints come under the cluster's name: asking for both at once saves a round trip.
            wanted.extend([(Kind::Cluster, name.clone()), (Kind::Endpoints, name.clone())]);
        }
        wanted
    }

    /// Drops what is known of a name that is not wanted any more.
    fn forget(&mut self, kind: Kind, name: &Arc<str>) {
        match kind {
            Kind::Route => drop(self.routes.remove(name)),
            Kind::Cluster => drop(self.clusters.remove(name)),
            Kind::Endpoints | Kind::Listener => {}
        }
        self.hold(kind, name, None);
    }

    /// Notes the version that is held of a name.
    fn hold(&mut self, kind: Kind, name: &Arc<str>, version: Option<&Arc<str>>) {
        let key = (kind, name.clone());
        let new = version.map(|version| fingerprint(name, version));
        let old = match new {
            Some(new) => self.held.insert(key, new),
            None => self.held.remove(&key),
        };
        let counts = self.counts.of(kind);
        let delta = new.unwrap_or_default().wrapping_sub(old.unwrap_or_default());
        counts.version.fetch_add(delta, Ordering::Relaxed);
        if new.is_some() && old.is_none() {
            count(&counts.held);
        } else if new.is_none() && old.is_some() {
            counts.held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The field of a NACK's line; never empty, so that the line keeps its form.
fn shown(field: String) -> String {
    if field.is_empty() { "resource".to_owned() } else { field }
}

/// A hash of one name and version: the first half of what the resource's own version is made with.
fn fingerprint(name: &str, version: &str) -> u32 {
    let hash = heddle_xds::resource::version_of(format!("{name}\0{version}").as_bytes());
    hash.get(..8).and_then(|half| u32::from_str_radix(half, 16).ok()).unwrap_or_default()
}

fn is_over(since: Millis, patience: Duration, now: Millis) -> bool {
    u128::from(now.0.saturating_sub(since.0)) >= patience.as_millis()
}

/// How long a new listener or route table waits for what it names. Chosen: Envoy's initial fetch timeout
/// (`ConfigSource.initial_fetch_timeout`).
pub const PATIENCE: Duration = Duration::from_secs(15);
/// After how long without use a known destination is given up. Chosen: longer than most clients keep a connection
/// idle.
pub const UNUSED_KNOWN: Duration = Duration::from_secs(600);
/// After how long without use a destination is given up that does not exist, or was never answered. Chosen: a client
/// that retries is served from memory, a scan is soon forgotten.
pub const UNUSED_UNKNOWN: Duration = Duration::from_secs(60);
/// Most original destinations of one sidecar. Chosen: far above what one application calls; bounds memory and the
/// size of a subscription.
pub const MAX_DESTINATIONS: usize = 4_096;

#[cfg(test)]
mod tests;
