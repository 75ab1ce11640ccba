//! The server's half of the state-of-the-world protocol, for one stream. Pure: requests in, responses out.
//!
//! Every request of a type carries all its names; gRPC always names what it wants, Envoy asks for all listeners and clusters
//! with an empty first request. One response of a type is unanswered at a time; a request with the nonce of an older one is
//! stale and ignored. What a response carries is looked up when it is built, so the newest state wins.
//!
//! LDS and CDS responses are the full state, and a name that is missing does not exist: they wait until the source is whole,
//! and a refused resource is carried at its last accepted version, because leaving it out would delete it. Where no version
//! was accepted on this stream, the client may still have one from an earlier stream, whose bytes are not known here: then
//! the refused version is carried along when something else changes, and the client refuses it once more and keeps what it
//! has. That is the only way in which a refused version is sent again. RDS and EDS responses carry what changed; that
//! protocol has no word there for "does not exist", so nothing is said. Removals follow in a response of their own after
//! everything new has been sent (make before break).
//!
//! Left out: `version_info` of a reconnecting client is not compared; it receives everything again. Left open by the protocol:
//! a client that drops a name and asks for it again before its first request was read looks as if it never dropped it.
//! Called by [`crate::server`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use crate::nack;
use crate::protocol::{Answer, Error, MAX_SUBSCRIPTIONS, Received, Refused, Verdict, View, check_names};
use crate::resource::{Kind, Resource, WILDCARD};
use crate::snapshot::version_of_set;

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
    /// Hash of everything the client has of this type once it took this response.
    pub version: Arc<str>,
    /// Unique on the stream.
    pub nonce: String,
    /// The full state, or what changed of it, by the type.
    pub resources: Vec<Resource>,
}

impl Server {
    /// Takes in a request. A request for a type that is not a [`Kind`], or with a stale nonce, changes nothing.
    pub fn receive(&mut self, request: DiscoveryRequest) -> Result<Received, Error> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            return Ok(Received::default());
        };
        check_names(kind, &request.resource_names)?;
        let asked = request.resource_names.len();
        if asked > MAX_SUBSCRIPTIONS {
            return Err(Error::TooManySubscriptions { kind, asked });
        }
        let first = !self.types.contains_key(&kind);
        let state = self.types.entry(kind).or_default();
        // The first request of a stream may carry the nonce of the stream before.
        let answers = !first && !request.response_nonce.is_empty();
        if answers && state.nonce != request.response_nonce {
            return Ok(Received::default());
        }
        let mut received = Received::default();
        let mut repeats = false;
        if answers {
            let refusal = request.error_detail.as_ref().map(|status| status.message.as_str());
            match state.in_flight.take() {
                Some(resources) => received.verdicts = state.answered(kind, resources, refusal),
                None => repeats = true,
            }
        }
        received.subscribed = state.subscribe(kind, request.resource_names, repeats);
        Ok(received)
    }

    /// The source changed: everything subscribed to is looked up again.
    pub fn changed(&mut self) {
        self.types.values_mut().for_each(|state| state.stale = true);
    }

    /// The next response, as the source stands now; none when there is nothing to say until the next request or change.
    pub fn next_response(&mut self, view: &impl View) -> Option<Response> {
        let mut blocked = false;
        for kind in Kind::DELIVERY {
            let Some(state) = self.types.get_mut(&kind) else { continue };
            if state.in_flight.is_some() {
                blocked |= state.stale;
                continue;
            }
            if let Some(resources) = state.deliveries(kind, view) {
                return self.send(kind, resources);
            }
        }
        if blocked {
            return None;
        }
        for kind in Kind::REMOVAL {
            let Some(state) = self.types.get_mut(&kind) else { continue };
            if state.in_flight.is_none()
                && let Some(resources) = state.removals(kind, view)
            {
                return self.send(kind, resources);
            }
        }
        None
    }

    fn send(&mut self, kind: Kind, resources: Vec<Resource>) -> Option<Response> {
        let state = self.types.get_mut(&kind)?;
        self.responses += 1;
        state.nonce = format!("{:x}", self.responses);
        state.in_flight = Some(resources.clone());
        Some(Response { kind, version: version_of_set(state.sent.values()), nonce: state.nonce.clone(), resources })
    }
}

/// One type on a stream.
#[derive(Debug, Default)]
struct Type {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Names were given on this stream: from then on a request without names asks for nothing.
    was_named: bool,
    /// What the client has if it takes everything that was sent.
    sent: BTreeMap<Arc<str>, Resource>,
    /// What it last said it took.
    accepted: BTreeMap<Arc<str>, Resource>,
    refused: Refused,
    /// Nonce of the last response; empty before the first.
    nonce: String,
    /// Content of the last response while it has no answer.
    in_flight: Option<Vec<Resource>>,
    /// The source or the subscriptions changed: to be looked up.
    stale: bool,
    /// A response is due even if nothing differs: it says that what was asked for does not exist.
    owed: bool,
    /// Something sent is gone: looked up again when everything new has been sent.
    unremoved: bool,
}

/// What is subscribed to, as the source stands.
struct Wanted {
    resources: BTreeMap<Arc<str>, Resource>,
    /// Nothing among it was unknown.
    whole: bool,
}

