//! Client and server over a wire: whatever happens in between, they end with the same set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use proptest::prelude::*;
use prost::Message;

use crate::Node;
use crate::delta::client::{Client, State, Update};
use crate::delta::server::{MAX_IN_FLIGHT, Server};
use crate::nack::{self, Reject};
use crate::protocol::{Answer, View};
use crate::resource::{Kind, Resource, WILDCARD};
use crate::snapshot::Set;
use crate::wire::Wire;

#[derive(Clone, Debug)]
enum Step {
    Put(Kind, u8, u8),
    Delete(Kind, u8),
    Whole(bool),
    Subscribe(Kind, u8),
    Unsubscribe(Kind, u8),
    ClientSends,
    ServerReceives,
    ServerSends,
    ClientReceives,
    Break,
}

/// The resources a source has: names 0 to 4 of two kinds, contents 0 to 9. A client refuses the contents 0, 1 and 2.
struct Source {
    contents: BTreeMap<(Kind, String), u8>,
    whole: bool,
}

impl View for Source {
    fn lookup(&self, kind: Kind, name: &str) -> Answer {
        match self.contents.get(&(kind, name.to_owned())) {
            Some(content) => Answer::Present(resource(name, *content)),
            None if self.whole => Answer::Absent,
            None => Answer::Unknown,
        }
    }

    fn wildcard(&self, kind: Kind) -> Option<Arc<Set>> {
        let of_kind = self.contents.iter().filter(|((k, _), _)| *k == kind);
        self.whole.then(|| Arc::new(of_kind.map(|((_, name), content)| resource(name, *content)).collect()))
    }
}

struct World {
    source: Source,
    server: Server,
    client: Client,
    /// What the application behind the client has.
    applied: BTreeMap<(Kind, String), u8>,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    /// Versions this server was told are refused.
    refused: BTreeSet<(Kind, String, String)>,
    unanswered: BTreeMap<Kind, usize>,
    /// Resources sent that the client does not refuse.
    good_sent: usize,
}

impl World {
    fn new() -> Self {
        Self {
            source: Source { contents: BTreeMap::new(), whole: true },
            server: Server::default(),
            client: Client::new(Node::default()),
            applied: BTreeMap::new(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            refused: BTreeSet::new(),
            unanswered: BTreeMap::new(),
            good_sent: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Put(kind, name, content) => {
                self.source.contents.insert((*kind, name_of(*name)), *content);
                self.server.changed();
            }
            Step::Delete(kind, name) => {
                self.source.contents.remove(&(*kind, name_of(*name)));
                self.server.changed();
            }
            Step::Whole(whole) => {
                self.source.whole = *whole;
                self.server.changed();
            }
            Step::Subscribe(kind, name) => {
                self.client.subscribe(*kind, &name_of(*name));
            }
            Step::Unsubscribe(kind, name) => self.unsubscribe(*kind, &name_of(*name)),
            Step::ClientSends => {
                self.client_sends();
            }
            Step::ServerReceives => {
                self.server_receives();
            }
            Step::ServerSends => {
                self.server_sends();
            }
            Step::ClientReceives => {
                self.client_receives();
            }
            Step::Break => {
                self.to_server.clear();
                self.to_client.clear();
                self.server = Server::default();
                self.refused.clear();
                self.unanswered.clear();
                self.client.stream_opened();
            }
        }
    }

    fn unsubscribe(&mut self, kind: Kind, name: &str) {
        self.client.unsubscribe(kind, name);
        let client = &self.client;
        let wanted = |(k, n): &(Kind, String)| {
            *k != kind || client.state(kind, n).is_some() || client.state(kind, WILDCARD).is_some()
        };
        self.applied.retain(|key, _| wanted(key));
    }

    fn client_sends(&mut self) -> bool {
        let Some(request) = self.client.next_request() else { return false };
        self.to_server.push_back(request);
        true
    }

    fn server_receives(&mut self) -> bool {
        let Some(request) = self.to_server.pop_front() else { return false };
        let kind = Kind::from_type_url(&request.type_url).unwrap();
        if !request.response_nonce.is_empty() {
            *self.unanswered.get_mut(&kind).unwrap() -= 1;
        }
        for verdict in self.server.receive(request).unwrap().verdicts {
            if verdict.refused.is_some() {
                self.refused.insert((verdict.kind, verdict.name.to_string(), verdict.version.to_string()));
            }
        }
        true
    }

    fn server_sends(&mut self) -> bool {
        let Some(response) = self.server.next_response(&self.source) else { return false };
        let unanswered = self.unanswered.entry(response.kind).or_default();
        *unanswered += 1;
        assert!(*unanswered <= MAX_IN_FLIGHT);
        for resource in &response.resources {
            let key = (response.kind, resource.name.to_string(), resource.version.to_string());
            assert!(!self.refused.contains(&key), "refused and sent again: {key:?}");
            self.good_sent += usize::from(!is_refused(resource.bytes[0]));
        }
        let mut bytes = Vec::new();
        response.encode(&mut bytes);
        self.to_client.push_back(DeltaDiscoveryResponse::decode(&*bytes).unwrap());
        true
    }

    fn client_receives(&mut self) -> bool {
        let Some(response) = self.to_client.pop_front() else { return false };
        let applied = &mut self.applied;
        self.client.receive(response, |update| apply(applied, update)).unwrap();
        true
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let moved = [self.client_sends(), self.server_receives(), self.server_sends(), self.client_receives()]
                .contains(&true);
            if !moved {
                return;
            }
        }
        panic!("client and server never come to rest");
    }

