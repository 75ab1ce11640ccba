//! What a sidecar, or an Envoy, counts by itself.

use heddle_tests::envoy::Envoy;
use heddle_tests::live::{LiveMesh, shop};
use heddle_tests::pods::MeshPod;
use heddle_tests::{eventually, metrics, origin};

use super::{DRAINS, LIMIT, ask};

#[test]
fn what_is_too_much_for_a_workload_is_refused() {
    let workloads = [("anna", 2, "anna", "anna"), ("bert", 3, "bert", "bert"), ("api", 10, "api", "api")];
    let mesh = LiveMesh::start(&[("shop.yaml", &shop(&workloads, &[("api", 1, "api")]))]);
    let server = mesh.workload("api", 10, "api", 2);
    origin::echo(&server, 8080, "api");
    let (anna, bert) = (mesh.workload("anna", 2, "anna", 1), mesh.workload("bert", 3, "bert", 1));
    let limit = |spec: &str| mesh.apply("limit.yaml", &LIMIT.replace("SPEC", spec));
    let limited = |pod: &MeshPod, path: &str, fields: &str| ask(pod, path, fields).status() == 429;
    for pod in [&anna, &bert] {
        eventually("nobody limits", || (!limited(pod, "/", "")).then_some(()));
    }

    // By identity and path: what one has used up, another has still.
    limit("limits: [{ requests: 3, per: 1h, by: { type: Identity }, to: [{ paths: [/few] }] }]");
    eventually("anna has used up hers", || limited(&anna, "/few", "").then_some(()));
    let taken = (0..10).filter(|_| !limited(&bert, "/few", "")).count();
    assert_eq!(taken, 3, "a bucket of the process, whichever worker serves");
    assert!(!limited(&anna, "/many", ""), "what is not said is not limited");
    let refusal = ask(&anna, "/few", "");
    assert_eq!(refusal.field("x-heddle-error"), Some("rate_limited"));
    let wait: u32 = refusal.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=1200).contains(&wait), "a third of an hour, at most: {wait}");
    let call = ask(&anna, "/few", "content-type: application/grpc\r\n");
    assert_eq!(call.field("grpc-status"), Some("8"), "RESOURCE_EXHAUSTED");

    // What else changes does not fill a bucket.
    limit("limits: [{ requests: 3, per: 1h, by: { type: Identity }, to: [{ paths: [/few, /new] }] }]");
    eventually("the other path counts too", || limited(&anna, "/new", "").then_some(()));
    assert!(limited(&bert, "/few", ""));

    // By header, where another says so; those without it share one bucket.
    limit(
        "limits: [{ requests: 1, per: 1h, by: { type: Header, name: X-User }, headers: [{ name: x-plan, value: free }] }]",
    );
    let user = |name: &str| format!("x-plan: free\r\nx-user: {name}\r\n");
    eventually("the first user's is used up", || limited(&anna, "/", &user("one")).then_some(()));
    assert!(!limited(&bert, "/", &user("two")));
    assert!(limited(&anna, "/", &user("two")), "whoever asks");
    assert!(!limited(&anna, "/", "x-plan: free\r\n"));
    assert!(limited(&bert, "/", "x-plan: free\r\n"));
    assert!(!limited(&anna, "/", "x-user: one\r\nx-plan: paid\r\n"));

    let before = metrics::sum(&metrics::page(&server), "heddle_rate_limit_total", &["decision=\"would_deny\""]);
    assert!(before == 0.0);
    limit("dryRun: true, limits: [{ requests: 1, per: 1h }]");
    eventually("what would be refused is counted", || {
        assert!(!limited(&anna, "/", ""), "and let in");
        let page = metrics::page(&server);
        let would =
            metrics::sum(&page, "heddle_rate_limit_total", &["decision=\"would_deny\"", "limit=\"shop/api#0\""]);
        (would > 0.0).then_some(())
    });
    let page = metrics::page(&server);
    assert!(metrics::sum(&page, "heddle_rate_limit_total", &["decision=\"deny\""]) > 0.0, "{page}");
    assert!(metrics::sum(&page, "heddle_requests_total", &["cause=\"rate_limited\""]) > 0.0, "{page}");
}

#[test]
fn an_envoy_refuses_the_same() {
    let workloads = [("anna", 2, "anna", "anna"), ("bert", 3, "bert", "bert"), ("api", 10, "api", "api")];
    let mesh = LiveMesh::start(&[("shop.yaml", &shop(&workloads, &[("api", 1, "api")]))]);
    let server = mesh.pod("api", 10);
    let _envoy = Envoy::start(&mesh, &server, env!("CARGO_BIN_EXE_heddle-under-test"), "api", "api", &DRAINS);
    origin::echo(&server, 8080, "api");
    let (anna, bert) = (mesh.workload("anna", 2, "anna", 1), mesh.workload("bert", 3, "bert", 1));
    let limit = |spec: &str| mesh.apply("limit.yaml", &LIMIT.replace("SPEC", spec));
    let limited = |pod: &MeshPod, path: &str, fields: &str| ask(pod, path, fields).status() == 429;
    // Connections from before are not limited until they are closed.
    let both_limited = |what: &str, path: &str, fields: &str| {
        for pod in [&anna, &bert] {
            eventually(what, || limited(pod, path, fields).then_some(()));
        }
    };
    for pod in [&anna, &bert] {
        eventually("nobody limits", || (ask(pod, "/", "").status() == 200).then_some(()));
    }

    limit(
        "limits: [{ requests: 3, per: 1h, by: { type: Identity }, to: [{ paths: [/few] }] }, { requests: 1, per: 1h, to: [{ paths: [/probe] }] }]",
    );
    both_limited("the limit is in force", "/probe", "");
    for pod in [&anna, &bert] {
        let taken = (0..10).filter(|_| !limited(pod, "/few", "")).count();
        assert_eq!(taken, 3, "a bucket for each");
    }
    assert!(!limited(&anna, "/many", ""), "what is not said is not limited");
    let call = ask(&anna, "/few", "content-type: application/grpc\r\n");
    assert_eq!(call.field("grpc-status"), Some("8"), "RESOURCE_EXHAUSTED");

    limit(
        "limits: [{ requests: 3, per: 1h, by: { type: Header, name: X-User }, headers: [{ name: x-plan, value: free }] }]",
    );
    let user = |name: &str| format!("x-plan: free\r\nx-user: {name}\r\n");
    both_limited("the first user's is used up", "/", &user("one"));
    assert_eq!((0..10).filter(|_| !limited(&bert, "/", &user("two"))).count(), 3);
    assert!(limited(&anna, "/", &user("two")), "whoever asks");
    assert_eq!((0..10).filter(|_| !limited(&anna, "/", "x-plan: free\r\n")).count(), 3);
    assert!(limited(&bert, "/", "x-plan: free\r\n"));
    assert!(!limited(&anna, "/", "x-user: one\r\nx-plan: paid\r\n"));

    limit("limits: [{ requests: 2, per: 1h, by: { type: SourceIP }, to: [{ paths: [/b] }] }]");
    both_limited("by address", "/b", "");
    assert!((0..10).all(|n| limited(&bert, "/b", &format!("x-forwarded-for: 10.9.9.{n}\r\n"))));

    limit("dryRun: true, limits: [{ requests: 1, per: 1h }]");
    eventually("in dry run", || (!limited(&anna, "/b", "")).then_some(()));
    assert!((0..10).all(|_| !limited(&anna, "/b", "")));
}
