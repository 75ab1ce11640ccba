//! The server's half of the incremental protocol, for one stream. Pure: requests in, responses out.
//!
//! For each type it knows what the client subscribed to, what was sent and what the client holds. A change of the source is
//! only a reason to look again ([`Server::changed`]); what a response carries is looked up when the response is built
//! ([`Server::next_response`]), so the newest state wins and a slow client costs no memory: at most [`MAX_IN_FLIGHT`]
//! responses of a type are unanswered, and nothing is queued behind them but names.
//!
//! ```text
//!            subscribe            response              ACK
//!  (no entry) ─────► sent: Nothing ─────► sent: v ──────────► held: v
//!                                          │  NACK
//!                                          └────► sent: what is held; v is not sent again
//! ```
//!
//! Types are independent: a CDS response nobody acknowledged never holds up an EDS answer (Envoy acknowledges clusters only
//! after their endpoints came). Removals of what a client holds wait until everything new has been sent (make before
//! break); "does not exist" about a name the client never had does not wait. Called by [`crate::server`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use crate::nack;
use crate::protocol::{
    Answer, Error, MAX_RESPONSE_BYTES, MAX_RESPONSE_RESOURCES, MAX_SUBSCRIPTIONS, Received, Refused, Verdict, View,
    check_names,
};
use crate::resource::{Kind, Resource, WILDCARD};
use crate::snapshot::Set;

/// One stream.
#[derive(Debug, Default)]
pub struct Server {
    types: BTreeMap<Kind, Type>,
    responses: u64,
}

/// A response to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The type of everything in it.
    pub kind: Kind,
    /// Unique on the stream.
    pub nonce: String,
    /// New and changed resources.
    pub resources: Vec<Resource>,
    /// Names that have no resource.
    pub removed: Vec<Arc<str>>,
}

impl Server {
    /// Takes in a request. A request for a type that is not a [`Kind`] changes nothing.
    pub fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Received, Error> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            return Ok(Received::default());
        };
        check_names(kind, &request.resource_names_subscribe)?;
        check_names(kind, request.initial_resource_versions.keys())?;
        let first = !self.types.contains_key(&kind);
        let state = self.types.entry(kind).or_default();
        let mut received = Received::default();
        if !request.response_nonce.is_empty() {
            let refusal = request.error_detail.as_ref().map(|status| status.message.as_str());
            received.verdicts = state.answered(kind, &request.response_nonce, refusal);
        }
        let mut subscribe = request.resource_names_subscribe;
        // The first request of a type without names asks for everything (xDS transport protocol, "Wildcard").
        if first && subscribe.is_empty() && kind.is_root() {
            subscribe.push(WILDCARD.to_owned());
        }
        let more = !subscribe.is_empty();
        let mut unsubscribe = request.resource_names_unsubscribe;
        let wanted: BTreeSet<&str> = subscribe.iter().map(String::as_str).collect();
        unsubscribe.retain(|name| !wanted.contains(name.as_str()));
        // Subscribed first: a name that is given up for a wildcard in the same request is covered all the time, and the
        // client may keep what it has.
        for name in subscribe {
            if let Some(name) = state.subscribe(name) {
                received.subscribed.push((kind, name));
            }
        }
        for name in &unsubscribe {
            state.unsubscribe(name);
        }
        if first {
            state.holds(request.initial_resource_versions);
        }
        let asked = if more { state.entries.values().filter(|entry| entry.named).count() } else { 0 };
        if asked > MAX_SUBSCRIPTIONS { Err(Error::TooManySubscriptions { kind, asked }) } else { Ok(received) }
    }

    /// The source changed: everything subscribed to is looked up again.
    pub fn changed(&mut self) {
        for state in self.types.values_mut() {
            state.stale = true;
        }
    }

    /// The next response, as the source stands now; none when there is nothing to say until the next request or change.
    pub fn next_response(&mut self, view: &impl View) -> Option<Response> {
        let mut blocked = false;
        for kind in Kind::DELIVERY {
            let Some(state) = self.types.get_mut(&kind) else { continue };
            let set = state.wildcard.then(|| view.wildcard(kind)).flatten();
            state.look_again(kind, view, set.as_deref());
            if state.in_flight.len() >= MAX_IN_FLIGHT {
                blocked |= !state.unsent.is_empty();
                continue;
            }
            let batch = state.deliveries(kind, view, set.as_deref());
            let owed = set.is_some() && std::mem::take(&mut state.owes_set);
            if let Some(response) = self.send(kind, batch, owed) {
                return Some(response);
            }
        }
        if blocked {
            return None;
        }
        for kind in Kind::REMOVAL {
            let Some(state) = self.types.get_mut(&kind) else { continue };
            if state.in_flight.len() >= MAX_IN_FLIGHT {
                continue;
            }
            let set = state.wildcard.then(|| view.wildcard(kind)).flatten();
            let batch = state.removals(kind, view, set.as_deref());
            if let Some(response) = self.send(kind, batch, false) {
                return Some(response);
            }
        }
        None
    }

    fn send(&mut self, kind: Kind, batch: Batch, even_empty: bool) -> Option<Response> {
        if !even_empty && batch.resources.is_empty() && batch.removed.is_empty() {
            return None;
        }
        self.responses += 1;
        let nonce = format!("{:x}", self.responses);
        self.types.get_mut(&kind)?.sent(&nonce, self.responses, &batch);
        Some(Response { kind, nonce, resources: batch.resources, removed: batch.removed })
    }
}

