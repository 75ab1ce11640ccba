//! The server and a client that keeps to the protocol, over a wire: whatever happens, they end with the same set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use envoy_types::pb::google::rpc;
use proptest::prelude::*;

use crate::nack::{self, Reject};
use crate::protocol::{Answer, View};
use crate::resource::{Kind, Resource};
use crate::snapshot::Set;
use crate::sotw::server::{Response, Server};

#[derive(Clone, Debug)]
enum Step {
    Put(Kind, u8, u8),
    Delete(Kind, u8),
    Whole(bool),
    Ask(Kind, BTreeSet<u8>),
    ServerReceives,
    ServerSends,
    ClientReceives,
    Break,
}

/// Names 0 to 4 of two kinds, contents 0 to 9. A client refuses the contents 0, 1 and 2.
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

#[derive(Default)]
struct Client {
    /// What is asked for; none: nothing was asked for yet. Without names: everything, for a root kind.
    names: BTreeMap<Kind, BTreeSet<String>>,
    applied: BTreeMap<(Kind, String), u8>,
    /// Given up on this stream. Asking for them again is left out: between a request that is ignored as stale and the next
    /// one a server cannot see that a name was gone.
    given_up: BTreeSet<(Kind, String)>,
    nonces: BTreeMap<Kind, String>,
    versions: BTreeMap<Kind, String>,
}

impl Client {
    fn request(&self, kind: Kind) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names: self.names[&kind].iter().cloned().collect(),
            response_nonce: self.nonces.get(&kind).cloned().unwrap_or_default(),
            version_info: self.versions.get(&kind).cloned().unwrap_or_default(),
            ..Default::default()
        }
    }

    fn wants(&self, kind: Kind, name: &str) -> bool {
        self.names.get(&kind).is_some_and(|names| names.contains(name) || names.is_empty() && kind.is_root())
    }

    fn receive(&mut self, response: &Response) -> DiscoveryRequest {
        let kind = response.kind;
        let delivered: BTreeSet<&str> = response.resources.iter().map(|resource| &*resource.name).collect();
        if kind.is_root() {
            self.applied.retain(|(k, name), _| *k != kind || delivered.contains(name.as_str()));
        }
        let mut rejects = Vec::new();
        for resource in &response.resources {
            if !self.wants(kind, &resource.name) {
                continue;
            }
            if is_refused(resource.bytes[0]) {
                let (field, reason) = ("content".into(), "is not wanted".into());
                rejects.push(Reject { name: resource.name.clone(), field, reason });
            } else {
                self.applied.insert((kind, resource.name.to_string()), resource.bytes[0]);
            }
        }
        self.nonces.insert(kind, response.nonce.clone());
        if rejects.is_empty() {
            self.versions.insert(kind, response.version.to_string());
            return self.request(kind);
        }
        let error_detail = Some(rpc::Status { code: 3, message: nack::text(&rejects), details: Vec::new() });
        DiscoveryRequest { error_detail, ..self.request(kind) }
    }
}

struct World {
    source: Source,
    server: Server,
    client: Client,
    to_server: VecDeque<DiscoveryRequest>,
    to_client: VecDeque<Response>,
}

impl World {
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
            Step::Ask(kind, names) => self.ask(*kind, names.iter().copied().map(name_of).collect()),
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
                self.client.nonces.clear();
                self.client.given_up.clear();
                self.to_server.extend(self.client.names.keys().map(|kind| self.client.request(*kind)));
            }
        }
    }

    /// A wildcard stays one, as Envoy's does; a list of names never becomes empty.
    fn ask(&mut self, kind: Kind, mut names: BTreeSet<String>) {
        let client = &mut self.client;
        names.retain(|name| !client.given_up.contains(&(kind, name.clone())));
        let known = client.names.get(&kind);
        if known.is_some_and(|known| known.is_empty() || names.is_empty()) || names.is_empty() && !kind.is_root() {
            return;
        }
        let before = client.names.insert(kind, names).unwrap_or_default();
        client.given_up.extend(before.difference(&client.names[&kind]).map(|name| (kind, name.clone())));
        client.applied.retain(|key, _| !client.given_up.contains(key));
        self.to_server.push_back(client.request(kind));
    }

    fn server_receives(&mut self) -> bool {
        let Some(request) = self.to_server.pop_front() else { return false };
        self.server.receive(request).unwrap();
        true
    }

    fn server_sends(&mut self) -> bool {
        let Some(response) = self.server.next_response(&self.source) else { return false };
        self.to_client.push_back(response);
        true
    }

    fn client_receives(&mut self) -> bool {
        let Some(response) = self.to_client.pop_front() else { return false };
        let request = self.client.receive(&response);
        self.to_server.push_back(request);
        true
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if ![self.server_receives(), self.server_sends(), self.client_receives()].contains(&true) {
                return;
            }
        }
        panic!("client and server never come to rest");
    }

    fn check(&self) {
        for kind in KINDS {
            for name in (0..NAMES).map(name_of) {
                let applied = self.client.applied.get(&(kind, name.clone()));
                let there = self.source.contents.get(&(kind, name.clone()));
                match there {
                    _ if !self.client.wants(kind, &name) => assert_eq!(applied, None, "{kind} {name} is not asked for"),
                    Some(content) if is_refused(*content) => {}
                    // There is no word for "does not exist" in this protocol's RDS and EDS.
                    None if !kind.is_root() => {}
                    _ => assert_eq!(applied, there, "{kind} {name}"),
                }
            }
        }
    }
}

fn is_refused(content: u8) -> bool {
    content < 3
}

fn resource(name: &str, content: u8) -> Resource {
    Resource::from_bytes(name, Bytes::copy_from_slice(&[content]), [])
}

fn name_of(number: u8) -> String {
    format!("r{number}")
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop::sample::select(&KINDS[..]);
    prop_oneof![
        4 => (kind(), 0..NAMES, 0..10u8).prop_map(|(kind, name, content)| Step::Put(kind, name, content)),
        2 => (kind(), 0..NAMES).prop_map(|(kind, name)| Step::Delete(kind, name)),
        1 => any::<bool>().prop_map(Step::Whole),
        3 => (kind(), prop::collection::btree_set(0..NAMES, 0..4)).prop_map(|(kind, names)| Step::Ask(kind, names)),
        5 => Just(Step::ServerReceives),
        5 => Just(Step::ServerSends),
        5 => Just(Step::ClientReceives),
        1 => Just(Step::Break),
    ]
}

const KINDS: [Kind; 2] = [Kind::Cluster, Kind::Endpoints];
const NAMES: u8 = 5;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn client_and_server_end_with_the_same_set(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World {
            source: Source { contents: BTreeMap::new(), whole: true },
            server: Server::default(),
            client: Client::default(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
        };
        for step in &steps {
            world.take(step);
        }
        world.take(&Step::Whole(true));
        world.settle();
        world.check();

        // A bad version in place of a good one, then another replica and a change beside it: the good one stays.
        let before = world.client.applied.clone();
        for number in 0..NAMES {
            world.take(&Step::Put(Kind::Cluster, number, 0));
        }
        world.settle();
        world.take(&Step::Break);
        world.settle();
        world.take(&Step::Put(Kind::Cluster, 0, 9));
        world.settle();
        world.check();
        let kept = |((kind, name), _): &(&(Kind, String), &u8)| kind.is_root() && name != "r0";
        for ((kind, name), content) in before.iter().filter(kept) {
            prop_assert_eq!(world.client.applied.get(&(*kind, name.clone())), Some(content), "{} {}", kind, name);
        }
    }
}
