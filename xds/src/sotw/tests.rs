//! The rules of the state-of-the-world server, one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use envoy_types::pb::google::rpc;

use crate::protocol::{Answer, Error, MAX_SUBSCRIPTIONS, View};
use crate::resource::{Kind, Resource, WILDCARD};
use crate::snapshot::Set;
use crate::sotw::server::{Response, Server};

#[derive(Default)]
struct Source {
    contents: BTreeMap<(Kind, String), &'static str>,
    unknown: bool,
}

impl Source {
    fn of(contents: &[(Kind, &str, &'static str)]) -> Self {
        let contents = contents.iter().map(|(kind, name, content)| ((*kind, name.to_string()), *content)).collect();
        Self { contents, unknown: false }
    }

    fn put(&mut self, kind: Kind, name: &str, content: &'static str) {
        self.contents.insert((kind, name.to_owned()), content);
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        self.contents.remove(&(kind, name.to_owned()));
    }
}

impl View for Source {
    fn lookup(&self, kind: Kind, name: &str) -> Answer {
        match self.contents.get(&(kind, name.to_owned())) {
            Some(content) => Answer::Present(resource(name, content)),
            None if self.unknown => Answer::Unknown,
            None => Answer::Absent,
        }
    }

    fn wildcard(&self, kind: Kind) -> Option<Arc<Set>> {
        let of_kind = self.contents.iter().filter(|((k, _), _)| *k == kind);
        (!self.unknown).then(|| Arc::new(of_kind.map(|((_, name), content)| resource(name, content)).collect()))
    }
}

fn resource(name: &str, content: &'static str) -> Resource {
    Resource::from_bytes(name, Bytes::from_static(content.as_bytes()), [])
}

/// A client that keeps to the protocol: every request names everything and the last nonce of the type.
#[derive(Default)]
struct Client {
    server: Server,
    names: BTreeMap<Kind, Vec<String>>,
    nonces: BTreeMap<Kind, String>,
}

impl Client {
    fn request(&self, kind: Kind) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names: self.names.get(&kind).cloned().unwrap_or_default(),
            response_nonce: self.nonces.get(&kind).cloned().unwrap_or_default(),
            ..Default::default()
        }
    }

    fn ask(&mut self, kind: Kind, names: &[&str]) -> Vec<String> {
        self.names.insert(kind, names.iter().map(|name| name.to_string()).collect());
        let received = self.server.receive(self.request(kind)).unwrap();
        received.subscribed.into_iter().map(|(_, name)| name.to_string()).collect()
    }

    fn ack(&mut self, response: &Response) -> usize {
        self.nonces.insert(response.kind, response.nonce.clone());
        self.server.receive(self.request(response.kind)).unwrap().verdicts.len()
    }

    /// Names refused.
    fn nack(&mut self, response: &Response, text: &str) -> Vec<String> {
        self.nonces.insert(response.kind, response.nonce.clone());
        let error_detail = Some(rpc::Status { code: 3, message: text.into(), details: Vec::new() });
        let request = DiscoveryRequest { error_detail, ..self.request(response.kind) };
        let verdicts = self.server.receive(request).unwrap().verdicts;
        verdicts.into_iter().filter(|v| v.refused.is_some()).map(|v| v.name.to_string()).collect()
    }

    /// Takes and acknowledges every response until there is none.
    fn drain(&mut self, source: &Source) -> Vec<(Kind, Vec<(String, String)>)> {
        let mut all = Vec::new();
        while let Some(response) = self.server.next_response(source) {
            self.ack(&response);
            all.push((response.kind, content(&response)));
        }
        all
    }
}

fn content(response: &Response) -> Vec<(String, String)> {
    let text = |resource: &Resource| String::from_utf8(resource.bytes.to_vec()).unwrap();
    response.resources.iter().map(|resource| (resource.name.to_string(), text(resource))).collect()
}

fn list(content: &[(&str, &str)]) -> Vec<(String, String)> {
    content.iter().map(|(name, content)| (name.to_string(), content.to_string())).collect()
}

#[test]
fn a_first_request_without_names_asks_for_all_clusters_and_listeners_but_for_no_routes() {
    let source = Source::of(&Kind::DELIVERY.map(|kind| (kind, "a", "1")));
    for kind in Kind::DELIVERY {
        let mut client = Client::default();
        let expected: &[&str] = if kind.is_root() { &[WILDCARD] } else { &[] };
        assert_eq!(client.ask(kind, &[]), expected);
        assert_eq!(client.drain(&source).len(), expected.len());
    }
}