impl Type {
    /// The names of a request replace the ones before; the new ones are returned. `repeats`: the last response was answered
    /// already, so an unchanged list is Envoy asking again for the endpoints or routes of something it warms anew.
    fn subscribe(&mut self, kind: Kind, names: Vec<String>, repeats: bool) -> Vec<(Kind, Arc<str>)> {
        let everything =
            names.is_empty() && !self.was_named && kind.is_root() || names.iter().any(|name| name == WILDCARD);
        self.was_named |= !names.is_empty();
        let names: BTreeSet<Arc<str>> = names.into_iter().filter(|name| name != WILDCARD).map(Arc::from).collect();
        let mut new: Vec<(Kind, Arc<str>)> = names.difference(&self.names).map(|name| (kind, name.clone())).collect();
        if everything && !self.wildcard {
            new.push((kind, WILDCARD.into()));
        }
        let unchanged = new.is_empty() && names.len() == self.names.len() && everything == self.wildcard;
        self.wildcard = everything;
        self.names = names;
        if !self.wildcard {
            let names = &self.names;
            self.sent.retain(|name, _| names.contains(name));
            self.accepted.retain(|name, _| names.contains(name));
        }
        if unchanged && repeats && !kind.is_root() {
            self.sent.clear();
            self.stale = true;
        }
        if !new.is_empty() {
            self.stale = true;
            self.owed |= kind.is_root();
        }
        new
    }

    fn answered(&mut self, kind: Kind, resources: Vec<Resource>, refusal: Option<&str>) -> Vec<Verdict> {
        let refused = match refusal {
            Some(text) => nack::refused(text, resources.iter().map(|resource| &resource.name)),
            None => BTreeMap::new(),
        };
        if kind.is_root() && refusal.is_none() {
            // What a full state leaves out is gone.
            self.accepted.retain(|name, _| self.sent.contains_key(name));
        }
        let mut verdicts = Vec::new();
        for resource in resources {
            let reason = refused.get(&resource.name).cloned();
            let Resource { name, version, .. } = resource.clone();
            match (&reason, self.accepted.get(&name)) {
                (None, _) => {
                    self.accepted.insert(name.clone(), resource);
                }
                // Carried along unchanged in a full state and taken before: this response's fault lies elsewhere.
                (Some(_), Some(accepted)) if accepted.version == version => continue,
                (Some(_), accepted) => {
                    self.refused.add(name.clone(), version.clone());
                    match accepted {
                        Some(accepted) => self.sent.insert(name.clone(), accepted.clone()),
                        // It may hold a version from an earlier stream.
                        None if kind.is_root() => None,
                        None => self.sent.remove(&name),
                    };
                    self.stale = true;
                }
            }
            verdicts.push(Verdict { kind, name, version, refused: reason });
        }
        verdicts
    }

    /// A response with everything new or changed, if there is something or one is owed. What is gone stays in a full state
    /// for now.
    fn deliveries(&mut self, kind: Kind, view: &impl View) -> Option<Vec<Resource>> {
        if !self.stale {
            return None;
        }
        let wanted = self.wanted(kind, view);
        if kind.is_root() && !wanted.whole {
            return None;
        }
        self.stale = false;
        let has =
            |resource: &&Resource| self.sent.get(&resource.name).is_some_and(|sent| sent.version == resource.version);
        let changed: Vec<Resource> = wanted.resources.values().filter(|resource| !has(resource)).cloned().collect();
        if !kind.is_root() {
            if wanted.whole {
                // So that it is sent if it comes back as it was.
                self.sent.retain(|name, _| wanted.resources.contains_key(name));
            }
            self.sent.extend(changed.iter().map(|resource| (resource.name.clone(), resource.clone())));
            return (!changed.is_empty()).then_some(changed);
        }
        self.unremoved = self.sent.keys().any(|name| !wanted.resources.contains_key(name));
        if changed.is_empty() && !std::mem::take(&mut self.owed) {
            return None;
        }
        self.owed = false;
        self.sent.extend(changed.into_iter().map(|resource| (resource.name.clone(), resource)));
        Some(self.sent.values().cloned().collect())
    }

    /// A full state without what is gone.
    fn removals(&mut self, kind: Kind, view: &impl View) -> Option<Vec<Resource>> {
        if !std::mem::take(&mut self.unremoved) {
            return None;
        }
        let wanted = self.wanted(kind, view);
        if !wanted.whole {
            self.stale = true;
            return None;
        }
        self.sent = wanted.resources;
        Some(self.sent.values().cloned().collect())
    }

    fn wanted(&self, kind: Kind, view: &impl View) -> Wanted {
        let mut wanted = Wanted { resources: BTreeMap::new(), whole: true };
        if self.wildcard {
            match view.wildcard(kind) {
                Some(set) => set.iter().for_each(|resource| self.want(kind, resource.clone(), &mut wanted)),
                None => wanted.whole = false,
            }
        }
        for name in &self.names {
            match view.lookup(kind, name) {
                Answer::Present(resource) => self.want(kind, resource, &mut wanted),
                Answer::Absent => {}
                Answer::Unknown => wanted.whole = false,
            }
        }
        wanted
    }

    /// A version that was refused is replaced by the last accepted one.
    fn want(&self, kind: Kind, resource: Resource, wanted: &mut Wanted) {
        let resource = if !self.refused.contains(&resource.name, &resource.version) {
            Some(resource)
        } else if let Some(accepted) = self.accepted.get(&resource.name) {
            Some(accepted.clone())
        } else {
            kind.is_root().then_some(resource)
        };
        if let Some(resource) = resource {
            wanted.resources.insert(resource.name.clone(), resource);
        }
    }
}
