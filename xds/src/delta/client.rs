//! The client's half of the incremental protocol. Pure: commands and responses in, requests out.
//!
//! It outlives streams: subscriptions and the versions of what was applied stay when a stream breaks, nothing is withdrawn
//! because of it, and the first request of each type on the next stream says what is wanted and what is there already
//! (`initial_resource_versions`), so only differences travel.
//!
//! ```text
//!   subscribe ──► Requested ──resource──► Exists ◄──► DoesNotExist ◄──name in removed_resources── Requested
//! ```
//!
//! What a resource means, and whether it is refused, is the application's word ([`Client::receive`]). Called by
//! [`crate::client`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use envoy_types::pb::google::rpc;

use crate::Node;
use crate::nack::{self, Reject};
use crate::resource::{Kind, WILDCARD};

/// All subscriptions of a process and what is applied of them.
#[derive(Debug)]
pub struct Client {
    node: Node,
    types: BTreeMap<Kind, Type>,
    stream: Stream,
}

/// Where a subscribed name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No server has answered yet, or all it ever sent was refused.
    Requested,
    /// A resource is applied.
    Exists,
    /// The server said that there is none. The subscription stays: what is created later arrives.
    DoesNotExist,
}

/// What one response changes, for the application to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The type.
    pub kind: Kind,
    /// New and changed resources.
    pub added: Vec<Added>,
    /// Names that have no resource (any more).
    pub removed: Vec<Arc<str>>,
}

/// A new or changed resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// Its name.
    pub name: Arc<str>,
    /// Its version, opaque.
    pub version: Arc<str>,
    /// The encoded message: the `value` of the `Any`.
    pub bytes: Bytes,
}

/// A response that breaks the protocol. The stream should be ended; what is applied stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A type this client never asks for.
    #[error("response with type_url {type_url:?}, which was not asked for on this stream")]
    NotAsked {
        /// What the response says.
        type_url: String,
    },
}

impl Client {
    /// A client that wants nothing yet. `node` goes into the first request of each stream.
    pub fn new(node: Node) -> Self {
        Self { node, types: BTreeMap::new(), stream: Stream::default() }
    }

    /// Wants a name, or all of them ([`WILDCARD`]). False if it is wanted already.
    pub fn subscribe(&mut self, kind: Kind, name: &str) -> bool {
        let state = self.types.entry(kind).or_default();
        if state.names.contains_key(name) {
            return false;
        }
        let name: Arc<str> = name.into();
        // A wildcard may have brought it already; then no server will send it again on the next stream.
        let stands = if state.held.contains_key(&name) { State::Exists } else { State::Requested };
        state.names.insert(name.clone(), stands);
        self.stream.of(kind).changes.insert(name, Change::Subscribe);
        true
    }

    /// Wants a name no more; it counts as not held from now on, and the application drops what it has of it (for
    /// [`WILDCARD`]: of everything not subscribed to by name). False if it was not wanted.
    pub fn unsubscribe(&mut self, kind: Kind, name: &str) -> bool {
        let Some(state) = self.types.get_mut(&kind) else { return false };
        let Some((name, _)) = state.names.remove_entry(name) else { return false };
        if *name == *WILDCARD {
            state.held.retain(|name, _| state.names.contains_key(name));
        } else if !state.is_wildcard() {
            state.held.remove(&name);
        }
        let stream = self.stream.of(kind);
        if stream.told.contains(&name) {
            stream.changes.insert(name, Change::Unsubscribe);
        } else {
            stream.changes.remove(&name);
        }
        true
    }

    /// Where a name stands; none if it is not subscribed to by name.
    pub fn state(&self, kind: Kind, name: &str) -> Option<State> {
        self.types.get(&kind)?.names.get(name).copied()
    }