#[test]
fn no_names_after_names_ask_for_nothing() {
    let mut source = Source::of(&[(Kind::Listener, "a", "1"), (Kind::Listener, "b", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Listener, &["a"]);
    client.drain(&source);

    assert_eq!(client.ask(Kind::Listener, &[]), [""; 0]);
    source.put(Kind::Listener, "a", "2");
    client.server.changed();

    assert_eq!(client.drain(&source), []);
}

#[test]
fn a_wildcard_outlives_its_acknowledgements() {
    let mut source = Source::of(&[(Kind::Cluster, "a", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Cluster, &[]);
    client.drain(&source);

    source.put(Kind::Cluster, "b", "1");
    client.server.changed();

    assert_eq!(client.drain(&source), [(Kind::Cluster, list(&[("a", "1"), ("b", "1")]))]);
}

#[test]
fn a_listener_that_does_not_exist_is_answered_by_a_response_without_it() {
    let mut source = Source::of(&[(Kind::Listener, "a", "1")]);
    let mut client = Client::default();

    client.ask(Kind::Listener, &["a", "missing"]);
    assert_eq!(client.drain(&source), [(Kind::Listener, list(&[("a", "1")]))]);

    client.ask(Kind::Listener, &["a", "missing", "missing too"]);
    assert_eq!(client.drain(&source), [(Kind::Listener, list(&[("a", "1")]))]);

    source.put(Kind::Listener, "missing", "1");
    client.server.changed();
    assert_eq!(client.drain(&source), [(Kind::Listener, list(&[("a", "1"), ("missing", "1")]))]);
}

#[test]
fn nothing_is_said_about_listeners_before_the_source_is_whole() {
    let mut source = Source::of(&[(Kind::Listener, "a", "1")]);
    source.unknown = true;
    let mut client = Client::default();
    client.ask(Kind::Listener, &["a", "b"]);

    assert_eq!(client.drain(&source), []);
    source.unknown = false;
    client.server.changed();
    assert_eq!(client.drain(&source), [(Kind::Listener, list(&[("a", "1")]))]);
}

#[test]
fn endpoints_carry_only_what_changed() {
    let mut source = Source::of(&[(Kind::Endpoints, "a", "1"), (Kind::Endpoints, "b", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Endpoints, &["a", "b", "missing"]);
    assert_eq!(client.drain(&source), [(Kind::Endpoints, list(&[("a", "1"), ("b", "1")]))]);

    source.put(Kind::Endpoints, "b", "2");
    client.server.changed();

    assert_eq!(client.drain(&source), [(Kind::Endpoints, list(&[("b", "2")]))]);
}

#[test]
fn endpoints_that_come_back_as_they_were_are_sent() {
    let mut source = Source::of(&[(Kind::Endpoints, "a", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Endpoints, &["a"]);
    client.drain(&source);
    source.remove(Kind::Endpoints, "a");
    client.server.changed();
    assert_eq!(client.drain(&source), []);

    source.put(Kind::Endpoints, "a", "1");
    client.server.changed();

    assert_eq!(client.drain(&source), [(Kind::Endpoints, list(&[("a", "1")]))]);
}

#[test]
fn endpoints_asked_for_again_are_sent_again() {
    let source = Source::of(&[(Kind::Endpoints, "a", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Endpoints, &["a"]);
    client.drain(&source);

    client.ask(Kind::Endpoints, &["a"]);
    assert_eq!(client.drain(&source), [(Kind::Endpoints, list(&[("a", "1")]))], "the same list");

    client.ask(Kind::Endpoints, &["b"]);
    client.ask(Kind::Endpoints, &["a", "b"]);
    assert_eq!(client.drain(&source), [(Kind::Endpoints, list(&[("a", "1")]))], "given up in between");
}

#[test]
fn what_is_gone_stays_until_everything_new_has_been_sent() {
    let mut source = Source::of(&[(Kind::Cluster, "old", "1"), (Kind::Listener, "l", "to old")]);
    let mut client = Client::default();
    client.ask(Kind::Cluster, &[]);
    client.ask(Kind::Listener, &[]);
    client.drain(&source);

    source.remove(Kind::Cluster, "old");
    source.put(Kind::Cluster, "new", "1");
    source.put(Kind::Listener, "l", "to new");
    client.server.changed();

    assert_eq!(
        client.drain(&source),
        [
            (Kind::Cluster, list(&[("new", "1"), ("old", "1")])),
            (Kind::Listener, list(&[("l", "to new")])),
            (Kind::Cluster, list(&[("new", "1")])),
        ]
    );
}

#[test]
fn a_request_with_a_stale_nonce_is_ignored() {
    let mut source = Source::of(&[(Kind::Endpoints, "a", "1"), (Kind::Endpoints, "b", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Endpoints, &["a"]);
    let first = client.server.next_response(&source).unwrap();
    client.ack(&first);
    source.put(Kind::Endpoints, "a", "2");
    client.server.changed();
    let second = client.server.next_response(&source).unwrap();

    assert_eq!(client.ask(Kind::Endpoints, &["a", "b"]), [""; 0], "sent before the second response came");
    assert_eq!(client.server.next_response(&source), None);
    assert_eq!(client.ack(&second), 1);
    assert_eq!(client.drain(&source), [(Kind::Endpoints, list(&[("b", "1")]))]);
}

#[test]
fn the_nonce_of_an_earlier_stream_does_not_make_the_first_request_stale() {
    let source = Source::of(&[(Kind::Endpoints, "a", "1")]);
    let mut client = Client::default();
    client.nonces.insert(Kind::Endpoints, "of an earlier stream".into());

    client.ask(Kind::Endpoints, &["a"]);

    assert_eq!(client.drain(&source).len(), 1);
}

#[test]
fn one_response_of_a_type_is_unanswered_and_the_next_is_the_newest() {
    let mut source = Source::of(&[(Kind::Endpoints, "a", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Endpoints, &["a"]);
    let first = client.server.next_response(&source).unwrap();
    for content in ["2", "3", "4"] {
        source.put(Kind::Endpoints, "a", content);
        client.server.changed();
        assert_eq!(client.server.next_response(&source), None);
    }

    client.ack(&first);

    assert_eq!(client.drain(&source), [(Kind::Endpoints, list(&[("a", "4")]))]);
}

#[test]
fn endpoints_are_answered_while_clusters_wait_for_their_acknowledgement() {
    let source = Source::of(&[(Kind::Cluster, "c", "1"), (Kind::Endpoints, "c", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Cluster, &[]);
    assert_eq!(client.server.next_response(&source).unwrap().kind, Kind::Cluster);

    client.ask(Kind::Endpoints, &["c"]);

    assert_eq!(client.server.next_response(&source).unwrap().kind, Kind::Endpoints);
}

#[test]
fn a_refused_cluster_is_carried_at_its_last_accepted_version() {
    let mut source = Source::of(&[(Kind::Cluster, "a", "good"), (Kind::Cluster, "b", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Cluster, &[]);
    client.drain(&source);
    source.put(Kind::Cluster, "a", "bad");
    client.server.changed();
    let response = client.server.next_response(&source).unwrap();

    assert_eq!(client.nack(&response, "Error adding/updating cluster(s) a: no"), ["a"]);

    assert_eq!(client.server.next_response(&source), None);
    source.put(Kind::Cluster, "b", "2");
    client.server.changed();
    assert_eq!(client.drain(&source), [(Kind::Cluster, list(&[("a", "good"), ("b", "2")]))]);
    source.put(Kind::Cluster, "a", "better");
    client.server.changed();
    assert_eq!(client.drain(&source), [(Kind::Cluster, list(&[("a", "better"), ("b", "2")]))]);
}

#[test]
fn a_cluster_refused_at_its_first_version_is_carried_along_so_that_it_is_not_deleted() {
    let mut source = Source::of(&[(Kind::Cluster, "a", "bad")]);
    let mut client = Client::default();
    client.ask(Kind::Cluster, &[]);
    let response = client.server.next_response(&source).unwrap();
    client.nack(&response, "a: name: is bad");
    client.server.changed();
    assert_eq!(client.server.next_response(&source), None, "not of its own accord");

    source.put(Kind::Cluster, "b", "1");
    client.server.changed();

    let response = client.server.next_response(&source).unwrap();
    assert_eq!(content(&response), list(&[("a", "bad"), ("b", "1")]));
}

#[test]
fn a_refused_route_is_not_sent_again_but_its_next_version_is() {
    let mut source = Source::of(&[(Kind::Route, "a", "bad"), (Kind::Route, "b", "1")]);
    let mut client = Client::default();
    client.ask(Kind::Route, &["a", "b"]);
    let response = client.server.next_response(&source).unwrap();

    assert_eq!(client.nack(&response, "nothing said"), ["a", "b"]);

    client.ask(Kind::Route, &["a", "b"]);
    client.server.changed();
    assert_eq!(client.server.next_response(&source), None);
    source.put(Kind::Route, "a", "better");
    client.server.changed();
    assert_eq!(client.drain(&source), [(Kind::Route, list(&[("a", "better")]))]);
}

#[test]
fn equal_states_have_equal_versions_on_every_stream() {
    let source = Source::of(&[(Kind::Cluster, "a", "1"), (Kind::Cluster, "b", "1")]);
    let version = |names: &[&str]| {
        let mut client = Client::default();
        client.ask(Kind::Cluster, names);
        client.server.next_response(&source).unwrap().version
    };

    assert_eq!(version(&[]), version(&["b", "a"]));
    assert_ne!(version(&[]), version(&["a"]));
}

#[test]
fn too_many_names_are_an_error() {
    let mut server = Server::default();
    let asked = MAX_SUBSCRIPTIONS + 1;
    let resource_names = (0..asked).map(|number| number.to_string()).collect();

    let result = server.receive(DiscoveryRequest {
        type_url: Kind::Route.type_url().into(),
        resource_names,
        ..Default::default()
    });

    assert_eq!(result, Err(Error::TooManySubscriptions { kind: Kind::Route, asked }));
}