/// One type on a stream.
#[derive(Debug, Default)]
struct Type {
    wildcard: bool,
    /// A wildcard subscription is answered even if there is nothing to send: a client waits for it to begin its work.
    owes_set: bool,
    /// Names subscribed to, and names the client may hold because of a wildcard.
    entries: BTreeMap<Arc<str>, Entry>,
    refused: Refused,
    /// Responses without an answer, oldest first, at most [`MAX_IN_FLIGHT`].
    in_flight: VecDeque<InFlight>,
    /// The source or the subscriptions changed in a way that needs every entry to be looked at.
    stale: bool,
    /// Names that may need a response. Looked up again when it is built.
    unsent: BTreeSet<Arc<str>>,
    /// Names the client holds that seem to be gone. Looked up again when everything new has been sent.
    unremoved: BTreeSet<Arc<str>>,
}

/// One name on a stream.
#[derive(Debug, Default)]
struct Entry {
    /// Subscribed to by name, not only through the wildcard.
    named: bool,
    /// What the client last said it took.
    held: Held,
    /// What it will hold if it takes everything that was sent.
    sent: Held,
    /// Number of the response `sent` went out in; 0 if it was not sent on this stream.
    sent_in: u64,
}

/// What a client has for a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Held {
    /// It was told nothing.
    #[default]
    Nothing,
    /// It was told that there is no resource.
    Absence,
    /// This version.
    Version(Arc<str>),
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    number: u64,
    told: Vec<(Arc<str>, Held)>,
}

/// The content of a response that is being built.
#[derive(Debug, Default)]
struct Batch {
    resources: Vec<Resource>,
    removed: Vec<Arc<str>>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.bytes >= MAX_RESPONSE_BYTES || self.resources.len() + self.removed.len() >= MAX_RESPONSE_RESOURCES
    }

    fn add(&mut self, resource: Resource) {
        self.bytes += resource.bytes.len();
        self.resources.push(resource);
    }
}

/// What a name needs.
enum Step {
    /// Nothing: the client has it, or refused it, or nothing certain is known.
    Keep,
    Deliver(Resource),
    /// There is no resource and the client never had one.
    Deny,
    /// There is no resource any more and the client has one.
    Remove,
}

