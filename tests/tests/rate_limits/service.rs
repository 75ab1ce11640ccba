//! What a service counts for all workloads together: the real one, with Redis.

use std::path::Path;

use heddle_tests::envoy::Envoy;
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::programs::{Program, Server};
use heddle_tests::{eventually, go, metrics, origin};

use super::{DRAINS, LIMIT, ask_at};

/// The service and its Redis, in one pod.
struct Limiter {
    _redis: Server,
    _service: Server,
    _directory: tempfile::TempDir,
}

impl Limiter {
    fn start(pod: &MeshPod) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut redis = Program { name: "redis-server", package: "redis-server" }.command();
        redis.args(["--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(directory.path());
        let redis = Server::start(pod, redis, "Ready to accept connections");
        let service = Server::start(pod, command(directory.path()), "Listening for gRPC");
        Self { _redis: redis, _service: service, _directory: directory }
    }
}

/// All it knows is a domain: limits come with the questions.
fn command(directory: &Path) -> std::process::Command {
    let configurations = directory.join("ratelimit/config");
    std::fs::create_dir_all(&configurations).unwrap();
    std::fs::write(configurations.join("heddle.yaml"), "domain: heddle\n").unwrap();
    let program = go::program("ratelimit", "github.com/envoyproxy/ratelimit/src/service_cmd", "ratelimit");
    let mut command = Program::built(&program);
    command.env("RUNTIME_ROOT", directory).env("RUNTIME_SUBDIRECTORY", "ratelimit").env("RUNTIME_WATCH_ROOT", "false");
    command.env("REDIS_SOCKET_TYPE", "tcp").env("REDIS_TYPE", "SINGLE").env("REDIS_URL", "127.0.0.1:6379");
    command.env("USE_STATSD", "false").env("LOG_LEVEL", "info").env("GRPC_PORT", "8080").env("PORT", "8099");
    command
}

#[test]
fn a_sidecar_and_an_envoy_count_together() {
    let workloads = [
        ("anna", 2, "anna", "anna"),
        ("bert", 3, "bert", "bert"),
        ("api", 10, "api", "api"),
        ("old", 11, "old", "old"),
        ("limiter", 12, "limiter", "limiter"),
    ];
    let manifests = shop(&workloads, &[("api", 1, "api"), ("old", 2, "old")]);
    let mesh = LiveMesh::start(&[("shop.yaml", &manifests), ("limiter.yaml", LIMITER)]);
    let (server, old) = (mesh.workload("api", 10, "api", 2), mesh.pod("old", 11));
    origin::echo(&server, 8080, "api");
    origin::echo(&old, 8080, "old");
    let _envoy = Envoy::start(&mesh, &old, env!("CARGO_BIN_EXE_heddle-under-test"), "old", "old", &DRAINS);
    let (anna, bert) = (mesh.workload("anna", 2, "anna", 1), mesh.workload("bert", 3, "bert", 1));
    let counting = mesh.workload("limiter", 12, "limiter", 1);
    let limiter = Limiter::start(&counting);
    let limit = |spec: &str| mesh.apply("limit.yaml", &LIMIT.replace("SPEC", spec));
    let status =
        |pod: &MeshPod, service: u8, path: &str, fields: &str| ask_at(pod, vip(service), path, fields).status();
    for pod in [&anna, &bert] {
        for service in [1, 2] {
            eventually("nobody limits", || (status(pod, service, "/", "") == 200).then_some(()));
        }
    }

    // Known everywhere once the path that is not to be counted together is refused; by then /few has been asked of nobody.
    let service = "service: { name: limiter, port: 8081, timeout: 2s }";
    let by_identity = "requests: 6, per: 24h, by: { type: Identity }, to: [{ paths: [/few] }]";
    limit(&format!(
        "{service}, limits: [{{ {by_identity} }}, {{ requests: 1, per: 24h, to: [{{ paths: [/probe] }}] }}]"
    ));
    // Connections from before are not limited until they are closed.
    let in_force = |path: &str, fields: &str| {
        for (pod, service) in [(&anna, 1), (&anna, 2), (&bert, 1), (&bert, 2)] {
            eventually("limits are in force", || (status(pod, service, path, fields) == 429).then_some(()));
        }
    };
    in_force("/probe", "");
    for pod in [&anna, &bert] {
        let taken: Vec<u16> = (0..10).map(|n| status(pod, 1 + n % 2, "/few", "")).collect();
        assert_eq!(taken, [200, 200, 200, 200, 200, 200, 429, 429, 429, 429], "six at both together, for each caller");
    }
    assert_eq!(status(&anna, 1, "/many", ""), 200, "what is not said is not limited");
    let refusal = ask_at(&anna, vip(1), "/few", "");
    assert_eq!(refusal.field("x-heddle-error"), Some("rate_limited"));
    let wait: u32 = refusal.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&wait), "to the end of the day: {wait}");
    assert!(ask_at(&anna, vip(2), "/few", "").field("retry-after").is_some());
    for service in [1, 2] {
        let call = ask_at(&anna, vip(service), "/few", "content-type: application/grpc\r\n");
        assert_eq!(call.field("grpc-status"), Some("8"), "RESOURCE_EXHAUSTED");
    }
    let page = metrics::page(&server);
    let asked = |page: &str, outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        metrics::sum(page, "heddle_rate_limit_asked_total", &["cluster=\"shop/limiter/8081\"", &outcome])
    };
    assert!(asked(&page, "answered") > 0.0, "{page}");
    assert_eq!(asked(&page, "timeout") + asked(&page, "invalid"), 0.0, "{page}");

    // By header; those without it share one bucket.
    limit(&format!(
        "{service}, limits: [{{ requests: 2, per: 24h, by: {{ type: Header, name: x-user }}, headers: [{{ name: x-plan, value: free }}] }}]"
    ));
    let user = |name: &str| format!("x-plan: free\r\nx-user: {name}\r\n");
    in_force("/", &user("probe"));
    for fields in [user("one"), user("two"), "x-plan: free\r\n".to_owned()] {
        let taken: Vec<u16> = (0..4).map(|n| status(&bert, 1 + n % 2, "/", &fields)).collect();
        assert_eq!(taken, [200, 200, 429, 429], "{fields}");
    }
    for service in [1, 2] {
        assert_eq!(status(&bert, service, "/", "x-plan: paid\r\nx-user: one\r\n"), 200);
    }

    // In dry run nothing is refused.
    limit(&format!("{service}, dryRun: true, limits: [{{ requests: 1, per: 24h, to: [{{ paths: [/dry] }}] }}]"));
    eventually("in dry run it is counted", || {
        assert_eq!(status(&anna, 1, "/dry", ""), 200);
        let page = metrics::page(&server);
        (metrics::sum(&page, "heddle_rate_limit_total", &["decision=\"would_deny\""]) > 0.0).then_some(())
    });
    eventually("the Envoy too", || (status(&anna, 2, "/", &user("one")) == 200).then_some(()));
    assert!((0..5).all(|_| status(&anna, 2, "/dry", "") == 200));

    // Without the service.
    drop(limiter);
    let everything = "limits: [{ requests: 1, per: 24h, to: [{ paths: [/shut] }] }]";
    limit(&format!("service: {{ name: limiter, port: 8081, onFailure: Deny }}, {everything}"));
    for service in [1, 2] {
        eventually("it fails closed", || (status(&anna, service, "/shut", "") == 500).then_some(()));
    }
    assert_eq!(ask_at(&anna, vip(1), "/shut", "").field("x-heddle-error"), Some("rate_limit_unavailable"));
    assert_eq!(status(&anna, 1, "/", ""), 200, "what is not counted is not asked about");
    limit(&format!("service: {{ name: limiter, port: 8081 }}, {everything}"));
    for service in [1, 2] {
        eventually("it fails open", || (status(&anna, service, "/shut", "") == 200).then_some(()));
    }
    limit(&format!("service: {{ name: nobody, port: 8081, onFailure: Deny }}, {everything}"));
    for service in [1, 2] {
        eventually("nobody answers", || (status(&anna, service, "/shut", "") == 500).then_some(()));
    }
}

const LIMITER: &str = "
apiVersion: v1
kind: Service
metadata: { name: limiter, namespace: shop }
spec:
  clusterIP: 10.96.0.3
  selector: { app: limiter }
  ports: [{ port: 8081, targetPort: 8080, appProtocol: grpc }]
";
