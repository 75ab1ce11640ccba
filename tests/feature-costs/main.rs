//! What each feature of traffic costs where it is on: instructions of the client's sidecar for one request.
//!
//! ```text
//! cargo run --release -p heddle-tests --bin feature-costs        (root, and Debian's valgrind)
//! ```
//!
//! A client's pod with a sidecar of one worker, two servers without one; requests of HTTP/1.1, one after another on one connection,
//! 1 KiB back. Valgrind counts the instructions of the sidecar's process, kernel and waiting not among them: with few requests and
//! with many, so that what is the same for both goes away. Time would tell nothing on a machine that others use too; these figures
//! hold for one compiler and one processor's instructions, and differ by a few hundred from run to run.
//!
//! It is also the `heddle` it needs: started as `feature-costs proxy …` or `feature-costs pod-exec …` it is that command.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a table is its purpose; what is missing ends it")]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::wire::Reader;
use heddle_tests::{origin, talk};
use http::Response;
use http_body_util::Full;

/// Valgrind makes everything some fifty times slower.
const START: Duration = Duration::from_secs(120);
const FEW: u32 = 300;
const MANY: u32 = 2_300;

fn main() -> anyhow::Result<()> {
    if matches!(std::env::args().nth(1).as_deref(), Some("proxy" | "pod-exec")) {
        return heddle::main();
    }
    let workloads = [("client", 2, "client", "client"), ("api-a", 10, "api", "api"), ("api-b", 11, "api", "api")];
    let manifests = shop(&workloads, &[("api", 1, "api")]);
    let manifests = manifests.replace("serviceAccountName: api", "serviceAccountName: api\n  meshed: false");
    let mesh = LiveMesh::start(&[("shop.yaml", &manifests)]);
    let servers = [("api-a", 10), ("api-b", 11)].map(|(name, number)| {
        let pod = mesh.pod(name, number);
        origin::http(&pod, 8080, |_| Response::new(Full::from("x".repeat(1024))));
        pod
    });
    let client = mesh.pod("client", 2);
    mesh.capture(&client);
    let mut base = None;
    for (name, objects) in FEATURES {
        let mut file = None;
        if !objects.is_empty() {
            file = Some(mesh.apply("feature.yaml", &written(objects)));
        }
        let [few, many] = [FEW, MANY].map(|requests| instructions(&mesh, &client, requests));
        let cost = many.saturating_sub(few) / u64::from(MANY - FEW);
        let base = *base.get_or_insert(cost);
        println!("{name:<60} {cost:>8} {:>+8}", cost.cast_signed() - base.cast_signed());
        file.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    }
    drop(servers);
    Ok(())
}

/// Of a fresh sidecar, from its start to its end.
fn instructions(mesh: &LiveMesh, client: &MeshPod, requests: u32) -> u64 {
    let report = mesh.directory().join("valgrind.log");
    let mut sidecar = start(mesh, client, &report);
    let begun = Instant::now();
    let mut answers = loop {
        if let Some(ended) = sidecar.0.try_wait().unwrap() {
            panic!("the sidecar ended, {ended}:\n{}", std::fs::read_to_string(&report).unwrap_or_default());
        }
        assert!(begun.elapsed() < START, "no answer within {START:?}");
        if is_ready(client) {
            // The control plane's answer may take longer than a connection waits for it.
            let mut answers = Reader::new(talk::connect(client, vip(1)));
            answers.stream().write_all(REQUEST).unwrap();
            if answers.response(false).is_ok_and(|answer| answer.status() == 200) {
                break answers;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    for _ in 0..requests {
        answers.stream().write_all(REQUEST).unwrap();
        assert_eq!(answers.response(false).unwrap().status(), 200);
    }
    drop(answers);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(sidecar.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    sidecar.0.wait().unwrap();
    let report = std::fs::read_to_string(report).unwrap();
    let line = report.lines().find_map(|line| line.split_once("refs:")).unwrap_or_else(|| panic!("{report}"));
    line.1.trim().replace(',', "").parse().unwrap()
}

fn is_ready(client: &MeshPod) -> bool {
    let page = SocketAddr::from(([127, 0, 0, 1], 15020));
    let listens = client.netns().run(|| TcpStream::connect(page)).unwrap().is_ok();
    listens && talk::request(client, page, "GET /ready HTTP/1.0\r\n\r\n").status() == 200
}

/// A process that does not outlive this one's failure.
struct Sidecar(Child);

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It has ended unless something failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Under Valgrind: of what [`LiveMesh::sidecar_command`] says, what follows `--` is the program. What stands before ties it to the
/// thread that starts it, which here ends at once.
fn start(mesh: &LiveMesh, client: &MeshPod, report: &Path) -> Sidecar {
    let own = std::env::current_exe().unwrap();
    let plain = mesh.sidecar_command(own.to_str().unwrap(), "client", "client", 1);
    let mut command = Command::new("valgrind");
    command.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    command.arg(format!("--log-file={}", report.display()));
    command.args(plain.get_args().skip_while(|argument| *argument != "--").skip(1));
    Sidecar(client.netns().run(|| command.spawn()).unwrap().unwrap())
}

/// The first word says which object; what follows is its spec, for a route that of its rule.
fn written(objects: &str) -> String {
    let one = |text: &str| match text.split_once(' ').unwrap() {
        ("policy", spec) => format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: api, namespace: shop }}\n\
             spec: {{ targetRefs: [{{ kind: Service, name: api }}], {spec} }}\n"
        ),
        ("fault", spec) => format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: FaultInjection\nmetadata: {{ name: api, namespace: shop }}\n\
             spec: {{ {spec} }}\n"
        ),
        (_, rule) => format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: api, namespace: shop }}\n\
             spec:\n  parentRefs: [{{ group: \"\", kind: Service, name: api, port: 80 }}]\n  \
             rules: [{{ backendRefs: [{{ name: api, port: 80 }}], {rule} }}]\n"
        ),
    };
    objects.split("; ").map(one).collect::<Vec<_>>().join("---\n")
}

