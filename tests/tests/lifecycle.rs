//! How a sidecar ends: draining tells every connection to go and serves all of it, SIGTERM finishes what is in flight,
//! and a workload that is killed costs no request where there is another one.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use bytes::Bytes;
use heddle::pods::Child;
use heddle_proxy::tables::TlsMode;
use heddle_proxy::tables::cluster::{LoadBalancing, Settings};
use heddle_proxy::tables::listener::Protocol;
use heddle_tests::live::{self, LiveMesh, shop};
use heddle_tests::pods::{Mesh, MeshPod};
use heddle_tests::programs::Program;
use heddle_tests::service::vip;
use heddle_tests::wire::{Broken, Message, Reader};
use heddle_tests::{PATIENCE, eventually, h2c, metrics, origin, tables, talk};
use http::{Request, Response};
use http_body_util::Full;
use nix::sys::signal::Signal;

/// This crate's copy of the `heddle` binary.
const HEDDLE: &str = env!("CARGO_BIN_EXE_heddle-under-test");
/// The sidecar's own port for its pod.
const ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 15000);
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: api\r\n\r\n";

// ---- draining ----

/// Client and server with sidecars; [`vip`] leads to the server's port 8080 over mutual TLS, and everybody may call it.
struct Drained {
    client: MeshPod,
    server: MeshPod,
    stranger: MeshPod,
    // After the pods on it.
    _mesh: Mesh,
}

impl Drained {
    fn new(workers: usize) -> Self {
        let mesh = Mesh::new();
        let [mut client, mut server, stranger] =
            [("client", 2), ("server", 3), ("stranger", 9)].map(|(name, number)| mesh.pod(name, number));
        let port = tables::port(Protocol::Detect, TlsMode::Permissive);
        server.meshed_sidecar(&mesh, workers, tables::inbound("server", port));
        let mut known = tables::nothing("client");
        let endpoint = tables::meshed(server.v4(8080), &server.spiffe_id());
        let cluster = tables::cluster("api", vec![endpoint], Settings::default());
        tables::destination(&mut known, vip(), Protocol::Detect, tables::rule(vec![(1, cluster)]));
        client.meshed_sidecar(&mesh, workers, known);
        Self { client, server, stranger, _mesh: mesh }
    }

    /// Who sees a sidecar's own connections, whose sidecar that is, and where they are made to.
    fn sides(&self) -> [(&MeshPod, &MeshPod, SocketAddr); 2] {
        [(&self.stranger, &self.server, self.server.v4(8080)), (&self.client, &self.client, vip())]
    }
}