impl Type {
    /// Subscribes; the name if it is new. A name that is subscribed to already is answered once more, whatever was sent,
    /// because the client may have dropped it meanwhile (`resource_names_subscribe` in discovery.proto).
    fn subscribe(&mut self, name: String) -> Option<Arc<str>> {
        if name == WILDCARD {
            let new = !self.wildcard;
            if !new {
                self.entries.values_mut().filter(|entry| !entry.named).for_each(Entry::forget);
            }
            self.wildcard = true;
            self.owes_set = true;
            self.stale = true;
            return new.then(|| WILDCARD.into());
        }
        let name: Arc<str> = name.into();
        let entry = self.entries.entry(name.clone()).or_default();
        let new = !entry.named;
        entry.forget();
        entry.named = true;
        self.unsent.insert(name.clone());
        new.then_some(name)
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
            self.entries.retain(|_, entry| entry.named);
            return;
        }
        if !self.wildcard {
            self.entries.remove(name);
        } else if let Some(entry) = self.entries.get_mut(name) {
            // The wildcard still covers it; the client is told anew whether there is one.
            entry.named = false;
            entry.forget();
            self.unsent.insert(name.into());
        }
    }

    /// What the client brings along from an earlier stream.
    fn holds(&mut self, versions: impl IntoIterator<Item = (String, String)>) {
        for (name, version) in versions {
            if !self.wildcard && !self.entries.contains_key(&*name) {
                continue;
            }
            let entry = self.entries.entry(name.into()).or_default();
            entry.held = Held::Version(version.into());
            entry.sent = entry.held.clone();
        }
    }

    /// Takes in an ACK (no refusal) or NACK. Answers come in the order of the responses, so an answer also settles older
    /// responses that were left without one: they count as taken.
    fn answered(&mut self, kind: Kind, nonce: &str, refusal: Option<&str>) -> Vec<Verdict> {
        let Some(position) = self.in_flight.iter().position(|response| response.nonce == nonce) else {
            return Vec::new();
        };
        let mut verdicts = Vec::new();
        for response in self.in_flight.drain(..=position).collect::<Vec<_>>() {
            let this = response.nonce == nonce;
            let delivered = response.told.iter().filter(|(_, held)| matches!(held, Held::Version(_)));
            let refused = match refusal {
                Some(text) if this => nack::refused(text, delivered.map(|(name, _)| name)),
                _ => BTreeMap::new(),
            };
            for (name, told) in response.told {
                let reason = refused.get(&name).cloned();
                self.settle(&name, &told, response.number, reason.is_some());
                if let (true, Held::Version(version)) = (this, told) {
                    verdicts.push(Verdict { kind, name, version, refused: reason });
                }
            }
        }
        verdicts
    }

    fn settle(&mut self, name: &Arc<str>, told: &Held, number: u64, refused: bool) {
        if let (true, Held::Version(version)) = (refused, told) {
            self.refused.add(name.clone(), version.clone());
        }
        if self.wildcard && !refused && !self.entries.contains_key(name) {
            // It was subscribed to by name when this was sent, and the wildcard covered it when it arrived.
            let entry = Entry { sent: told.clone(), ..Entry::default() };
            self.entries.insert(name.clone(), entry);
            self.unsent.insert(name.clone());
        }
        let Some(entry) = self.entries.get_mut(name) else { return };
        if !refused {
            entry.held = told.clone();
        } else if entry.sent_in == number {
            entry.sent = entry.held.clone();
            self.unsent.insert(name.clone());
        }
        // A client that has been told of the absence of something only the wildcard covers is done with it, unless it came
        // back meanwhile and waits for its turn.
        let is_gone = entry.held == Held::Absence && entry.sent == Held::Absence;
        if !entry.named && is_gone && !self.unsent.contains(name) {
            self.entries.remove(name);
        }
    }

    /// If something changed, collects the names that may need a response.
    fn look_again(&mut self, kind: Kind, view: &impl View, set: Option<&Set>) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        for resource in set.into_iter().flat_map(Set::iter) {
            if !self.entries.contains_key(&resource.name) {
                self.entries.insert(resource.name.clone(), Entry::default());
            }
        }
        let names = self.entries.keys().filter(|name| !matches!(self.step(kind, name, view, set), Step::Keep)).cloned();
        let names: Vec<_> = names.collect();
        self.unsent.extend(names);
    }

    /// Everything new, changed or denied, up to the limits of one response; removals are put off.
    fn deliveries(&mut self, kind: Kind, view: &impl View, set: Option<&Set>) -> Batch {
        let mut batch = Batch::default();
        while !batch.is_full()
            && let Some(name) = self.unsent.pop_first()
        {
            match self.step(kind, &name, view, set) {
                Step::Keep => {}
                Step::Deliver(resource) => batch.add(resource),
                Step::Deny => batch.removed.push(name),
                Step::Remove => {
                    self.unremoved.insert(name);
                }
            }
        }
        batch
    }

    /// Everything that was put off and still is to be removed, up to the limits of one response.
    fn removals(&mut self, kind: Kind, view: &impl View, set: Option<&Set>) -> Batch {
        let mut batch = Batch::default();
        while !batch.is_full()
            && let Some(name) = self.unremoved.pop_first()
        {
            match self.step(kind, &name, view, set) {
                Step::Keep => {}
                Step::Deliver(resource) => batch.add(resource),
                Step::Deny | Step::Remove => batch.removed.push(name),
            }
        }
        batch
    }

    fn step(&self, kind: Kind, name: &str, view: &impl View, set: Option<&Set>) -> Step {
        let Some(entry) = self.entries.get(name) else { return Step::Keep };
        let answer = match (entry.named, set) {
            (true, _) => view.lookup(kind, name),
            (false, Some(set)) => set.get(name).cloned().map_or(Answer::Absent, Answer::Present),
            (false, None) => Answer::Unknown,
        };
        match answer {
            Answer::Unknown => Step::Keep,
            Answer::Present(resource) => {
                let has = matches!(&entry.sent, Held::Version(version) if *version == resource.version);
                if has || self.refused.contains(name, &resource.version) { Step::Keep } else { Step::Deliver(resource) }
            }
            Answer::Absent => match (&entry.sent, &entry.held) {
                (Held::Absence, _) => Step::Keep,
                (Held::Nothing, Held::Nothing | Held::Absence) => Step::Deny,
                (Held::Nothing | Held::Version(_), _) => Step::Remove,
            },
        }
    }

    fn sent(&mut self, nonce: &str, number: u64, batch: &Batch) {
        let delivered =
            batch.resources.iter().map(|resource| (resource.name.clone(), Held::Version(resource.version.clone())));
        let removed = batch.removed.iter().map(|name| (name.clone(), Held::Absence));
        let told: Vec<_> = delivered.chain(removed).collect();
        for (name, held) in &told {
            if let Some(entry) = self.entries.get_mut(name) {
                entry.sent = held.clone();
                entry.sent_in = number;
            }
        }
        self.in_flight.push_back(InFlight { nonce: nonce.to_owned(), number, told });
    }
}

impl Entry {
    /// The client may have dropped what it had: it is told again.
    fn forget(&mut self) {
        self.sent = Held::Nothing;
        self.held = Held::Nothing;
        self.sent_in = 0;
    }
}

/// Responses of one type that may wait for their answer. Chosen: new subscriptions are answered without waiting for the
/// round trip of the ACK before, and a client that stopped reading is owed little.
pub const MAX_IN_FLIGHT: usize = 4;
