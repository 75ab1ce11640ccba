//! How many requests an application gets at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heddle_tests::envoy::Envoy;
use heddle_tests::live::{LiveMesh, shop};
use heddle_tests::pods::MeshPod;
use heddle_tests::{eventually, metrics, origin};
use http::Response;
use http_body_util::Full;
use tokio::sync::Semaphore;

use super::{DRAINS, LIMIT, ask};

/// Serves four at once, each for 5 ms; returns the most that were with it at once.
fn narrow(pod: &MeshPod) -> Arc<AtomicUsize> {
    let most = Arc::new(AtomicUsize::new(0));
    let (seen, shared) = (most.clone(), Arc::new((AtomicUsize::new(0), Semaphore::new(4))));
    origin::http_in_time(pod, 8080, move |_| {
        let (shared, most) = (shared.clone(), seen.clone());
        async move {
            let (inside, servers) = &*shared;
            most.fetch_max(inside.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            let place = servers.acquire().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
            drop(place);
            inside.fetch_sub(1, Ordering::Relaxed);
            Response::new(Full::from("served"))
        }
    });
    most
}

/// Asks as a crowd until `enough`; the statuses that came.
fn crowd(pod: &MeshPod, enough: impl Fn() -> bool + Sync) -> Vec<u16> {
    let (over, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..CROWD {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let status = ask(pod, "/", "").status();
                    seen.lock().unwrap().push(status);
                }
            });
        }
        // Also when the deadline passes, or the scope would wait for ever.
        let _end = End(&over);
        eventually("the crowd has seen enough", || enough().then_some(()));
    });
    seen.into_inner().unwrap()
}

struct End<'o>(&'o AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_application_gets_no_more_at_once_than_leaves_it_its_latency() {
    let workloads = [("anna", 2, "anna", "anna"), ("api", 10, "api", "api")];
    let mesh = LiveMesh::start(&[("shop.yaml", &shop(&workloads, &[("api", 1, "api")]))]);
    let server = mesh.workload("api", 10, "api", 2);
    let most = narrow(&server);
    let anna = mesh.workload("anna", 2, "anna", 1);
    let concurrency = |spec: &str| mesh.apply("limit.yaml", &LIMIT.replace("SPEC", spec));
    let of = |name: &str, labels: &[&str]| metrics::sum(&metrics::page(&server), name, labels);
    let limit = || of("heddle_concurrency_limit", &["limit=\"shop/api\"", "port=\"8080\""]);
    concurrency("concurrency: { minimum: 2, maximum: 100 }");
    eventually("the limit is in force", || (limit() == 100.0).then_some(()));

    let seen = crowd(&anna, || limit() <= 20.0);

    assert!(seen.contains(&200), "{seen:?}");
    assert!(seen.iter().all(|status| [200, 503].contains(status)), "{seen:?}");
    // Alone it is served, however small the limit became.
    most.store(0, Ordering::Relaxed);
    assert!((0..20).all(|_| ask(&anna, "/", "").status() == 200));
    assert_eq!(most.load(Ordering::Relaxed), 1);

    concurrency("concurrency: { minimum: 1, maximum: 1 }");
    eventually("one at once", || (limit() == 1.0).then_some(()));
    most.store(0, Ordering::Relaxed);
    let seen = crowd(&anna, || of("heddle_requests_total", &["cause=\"concurrency_limited\""]) > 20.0);
    assert!(seen.contains(&200), "{seen:?}");
    let ejections = metrics::sum(&metrics::page(&anna), "heddle_outlier_ejections_total", &[]);
    assert_eq!(ejections, 0.0, "that it refuses some says nothing of the endpoint");
    assert_eq!(most.load(Ordering::Relaxed), 1, "over all workers");

    concurrency("concurrency: { minimum: 1, maximum: 2 }, dryRun: true");
    eventually("in dry run", || (limit() == 2.0).then_some(()));
    let seen = crowd(&anna, || of("heddle_rate_limit_total", &["decision=\"would_deny\""]) > 20.0);
    assert!(seen.iter().all(|status| *status == 200), "{seen:?}");
}

#[test]
fn an_envoy_lets_in_no_more_either() {
    let workloads = [("anna", 2, "anna", "anna"), ("api", 10, "api", "api")];
    let limit = LIMIT.replace("SPEC", "concurrency: { minimum: 1, maximum: 1 }");
    let mesh = LiveMesh::start(&[("shop.yaml", &shop(&workloads, &[("api", 1, "api")])), ("limit.yaml", &limit)]);
    let server = mesh.pod("api", 10);
    let _envoy = Envoy::start(&mesh, &server, env!("CARGO_BIN_EXE_heddle-under-test"), "api", "api", &DRAINS);
    let most = narrow(&server);
    let anna = mesh.workload("anna", 2, "anna", 1);
    eventually("it answers", || (ask(&anna, "/", "").status() == 200).then_some(()));

    let seen = crowd(&anna, || {
        metrics::sum(&metrics::page(&anna), "heddle_requests_total", &["response_code=\"503\""]) > 20.0
    });

    assert!(seen.contains(&200), "{seen:?}");
    assert_eq!(most.load(Ordering::Relaxed), 1);
}

const CROWD: usize = 40;
