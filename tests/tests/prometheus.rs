//! What Prometheus sees of a mesh: pages that `promtool` finds nothing wrong with, counts that are right when a real
//! Prometheus has scraped them, labels that say who called whom, and no more series than there are edges.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use heddle_tests::live::{LiveMesh, control_plane_admin, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::programs::{Program, Server, run_with};
use heddle_tests::{eventually, h2c, metrics, origin, talk};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;

const PROMETHEUS: Program = Program { name: "prometheus", package: "prometheus" };
const PROMTOOL: Program = Program { name: "promtool", package: "prometheus" };

const WORKLOADS: [(&str, u8, &str, &str); 6] = [
    ("web", 2, "web", "web"),
    ("batch", 3, "batch", "batch"),
    ("api-a", 4, "api", "api"),
    ("api-b", 5, "api", "api"),
    ("cart", 6, "cart", "cart"),
    ("stock", 7, "stock", "stock"),
];
const SERVICES: [(&str, u8, &str); 3] = [("api", 1, "api"), ("cart", 2, "cart"), ("stock", 3, "stock")];

/// One answer in a row of 503 ejects; every 503 is tried again.
const POLICY: &str = "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: { name: api, namespace: shop }\nspec:\n  \
                      targetRefs: [{ group: \"\", kind: Service, name: api }]\n  \
                      loadBalancing: { policy: RoundRobin }\n  outlierDetection: { consecutiveFailures: 2 }\n  \
                      retry: { attempts: 1, codes: [503], backoff: 1ms }\n---\n\
                      apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\n\
                      metadata: { name: no-secrets, namespace: shop }\nspec:\n  \
                      targetRefs: [{ group: \"\", kind: Service, name: api }]\n  action: DENY\n  \
                      rules: [{ to: [{ paths: [\"/secret\"] }] }]\n";

/// All workloads with their applications; `web` and `batch` only call.
struct Shop {
    // Pods before what they are on.
    pods: [MeshPod; 6],
    observer: MeshPod,
    mesh: LiveMesh,
}

/// While set, the api's first workload answers 503.
static API_A_FAILS: AtomicBool = AtomicBool::new(false);

