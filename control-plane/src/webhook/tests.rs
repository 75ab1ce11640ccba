//! The webhooks as the API server calls them, without TLS; the cluster's part is played by [`Played`].

use std::sync::Mutex;

use axum::body::Body;
use serde_json::json;
use tonic::codegen::Service;

use super::*;

/// The namespaces `shop` and `new` have the label, any other one has not; `new` was labelled a moment ago; `broken` is not to
/// be had.
#[derive(Default)]
struct Played {
    asked: Mutex<usize>,
    roots: Mutex<Vec<String>>,
    told: Mutex<Vec<Notice>>,
}

impl Cluster for Played {
    fn known_namespace(&self, name: &str) -> Option<Namespace> {
        let inject = (name == "shop").then(|| "enabled".to_owned());
        (name != "broken").then(|| Namespace { name: name.to_owned(), inject })
    }

    fn namespace<'c>(&'c self, name: &'c str) -> BoxFuture<'c, Result<Namespace, String>> {
        *self.asked.lock().unwrap() += 1;
        let inject = (name == "shop" || name == "new").then(|| "enabled".to_owned());
        let namespace = Namespace { name: name.to_owned(), inject };
        Box::pin(std::future::ready(if name == "broken" { Err("is away".to_owned()) } else { Ok(namespace) }))
    }

    fn ensure_roots<'c>(&'c self, namespace: &'c str) -> BoxFuture<'c, Result<(), String>> {
        self.roots.lock().unwrap().push(namespace.to_owned());
        Box::pin(async { Ok(()) })
    }

    fn tell(&self, notice: Notice) {
        self.told.lock().unwrap().push(notice);
    }
}

struct World {
    played: Arc<Played>,
    metrics: Metrics,
    router: axum::Router,
}

impl World {
    fn new() -> Self {
        let (played, metrics) = (Arc::new(Played::default()), Metrics::new().unwrap());
        let cluster: Arc<dyn Cluster> = played.clone();
        let (_, settings) = watch::channel(Arc::new(Settings::default()));
        let webhooks = Webhooks { settings: Some(settings), cluster, metrics: metrics.clone() };
        Self { played, metrics, router: serve::test_router(webhooks) }
    }

    async fn post(&mut self, path: &str, body: String) -> (u16, Value) {
        let request = http::Request::post(path).body(Body::from(body)).unwrap();
        let response = self.router.call(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into()))
    }

    async fn ask(&mut self, path: &str, request: Value) -> Value {
        let (status, mut review) = self.post(path, json!({ "request": request }).to_string()).await;
        assert_eq!(status, 200, "{review}");
        review["response"].take()
    }

    fn counted(&self, labels: &str) -> bool {
        let text = String::from_utf8(self.metrics.text().unwrap()).unwrap();
        text.lines().any(|line| line == format!("heddle_admission_seconds_count{{{labels}}} 1"))
    }
}

fn creation(namespace: &str, pod: Value) -> Value {
    json!({
        "uid": "1", "kind": { "group": "", "version": "v1", "kind": "Pod" }, "operation": "CREATE",
        "namespace": namespace, "object": pod, "oldObject": null, "dryRun": false, "options": { "kind": "CreateOptions" },
    })
}

fn pod(spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {
            "generateName": "agent-",
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "u", "controller": true }],
        },
    })
}

fn containers() -> Value {
    json!({ "containers": [{ "name": "a", "image": "a" }] })
}

#[tokio::test]
async fn a_pod_is_injected_after_its_namespace_has_the_roots() {
    let mut world = World::new();

    let response = world.ask("/inject", creation("shop", pod(containers()))).await;

    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    assert_eq!(*world.played.roots.lock().unwrap(), ["shop"]);
    assert!(world.counted("outcome=\"injected\",webhook=\"inject\""));
}

