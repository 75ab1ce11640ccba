//! The running control plane, over real sockets on loopback: who gets a certificate, who may ask what, and what reaches a
//! client when a manifest changes.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic here is a failed test")]

#[path = "serve/harness.rs"]
mod harness;

use std::time::Duration;

use harness::{Mesh, SERVICE, SHOP, WEB_LISTENER, WEB_RESOURCE, id, node, sign, within};
use heddle_certs::rpc::{BundlesRequest, IdentityClient};
use heddle_control_plane::app;
use heddle_control_plane::authority::join_token;
use heddle_xds::Node;
use heddle_xds::resource::{INBOUND, Kind, WILDCARD};
use tonic::Code;
use tonic::transport::Endpoint;

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_gets_the_certificate_with_which_a_workload_is_told_its_own() {
    let mesh = Mesh::start().await;

    let identity = mesh.sign(&mesh.token("web", "web"), &id("web")).await.unwrap();
    assert_eq!(*identity.id(), id("web"));

    let mut client = mesh.follow(identity, node("web.shop"), &[]);
    client.subscribe(Kind::Listener, INBOUND);
    assert_eq!(client.next().await, ["lds inbound"]);
    client.subscribe(Kind::Listener, WEB_LISTENER);
    assert_eq!(client.next().await, ["lds outbound/10.0.0.1:80"]);
    client.subscribe(Kind::Listener, "outbound/10.99.0.1:80");
    assert_eq!(client.next().await, ["lds -outbound/10.99.0.1:80"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_control_plane_gets_nothing() {
    let (mesh, other) = (Mesh::start().await, Mesh::start().await);

    let refused = mesh.sign(&other.token("web", "web"), &id("web")).await.unwrap_err();

    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("signature"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_token_nor_certificate_gets_nothing() {
    let mesh = Mesh::start().await;

    let refused = sign(mesh.channel(None).await, None, &id("web")).await.unwrap_err();

    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    mesh.page_with("/metrics", &["heddle_certificates_requests_total{outcome=\"unauthenticated\"} 1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_no_other_identity_than_its_own() {
    let mesh = Mesh::start().await;

    let refused = mesh.sign(&mesh.token("web", "web"), &id("api")).await.unwrap_err();

    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("spiffe://mesh.example/ns/shop/sa/web"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_workload_that_does_not_exist_or_runs_as_somebody_else_gets_nothing() {
    let mesh = Mesh::start().await;

    for (account, workload) in [("web", "web-9"), ("web", "api")] {
        let refused = mesh.sign(&mesh.token(account, workload), &id(account)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{workload}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_renews_the_same_identity_and_no_other() {
    let mesh = Mesh::start().await;
    let identity = mesh.identity("web", "web").await;

    let renewed = sign(mesh.channel(Some(&identity)).await, None, &id("web")).await.unwrap();
    let refused = sign(mesh.channel(Some(&identity)).await, None, &id("api")).await.unwrap_err();

    assert_eq!(renewed.id(), identity.id());
    assert_ne!(renewed.serial_hex(), identity.serial_hex());
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    mesh.page_with("/metrics", &["heddle_certificates_requests_total{outcome=\"signed_for_certificate\"} 1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_without_workloads_is_not_renewed() {
    let mesh = Mesh::start().await;
    let identity = mesh.identity("api", "api").await;
    let channel = mesh.channel(Some(&identity)).await;

    mesh.write("shop.yaml", &SHOP.replace("serviceAccountName: api", "serviceAccountName: other"));
    mesh.page_with("/model", &["serviceAccount: other"]).await;

    let refused = sign(channel, None, &id("api")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_nobody_is_told_anything() {
    let mesh = Mesh::start().await;

    let refused = mesh.refusal(None, node("web.shop"), Kind::Listener, INBOUND).await;

    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    mesh.page_with("/metrics", &["heddle_xds_denied_total{reason=\"no_certificate\"} 1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_workloads_certificate_is_refused() {
    let mesh = Mesh::start().await;
    let api = mesh.identity("api", "api").await;

    let refused = mesh.refusal(Some(&api), node("web.shop"), Kind::Listener, INBOUND).await;

    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("spiffe://mesh.example/ns/shop/sa/api"), "{refused}");
    mesh.page_with("/metrics", &["heddle_xds_denied_total{reason=\"identity\"} 1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pods_name_under_the_same_service_account_is_refused_by_its_address() {
    let mesh = Mesh::start().await;
    let web = mesh.identity("web", "web").await;

    let refused = mesh.refusal(Some(&web), node("web-2.shop"), Kind::Listener, INBOUND).await;

    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("127.0.0.1"), "{refused}");
    mesh.page_with("/metrics", &["heddle_xds_denied_total{reason=\"address\"} 1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_nobody_knows_is_refused_after_a_while() {
    let mesh = Mesh::start().await;
    let web = mesh.identity("web", "web").await;

    let refused = mesh.refusal(Some(&web), node("web-9.shop"), Kind::Listener, INBOUND).await;

    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("shop/web-9"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_for_sidecars_ends_the_stream() {
    let mesh = Mesh::start().await;
    let web = mesh.identity("web", "web").await;

    for (kind, name) in
        [(Kind::Cluster, WILDCARD), (Kind::Listener, "inbound/shop/api"), (Kind::Route, "shop/web/80@other")]
    {
        let refused = mesh.refusal(Some(&web), node("web.shop"), kind, name).await;
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}: {refused}");
    }
    mesh.page_with("/metrics", &["heddle_xds_denied_total{reason=\"name\"} 3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loopback_port_asks_for_no_certificate_but_for_an_existing_workload() {
    let mesh = Mesh::start().await;
    let address = mesh.control_plane.plain_ads.unwrap();
    let connect = move || async move {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        endpoint.connect().await.map_err(|error| error.to_string())
    };

    let mut client = harness::Follower::new(node("web-2.shop"), connect, &[]);
    client.subscribe(Kind::Listener, INBOUND);

    assert_eq!(client.next().await, ["lds inbound"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_gets_everything_by_wildcard_and_then_the_difference() {
    let mesh = Mesh::start().await;
    let envoy = Node { user_agent_name: "envoy".into(), ..node("web.shop") };
    let mut client = mesh.follow(mesh.identity("web", "web").await, envoy, &[]);

    client.subscribe(Kind::Cluster, WILDCARD);
    let clusters = client.next().await;
    assert!(clusters.contains(&format!("cds {WEB_RESOURCE}")), "{clusters:?}");
    client.subscribe(Kind::Listener, WILDCARD);
    let listeners = client.next().await;
    assert!(listeners.contains(&format!("lds {WEB_LISTENER}")), "{listeners:?}");
    assert!(listeners.contains(&"lds inbound".to_owned()), "{listeners:?}");

    let more = format!("{SHOP}---\n{}", SERVICE.replace("name: web", "name: shelf").replace("10.0.0.1", "10.0.0.7"));
    mesh.write("shop.yaml", &more);
    assert_eq!(client.next().await, ["cds shop/shelf/80"]);
    assert_eq!(client.next().await, ["lds outbound/10.0.0.7:80"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_gets_its_target_by_name() {
    let mesh = Mesh::start().await;
    let grpc = Node { user_agent_name: "gRPC C-core".into(), ..node("web.shop") };
    let mut client = mesh.follow(mesh.identity("web", "web").await, grpc, &[]);

    for (kind, name) in [
        (Kind::Listener, "web.shop:80"),
        (Kind::Route, WEB_RESOURCE),
        (Kind::Cluster, WEB_RESOURCE),
        (Kind::Endpoints, WEB_RESOURCE),
    ] {
        client.subscribe(kind, name);
        assert_eq!(client.next().await, [format!("{kind} {name}")]);
    }
    client.subscribe(Kind::Listener, "nobody.shop:80");
    assert_eq!(client.next().await, ["lds -nobody.shop:80"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_manifest_reaches_a_client_as_the_difference_and_a_broken_one_changes_nothing() {
    let mesh = Mesh::start().await;
    let mut client = mesh.follow(mesh.identity("web", "web").await, node("web.shop"), &[]);
    for (kind, name) in [
        (Kind::Listener, INBOUND),
        (Kind::Listener, WEB_LISTENER),
        (Kind::Route, WEB_RESOURCE),
        (Kind::Cluster, WEB_RESOURCE),
        (Kind::Endpoints, WEB_RESOURCE),
    ] {
        client.subscribe(kind, name);
        assert_eq!(client.next().await, [format!("{kind} {name}")]);
    }

    // One more endpoint: nothing but the endpoints differs.
    let more = SHOP.replace("{name: web-2, namespace: shop}", "{name: web-2, namespace: shop, labels: {app: web}}");
    mesh.write("shop.yaml", &more);
    assert_eq!(client.next().await, [format!("eds {WEB_RESOURCE}")]);

    // A file that cannot be read, beside a change that can: the first is named, the second arrives, nothing else does.
    mesh.write(
        "broken.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: new, namespace: shop}\nspec: {ports: [{port: x}]}\n",
    );
    mesh.page_with("/status", &["broken.yaml: line 4", "spec.ports[0].port"]).await;
    mesh.page_with("/metrics", &["heddle_source_broken 1", "heddle_source_errors_total 1"]).await;
    mesh.write("shop.yaml", SHOP);
    assert_eq!(client.next().await, [format!("eds {WEB_RESOURCE}")]);

    // A Service that is taken away does not exist any more.
    let without =
        SHOP.split("---").filter(|document| !document.contains("kind: Service")).collect::<Vec<_>>().join("---");
    mesh.write("shop.yaml", &without);
    let mut gone: Vec<String> = Vec::new();
    while gone.iter().filter(|name| name.contains('-')).count() < 4 {
        gone.extend(client.next().await);
    }
    for removed in [
        format!("lds -{WEB_LISTENER}"),
        format!("rds -{WEB_RESOURCE}"),
        format!("cds -{WEB_RESOURCE}"),
        format!("eds -{WEB_RESOURCE}"),
    ] {
        assert!(gone.contains(&removed), "{removed} in {gone:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_accept_and_refuse_is_shown_for_the_objects_it_came_from() {
    let mesh = Mesh::start().await;
    let mut client = mesh.follow(mesh.identity("web", "web").await, node("web.shop"), &[WEB_RESOURCE]);
    client.subscribe(Kind::Listener, WEB_LISTENER);
    client.next().await;
    client.subscribe(Kind::Cluster, WEB_RESOURCE);
    client.next().await;

    mesh.page_with("/metrics", &["heddle_xds_answers_total{result=\"refused\",type=\"cds\"} 1"]).await;
    mesh.page_with("/status", &["Service shop/web", "accepted: 1", "refused: 1", "field: unwanted"]).await;
    mesh.page_with("/clients", &["shop/web", "dialect: heddle"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_only_differences_travel_and_certificates_stay_good() {
    let mesh = Mesh::start().await;
    let mut client = mesh.follow(mesh.identity("web", "web").await, node("web.shop"), &[]);
    client.subscribe(Kind::Listener, WEB_LISTENER);
    client.next().await;
    client.subscribe(Kind::Endpoints, WEB_RESOURCE);
    client.next().await;

    let mesh = mesh.restart().await;
    mesh.page_with("/metrics", &["heddle_xds_streams{dialect=\"heddle\"} 1"]).await;
    let more = SHOP.replace("{name: web-2, namespace: shop}", "{name: web-2, namespace: shop, labels: {app: web}}");
    mesh.write("shop.yaml", &more);

    assert_eq!(client.next().await, [format!("eds {WEB_RESOURCE}")]);
    mesh.page_with("/metrics", &["heddle_xds_resources_sent_total{type=\"lds\"} 0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roots_are_told_to_everybody_who_does_not_have_them() {
    let mesh = Mesh::start().await;
    let bundle = mesh.bundle();
    let mut client = IdentityClient::new(mesh.channel(None).await);

    let request = BundlesRequest { version: String::new() };
    let mut bundles = client.bundles(request).await.unwrap().into_inner();

    let told = within("bundle", bundles.message()).await.unwrap().unwrap();
    assert_eq!(told.version, bundle.version());
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_and_metrics_answer() {
    let mesh = Mesh::start().await;

    assert_eq!(mesh.page("/ready").await, ("HTTP/1.0 200 OK".into(), "ready\n".into()));
    let (_, metrics) = mesh.page("/metrics").await;
    assert!(metrics.contains("heddle_config_objects{kind=\"Workload\"} 3"), "{metrics}");
    assert!(mesh.page("/config").await.1.contains("\"trustDomain\":\"mesh.example\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_without_manifests_says_which_directory_is_missing() {
    let directory = tempfile::tempdir().unwrap();

    let error = app::start(harness::config(directory.path())).await.err().unwrap().to_string();

    assert!(error.contains("--manifests") && error.contains("manifests"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_cannot_live_for_ever() {
    let mesh = Mesh::start().await;
    let token = join_token(
        mesh.control_plane.state().unwrap(),
        "shop",
        "web",
        "web",
        Duration::from_secs(10 * 366 * 24 * 3600),
    );
    assert!(token.is_err());
}
