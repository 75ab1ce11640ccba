//! The rules of the incremental protocol, one by one: the server's, and what of the client's the properties do not reach.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{self as pb, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;

use crate::Node;
use crate::delta::client::{self, Client, State};
use crate::delta::server::{MAX_IN_FLIGHT, Response, Server};
use crate::protocol::{
    Answer, Error, MAX_NAME_BYTES, MAX_RESPONSE_BYTES, MAX_RESPONSE_RESOURCES, MAX_SUBSCRIPTIONS, View,
};
use crate::resource::{Kind, Resource, WILDCARD};
use crate::snapshot::Set;

#[derive(Default)]
struct Source {
    contents: BTreeMap<(Kind, String), Bytes>,
    unknown: bool,
}

impl Source {
    fn of(contents: &[(Kind, &str, &'static str)]) -> Self {
        let mut source = Self::default();
        for (kind, name, content) in contents {
            source.put(*kind, name, content);
        }
        source
    }

    fn put(&mut self, kind: Kind, name: &str, content: &'static str) {
        self.contents.insert((kind, name.into()), Bytes::from_static(content.as_bytes()));
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        self.contents.remove(&(kind, name.to_owned()));
    }

    fn version(&self, kind: Kind, name: &str) -> String {
        match self.lookup(kind, name) {
            Answer::Present(resource) => resource.version.to_string(),
            other => panic!("{name} is {other:?}"),
        }
    }
}

impl View for Source {
    fn lookup(&self, kind: Kind, name: &str) -> Answer {
        match self.contents.get(&(kind, name.to_owned())) {
            Some(bytes) => Answer::Present(Resource::from_bytes(name, bytes.clone(), [])),
            None if self.unknown => Answer::Unknown,
            None => Answer::Absent,
        }
    }

    fn wildcard(&self, kind: Kind) -> Option<Arc<Set>> {
        let of_kind = self.contents.iter().filter(|((k, _), _)| *k == kind);
        let set = of_kind.map(|((_, name), bytes)| Resource::from_bytes(name.as_str(), bytes.clone(), [])).collect();
        (!self.unknown).then(|| Arc::new(set))
    }
}

fn request(kind: Kind) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: kind.type_url().into(), ..Default::default() }
}

fn subscribe(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    let resource_names_subscribe = names.iter().map(|name| name.to_string()).collect();
    DeltaDiscoveryRequest { resource_names_subscribe, ..request(kind) }
}

fn unsubscribe(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    let resource_names_unsubscribe = names.iter().map(|name| name.to_string()).collect();
    DeltaDiscoveryRequest { resource_names_unsubscribe, ..request(kind) }
}

fn ack(response: &Response) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..request(response.kind) }
}

fn nack(response: &Response, text: &str) -> DeltaDiscoveryRequest {
    let error_detail = Some(rpc::Status { code: 3, message: text.into(), details: Vec::new() });
    DeltaDiscoveryRequest { error_detail, ..ack(response) }
}

/// Names delivered, then names removed with a minus before them.
fn content(response: &Response) -> Vec<String> {
    let delivered = response.resources.iter().map(|resource| resource.name.to_string());
    delivered.chain(response.removed.iter().map(|name| format!("-{name}"))).collect()
}

/// Takes and acknowledges every response until there is none.
fn drain(server: &mut Server, source: &Source) -> Vec<(Kind, Vec<String>)> {
    let mut all = Vec::new();
    while let Some(response) = server.next_response(source) {
        server.receive(ack(&response)).unwrap();
        all.push((response.kind, content(&response)));
    }
    all
}

