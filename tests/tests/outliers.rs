//! Endpoints that are left out: what tells them, between sidecars over mutual TLS.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use heddle_proxy::balance::outlier::{self, Statistics};
use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::cluster::{LoadBalancing, Settings};
use heddle_proxy::tables::listener::Protocol;
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::{eventually, metrics, origin, tables, talk};
use http::{Response, StatusCode};
use http_body_util::Full;
use socket2::SockRef;

/// A Service with servers `a` and `b`, asked in turn.
struct Service {
    servers: [MeshPod; 2],
    client: MeshPod,
}

impl Service {
    fn new(mesh: &Mesh, protocol: Protocol, outlier: outlier::Settings) -> Self {
        let servers = [("server-a", 10), ("server-b", 11)].map(|(name, number)| {
            let mut server = mesh.pod(name, number);
            server.meshed_sidecar(mesh, 1, tables::inbound(name, tables::port(protocol, TlsMode::Strict)));
            server
        });
        let endpoints = servers.iter().map(|server| tables::meshed(server.v4(8080), &server.spiffe_id())).collect();
        let settings = Settings { policy: LoadBalancing::RoundRobin, outlier: Some(outlier), ..Settings::default() };
        let mut known = tables::nothing("client");
        tables::destination(
            &mut known,
            vip(),
            protocol,
            tables::rule(vec![(1, tables::cluster("api", endpoints, settings))]),
        );
        let mut client = mesh.pod("client", 2);
        client.meshed_sidecar(mesh, 2, known);
        Self { servers, client }
    }

    /// `a` answers so, `b` well.
    fn answering(&self, status: StatusCode, retry_after: Option<&'static str>) -> Arc<AtomicUsize> {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        origin::http(&self.servers[0], 8080, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let response = Response::builder().status(status);
            let response =
                retry_after.into_iter().fold(response, |response, value| response.header("retry-after", value));
            response.body(Full::from("a")).unwrap()
        });
        origin::echo(&self.servers[1], 8080, "b");
        asked
    }

    fn ask(&self, times: usize) {
        (0..times).for_each(|_| drop(talk::get(&self.client, vip(), "/")));
    }

    /// How many were ejected, by what told them.
    fn ejected(&self, detector: &str) -> f64 {
        let labels = [&*format!("detector=\"{detector}\"")];
        metrics::sum(&metrics::page(&self.client), "heddle_outlier_ejections_total", &labels)
    }
}

fn vip() -> SocketAddr {
    ([10, 96, 0, 1], 80).into()
}

fn only(adapt: impl FnOnce(&mut outlier::Settings)) -> outlier::Settings {
    let mut settings = outlier::Settings { consecutive_failures: 0, ..outlier::Settings::default() };
    adapt(&mut settings);
    settings
}

#[test]
fn gateway_errors_eject_where_other_errors_do_not() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh, Protocol::Http, only(|outlier| outlier.consecutive_gateway_errors = 3));
    let asked = service.answering(StatusCode::SERVICE_UNAVAILABLE, None);
    service.ask(20);
    assert_eq!((asked.load(Ordering::SeqCst), service.ejected("gateway_errors")), (3, 1.0));
    drop(service);

    let mesh = Mesh::new();
    let service = Service::new(&mesh, Protocol::Http, only(|outlier| outlier.consecutive_gateway_errors = 3));
    let asked = service.answering(StatusCode::INTERNAL_SERVER_ERROR, None);
    service.ask(20);
    assert_eq!((asked.load(Ordering::SeqCst), service.ejected("gateway_errors")), (10, 0.0));
}

#[test]
fn an_endpoint_without_its_application_is_ejected_as_unreachable() {
    let mesh = Mesh::new();
    let local = only(|outlier| outlier.consecutive_local_origin_failures = 3);
    let service = Service::new(&mesh, Protocol::Http, local);
    origin::echo(&service.servers[1], 8080, "b");
    service.ask(20);
    assert_eq!(service.ejected("local_origin_failures"), 1.0);
}

#[test]
fn an_endpoint_that_is_slower_than_the_others_is_ejected_after_an_interval() {
    let mesh = Mesh::new();
    let statistics = Statistics {
        interval: Duration::from_millis(200),
        minimum_hosts: 2,
        request_volume: 1,
        success_rate_stdev_factor: None,
        latency_percent: Some(500),
    };
    let service = Service::new(&mesh, Protocol::Http, only(|outlier| outlier.statistics = Some(statistics)));
    origin::http_in_time(&service.servers[0], 8080, |_| async {
        tokio::time::sleep(Duration::from_millis(40)).await;
        Response::new(Full::from("a"))
    });
    origin::echo(&service.servers[1], 8080, "b");
    eventually("the slow one is ejected", || {
        service.ask(2);
        (service.ejected("latency") >= 1.0).then_some(())
    });
}

#[test]
fn an_endpoint_that_asks_to_be_left_alone_is() {
    let mesh = Mesh::new();
    let service = Service::new(&mesh, Protocol::Http, outlier::Settings::default());
    let asked = service.answering(StatusCode::TOO_MANY_REQUESTS, Some("30"));
    service.ask(20);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn connections_that_are_reset_before_they_bring_anything_are_failures() {
    let mesh = Mesh::new();
    let service =
        Service::new(&mesh, Protocol::Tcp, outlier::Settings { consecutive_failures: 3, ..Default::default() });
    origin::tcp(&service.servers[0], 8080, |stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap());
    origin::tcp(&service.servers[1], 8080, |mut stream| drop(stream.write_all(b"hello")));
    let connect = || talk::try_from(service.client.netns(), vip(), "");
    let empty = (0..20).filter(|_| connect().is_empty()).count();
    assert_eq!((empty, service.ejected("consecutive_failures")), (3, 1.0));
}