    fn check(&self) {
        for kind in KINDS {
            let wildcard = self.client.state(kind, WILDCARD).is_some();
            for name in (0..NAMES).map(name_of).filter(|name| name != WILDCARD) {
                let state = self.client.state(kind, &name);
                let applied = self.applied.get(&(kind, name.clone()));
                let held =
                    self.client.held(kind).find(|(held, _)| ***held == *name).map(|(_, version)| version.clone());
                assert_eq!(held, applied.map(|content| resource(&name, *content).version), "{kind} {name}");
                if state.is_none() && !wildcard {
                    assert_eq!(applied, None, "{kind} {name} is not subscribed to");
                    continue;
                }
                let there = self.source.contents.get(&(kind, name.clone()));
                match there {
                    Some(content) if is_refused(*content) => {
                        assert!(applied.is_none_or(|content| !is_refused(*content)))
                    }
                    _ => {
                        assert_eq!(applied, there, "{kind} {name}");
                        let expected = if there.is_some() { State::Exists } else { State::DoesNotExist };
                        assert!(state.is_none_or(|state| state == expected), "{kind} {name} is {state:?}");
                    }
                }
            }
        }
    }
}

fn apply(applied: &mut BTreeMap<(Kind, String), u8>, update: &Update) -> Vec<Reject> {
    for name in &update.removed {
        applied.remove(&(update.kind, name.to_string()));
    }
    let mut rejects = Vec::new();
    for added in &update.added {
        if is_refused(added.bytes[0]) {
            rejects.push(Reject { name: added.name.clone(), field: "content".into(), reason: "is not wanted".into() });
        } else {
            applied.insert((update.kind, added.name.to_string()), added.bytes[0]);
        }
    }
    rejects
}

fn is_refused(content: u8) -> bool {
    content < 3
}

fn resource(name: &str, content: u8) -> Resource {
    Resource::from_bytes(name, Bytes::copy_from_slice(&[content]), [])
}

/// The last one is the wildcard.
fn name_of(number: u8) -> String {
    if number == NAMES - 1 { WILDCARD.to_owned() } else { format!("r{number}") }
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop::sample::select(&KINDS[..]);
    prop_oneof![
        4 => (kind(), 0..NAMES - 1, 0..10u8).prop_map(|(kind, name, content)| Step::Put(kind, name, content)),
        2 => (kind(), 0..NAMES - 1).prop_map(|(kind, name)| Step::Delete(kind, name)),
        1 => any::<bool>().prop_map(Step::Whole),
        3 => (kind(), 0..NAMES).prop_map(|(kind, name)| Step::Subscribe(kind, name)),
        2 => (kind(), 0..NAMES).prop_map(|(kind, name)| Step::Unsubscribe(kind, name)),
        5 => Just(Step::ClientSends),
        5 => Just(Step::ServerReceives),
        5 => Just(Step::ServerSends),
        5 => Just(Step::ClientReceives),
        1 => Just(Step::Break),
    ]
}

const KINDS: [Kind; 2] = [Kind::Cluster, Kind::Endpoints];
const NAMES: u8 = 6;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn client_and_server_end_with_the_same_set(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::new();
        world.client.stream_opened();
        for step in &steps {
            world.take(step);
        }
        world.take(&Step::Whole(true));
        world.settle();
        world.check();
        // Another replica, the same resources: what the client has does not travel again.
        world.take(&Step::Break);
        world.good_sent = 0;
        world.settle();
        world.check();
        prop_assert_eq!(world.good_sent, 0);
    }
}

#[test]
fn a_refusal_is_read_back_by_the_server() {
    let mut world = World::new();
    for step in [
        Step::Put(Kind::Cluster, 0, 1),
        Step::Put(Kind::Cluster, 1, 5),
        Step::Subscribe(Kind::Cluster, 0),
        Step::Subscribe(Kind::Cluster, 1),
    ] {
        world.take(&step);
    }

    world.settle();

    assert_eq!(world.refused.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>(), ["r0"]);
    assert_eq!(world.client.state(Kind::Cluster, "r1"), Some(State::Exists));
    assert_eq!(nack::refused("r0: content: is not wanted", &[Arc::from("r0"), Arc::from("r1")]).len(), 1);
}