#[test]
fn a_subscribed_name_is_answered_once_and_again_when_it_changes() {
    let mut source = Source::of(&[(Kind::Cluster, "a", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Cluster, &["a"])).unwrap();

    assert_eq!(drain(&mut server, &source), [(Kind::Cluster, vec!["a".to_owned()])]);
    server.changed();
    assert_eq!(drain(&mut server, &source), []);
    source.put(Kind::Cluster, "a", "2");
    server.changed();
    assert_eq!(drain(&mut server, &source), [(Kind::Cluster, vec!["a".to_owned()])]);
}

#[test]
fn a_missing_name_is_reported_only_by_a_whole_source_and_pushed_when_it_is_created() {
    let mut source = Source { unknown: true, ..Source::default() };
    let mut server = Server::default();
    server.receive(subscribe(Kind::Listener, &["a"])).unwrap();

    assert_eq!(drain(&mut server, &source), []);
    source.unknown = false;
    server.changed();
    assert_eq!(drain(&mut server, &source), [(Kind::Listener, vec!["-a".to_owned()])]);
    source.put(Kind::Listener, "a", "1");
    server.changed();
    assert_eq!(drain(&mut server, &source), [(Kind::Listener, vec!["a".to_owned()])]);
}

#[test]
fn a_reconnecting_client_receives_only_differences() {
    let source = Source::of(&[(Kind::Cluster, "same", "1"), (Kind::Cluster, "changed", "2")]);
    let mut first = subscribe(Kind::Cluster, &["same", "changed", "gone"]);
    first.initial_resource_versions =
        [("same", source.version(Kind::Cluster, "same")), ("changed", "old".into()), ("gone", "old".into())]
            .map(|(name, version)| (name.to_owned(), version))
            .into();
    let mut server = Server::default();

    server.receive(first).unwrap();

    let all = drain(&mut server, &source);
    assert_eq!(all, [(Kind::Cluster, vec!["changed".to_owned()]), (Kind::Cluster, vec!["-gone".to_owned()])]);
}

#[test]
fn a_version_held_by_a_client_that_did_not_subscribe_to_it_is_of_no_interest() {
    let source = Source::of(&[(Kind::Endpoints, "a", "1"), (Kind::Endpoints, "b", "1")]);
    let mut first = subscribe(Kind::Endpoints, &["a"]);
    first.initial_resource_versions = [("b".to_owned(), "old".to_owned())].into();
    let mut server = Server::default();

    server.receive(first).unwrap();

    assert_eq!(drain(&mut server, &source), [(Kind::Endpoints, vec!["a".to_owned()])]);
}

#[test]
fn a_refused_version_is_not_sent_again_but_a_new_one_is() {
    let mut source = Source::of(&[(Kind::Route, "a", "bad"), (Kind::Route, "b", "good")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Route, &["a", "b"])).unwrap();
    let response = server.next_response(&source).unwrap();

    let verdicts = server.receive(nack(&response, "a: virtual_hosts: must not be empty")).unwrap().verdicts;

    let refusals: Vec<_> = verdicts.iter().map(|verdict| (&*verdict.name, verdict.refused.as_deref())).collect();
    assert_eq!(refusals, [("a", Some("virtual_hosts: must not be empty")), ("b", None)]);
    server.changed();
    assert_eq!(server.next_response(&source), None);
    server.receive(subscribe(Kind::Route, &["a"])).unwrap();
    assert_eq!(server.next_response(&source), None, "asked for once more");
    source.put(Kind::Route, "a", "better");
    server.changed();
    assert_eq!(drain(&mut server, &source), [(Kind::Route, vec!["a".to_owned()])]);
    source.put(Kind::Route, "a", "bad");
    server.changed();
    assert_eq!(server.next_response(&source), None, "refused two versions ago");
}

#[test]
fn a_refusal_of_an_overtaken_version_leaves_the_newer_one_alone() {
    let mut source = Source::of(&[(Kind::Route, "a", "bad")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Route, &["a"])).unwrap();
    let first = server.next_response(&source).unwrap();
    source.put(Kind::Route, "a", "good");
    server.changed();
    let second = server.next_response(&source).unwrap();

    server.receive(nack(&first, "a: x: y")).unwrap();
    server.receive(ack(&second)).unwrap();

    server.changed();
    assert_eq!(server.next_response(&source), None);
}

#[test]
fn a_foreign_refusal_that_names_nothing_refuses_the_whole_response() {
    let source = Source::of(&[(Kind::Route, "a", "1"), (Kind::Route, "b", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Route, &["a", "b"])).unwrap();
    let response = server.next_response(&source).unwrap();

    let verdicts = server.receive(nack(&response, "something is wrong")).unwrap().verdicts;

    assert!(verdicts.iter().all(|verdict| verdict.refused.as_deref() == Some("something is wrong")));
    assert_eq!(verdicts.len(), 2);
}

#[test]
fn an_answer_to_an_unknown_response_says_nothing_but_its_subscriptions_count() {
    let source = Source::of(&[(Kind::Route, "a", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Route, &["b"])).unwrap();

    let mut request = subscribe(Kind::Route, &["a"]);
    request.response_nonce = "of another stream".into();
    let received = server.receive(request).unwrap();

    assert_eq!(received.verdicts, []);
    assert_eq!(received.subscribed, [(Kind::Route, Arc::from("a"))]);
    assert_eq!(drain(&mut server, &source), [(Kind::Route, vec!["a".to_owned(), "-b".to_owned()])]);
}

#[test]
fn subscribing_again_sends_again() {
    let source = Source::of(&[(Kind::Endpoints, "a", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Endpoints, &["a"])).unwrap();
    drain(&mut server, &source);

    let received = server.receive(subscribe(Kind::Endpoints, &["a"])).unwrap();

    assert_eq!(received.subscribed, [], "authorized already");
    assert_eq!(drain(&mut server, &source), [(Kind::Endpoints, vec!["a".to_owned()])]);
}

#[test]
fn an_unsubscribed_name_is_not_sent_any_more() {
    let mut source = Source::of(&[(Kind::Endpoints, "a", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Endpoints, &["a"])).unwrap();
    drain(&mut server, &source);

    server.receive(unsubscribe(Kind::Endpoints, &["a"])).unwrap();
    source.put(Kind::Endpoints, "a", "2");
    server.changed();

    assert_eq!(server.next_response(&source), None);
}

#[test]
fn a_first_request_without_names_is_a_wildcard_for_clusters_and_listeners_only() {
    let source = Source::of(&Kind::DELIVERY.map(|kind| (kind, "a", "1")));
    for kind in Kind::DELIVERY {
        let mut server = Server::default();
        let received = server.receive(request(kind)).unwrap();
        let expected = if kind.is_root() { vec![(kind, Arc::from(WILDCARD))] } else { vec![] };
        assert_eq!(received.subscribed, expected);
        assert_eq!(server.next_response(&source).is_some(), kind.is_root());
    }
}

#[test]
fn a_wildcard_is_answered_even_with_nothing() {
    let mut server = Server::default();
    server.receive(request(Kind::Cluster)).unwrap();

    assert_eq!(drain(&mut server, &Source::default()), [(Kind::Cluster, vec![])]);
    server.changed();
    assert_eq!(server.next_response(&Source::default()), None);
}

#[test]
fn a_wildcard_waits_until_the_source_is_whole() {
    let mut source = Source::of(&[(Kind::Cluster, "a", "1")]);
    source.unknown = true;
    let mut server = Server::default();
    server.receive(request(Kind::Cluster)).unwrap();

    assert_eq!(server.next_response(&source), None);
    source.unknown = false;
    server.changed();
    assert_eq!(drain(&mut server, &source), [(Kind::Cluster, vec!["a".to_owned()])]);
}

#[test]
fn a_wildcard_follows_what_comes_and_goes() {
    let mut source = Source::of(&[(Kind::Cluster, "a", "1")]);
    let mut server = Server::default();
    server.receive(request(Kind::Cluster)).unwrap();
    drain(&mut server, &source);

    source.put(Kind::Cluster, "b", "1");
    source.remove(Kind::Cluster, "a");
    server.changed();

    let all = drain(&mut server, &source);
    assert_eq!(all, [(Kind::Cluster, vec!["b".to_owned()]), (Kind::Cluster, vec!["-a".to_owned()])]);
}

#[test]
fn a_name_given_up_beside_a_wildcard_is_answered_by_the_wildcard() {
    let source = Source::of(&[(Kind::Cluster, "a", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Cluster, &[WILDCARD, "a", "missing"])).unwrap();
    drain(&mut server, &source);

    server.receive(unsubscribe(Kind::Cluster, &["a", "missing"])).unwrap();

    assert_eq!(drain(&mut server, &source), [(Kind::Cluster, vec!["a".to_owned(), "-missing".to_owned()])]);
}

#[test]
fn a_name_given_up_for_a_wildcard_is_still_known_to_be_held() {
    let mut source = Source::of(&[(Kind::Cluster, "a", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Cluster, &["a"])).unwrap();
    drain(&mut server, &source);

    let change =
        DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["a".into()], ..subscribe(Kind::Cluster, &[WILDCARD]) };
    server.receive(change).unwrap();
    source.remove(Kind::Cluster, "a");
    server.changed();

    assert_eq!(drain(&mut server, &source), [(Kind::Cluster, vec!["-a".to_owned()])]);
}

#[test]
fn a_resource_that_a_wildcard_overtook_on_its_way_is_known_to_be_held() {
    let mut source = Source::of(&[(Kind::Cluster, "a", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Cluster, &["a"])).unwrap();
    let under_way = server.next_response(&source).unwrap();
    source.remove(Kind::Cluster, "a");
    server.changed();

    server.receive(unsubscribe(Kind::Cluster, &["a"])).unwrap();
    server.receive(subscribe(Kind::Cluster, &[WILDCARD])).unwrap();
    server.receive(ack(&under_way)).unwrap();

    assert_eq!(drain(&mut server, &source), [(Kind::Cluster, vec![]), (Kind::Cluster, vec!["-a".to_owned()])]);
}

#[test]
fn what_comes_back_under_a_wildcard_while_its_absence_is_unanswered_is_sent() {
    let mut source = Source::default();
    let mut server = Server::default();
    server.receive(subscribe(Kind::Cluster, &[WILDCARD, "a"])).unwrap();
    let mut sent = vec![server.next_response(&source).unwrap()];
    server.receive(unsubscribe(Kind::Cluster, &["a"])).unwrap();
    sent.extend(server.next_response(&source));
    for name in ["b", "c"] {
        source.put(Kind::Cluster, name, "1");
        server.changed();
        sent.extend(server.next_response(&source));
    }
    assert_eq!(sent.len(), MAX_IN_FLIGHT);
    source.put(Kind::Cluster, "a", "1");
    server.changed();
    assert_eq!(server.next_response(&source), None);

    server.receive(ack(&sent[0])).unwrap();

    assert_eq!(drain(&mut server, &source), [(Kind::Cluster, vec!["a".to_owned()])]);
}

#[test]
fn what_arrives_for_a_wildcard_the_server_was_told_is_over_is_not_applied() {
    let mut client = Client::new(Node::default());
    client.subscribe(Kind::Cluster, WILDCARD);
    client.next_request().unwrap();
    client.unsubscribe(Kind::Cluster, WILDCARD);
    client.next_request().unwrap();
    client.subscribe(Kind::Cluster, WILDCARD);
    let resource = pb::Resource { name: "a".into(), ..Default::default() };
    let late = DeltaDiscoveryResponse {
        type_url: Kind::Cluster.type_url().into(),
        resources: vec![resource],
        nonce: "1".into(),
        ..Default::default()
    };

    client.receive(late, |update| panic!("{update:?}")).unwrap();

    assert_eq!(client.next_request().unwrap().response_nonce, "1");
    assert_eq!(client.next_request().unwrap().resource_names_subscribe, [WILDCARD]);
}

#[test]
fn a_resource_of_another_type_is_refused_and_named() {
    let mut client = Client::new(Node::default());
    client.subscribe(Kind::Cluster, "a");
    client.next_request().unwrap();
    let any = Any { type_url: Kind::Route.type_url().into(), value: Vec::new() };
    let response = DeltaDiscoveryResponse {
        type_url: Kind::Cluster.type_url().into(),
        resources: vec![pb::Resource { name: "a".into(), resource: Some(any), ..Default::default() }],
        ..Default::default()
    };

    client.receive(response, |update| panic!("{update:?}")).unwrap();

    let text = client.next_request().unwrap().error_detail.unwrap().message;
    assert!(text.starts_with("a: resource.type_url: is "), "{text}");
    assert_eq!(client.state(Kind::Cluster, "a"), Some(State::Requested));
}

#[test]
fn a_response_of_a_type_that_was_not_asked_for_is_an_error() {
    let mut client = Client::new(Node::default());
    let type_url = Kind::Cluster.type_url().to_owned();
    let response = DeltaDiscoveryResponse { type_url: type_url.clone(), ..Default::default() };

    assert_eq!(client.receive(response, |_| Vec::new()), Err(client::Error::NotAsked { type_url }));
}

#[test]
fn endpoints_are_answered_while_clusters_wait_for_their_acknowledgement() {
    let source = Source::of(&[(Kind::Cluster, "c", "1"), (Kind::Endpoints, "c", "1")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Cluster, &["c"])).unwrap();
    assert_eq!(server.next_response(&source).unwrap().kind, Kind::Cluster);

    server.receive(subscribe(Kind::Endpoints, &["c"])).unwrap();

    assert_eq!(server.next_response(&source).unwrap().kind, Kind::Endpoints);
}

#[test]
fn new_things_of_every_type_come_before_removals() {
    let mut source = Source::of(&[(Kind::Cluster, "old", "1"), (Kind::Listener, "l", "to old")]);
    let mut server = Server::default();
    server.receive(subscribe(Kind::Cluster, &["old", "new"])).unwrap();
    server.receive(subscribe(Kind::Listener, &["l"])).unwrap();
    drain(&mut server, &source);

    source.remove(Kind::Cluster, "old");
    source.put(Kind::Cluster, "new", "1");
    source.put(Kind::Listener, "l", "to new");
    server.changed();

    assert_eq!(
        drain(&mut server, &source),
        [
            (Kind::Cluster, vec!["new".to_owned()]),
            (Kind::Listener, vec!["l".to_owned()]),
            (Kind::Cluster, vec!["-old".to_owned()]),
        ]
    );
}

#[test]
fn a_client_that_does_not_answer_is_owed_a_few_responses_and_then_the_newest_state() {
    let contents = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let mut source = Source::default();
    let mut server = Server::default();
    server.receive(subscribe(Kind::Endpoints, &["a"])).unwrap();
    let mut sent = Vec::new();
    for content in contents {
        source.put(Kind::Endpoints, "a", content);
        server.changed();
        sent.extend(server.next_response(&source));
    }

    assert_eq!(sent.len(), MAX_IN_FLIGHT);
    server.receive(ack(&sent[0])).unwrap();
    assert_eq!(server.next_response(&source).unwrap().resources[0].bytes, "9");
}

#[test]
fn nonces_differ_over_all_types_of_a_stream() {
    let source = Source::of(&Kind::DELIVERY.map(|kind| (kind, "a", "1")));
    let mut server = Server::default();
    for kind in Kind::DELIVERY {
        server.receive(subscribe(kind, &["a"])).unwrap();
    }

    let nonces: std::collections::BTreeSet<String> =
        std::iter::from_fn(|| server.next_response(&source)).map(|response| response.nonce).collect();

    assert_eq!(nonces.len(), 4);
}

#[test]
fn large_answers_are_spread_over_responses() {
    let names: Vec<String> = (0..=MAX_RESPONSE_RESOURCES).map(|number| format!("{number:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut source = Source::default();
    let mut server = Server::default();
    server.receive(subscribe(Kind::Endpoints, &names)).unwrap();
    assert_eq!(drain(&mut server, &source).iter().map(|(_, names)| names.len()).collect::<Vec<_>>(), [1024, 1]);

    let large = Bytes::from(vec![0; MAX_RESPONSE_BYTES / 2]);
    for name in &names[..3] {
        source.contents.insert((Kind::Endpoints, name.to_string()), large.clone());
    }
    server.changed();
    assert_eq!(drain(&mut server, &source).iter().map(|(_, names)| names.len()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn too_many_or_too_long_names_are_errors() {
    let names: Vec<String> = (0..=MAX_SUBSCRIPTIONS).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut server = Server::default();

    server.receive(subscribe(Kind::Route, &names[1..])).unwrap();

    let asked = MAX_SUBSCRIPTIONS + 1;
    assert_eq!(
        server.receive(subscribe(Kind::Route, &names[..1])),
        Err(Error::TooManySubscriptions { kind: Kind::Route, asked })
    );
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    assert_eq!(
        server.receive(subscribe(Kind::Cluster, &[&long])),
        Err(Error::NameTooLong { kind: Kind::Cluster, bytes: long.len() })
    );
}

#[test]
fn a_type_that_is_not_served_is_passed_over() {
    let mut server = Server::default();

    let received = server.receive(DeltaDiscoveryRequest {
        type_url: crate::resource::SECRET_TYPE_URL.into(),
        resource_names_subscribe: vec!["ROOTCA".into()],
        ..Default::default()
    });

    assert_eq!(received, Ok(Default::default()));
    assert_eq!(server.next_response(&Source::default()), None);
}