    /// Names and versions of what is applied.
    pub fn held(&self, kind: Kind) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.types.get(&kind).into_iter().flat_map(|state| &state.held)
    }

    /// Whether nothing is wanted, so that a stream would have nothing to say.
    pub fn is_idle(&self) -> bool {
        self.types.values().all(|state| state.names.is_empty())
    }

    /// A new stream begins: whatever was under way on the one before is lost.
    pub fn stream_opened(&mut self) {
        self.stream = Stream::default();
    }

    /// Whether an ACK or NACK waits in [`Client::next_request`]. The next response should be taken in after it was sent, so
    /// that a server that does not read cannot make answers pile up.
    pub fn owes_answer(&self) -> bool {
        !self.stream.answers.is_empty()
    }

    /// The next request to send on the stream; none when the server knows everything.
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let mut request = match self.stream.answers.pop_front() {
            Some(answer) => answer,
            None => Kind::DELIVERY.into_iter().find_map(|kind| self.next_change(kind))?,
        };
        if !std::mem::replace(&mut self.stream.introduced, true) {
            request.node = Some(self.node.clone());
        }
        Some(request)
    }

    /// Takes in a response. `apply` gets what concerns this client's subscriptions, applies it and returns what it refuses;
    /// the rest of the response counts as applied. It is not called when there is nothing to apply.
    pub fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
        apply: impl FnOnce(&Update) -> Vec<Reject>,
    ) -> Result<(), Error> {
        let asked = Kind::from_type_url(&response.type_url).and_then(|kind| {
            let stream = self.stream.types.get(&kind).filter(|stream| stream.opened)?;
            Some((kind, self.types.get_mut(&kind)?, stream))
        });
        let Some((kind, state, stream)) = asked else {
            return Err(Error::NotAsked { type_url: response.type_url });
        };
        // What the server does not take as subscribed now it will not report as removed either; it sends it (again) when it
        // is told of the subscription.
        let covers = |name: &str| state.names.contains_key(name) && stream.told.contains(name);
        let wants = |name: &str| covers(name) || covers(WILDCARD);
        let mut rejects = Vec::new();
        let mut update = Update { kind, added: Vec::new(), removed: Vec::new() };
        for resource in response.resources.into_iter().filter(|resource| wants(&resource.name)) {
            match added(kind, resource) {
                Ok(added) => update.added.push(added),
                Err(reject) => rejects.push(reject),
            }
        }
        for name in response.removed_resources.into_iter().filter(|name| wants(name)) {
            update.removed.push(name.into());
        }
        if !update.added.is_empty() || !update.removed.is_empty() {
            rejects.extend(apply(&update));
        }
        state.applied(update, &rejects);
        self.stream.answers.push_back(answer(kind, response.nonce, &rejects));
        Ok(())
    }

    fn next_change(&mut self, kind: Kind) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.get(&kind)?;
        let stream = self.stream.of(kind);
        let mut request = DeltaDiscoveryRequest { type_url: kind.type_url().to_owned(), ..Default::default() };
        if !stream.opened {
            // Without a name the first request would be a wildcard subscription.
            if state.names.is_empty() {
                return None;
            }
            stream.opened = true;
            stream.changes.clear();
            stream.told = state.names.keys().cloned().collect();
            request.resource_names_subscribe = state.names.keys().map(|name| name.to_string()).collect();
            request.initial_resource_versions =
                state.held.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect();
            return Some(request);
        }
        if stream.changes.is_empty() {
            return None;
        }
        for (name, change) in std::mem::take(&mut stream.changes) {
            match change {
                Change::Subscribe => {
                    request.resource_names_subscribe.push(name.to_string());
                    stream.told.insert(name);
                }
                Change::Unsubscribe => {
                    request.resource_names_unsubscribe.push(name.to_string());
                    stream.told.remove(&name);
                }
            }
        }
        Some(request)
    }
}

/// One type, over all streams.
#[derive(Debug, Default)]
struct Type {
    /// What is subscribed to, [`WILDCARD`] among it.
    names: BTreeMap<Arc<str>, State>,
    /// Versions of what is applied.
    held: BTreeMap<Arc<str>, Arc<str>>,
}

impl Type {
    fn is_wildcard(&self) -> bool {
        self.names.contains_key(WILDCARD)
    }

    fn applied(&mut self, update: Update, rejects: &[Reject]) {
        for name in update.removed {
            self.held.remove(&name);
            self.stands(&name, State::DoesNotExist);
        }
        for Added { name, version, .. } in update.added {
            if rejects.iter().any(|reject| reject.name == name) {
                continue;
            }
            self.stands(&name, State::Exists);
            self.held.insert(name, version);
        }
    }

    fn stands(&mut self, name: &str, state: State) {
        if let Some(known) = self.names.get_mut(name) {
            *known = state;
        }
    }
}

/// What belongs to one stream and is lost with it.
#[derive(Debug, Default)]
struct Stream {
    /// The node was sent.
    introduced: bool,
    /// ACKs and NACKs to send.
    answers: VecDeque<DeltaDiscoveryRequest>,
    types: BTreeMap<Kind, TypeOnStream>,
}

impl Stream {
    fn of(&mut self, kind: Kind) -> &mut TypeOnStream {
        self.types.entry(kind).or_default()
    }
}

#[derive(Debug, Default)]
struct TypeOnStream {
    /// The first request of the type went out.
    opened: bool,
    /// Names the server takes as subscribed.
    told: BTreeSet<Arc<str>>,
    /// Changes the server has not been told. Subscribing to a name in `told` is right: it was dropped in between, and the
    /// server sends it again.
    changes: BTreeMap<Arc<str>, Change>,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Subscribe,
    Unsubscribe,
}

fn added(kind: Kind, resource: Resource) -> Result<Added, Reject> {
    let name: Arc<str> = resource.name.into();
    match resource.resource {
        Some(any) if any.type_url == kind.type_url() => {
            Ok(Added { name, version: resource.version.into(), bytes: any.value.into() })
        }
        Some(any) => Err(Reject {
            name,
            field: "resource.type_url".into(),
            reason: format!("is {:?} in a response of type {:?}", any.type_url, kind.type_url()),
        }),
        None => Err(Reject { name, field: "resource".into(), reason: "is missing".into() }),
    }
}

fn answer(kind: Kind, nonce: String, rejects: &[Reject]) -> DeltaDiscoveryRequest {
    let error_detail = (!rejects.is_empty()).then(|| rpc::Status {
        code: tonic::Code::InvalidArgument as i32,
        message: nack::text(rejects),
        details: Vec::new(),
    });
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        response_nonce: nonce,
        error_detail,
        ..Default::default()
    }
}