fn drain(pod: &MeshPod) {
    let response = talk::request(pod, ADMIN.into(), "POST /drain HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((response.status(), response.body.as_str()), (200, "draining\n"));
}

fn exchange(connection: &mut Reader<TcpStream>) -> Message {
    connection.stream().write_all(GET).unwrap();
    let response = connection.response(false).unwrap();
    assert_eq!(response.status(), 200, "{response:?}");
    response
}

#[test]
fn a_draining_sidecar_answers_every_http1_request_with_connection_close_and_serves_new_connections() {
    for workers in [1, 3] {
        let pods = Drained::new(workers);
        origin::echo(&pods.server, 8080, "server");
        for (from, draining, to) in pods.sides() {
            let mut kept = Reader::new(talk::connect(from, to));
            assert_eq!(exchange(&mut kept).field("connection"), None);
            let mut through = Reader::new(talk::connect(&pods.client, vip()));
            exchange(&mut through);

            drain(draining);

            for connection in [&mut kept, &mut Reader::new(talk::connect(from, to))] {
                assert_eq!(exchange(connection).field("connection"), Some("close"), "{workers} workers, {to}");
                assert_eq!(connection.response(false), Err(Broken::End), "and it is closed");
            }
            // Between sidecars it is their own affair: the application's connection stays if its own sidecar does.
            let expected = (draining.pod.name == "client").then_some("close");
            assert_eq!(exchange(&mut through).field("connection"), expected);
            let ready = talk::request(draining, ADMIN.into(), "GET /ready HTTP/1.0\r\n\r\n");
            assert_eq!(ready.status(), 200, "a pod that ends by itself is not reported as broken");
        }
    }
}

/// An HTTP/2 application whose requests to `/held` wait for [`Held::release`].
struct Held {
    waiting: Arc<AtomicUsize>,
    release: tokio::sync::watch::Sender<bool>,
}

impl Held {
    fn serve(pod: &MeshPod, port: u16) -> Self {
        let waiting = Arc::new(AtomicUsize::new(0));
        let (release, released) = tokio::sync::watch::channel(false);
        let count = waiting.clone();
        h2c::origin(pod, port, move |request, mut respond| {
            let (count, mut released) = (count.clone(), released.clone());
            async move {
                if request.uri().path() == "/held" {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = released.wait_for(|released| *released).await;
                }
                if let Ok(mut body) = respond.send_response(Response::new(()), false) {
                    let _ = body.send_data(Bytes::from_static(b"served"), true);
                }
            }
        });
        Self { waiting, release }
    }

    async fn until_waiting(&self) {
        while self.waiting.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// A connection whose server has said what it has to say at the beginning: what clients wait for that use a connection
/// only then, as those of gRPC do.
async fn greeted(pod: &MeshPod, to: SocketAddr) -> h2c::Client {
    /// As `http/serve.rs` announces it, and no client's default.
    const MAX_STREAMS: usize = 250;
    let client = h2c::connect(pod, to).await;
    while client.streams.current_max_send_streams() != MAX_STREAMS && !client.connection.is_finished() {
        tokio::task::yield_now().await;
    }
    client
}

#[test]
fn a_draining_sidecar_sends_goaway_finishes_open_streams_and_serves_new_connections() {
    for workers in [1, 3] {
        let pods = Drained::new(workers);
        for (from, draining, to) in pods.sides() {
            // One application for each side, since a released one holds nothing any more.
            let to = if to == vip() { to } else { pods.server.v4(8081) };
            let held = Held::serve(&pods.server, if to == vip() { 8080 } else { 8081 });
            h2c::run(async {
                let [open, idle] = [greeted(from, to).await, greeted(from, to).await];
                assert_eq!(idle.get("/").await.unwrap().status(), 200);
                let under_way = open.get("/held");
                let told = async {
                    held.until_waiting().await;
                    drain(draining);
                    // GOAWAY: nothing new goes on it.
                    while open.streams.clone().ready().await.is_ok() {
                        tokio::task::yield_now().await;
                    }
                    assert!(idle.connection.await.unwrap().is_ok(), "an idle connection ends in order");
                    held.release.send_replace(true);
                };
                let (answer, ()) = tokio::join!(under_way, told);
                assert_eq!(answer.unwrap().body, "served", "{workers} workers, {to}");
                assert!(open.connection.await.unwrap().is_ok(), "so does one whose last stream has ended");

                for _ in 0..20 {
                    let new = greeted(from, to).await;
                    assert_eq!(new.get("/").await.unwrap().status(), 200, "{workers} workers, {to}");
                    assert!(new.connection.await.unwrap().is_ok(), "it is told to go as well, after it was of use");
                }
            });
        }
    }
}

#[test]
fn opaque_connections_outlast_draining_and_new_ones_are_served() {
    for workers in [1, 3] {
        let pods = Drained::new(workers);
        origin::greets(&pods.server, 8080, "hi ");
        let mut kept = talk::connect(&pods.client, vip());
        let mut greeting = [0; 3];
        kept.read_exact(&mut greeting).unwrap();
        drain(&pods.client);
        drain(&pods.server);
        assert_eq!(talk::exchange_half_closed(&pods.client, vip(), "new"), b"hi NEW");
        kept.write_all(b"kept").unwrap();
        kept.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(talk::read_to_end(&mut kept), b"KEPT");
    }
}

#[test]
fn callers_turn_away_from_a_draining_sidecar_at_its_first_answer_and_the_application_never_hears_of_it() {
    for workers in [1, 3] {
        let mesh = Mesh::new();
        let mut client = mesh.pod("client", 2);
        let names = ["leaving", "staying"];
        let mut servers = [3, 4].map(|number| mesh.pod(names[usize::from(number - 3)], number));
        for (server, name) in servers.iter_mut().zip(names) {
            server.meshed_sidecar(
                &mesh,
                workers,
                tables::inbound(name, tables::port(Protocol::Detect, TlsMode::Strict)),
            );
            origin::echo(server, 8080, name);
        }
        let mut known = tables::nothing("client");
        let endpoints = servers.iter().map(|server| tables::meshed(server.v4(8080), &server.spiffe_id())).collect();
        let settings = Settings { policy: LoadBalancing::RoundRobin, ..Settings::default() };
        let cluster = tables::cluster("api", endpoints, settings);
        tables::destination(&mut known, vip(), Protocol::Detect, tables::rule(vec![(1, cluster)]));
        client.meshed_sidecar(&mesh, workers, known);
        let ask = || {
            let answer = talk::get(&client, vip(), "/");
            assert_eq!((answer.status(), answer.field("x-heddle-draining")), (200, None), "{answer:?}");
            answer.body.contains("leaving\n")
        };
        eventually("both are asked", || ask().then_some(()));

        drain(&servers[0]);
        eventually("it has answered once more", || ask().then_some(()));
        assert!((0..40).all(|_| !ask()), "{workers} workers");

        drain(&servers[1]);
        let answered: Vec<_> = (0..8).map(|_| ask()).collect();
        assert!(
            answered.contains(&true) && answered.contains(&false),
            "where nobody stays, all serve on: {answered:?}"
        );
    }
}

/// Load from one client: requests one after another until the other end of the channel is gone; how many. A connection
/// is left when it says so; anything else that keeps a request from its answer 200 fails the test.
type Load = fn(&MeshPod, SocketAddr, &mpsc::Receiver<()>, &AtomicUsize);

fn goes_on(end: &mpsc::Receiver<()>) -> bool {
    end.try_recv() == Err(mpsc::TryRecvError::Empty)
}

fn http1(pod: &MeshPod, to: SocketAddr, end: &mpsc::Receiver<()>, answered: &AtomicUsize) {
    let mut connection = None;
    while goes_on(end) {
        let used = connection.get_or_insert_with(|| Reader::new(talk::connect(pod, to)));
        let last = exchange(used).field("connection") == Some("close");
        answered.fetch_add(1, Ordering::SeqCst);
        if last {
            connection = None;
        }
    }
}

fn http2(pod: &MeshPod, to: SocketAddr, end: &mpsc::Receiver<()>, answered: &AtomicUsize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = h2c::connect(pod, to).await;
        let mut refused = 0;
        while goes_on(end) {
            let request = Request::get("http://api.shop/").body(()).unwrap();
            let Ok(mut streams) = client.streams.clone().ready().await else {
                // Told to go before there was a request: once is chance, again and again is no service.
                refused += 1;
                assert!(refused < 5, "no connection is of any use");
                client = h2c::connect(pod, to).await;
                continue;
            };
            let Ok((response, _)) = streams.send_request(request, true) else { continue };
            let response = response.await.unwrap_or_else(|error| panic!("{error} after {answered:?}"));
            assert_eq!(response.status(), 200, "{response:?}");
            h2c::read(&mut response.into_body()).await.unwrap();
            answered.fetch_add(1, Ordering::SeqCst);
            refused = 0;
        }
    });
}

/// Runs `work` while two clients send `load` from `pod`. `work` gets a function that waits until so many more requests
/// were answered.
fn under_load(pod: &MeshPod, to: SocketAddr, load: Load, work: impl FnOnce(&dyn Fn(usize))) {
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        let clients = [(); 2].map(|()| {
            let (end, ended) = mpsc::channel();
            let answered = &answered;
            (end, scope.spawn(move || load(pod, to, &ended, answered)))
        });
        work(&|count| {
            let wanted = answered.load(Ordering::SeqCst) + count;
            eventually(&format!("{count} more requests are answered"), || {
                assert!(!clients.iter().any(|(_, client)| client.is_finished()), "a request has failed");
                (answered.load(Ordering::SeqCst) >= wanted).then_some(())
            });
        });
        for (end, client) in clients {
            drop(end);
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

#[test]
fn draining_under_load_fails_no_request() {
    for (workers, load) in [(1, http1 as Load), (3, http1), (1, http2), (3, http2)] {
        let pods = Drained::new(workers);
        origin::http(&pods.server, 8080, |_| Response::new(Full::from("served")));
        under_load(&pods.client, vip(), load, |more| {
            more(50);
            drain(&pods.server);
            more(100);
            drain(&pods.client);
            more(100);
        });
        let page = metrics::page(&pods.client);
        let answered = metrics::sum(&page, "heddle_requests_total", &["response_code=\"200\""]);
        assert_eq!(metrics::sum(&page, "heddle_requests_total", &[]), answered, "{page}");
    }
}

// ---- processes ----

const WORKLOADS: [(&str, u8, &str, &str); 3] =
    [("client", 2, "client", "client"), ("api-a", 3, "api", "api"), ("api-b", 4, "api", "api")];

fn live_mesh(workloads: &[(&str, u8, &str, &str)]) -> LiveMesh {
    LiveMesh::start(&[("shop.yaml", &shop(workloads, &[("api", 1, "api")])), ("retry.yaml", RETRY)])
}

/// What fails by accident is tried again.
const RETRY: &str = "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: { name: api, namespace: shop }\nspec:\n  \
                     targetRefs: [{ group: \"\", kind: Service, name: api }]\n  \
                     retry: { attempts: 2, codes: [503], backoff: 1ms }\n";

/// The pod of one of [`WORKLOADS`] with its sidecar in a process of its own, ready.
fn with_process(mesh: &LiveMesh, which: usize, workers: usize, adapt: impl FnOnce(&mut Command)) -> (MeshPod, Child) {
    let (name, number, account, _) = WORKLOADS[which];
    let pod = mesh.pod(name, number);
    mesh.capture(&pod);
    let mut command = mesh.sidecar_command(HEDDLE, name, account, workers);
    adapt(&mut command);
    let process = pod.netns().spawn(command).unwrap();
    eventually(&format!("the sidecar of {name} is ready"), || {
        let address = SocketAddr::from(ADMIN);
        let mut stream = pod.netns().run(|| TcpStream::connect(address)).unwrap().ok()?;
        stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").ok()?;
        talk::read_to_end(&mut stream).starts_with(b"HTTP/1.0 200").then_some(())
    });
    (pod, process)
}

/// An HTTP/1 application that answers after its head, and with its second half only once it is told to.
struct Slow {
    begun: Arc<AtomicUsize>,
    go_on: Mutex<mpsc::Sender<()>>,
}

impl Slow {
    fn serve(pod: &MeshPod) -> Self {
        let begun = Arc::new(AtomicUsize::new(0));
        let (go_on, told) = mpsc::channel();
        let (count, told) = (begun.clone(), Mutex::new(told));
        origin::tcp(pod, 8080, move |stream| {
            let mut requests = Reader::new(stream);
            while requests.request().is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = requests.stream().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf-");
                let _ = told.lock().unwrap().recv();
                let _ = requests.stream().write_all(b"whole");
            }
        });
        Self { begun, go_on: Mutex::new(go_on) }
    }

    fn until_begun(&self) {
        eventually("the application has the request", || (self.begun.load(Ordering::SeqCst) > 0).then_some(()));
    }

    fn go_on(&self) {
        self.go_on.lock().unwrap().send(()).unwrap();
    }
}

/// Waits until the sidecar takes no connections any more.
fn until_closed(from: &MeshPod, to: SocketAddr) {
    eventually("no new connection is taken", || {
        from.netns().run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().err()
    });
}

fn assert_ends(process: &mut Child) {
    let status = eventually("the process ends, long before the longest wait", || process.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_sidecar_told_to_end_finishes_what_is_in_flight_and_exits_with_0() {
    for (workers, which) in [(1, 0), (3, 0), (1, 1), (3, 1)] {
        let mesh = live_mesh(&WORKLOADS[..2]);
        let (ending, mut process) = with_process(&mesh, which, workers, |_| {});
        let (name, number, account, _) = WORKLOADS[1 - which];
        let other = mesh.workload(name, number, account, workers);
        let (client, api) = if which == 0 { (&ending, &other) } else { (&other, &ending) };
        let slow = Slow::serve(api);
        let stranger = mesh.pod("stranger", 50);
        let to = if which == 0 { live::vip(1) } else { ending.v4(8080) };
        // Connections without a request hold nobody up: neither one that had some, nor one of which nothing is known.
        let mut idle = Reader::new(talk::connect(if which == 0 { client } else { &stranger }, to));
        slow.go_on();
        exchange(&mut idle);
        let mut in_flight = Reader::new(talk::connect(client, live::vip(1)));
        in_flight.stream().write_all(GET).unwrap();
        eventually("the application has the second request", || (slow.begun.load(Ordering::SeqCst) == 2).then_some(()));
        let silent = (which == 0).then(|| talk::connect(client, to));
        eventually("all of them are there", || {
            let page = metrics::page(&ending);
            let open = metrics::sum(&page, "heddle_downstream_connections", &[]);
            (open >= if which == 0 { 3.0 } else { 2.0 }).then_some(())
        });

        process.signal(Signal::SIGTERM).unwrap();

        until_closed(if which == 0 { client } else { &stranger }, to);
        assert!(process.try_wait().unwrap().is_none(), "it waits for what is in flight");
        slow.go_on();
        let response = in_flight.response(false).unwrap();
        assert_eq!((response.status(), response.text().as_str()), (200, "half-whole"));
        assert_ends(&mut process);
        drop((idle, silent));
    }
}

#[test]
fn what_never_ends_is_waited_for_no_longer_than_was_set() {
    let mesh = live_mesh(&WORKLOADS[..2]);
    let (client, mut process) = with_process(&mesh, 0, 1, |command| {
        command.args(["--drain-seconds", "1"]);
    });
    let (name, number, account, _) = WORKLOADS[1];
    let api = mesh.workload(name, number, account, 1);
    let slow = Slow::serve(&api);
    let mut in_flight = talk::connect(&client, live::vip(1));
    in_flight.write_all(GET).unwrap();
    slow.until_begun();

    process.signal(Signal::SIGTERM).unwrap();

    assert_ends(&mut process);
    let cut = talk::read_to_end(&mut in_flight);
    assert!(cut.ends_with(b"half-"), "{}", String::from_utf8_lossy(&cut));
}

#[test]
fn the_drain_command_reaches_the_sidecar_of_its_pod_and_says_if_there_is_none() {
    let mesh = live_mesh(&WORKLOADS);
    let (client, mut process) = with_process(&mesh, 0, 1, |_| {});
    let (name, number, account, _) = WORKLOADS[1];
    let api = mesh.workload(name, number, account, 1);
    origin::echo(&api, 8080, "api");
    let drain = |pod: &MeshPod| {
        let mut command = Command::new(HEDDLE);
        command.env_clear().args(["proxy", "drain"]).stderr(Stdio::piped());
        let mut child = pod.netns().spawn(command).unwrap();
        let mut said = String::new();
        child.stderr().unwrap().read_to_string(&mut said).unwrap();
        (child.wait().unwrap().code(), said)
    };
    let mut kept = Reader::new(talk::connect(&client, live::vip(1)));
    assert_eq!(exchange(&mut kept).field("connection"), None);

    assert_eq!(drain(&client), (Some(0), String::new()));

    assert_eq!(exchange(&mut kept).field("connection"), Some("close"));
    process.signal(Signal::SIGTERM).unwrap();
    assert_ends(&mut process);
    let (code, said) = drain(&client);
    assert_eq!(code, Some(1));
    assert!(said.contains("no sidecar answers on 127.0.0.1:15000"), "{said}");
}

// ---- killed ----

/// An application in a process of its own on port 8080, HTTP/1 or HTTP/2.
fn application(mesh: &LiveMesh, pod: &MeshPod, http2: bool) -> Child {
    let mut command = if http2 {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", HEDDLE, "demo-workload", "catalog", "--name", "a"]);
        command.arg("--behaviour").arg(mesh.directory().join("none"));
        command
    } else {
        let root = mesh.directory().display();
        let config = format!(
            "daemon off; master_process off; pid {root}/nginx.pid; error_log stderr crit;
            events {{ worker_connections 256; }}
            http {{
                access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
                fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
                server {{ listen 8080; listen [::]:8080; location / {{ return 200 a; }} }}
            }}"
        );
        let path = mesh.directory().join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let mut command = Program { name: "nginx", package: "nginx" }.command();
        command.args(["-e", "stderr", "-c"]).arg(path);
        command
    };
    command.stdin(Stdio::null());
    let process = pod.netns().spawn(command).unwrap();
    eventually("the application listens", || {
        let to = SocketAddr::from(([127, 0, 0, 1], 8080));
        pod.netns().run(|| TcpStream::connect(to)).unwrap().ok()
    });
    process
}

#[test]
fn a_workload_killed_under_load_fails_no_request() {
    for (workers, load, http2) in [(1, http1 as Load, false), (3, http1, false), (1, http2, true), (3, http2, true)] {
        for sidecar_first in [true, false] {
            let mesh = live_mesh(&WORKLOADS);
            let (killed, mut sidecar) = with_process(&mesh, 1, workers, |_| {});
            let mut application = application(&mesh, &killed, http2);
            let [client, alive] = [0, 2].map(|which| {
                let (name, number, account, _) = WORKLOADS[which];
                mesh.workload(name, number, account, workers)
            });
            let answered = Arc::new(AtomicUsize::new(0));
            let count = answered.clone();
            origin::http(&alive, 8080, move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                Response::new(Full::from("b"))
            });
            under_load(&client, live::vip(1), load, |more| {
                eventually("both workloads answer", || {
                    let counted = metrics::sum(&metrics::page(&killed), "heddle_requests_total", &[]);
                    (counted > 20.0 && answered.load(Ordering::SeqCst) > 20).then_some(())
                });
                if sidecar_first {
                    sidecar.kill().unwrap();
                    application.kill().unwrap();
                } else {
                    application.kill().unwrap();
                    more(20);
                    sidecar.kill().unwrap();
                }
                more(200);
            });
        }
    }
}