impl Shop {
    fn open() -> Self {
        let mesh = LiveMesh::start(&[("shop.yaml", &shop(&WORKLOADS, &SERVICES)), ("policy.yaml", POLICY)]);
        let pods = WORKLOADS.map(|(name, number, account, _)| mesh.workload(name, number, account, 2));
        origin::http(&pods[2], 8080, |request| {
            let mut response = answer(&request);
            if API_A_FAILS.load(Ordering::SeqCst) {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        });
        origin::http(&pods[3], 8080, |request| answer(&request));
        h2c::origin(&pods[4], 8080, |_, mut respond| async move {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let Ok(mut body) = respond.send_response(head, false) else { return };
            let _ = body.send_data(h2c::grpc_message(b"cart"), false);
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            let _ = body.send_trailers(trailers);
        });
        origin::greets(&pods[5], 8080, "stock ready\r\n");
        let observer = mesh.pod("observer", 50);
        Self { pods, observer, mesh }
    }

    fn web(&self) -> &MeshPod {
        &self.pods[0]
    }

    fn batch(&self) -> &MeshPod {
        &self.pods[1]
    }

    fn control_plane_page(&self) -> String {
        talk::request(&self.observer, control_plane_admin(), "GET /metrics HTTP/1.0\r\n\r\n").body
    }
}

fn answer(request: &Request<Bytes>) -> Response<Full<Bytes>> {
    let code = request.uri().path().strip_prefix("/status/").and_then(|code| code.parse().ok());
    let mut response = Response::new(Full::from("served"));
    *response.status_mut() = code.unwrap_or(StatusCode::OK);
    response
}

fn grpc(pod: &MeshPod, to: SocketAddr) {
    h2c::run(async {
        let client = h2c::connect(pod, to).await;
        let request = Request::post("http://cart.shop/shop.Cart/List").header("content-type", "application/grpc");
        let request = request.header("te", "trailers").body(()).unwrap();
        let response = client.exchange(request, h2c::grpc_message(b"all")).await.unwrap();
        assert_eq!(response.trailers.unwrap()["grpc-status"], "0");
    });
}

fn tcp(pod: &MeshPod, to: SocketAddr) {
    assert_eq!(talk::exchange_half_closed(pod, to, "quit"), b"stock ready\r\nQUIT");
}

/// Everything a sidecar counts: HTTP, gRPC, opaque, failures with their causes, retries, an ejection, a denial.
fn busy(shop: &Shop) {
    let web = shop.web();
    for path in ["/", "/status/404", "/status/500"] {
        talk::get(web, vip(1), path);
    }
    assert_eq!(talk::get(web, vip(1), "/secret").status(), 403);
    grpc(web, vip(2));
    tcp(web, vip(3));
    API_A_FAILS.store(true, Ordering::SeqCst);
    eventually("the failing workload is ejected after retries", || {
        talk::get(web, vip(1), "/");
        let page = metrics::page(web);
        let retries = metrics::sum(&page, "heddle_retries_total", &["reason=\"policy\""]);
        (retries >= 1.0 && metrics::sum(&page, "heddle_outlier_ejections_total", &[]) >= 1.0).then_some(())
    });
    API_A_FAILS.store(false, Ordering::SeqCst);
    // A denied stranger.
    let closed = talk::exchange(&shop.observer, shop.pods[5].v4(15001), "GET / HTTP/1.0\r\n\r\n");
    assert!(closed.is_empty());
}

#[test]
fn promtool_finds_nothing_wrong_with_any_page() {
    let shop = Shop::open();
    busy(&shop);
    let mut pages: Vec<_> = shop.pods.iter().map(|pod| (pod.pod.name.clone(), metrics::page(pod))).collect();
    pages.push(("control plane".into(), shop.control_plane_page()));
    for (whose, page) in &pages {
        let mut command = PROMTOOL.command();
        command.args(["check", "metrics"]);
        let mut stdin = tempfile::tempfile().unwrap();
        stdin.write_all(page.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut stdin).unwrap();
        let said = run_with(&shop.observer, command, Stdio::from(stdin));
        assert_eq!((said.text(), said.stderr), (String::new(), String::new()), "{whose}\n{page}");
    }
    let page = &pages[0].1;
    for family in [
        "heddle_requests_total counter",
        "heddle_request_duration_seconds histogram",
        "heddle_request_bytes_total counter",
        "heddle_response_bytes_total counter",
        "heddle_tcp_connections_opened_total counter",
        "heddle_tcp_connections_closed_total counter",
        "heddle_tcp_sent_bytes_total counter",
        "heddle_tcp_received_bytes_total counter",
        "heddle_retries_total counter",
        "heddle_outlier_ejections_total counter",
        "heddle_outlier_ejected gauge",
        "heddle_circuit_breaker_open gauge",
        "heddle_upstream_pool_connections gauge",
        "heddle_tls_handshakes_total counter",
        "heddle_certificate_expiry_timestamp_seconds gauge",
        "heddle_xds_responses_total counter",
        "heddle_xds_version_hash gauge",
    ] {
        assert!(page.contains(&format!("# TYPE {family}\n")), "{family} is missing\n{page}");
    }
}

/// The labels of the only series of `name` that has all of `labels`.
fn only(page: &str, name: &str, labels: &[&str]) -> BTreeMap<String, String> {
    let series = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let found: Vec<_> = series.filter(|line| labels.iter().all(|label| line.contains(label))).collect();
    let [line] = found[..] else { panic!("one series of {name} has {labels:?}: {found:?}\n{page}") };
    let labels = &line[name.len() + 1..line.rfind('}').unwrap()];
    let pairs = labels.split("\",").filter_map(|pair| pair.split_once("=\""));
    pairs.map(|(label, value)| (label.to_owned(), value.trim_end_matches('"').to_owned())).collect()
}

fn assert_labels(found: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (label, value) in expected {
        assert_eq!(found.get(*label).map(String::as_str), Some(*value), "{label} of {found:?}");
    }
}

#[test]
fn each_side_says_who_called_whom_how_it_ended_and_why() {
    let shop = Shop::open();
    let (web, principal) = (shop.web(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(talk::get(web, vip(1), "/secret").status(), 403);
    grpc(web, vip(2));
    tcp(web, vip(3));
    let cart = &shop.pods[4];
    eventually("all of it is counted", || {
        let counted = |pod, name| metrics::sum(&metrics::page(pod), name, &[]);
        let closed = "heddle_tcp_connections_closed_total";
        (counted(web, "heddle_requests_total") == 2.0
            && counted(cart, "heddle_requests_total") == 1.0
            && counted(web, closed) == 1.0
            && counted(&shop.pods[5], closed) == 1.0)
            .then_some(())
    });

    let page = metrics::page(web);
    let source = [
        ("direction", "outbound"),
        ("connection_security_policy", "mutual_tls"),
        ("source_namespace", "shop"),
        ("source_workload", "web"),
        ("destination_namespace", "shop"),
    ];
    let denied = only(&page, "heddle_requests_total", &["destination_service=\"api\""]);
    assert_labels(&denied, &source);
    assert_labels(&denied, &[("protocol", "http"), ("response_code", "403"), ("grpc_status", "")]);
    assert!(["api-a", "api-b"].contains(&denied["destination_workload"].as_str()), "{denied:?}");
    let called = only(&page, "heddle_requests_total", &["destination_service=\"cart\""]);
    assert_labels(&called, &source);
    assert_labels(&called, &[("protocol", "grpc"), ("response_code", "200"), ("grpc_status", "0"), ("cause", "")]);
    assert_labels(&called, &[("destination_workload", "cart")]);
    let opaque = only(&page, "heddle_tcp_connections_closed_total", &["destination_service=\"stock\""]);
    assert_labels(&opaque, &source);
    assert_labels(&opaque, &[("protocol", "tcp"), ("destination_workload", "stock"), ("cause", "")]);

    let inbound = |workload| {
        let target = [("direction", "inbound"), ("connection_security_policy", "mutual_tls")];
        let who = [("source_principal", principal), ("source_namespace", "shop")];
        [&target[..], &who[..], &[("destination_namespace", "shop"), ("destination_workload", workload)]].concat()
    };
    let page = metrics::page(cart);
    assert_labels(&only(&page, "heddle_requests_total", &[]), &inbound("cart"));
    assert_labels(&only(&page, "heddle_request_duration_seconds_count", &[]), &inbound("cart"));
    let page = metrics::page(&shop.pods[5]);
    assert_labels(&only(&page, "heddle_tcp_connections_closed_total", &[]), &inbound("stock"));
    let refused = shop.pods[2..4].iter().find_map(|pod| {
        let page = metrics::page(pod);
        (metrics::sum(&page, "heddle_requests_total", &[]) > 0.0).then_some((pod.pod.name.clone(), page))
    });
    let (name, page) = refused.unwrap();
    let denied = only(&page, "heddle_requests_total", &[]);
    assert_labels(&denied, &inbound(&name));
    assert_labels(&denied, &[("response_code", "403"), ("cause", "denied")]);
}

/// Names and labels of everything on the page.
fn series(page: &str) -> HashSet<&str> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect()
}

#[test]
fn whatever_clients_and_servers_write_makes_no_series() {
    let shop = Shop::open();
    let web = shop.web();
    let request = |method: &str, path: &str, i: usize| {
        talk::request(
            web,
            vip(1),
            &format!(
                "{method} {path} HTTP/1.1\r\nHost: host-{i}.example\r\nUser-Agent: agent-{i}\r\nX-Request-Id: {i}\r\n\
                 X-Forwarded-Client-Cert: URI=spiffe://forged/{i}\r\nConnection: close\r\n\r\n"
            ),
        )
    };
    let pods = [web, &shop.pods[2], &shop.pods[3]];
    // Both workloads of the api are used.
    for i in 0..8 {
        assert_eq!(request("GET", "/", i).status(), 200);
    }
    let counted = || {
        let sums = pods.map(|pod| metrics::sum(&metrics::page(pod), "heddle_requests_total", &[]));
        (sums[0], sums[1] + sums[2])
    };
    eventually("all are counted", || (counted() == (8.0, 8.0)).then_some(()));
    let before = pods.map(metrics::page);
    for i in 0..60 {
        assert_eq!(request(["GET", "POST", "BREW"][i % 3], &format!("/item/{i}?q={i}"), i).status(), 200);
    }
    eventually("all are counted", || (counted() == (68.0, 68.0)).then_some(()));
    for (before, after) in before.iter().zip(&pods.map(metrics::page)) {
        let (before, after) = (series(before), series(after));
        // A connection that idled out meanwhile is made again and resumed: that is no client's word.
        let grown = after.difference(&before).filter(|series| !series.starts_with("heddle_tls_handshakes_total"));
        assert_eq!(grown.collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    // A server that makes up statuses.
    for code in 600..800 {
        request("GET", &format!("/status/{code}"), code);
    }
    eventually("all are counted", || (counted() == (268.0, 268.0)).then_some(()));
    let page = metrics::page(web);
    let requests = page.lines().filter(|line| line.starts_with("heddle_requests_total{")).count();
    assert!(requests <= 2 * 66, "{requests} series of two edges, 64 outcomes each and two classes\n{page}");
}

/// Answers of Prometheus' HTTP API, from inside the pod it runs in.
fn query(pod: &MeshPod, promql: &str) -> Vec<Value> {
    let encoded: String = promql.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let request = format!("GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n");
    let answer = talk::request(pod, SocketAddr::from(([127, 0, 0, 1], 9090)), &request);
    let answer: Value = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    assert_eq!(answer["status"], "success", "{answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

/// What a query says by the value of one label.
fn by(label: &str, result: &[Value]) -> BTreeMap<String, f64> {
    let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
    result
        .iter()
        .map(|series| (series["metric"][label].as_str().unwrap_or_default().to_owned(), value(series)))
        .collect()
}

fn prometheus(shop: &Shop) -> Command {
    let sidecars = shop.pods.iter().map(|pod| format!("'{}'", pod.v4(15020))).collect::<Vec<_>>().join(", ");
    let config = format!(
        "global: {{ scrape_interval: 250ms, scrape_timeout: 250ms }}\nscrape_configs:\n\
         - job_name: sidecars\n  static_configs: [{{ targets: [{sidecars}] }}]\n\
         - job_name: control-plane\n  static_configs: [{{ targets: ['{}'] }}]\n",
        control_plane_admin()
    );
    let path = shop.mesh.directory().join("prometheus.yml");
    std::fs::write(&path, config).unwrap();
    let mut command = PROMETHEUS.command();
    command.arg("--config.file").arg(path).arg("--storage.tsdb.path").arg(shop.mesh.directory().join("tsdb"));
    command.args(["--web.listen-address", "127.0.0.1:9090", "--web.console.libraries", "/nonexistent"]);
    command
}

#[test]
fn a_real_prometheus_scrapes_all_and_counts_requests_by_who_sent_them() {
    let shop = Shop::open();
    let _prometheus = Server::start(&shop.observer, prometheus(&shop), "Server is ready to receive web requests");
    for _ in 0..30 {
        assert_eq!(talk::get(shop.web(), vip(1), "/").status(), 200);
    }
    for _ in 0..7 {
        assert_eq!(talk::get(shop.batch(), vip(1), "/").status(), 200);
        grpc(shop.batch(), vip(2));
    }
    tcp(shop.batch(), vip(3));

    let ask = |promql: &str| query(&shop.observer, promql);
    eventually("six sidecars and the control plane are scraped", || {
        let up = by("instance", &ask("up"));
        (up.len() == 7 && up.values().all(|up| *up == 1.0)).then_some(())
    });
    let principal = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let expected = BTreeMap::from([(principal("web"), 30.0), (principal("batch"), 14.0)]);
    let inbound = "sum by (source_principal) (heddle_requests_total{direction=\"inbound\"})";
    let mut last = BTreeMap::new();
    eventually("inbound, each principal has its requests", || {
        last = by("source_principal", &ask(inbound));
        (last == expected).then_some(())
    });
    let outbound = "sum by (source_workload) (heddle_requests_total{direction=\"outbound\",response_code=\"200\"})";
    eventually("outbound, each workload has them", || {
        (by("source_workload", &ask(outbound)) == BTreeMap::from([("web".into(), 30.0), ("batch".into(), 14.0)]))
            .then_some(())
    });
    let services = "sum by (destination_service) (heddle_requests_total{direction=\"outbound\"})";
    assert_eq!(by("destination_service", &ask(services)), BTreeMap::from([("api".into(), 37.0), ("cart".into(), 7.0)]));
    let tcp = ask("sum(heddle_tcp_connections_closed_total{destination_service=\"stock\",direction=\"outbound\"})");
    assert_eq!(by("", &tcp), BTreeMap::from([(String::new(), 1.0)]));
    let quantile = "histogram_quantile(0.99, sum by (le) (heddle_request_duration_seconds_bucket))";
    let p99 = by("", &ask(quantile))[""];
    assert!(p99 > 0.0 && p99 <= 10.0, "{p99} s");
    let streams = by("", &ask("sum(heddle_xds_streams{dialect=\"heddle\"})"));
    assert_eq!(streams, BTreeMap::from([(String::new(), 6.0)]));
    let expiry = ask("heddle_certificate_expiry_timestamp_seconds - time() > 3600");
    assert_eq!(expiry.len(), 6, "{expiry:?}");
}