#[tokio::test]
async fn a_namespace_that_was_labelled_a_moment_ago_is_asked_about_and_one_that_is_known_is_not() {
    let mut world = World::new();
    world.ask("/inject", creation("shop", pod(containers()))).await;
    assert_eq!(*world.played.asked.lock().unwrap(), 0);

    let response = world.ask("/inject", creation("new", pod(containers()))).await;

    assert_eq!(response["patchType"], "JSONPatch");
    assert_eq!(*world.played.asked.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_dry_run_is_answered_the_same_and_leaves_nothing() {
    let mut world = World::new();
    let mut request = creation("shop", pod(containers()));
    request["dryRun"] = true.into();
    let mut skipped = creation("shop", pod(json!({ "hostNetwork": true, "containers": [] })));
    skipped["dryRun"] = true.into();

    assert_eq!(world.ask("/inject", request).await["patchType"], "JSONPatch");
    world.ask("/inject", skipped).await;

    assert!(world.played.roots.lock().unwrap().is_empty());
    assert!(world.played.told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_that_cannot_be_meshed_is_told_on_its_controller() {
    let mut world = World::new();

    let response = world.ask("/inject", creation("shop", pod(json!({ "hostNetwork": true, "containers": [] })))).await;

    assert_eq!((&response["allowed"], response.get("patch")), (&true.into(), None));
    assert!(response["warnings"][0].as_str().unwrap().contains("network"));
    let told = world.played.told.lock().unwrap();
    assert_eq!((told[0].kind.as_str(), told[0].name.as_str(), told[0].reason), ("DaemonSet", "agent", "HostNetwork"));
    assert_eq!(told[0].uid.as_deref(), Some("u"));
}

#[tokio::test]
async fn a_wrong_annotation_is_refused_with_the_reason() {
    let mut world = World::new();
    let mut pod = pod(containers());
    pod["metadata"]["annotations"] = json!({ "heddle.dev/workers": "many" });

    let response = world.ask("/inject", creation("shop", pod)).await;

    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert_eq!(message, "annotation heddle.dev/workers: `many`: write a whole number from 0 to 256");
    assert!(world.counted("outcome=\"refused\",webhook=\"inject\""));
}

#[tokio::test]
async fn other_operations_and_other_kinds_are_let_through() {
    let mut world = World::new();
    for change in [json!({ "operation": "UPDATE" }), json!({ "subResource": "ephemeralcontainers" })] {
        let mut request = creation("shop", pod(containers()));
        request.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let response = world.ask("/inject", request).await;
        assert_eq!((&response["allowed"], response.get("patch")), (&true.into(), None));
    }
}

#[tokio::test]
async fn what_cannot_be_decided_is_no_answer_so_that_the_failure_policy_decides() {
    let mut world = World::new();
    let request = json!({ "request": creation("broken", pod(containers())) }).to_string();
    let (status, text) = world.post("/inject", request).await;
    assert_eq!(status, 500);
    assert!(text.as_str().unwrap().contains("namespace broken: is away"), "{text}");
    assert_eq!(world.post("/inject", "{".into()).await.0, 400);
    assert_eq!(world.post("/inject", " ".repeat(5 * 1024 * 1024)).await.0, 413);
    assert!(world.counted("outcome=\"failed\",webhook=\"inject\""));
    assert!(world.counted("outcome=\"malformed\",webhook=\"inject\""));
}

fn policy(operation: &str, spec: &Value, old: &Value) -> Value {
    json!({
        "uid": "2", "kind": { "group": "heddle.dev", "version": "v1alpha1", "kind": "MeshTLSPolicy" },
        "operation": operation, "namespace": "shop",
        "object": { "metadata": { "name": "p" }, "spec": spec },
        "oldObject": if old.is_null() { Value::Null } else { json!({ "metadata": { "name": "p" }, "spec": old }) },
    })
}

#[tokio::test]
async fn an_impossible_policy_is_refused_with_field_value_and_remedy() {
    let mut world = World::new();
    let wrong = json!({ "portLevel": { "080": "STRICT" } });

    let response = world.ask("/validate", policy("CREATE", &wrong, &Value::Null)).await;

    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["message"], "spec.portLevel.080: `080`: give a port from 1 to 65535");
}

#[tokio::test]
async fn deletion_status_and_changes_of_metadata_are_never_held_up() {
    let mut world = World::new();
    let wrong = json!({ "portLevel": { "080": "STRICT" } });
    let mut deletion = policy("DELETE", &wrong, &wrong);
    deletion["object"] = Value::Null;
    let mut status = policy("UPDATE", &wrong, &json!({ "mode": "STRICT" }));
    status["subResource"] = "status".into();
    for request in [deletion, status, policy("UPDATE", &wrong, &wrong)] {
        assert_eq!(world.ask("/validate", request).await["allowed"], true);
    }
    let changed = policy("UPDATE", &wrong, &json!({ "mode": "STRICT" }));
    assert_eq!(world.ask("/validate", changed).await["allowed"], false);
}
