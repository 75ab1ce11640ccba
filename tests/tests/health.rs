//! Endpoints that are asked whether they are well, with a real control plane, by this sidecar and by a real Envoy.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use heddle_tests::clients::{Clients, WORKLOADS};
use heddle_tests::live::{LiveMesh, shop, vip};
use heddle_tests::pods::MeshPod;
use heddle_tests::{eventually, metrics, origin, talk};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};

/// Two clients, one of them with an Envoy, and two servers whose health is the test's to say. What is declared first is
/// stopped first.
struct World {
    clients: Clients,
    _servers: [MeshPod; 2],
    well: [Arc<AtomicBool>; 2],
    mesh: LiveMesh,
}

impl World {
    fn new(policy: &str) -> Self {
        let servers = [("api-a", 10, "api", "api"), ("api-b", 11, "api", "api")];
        let manifests = shop(&[&WORKLOADS[..], &servers[..]].concat(), &[("api", 1, "api")]);
        let mesh = LiveMesh::start(&[("shop.yaml", &manifests), ("policy.yaml", &POLICY.replace("CHECK", policy))]);
        let well = [(); 2].map(|()| Arc::new(AtomicBool::new(true)));
        let servers = [("api-a", 10, &well[0]), ("api-b", 11, &well[1])].map(|(name, number, well)| {
            let pod = mesh.workload(name, number, "api", 1);
            let well = well.clone();
            origin::http(&pod, 8080, move |request| answer(name, &request, well.load(Ordering::SeqCst)));
            pod
        });
        let clients = Clients::start(&mesh, env!("CARGO_BIN_EXE_heddle-under-test"));
        Self { clients, _servers: servers, well, mesh }
    }

    fn say(&self, well: [bool; 2]) {
        self.well.iter().zip(well).for_each(|(place, well)| place.store(well, Ordering::SeqCst));
    }

    /// Waits until both clients reach these servers and no others.
    fn reached(&self, expected: &[&str]) {
        for (sidecar, pod) in self.clients.each() {
            eventually(&format!("{sidecar} reaches {expected:?}"), || {
                let answers = (0..20).map(|_| talk::get(pod, vip(1), "/"));
                let seen: BTreeSet<_> = answers.map(|answer| (answer.status(), answer.body)).collect();
                seen.iter()
                    .map(|(status, body)| (*status, body.as_str()))
                    .eq(expected.iter().map(|name| (200, *name)))
                    .then_some(())
            });
        }
    }
}

/// Whether it is well or not, it answers requests.
fn answer(
    name: &'static str,
    request: &Request<Bytes>,
    well: bool,
) -> Response<BoxBody<Bytes, std::convert::Infallible>> {
    match request.uri().path() {
        "/healthz" => Response::builder().status(if well { 204 } else { 503 }).body(Full::default().boxed()).unwrap(),
        "/grpc.health.v1.Health/Check" => {
            // A message's head, and `status` as SERVING or NOT_SERVING.
            let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, if well { 1 } else { 2 }]);
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            let body = Full::from(message).with_trailers(std::future::ready(Some(Ok(trailers))));
            Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap()
        }
        _ => Response::new(Full::from(name).boxed()),
    }
}

#[test]
fn who_says_over_http_that_it_is_not_well_gets_no_requests_until_it_is() {
    let world = World::new("http: { path: /healthz, codes: [204] }");
    world.reached(&["api-a", "api-b"]);
    world.say([false, true]);
    world.reached(&["api-b"]);
    world.say([true, true]);
    world.reached(&["api-a", "api-b"]);
    world.say([false, false]);
    eventually("neither is well", || {
        let page = metrics::page(&world.clients.heddle);
        (metrics::sum(&page, "heddle_health_check_unwell", &[]) == 2.0).then_some(())
    });
    world.reached(&["api-a", "api-b"]);
    // To another question both say yes.
    world.mesh.apply("policy.yaml", &POLICY.replace("CHECK", "http: { path: / }"));
    eventually("both are asked for something else", || {
        let page = metrics::page(&world.clients.heddle);
        (metrics::sum(&page, "heddle_health_check_unwell", &[]) == 0.0).then_some(())
    });
}

#[test]
fn who_says_over_grpc_that_it_is_not_serving_gets_no_requests_until_it_is() {
    let world = World::new("grpc: { service: shop.Api }");
    world.reached(&["api-a", "api-b"]);
    world.say([true, false]);
    world.reached(&["api-a"]);
    world.say([true, true]);
    world.reached(&["api-a", "api-b"]);
}

#[test]
fn who_takes_no_connection_for_its_application_is_not_well() {
    let workloads = [("client", 2, "client", "client"), ("api-a", 10, "api", "api"), ("api-b", 11, "api", "api")];
    let manifests = shop(&workloads, &[("api", 1, "api")]);
    let mesh = LiveMesh::start(&[("shop.yaml", &manifests), ("policy.yaml", &POLICY.replace("CHECK", "tcp: {}"))]);
    let servers = [("api-a", 10), ("api-b", 11)].map(|(name, number)| mesh.workload(name, number, "api", 1));
    origin::echo(&servers[0], 8080, "api-a");
    let client = mesh.workload("client", 2, "client", 1);
    assert_eq!(talk::get(&client, vip(1), "/").status(), 200);
    let unwell = |count: f64| {
        let page = metrics::page(&client);
        (metrics::sum(&page, "heddle_health_check_unwell", &[]) == count).then_some(())
    };
    eventually("the one without its application is not well", || unwell(1.0));
    origin::echo(&servers[1], 8080, "api-b");
    eventually("with it, it is", || unwell(0.0));
}

/// As quick as can be asked.
const POLICY: &str = "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: api, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: api }]
  loadBalancing: { policy: RoundRobin }
  healthCheck: { CHECK, interval: 100ms, unhealthyThreshold: 2, healthyThreshold: 1 }
";
