//! What goes wrong on purpose, with a real control plane, by this sidecar and by a real Envoy.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::Write;
use std::time::{Duration, Instant};

use heddle_tests::clients::{Clients, WORKLOADS};
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::wire::Reader;
use heddle_tests::{eventually, metrics, origin, talk};

#[test]
fn a_share_of_the_requests_that_have_the_header_is_delayed_and_aborted() {
    let workloads = [&WORKLOADS[..], &[("api", 10, "api", "api")]].concat();
    let manifests = format!("{}{ROUTE}{POLICY}", shop(&workloads, &[("api", 1, "api")]));
    let mesh = LiveMesh::start(&[("shop.yaml", &manifests)]);
    let server = mesh.workload("api", 10, "api", 1);
    origin::echo(&server, 8080, "api");
    let clients = Clients::start(&mesh, env!("CARGO_BIN_EXE_heddle-under-test"));
    let fault = |spec: &str| mesh.apply("fault.yaml", &FAULT.replace("SPEC", spec));
    // An Envoy takes a second to close a connection after an answer of its own.
    let ask = |pod: &MeshPod, field: &str| {
        let mut answers = Reader::new(talk::connect(pod, vip(1)));
        write!(answers.stream(), "GET / HTTP/1.1\r\nHost: api\r\n{field}\r\n").unwrap();
        answers.response(false).unwrap().status()
    };
    for (sidecar, pod) in clients.each() {
        assert_eq!(ask(pod, ""), 500, "{sidecar}: nobody has said yet what goes wrong");
    }

    fault("abort: { httpStatus: 418, percent: 50 }, headers: [{ name: X-Test, value: \"1\" }]");
    for (sidecar, pod) in clients.each() {
        eventually(&format!("{sidecar}: some are aborted"), || (ask(pod, "x-test: 1\r\n") == 418).then_some(()));
        let aborted = (0..200).filter(|_| ask(pod, "x-test: 1\r\n") == 418).count();
        // Five standard deviations of a fair coin's two hundred throws.
        assert!((65..=135).contains(&aborted), "{sidecar}: {aborted} of 200");
        assert!((0..20).all(|_| ask(pod, "x-test: 2\r\n") == 200), "{sidecar}: without the header");
    }
    let page = metrics::page(&clients.heddle);
    let aborts = metrics::sum(&page, "heddle_faults_injected_total", &["fault=\"abort\""]);
    let failed = metrics::sum(&page, "heddle_requests_total", &["cause=\"fault_injected\""]);
    assert!(aborts > 0.0 && aborts == failed, "{page}");

    // Longer than the request may take, which it does not count towards.
    fault("delay: { duration: 1500ms }");
    for (sidecar, pod) in clients.each() {
        eventually(&format!("{sidecar}: requests are delayed and then sent"), || {
            let begun = Instant::now();
            let answer = ask(pod, "x-test: 1\r\n");
            (answer == 200 && begun.elapsed() >= Duration::from_millis(1500)).then_some(())
        });
    }
    drop(server);
}

const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: shop }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: api, port: 80 }]
  rules:
  - filters: [{ type: ExtensionRef, extensionRef: { group: heddle.dev, kind: FaultInjection, name: test } }]
    backendRefs: [{ name: api, port: 80 }]
";
const POLICY: &str = "---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: api, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: api }], timeouts: { request: 1s } }
";
const FAULT: &str = "
apiVersion: heddle.dev/v1alpha1
kind: FaultInjection
metadata: { name: test, namespace: shop }
spec: { SPEC }
";
