//! What became of objects is written into them, by one replica, whatever becomes of that.

use heddle_tests::ads::AdsClient;
use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::replica::{Account, Replica};
use heddle_xds::resource::Kind;
use serde_json::{Value, json};

use crate::source::ECHO;

const BINARY: &str = env!("CARGO_BIN_EXE_heddle-under-test");

#[test]
fn a_route_says_what_became_of_it_and_another_controllers_entry_stays() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let _replica = account.start("a");
    namespace.apply(ECHO);
    namespace.apply(&route("echo"));
    let accepted = condition(&namespace, "Accepted", "True");
    assert_eq!((&accepted["reason"], &accepted["observedGeneration"]), (&json!("Accepted"), &json!(1)));
    condition(&namespace, "ResolvedRefs", "True");

    // Another controller has something to say of it.
    let theirs = json!([{ "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
    let others =
        json!({ "parentRef": { "name": "gateway" }, "controllerName": "example.com/gateway", "conditions": theirs });
    let patch = json!([{ "op": "add", "path": "/status/parents/-", "value": others }]).to_string();
    namespace.kubectl(["patch", "httproute/main", "--subresource=status", "--type=json", &format!("--patch={patch}")]);
    namespace.apply(&route("nobody"));
    let missing = condition(&namespace, "ResolvedRefs", "False");
    assert_eq!((&missing["reason"], &missing["observedGeneration"]), (&json!("BackendNotFound"), &json!(2)));
    let entries = namespace.get("httproute/main")["status"]["parents"].as_array().unwrap().clone();
    assert!(entries.iter().any(|entry| entry["controllerName"] == "example.com/gateway"), "{entries:?}");
    assert_eq!(condition(&namespace, "Accepted", "True")["lastTransitionTime"], accepted["lastTransitionTime"]);

    // It names no parent of ours any more.
    let patch = json!({ "spec": { "parentRefs": [{ "name": "gateway" }] } }).to_string();
    namespace.kubectl(["patch", "httproute/main", "--type=merge", &format!("--patch={patch}")]);
    eventually("our entry goes", || {
        let entries = namespace.get("httproute/main")["status"]["parents"].as_array()?.clone();
        (entries.len() == 1 && entries[0]["controllerName"] == "example.com/gateway").then_some(())
    });
}

#[test]
fn a_status_that_says_it_already_is_not_written_again() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    namespace.apply(ECHO);
    namespace.apply(&route("echo"));
    condition(&namespace, "Accepted", "True");
    replica.stop();
    let version = namespace.get("httproute/main")["metadata"]["resourceVersion"].clone();

    let next = account.start("b");
    next.metric_becomes("heddle_leading", 1.0);
    // It has looked at everything once it has written something that comes after.
    namespace.apply(POLICY);
    policy_condition(&namespace, "Accepted", "True");

    assert_eq!(namespace.get("httproute/main")["metadata"]["resourceVersion"], version);
}

#[test]
fn a_killed_holder_of_the_lease_is_followed_by_another_and_one_that_ends_at_once() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let first = account.start("a");
    first.metric_becomes("heddle_leading", 1.0);
    let second = account.start("b");
    let third = account.start("c");
    assert_eq!(holder(&home), "a");
    namespace.apply(ECHO);

    first.kill();
    namespace.apply(&route("echo"));
    // Fifteen seconds of silence, and then one of the two.
    namespace.wait("httproute/main", "jsonpath={.status.parents[0].controllerName}=heddle.dev/control-plane");
    condition(&namespace, "Accepted", "True");

    let (ends, stays): (Replica<'_>, Replica<'_>) =
        if holder(&home) == "b" { (second, third) } else { (third, second) };
    let name = stays.name.clone();
    ends.stop();
    eventually("the lease was given back and taken", || (holder(&home) == name).then_some(()));
    assert_eq!(stays.metric("heddle_leading"), 1.0);
}

#[test]
fn what_clients_of_all_replicas_say_is_in_the_status() {
    let cluster = Cluster::running();
    let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let first = account.start("a");
    first.metric_becomes("heddle_leading", 1.0);
    let second = account.start("b");
    namespace.apply(ECHO);
    namespace.apply(POLICY);
    namespace.wait("pod/client", "condition=Ready");
    let (node, name) = (format!("client.{}", namespace.name), format!("{}/echo/80", namespace.name));
    let good = AdsClient::connect(account.network(), first.plain, &node, &[]);
    let bad = AdsClient::connect(account.network(), second.plain, &node, &[&name]);
    for ads in [&good, &bad] {
        ads.subscribe(Kind::Cluster, &name);
    }

    eventually("both are counted", || {
        let clients = namespace.get("trafficpolicy/echo")["status"]["clients"].clone();
        (clients["accepted"] == 1 && clients["refused"] == 1).then_some(())
    });
    let programmed = policy_condition(&namespace, "heddle.dev/Programmed", "False");
    assert!(programmed["message"].as_str().unwrap().contains("this client refuses it"), "{programmed}");

    drop(bad);
    policy_condition(&namespace, "heddle.dev/Programmed", "True");
}

/// The condition of the route's entry of ours, once it has this status.
fn condition(namespace: &Namespace<'_>, kind: &str, status: &str) -> Value {
    eventually(&format!("the route is {kind}: {status}"), || {
        let route = namespace.get("httproute/main");
        let entries = route["status"]["parents"].as_array()?;
        let ours = entries.iter().find(|entry| entry["controllerName"] == "heddle.dev/control-plane")?;
        find(&ours["conditions"], kind, status)
    })
}

fn policy_condition(namespace: &Namespace<'_>, kind: &str, status: &str) -> Value {
    eventually(&format!("the policy is {kind}: {status}"), || {
        find(&namespace.get("trafficpolicy/echo")["status"]["conditions"], kind, status)
    })
}

fn find(conditions: &Value, kind: &str, status: &str) -> Option<Value> {
    conditions.as_array()?.iter().find(|condition| condition["type"] == kind && condition["status"] == status).cloned()
}

fn holder(home: &Namespace<'_>) -> String {
    home.get("lease/heddle-control-plane")["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

fn route(backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: main }}\nspec:\n  \
         parentRefs: [{{ group: '', kind: Service, name: echo, port: 80 }}]\n  \
         rules: [{{ backendRefs: [{{ name: {backend}, port: 80 }}] }}]\n"
    )
}

const POLICY: &str = "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: echo }
spec: { targetRefs: [{ group: '', kind: Service, name: echo }], connectTimeout: 1s }
";