const REQUEST: &[u8] = b"GET /a/b?user=7 HTTP/1.1\r\nHost: api\r\nx-user: 7\r\nOrigin: https://shop.example\r\n\r\n";

const FEATURES: &[(&str, &str)] = &[
    ("nothing but what is on by default", ""),
    ("a route that matches everything", "route matches: [{ path: { value: / } }]"),
    (
        "match: path prefix, header, query",
        "route matches: [{ path: { value: /a }, headers: [{ name: x-user, value: \"7\" }], queryParams: [{ name: user, value: \"7\" }] }]",
    ),
    ("match: path by expression", "route matches: [{ path: { type: RegularExpression, value: \"/a/[a-z]+\" } }]"),
    (
        "RequestHeaderModifier: set, add, remove",
        "route filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-a, value: \"1\" }], add: [{ name: x-b, value: \"1\" }], remove: [x-c] } }]",
    ),
    (
        "ResponseHeaderModifier: set",
        "route filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-a, value: \"1\" }] } }]",
    ),
    (
        "URLRewrite: host and prefix",
        "route matches: [{ path: { value: /a } }], filters: [{ type: URLRewrite, urlRewrite: { hostname: inner, path: { type: ReplacePrefixMatch, replacePrefixMatch: /c } } }]",
    ),
    ("CORS", "route filters: [{ type: CORS, cors: { allowOrigins: [\"https://*.example\"] } }]"),
    (
        "RequestMirror: all",
        "route filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: api, port: 80 } } }]",
    ),
    ("session by cookie", "route sessionPersistence: { sessionName: s }"),
    (
        "fault that hits none",
        "route filters: [{ type: ExtensionRef, extensionRef: { group: heddle.dev, kind: FaultInjection, name: api } }]; fault abort: { httpStatus: 503, percent: 0 }",
    ),
    ("timeouts.request", "policy timeouts: { request: 10s }"),
    ("timeouts.idle", "policy timeouts: { idle: 10s }"),
    ("retry that is not needed", "policy retry: { attempts: 2, codes: [503] }"),
    ("hedge that is not needed", "policy hedge: { delay: 10s }"),
    ("loadBalancing: LeastRequest", "policy loadBalancing: { policy: LeastRequest }"),
    ("loadBalancing: RoundRobin", "policy loadBalancing: { policy: RoundRobin }"),
    ("loadBalancing: Random", "policy loadBalancing: { policy: Random }"),
    (
        "loadBalancing: RingHash on a header",
        "policy loadBalancing: { policy: RingHash, hashOn: [{ type: Header, name: x-user }] }",
    ),
    (
        "loadBalancing: Maglev on a query parameter",
        "policy loadBalancing: { policy: Maglev, hashOn: [{ type: QueryParam, name: user }] }",
    ),
    ("slowStart", "policy loadBalancing: { policy: RoundRobin, slowStart: 30s }"),
    ("outlierDetection: off", "policy outlierDetection: { consecutiveFailures: 0 }"),
    (
        "outlierDetection: success rate and latency",
        "policy outlierDetection: { successRateStdevFactor: 1900, latencyPercent: 300 }",
    ),
    ("healthCheck, all well", "policy healthCheck: { tcp: {} }"),
    ("healthCheck, none well", "policy healthCheck: { http: { path: /, codes: [204] } }"),
    ("connections: age and requests", "policy connections: { maxAge: 1h, maxRequests: 100000 }"),
];
