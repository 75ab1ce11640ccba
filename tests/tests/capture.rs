//! Capture in real pods: where each kind of connection ends up, for both families and both ways to exempt the proxy.
//!
//! Two pods on a fabric, `here` with capture and `there` without. Plain listeners stand in for the sidecar and the
//! application; what counts is which of them a connection reaches and what the kernel says it was meant for. Runs as
//! root, with `nft` to read rules back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up fails the test")]

use std::future::poll_fn;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use heddle::pods::exec::PodExecArgs;
use heddle::pods::user::{self, Entered};
use heddle::pods::{self, Fabric, Netns, Pod};
use heddle_proxy::capture::{self, CaptureArgs, Exempt, Rules};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, listen, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::{Uid, setfsuid};
use tokio::net::TcpListener;

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
const HERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2))];
const THERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 3)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 3))];
/// Addresses nobody has, as a Service's.
const VIP: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 10))];
const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const INBOUND_SOURCE: [IpAddr; 2] = [IpAddr::V4(capture::INBOUND_SOURCE_V4), IpAddr::V6(capture::INBOUND_SOURCE_V6)];

const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const METRICS: u16 = 15020;
/// The application's ports.
const APP: u16 = 8080;
const OTHER_APP: u16 = 9090;
const PORTS: [u16; 5] = [OUTBOUND, INBOUND, METRICS, APP, OTHER_APP];

const MARK: u32 = 0x1dd1e;
const UID: u32 = capture::PROXY_UID;
/// Longer than any of this takes; a failure is reported after it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Every way to tell the proxy from the application.
const EXEMPTIONS: [Exempt; 2] = [Exempt::Uid(UID), Exempt::Mark(MARK)];

fn rules(exempt: Exempt) -> Rules {
    Rules { exempt, ..Rules::default() }
}

/// Where a connection arrived: pod, port, and what the kernel says it was meant for.
#[derive(Debug, PartialEq, Eq)]
struct Arrival {
    pod: &'static str,
    port: u16,
    original: SocketAddr,
}

fn arrived(pod: &'static str, port: u16, original: impl Into<SocketAddr>) -> Arrival {
    Arrival { pod, port, original: original.into() }
}

/// Who connects from where.
#[derive(Clone, Copy, Default)]
struct Dial {
    from: Option<IpAddr>,
    mark: Option<u32>,
    uid: Option<u32>,
}

const APPLICATION: Dial = Dial { from: None, mark: None, uid: None };

fn proxy(exempt: Exempt) -> Dial {
    match exempt {
        Exempt::Uid(uid) => Dial { uid: Some(uid), ..APPLICATION },
        Exempt::Mark(mark) => Dial { mark: Some(mark), ..APPLICATION },
    }
}

struct World {
    // Sockets before the namespaces they are in.
    listeners: Vec<(&'static str, TcpListener)>,
    here: Pod,
    there: Pod,
    fabric: Fabric,
}

impl World {
    /// Both pods, listening on every port of interest, no capture yet.
    fn new() -> Self {
        let fabric =
            Fabric::new(GATEWAY_V4, GATEWAY_V6).expect("these tests make network namespaces; run them as root");
        let pod = |name, addresses: [IpAddr; 2]| match addresses {
            [IpAddr::V4(v4), IpAddr::V6(v6)] => fabric.add_pod(name, v4, v6).unwrap(),
            _ => unreachable!("addresses are given as IPv4, IPv6"),
        };
        let (here, there) = (pod("here", HERE), pod("there", THERE));
        let listeners = [("here", &here), ("there", &there)]
            .into_iter()
            .flat_map(|(name, pod)| {
                let sockets = pod.netns.run(|| PORTS.map(listen_on).into_iter().flatten().collect::<Vec<_>>()).unwrap();
                sockets.into_iter().map(move |socket| (name, TcpListener::from_std(socket).unwrap()))
            })
            .collect();
        Self { listeners, here, there, fabric }
    }

    /// The same with capture in `here`.
    fn captured(rules: &Rules) -> Self {
        let world = Self::new();
        world.here.netns.run(|| capture::install(rules)).unwrap().unwrap();
        world
    }

    async fn dial_from_here(&self, dial: Dial, to: (IpAddr, u16)) -> Arrival {
        self.dial(&self.here, dial, to).await
    }

    async fn dial_from_there(&self, to: (IpAddr, u16)) -> Arrival {
        self.dial(&self.there, APPLICATION, to).await
    }

    /// Connects and says where the connection arrived; exactly one is under way at a time.
    async fn dial(&self, pod: &Pod, dial: Dial, to: (IpAddr, u16)) -> Arrival {
        let to = SocketAddr::from(to);
        let connection = pod.netns.run(|| open(dial, to)).unwrap();
        let _connection = connection.unwrap_or_else(|error| panic!("{} to {to}: {error}", pod.name));
        tokio::time::timeout(PATIENCE, self.accept()).await.unwrap_or_else(|_| panic!("{to}: arrived nowhere"))
    }

    async fn accept(&self) -> Arrival {
        poll_fn(|context| {
            for (pod, listener) in &self.listeners {
                if let Poll::Ready(accepted) = listener.poll_accept(context) {
                    let (stream, _) = accepted.unwrap();
                    let local = stream.local_addr().unwrap();
                    // Nothing is tracked where there are no rules: meant for where it is.
                    let original = original_dst(&stream, local).unwrap_or(local);
                    return Poll::Ready(Arrival { pod, port: local.port(), original });
                }
            }
            Poll::Pending
        })
        .await
    }
}

fn listen_on(port: u16) -> [StdListener; 2] {
    [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))].map(|address| {
        let socket = stream_socket(address).unwrap();
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        if address.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true).unwrap();
        }
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(address)).unwrap();
        listen(&socket, Backlog::new(64).unwrap()).unwrap();
        let listener = StdListener::from(socket);
        listener.set_nonblocking(true).unwrap();
        listener
    })
}

/// Connects in the calling thread's namespace.
fn open(dial: Dial, to: SocketAddr) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if let Some(uid) = dial.uid {
        // Of this thread alone, which ends soon; a socket belongs to who opened it.
        setfsuid(Uid::from_raw(uid));
    }
    let socket = stream_socket(to)?;
    // Bounds connect too.
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(PATIENCE.as_secs().cast_signed(), 0))?;
    if let Some(mark) = dial.mark {
        setsockopt(&socket, sockopt::Mark, &mark)?;
    }
    if let Some(from) = dial.from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket)
}

fn stream_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn original_dst(stream: &impl std::os::fd::AsFd, local: SocketAddr) -> Option<SocketAddr> {
    if local.is_ipv4() {
        let address = getsockopt(stream, sockopt::OriginalDst).ok()?;
        Some((u32::from_be(address.sin_addr.s_addr).to_be_bytes(), u16::from_be(address.sin_port)).into())
    } else {
        let address = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
        Some((address.sin6_addr.s6_addr, u16::from_be(address.sin6_port)).into())
    }
}

/// What a program run in `netns` prints.
fn output(netns: &Netns, program: &str, args: &[&str]) -> String {
    let output = netns.run(|| Command::new(program).args(args).output()).unwrap();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; scripts/test installs it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ruleset(pod: &Pod) -> String {
    output(&pod.netns, "nft", &["list", "ruleset"])
}

#[tokio::test]
async fn what_the_application_dials_lands_on_15001_and_keeps_its_original_destination() {
    for exempt in EXEMPTIONS {
        let world = World::captured(&rules(exempt));
        for to in [VIP, THERE, [GATEWAY_V4.into(), GATEWAY_V6.into()]].concat() {
            assert_eq!(world.dial_from_here(APPLICATION, (to, 80)).await, arrived("here", OUTBOUND, (to, 80)));
        }
        // A sidecar's port in another pod is a destination like any other.
        let to = (THERE[0], INBOUND);
        assert_eq!(world.dial_from_here(APPLICATION, to).await, arrived("here", OUTBOUND, to));
    }
}

#[tokio::test]
async fn what_comes_from_outside_lands_on_15006_and_keeps_its_original_destination() {
    let world = World::captured(&Rules::default());
    for ip in HERE {
        // With a listener, without one, and the sidecar's own: it sees its port as the original one and closes.
        for port in [APP, 1, OUTBOUND, INBOUND] {
            assert_eq!(world.dial_from_there((ip, port)).await, arrived("here", INBOUND, (ip, port)));
        }
    }
}

#[tokio::test]
async fn the_metrics_port_is_reached_as_it_is() {
    let world = World::captured(&Rules::default());
    for ip in HERE {
        assert_eq!(world.dial_from_there((ip, METRICS)).await, arrived("here", METRICS, (ip, METRICS)));
    }
}

#[tokio::test]
async fn what_the_proxy_dials_goes_where_it_wants() {
    for exempt in EXEMPTIONS {
        let world = World::captured(&rules(exempt));
        for ip in THERE {
            assert_eq!(world.dial_from_here(proxy(exempt), (ip, APP)).await, arrived("there", APP, (ip, APP)));
        }
    }
}

#[tokio::test]
async fn what_another_user_or_mark_dials_is_the_applications() {
    let world = World::captured(&rules(Exempt::Uid(UID)));
    let other = Dial { uid: Some(UID + 1), mark: Some(MARK), ..APPLICATION };
    assert_eq!(world.dial_from_here(other, (THERE[0], APP)).await, arrived("here", OUTBOUND, (THERE[0], APP)));

    let world = World::captured(&rules(Exempt::Mark(MARK)));
    let other = Dial { uid: Some(UID), mark: Some(MARK + 1), ..APPLICATION };
    assert_eq!(world.dial_from_here(other, (THERE[1], APP)).await, arrived("here", OUTBOUND, (THERE[1], APP)));
}

#[tokio::test]
async fn the_inbound_side_reaches_the_application_on_its_pod_address_from_its_own_source_address() {
    for exempt in EXEMPTIONS {
        let world = World::captured(&rules(exempt));
        for (from, ip) in INBOUND_SOURCE.into_iter().zip(HERE) {
            let dial = Dial { from: Some(from), ..proxy(exempt) };
            assert_eq!(world.dial_from_here(dial, (ip, APP)).await, arrived("here", APP, (ip, APP)));
        }
    }
}

#[tokio::test]
async fn the_proxy_dialling_its_own_pod_comes_in_through_15006() {
    for exempt in EXEMPTIONS {
        let world = World::captured(&rules(exempt));
        for ip in HERE {
            let arrival = world.dial_from_here(proxy(exempt), (ip, APP)).await;
            assert_eq!(arrival, arrived("here", INBOUND, (ip, APP)));
        }
        // A Service's address that is this machine's, as with kube-proxy in IPVS mode.
        for (ip, length) in VIP.into_iter().zip([32, 128]) {
            output(&world.here.netns, "ip", &["address", "add", &format!("{ip}/{length}"), "dev", "lo"]);
            // The kernel completes an IPv6 address in the background.
            eventually("the address is local", || {
                output(&world.here.netns, "ip", &["route", "get", &ip.to_string()]).starts_with("local ")
            });
            let arrival = world.dial_from_here(proxy(exempt), (ip, APP)).await;
            assert_eq!(arrival, arrived("here", INBOUND, (ip, APP)));
        }
    }
}

#[tokio::test]
async fn loopback_and_the_pods_own_address_stay_between_applications() {
    for exempt in EXEMPTIONS {
        let world = World::captured(&rules(exempt));
        for ip in [LOCALHOST, HERE, [Ipv4Addr::new(127, 1, 2, 3).into(), LOCALHOST[1]]].concat() {
            assert_eq!(world.dial_from_here(APPLICATION, (ip, APP)).await, arrived("here", APP, (ip, APP)));
        }
        for ip in LOCALHOST {
            assert_eq!(world.dial_from_here(proxy(exempt), (ip, APP)).await, arrived("here", APP, (ip, APP)));
        }
    }
}

#[tokio::test]
async fn excluded_ports_and_networks_are_left_alone() {
    let range: RangeInclusive<u16> = APP - 10..=APP + 10;
    let world = World::captured(&Rules { exclude_outbound_ports: vec![range.clone()], ..Rules::default() });
    for ip in THERE {
        assert_eq!(world.dial_from_here(APPLICATION, (ip, APP)).await, arrived("there", APP, (ip, APP)));
        let other = (ip, OTHER_APP);
        assert_eq!(world.dial_from_here(APPLICATION, other).await, arrived("here", OUTBOUND, other));
    }

    let world = World::captured(&Rules { exclude_inbound_ports: vec![range, 22..=22], ..Rules::default() });
    for ip in HERE {
        assert_eq!(world.dial_from_there((ip, APP)).await, arrived("here", APP, (ip, APP)));
        assert_eq!(world.dial_from_there((ip, OTHER_APP)).await, arrived("here", INBOUND, (ip, OTHER_APP)));
    }

    // Host bits are ignored; a prefix may end inside a byte.
    let networks = vec!["10.77.0.3/30".parse().unwrap(), "fd77::3/127".parse().unwrap()];
    let world = World::captured(&Rules { exclude_outbound_cidrs: networks, ..Rules::default() });
    for ip in THERE {
        assert_eq!(world.dial_from_here(APPLICATION, (ip, APP)).await, arrived("there", APP, (ip, APP)));
    }
    for ip in [VIP, ["10.77.0.4".parse().unwrap(), "fd77::4".parse().unwrap()]].concat() {
        assert_eq!(world.dial_from_here(APPLICATION, (ip, APP)).await, arrived("here", OUTBOUND, (ip, APP)));
    }

    // Everything out of one family.
    let networks = vec!["0.0.0.0/0".parse().unwrap()];
    let world = World::captured(&Rules { exclude_outbound_cidrs: networks, ..Rules::default() });
    assert_eq!(world.dial_from_here(APPLICATION, (THERE[0], APP)).await, arrived("there", APP, (THERE[0], APP)));
    assert_eq!(world.dial_from_here(APPLICATION, (THERE[1], APP)).await, arrived("here", OUTBOUND, (THERE[1], APP)));
}

#[tokio::test]
async fn other_transports_than_tcp_are_not_captured() {
    let world = World::captured(&Rules::default());
    for (here, there) in HERE.into_iter().zip(THERE) {
        let server = world.there.netns.run(|| UdpSocket::bind((there, APP))).unwrap().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = world.here.netns.run(|| UdpSocket::bind((here, 0))).unwrap().unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();

        client.send_to(b"ping", (there, APP)).unwrap();

        let mut buffer = [0; 8];
        let (_, peer) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        server.send_to(b"pong", peer).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, (there, APP).into()));
    }
}

#[tokio::test]
async fn installing_again_changes_nothing_and_installing_other_rules_replaces_them() {
    let world = World::captured(&Rules::default());
    let install = |rules: &Rules| world.here.netns.run(|| capture::install(rules)).unwrap().unwrap();
    let addresses = || output(&world.here.netns, "ip", &["-o", "-6", "address", "show", "dev", "lo"]);
    let first = (ruleset(&world.here), addresses());
    assert_eq!(first.0.matches("redirect to :15001").count(), 1, "{}", first.0);
    assert_eq!(first.1.matches("::6/128").count(), 1, "{}", first.1);

    install(&Rules::default());
    assert_eq!((ruleset(&world.here), addresses()), first);

    install(&Rules { outbound_port: OTHER_APP, ..Rules::default() });
    let arrival = world.dial_from_here(APPLICATION, (VIP[0], 80)).await;
    assert_eq!(arrival, arrived("here", OTHER_APP, (VIP[0], 80)));
    assert!(!ruleset(&world.here).contains("15001"));
}

#[tokio::test]
async fn an_open_connection_survives_a_second_installation() {
    let world = World::captured(&Rules::default());
    let connect = || std::net::TcpStream::connect((THERE[0], 80));
    let mut client = world.here.netns.run(connect).unwrap().unwrap();
    let accepting = poll_fn(|context| {
        let ready = world.listeners.iter().map(|(_, listener)| listener.poll_accept(context));
        ready.into_iter().find(Poll::is_ready).unwrap_or(Poll::Pending)
    });
    let (server, _) = tokio::time::timeout(PATIENCE, accepting).await.unwrap().unwrap();
    let server = server.into_std().unwrap();

    world.here.netns.run(|| capture::install(&Rules::default())).unwrap().unwrap();

    io::Write::write_all(&mut &server, b"still here").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 10];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still here");
}

#[tokio::test]
async fn removing_leaves_nothing_of_ours_and_everything_of_others() {
    let world = World::new();
    let netns = &world.here.netns;
    output(netns, "nft", &["add", "table", "inet", "others"]);
    let before = ruleset(&world.here);
    netns.run(|| capture::install(&Rules::default())).unwrap().unwrap();
    assert_ne!(ruleset(&world.here), before);

    // The second time there is nothing to remove.
    for _ in 0..2 {
        netns.run(capture::remove).unwrap().unwrap();
        assert_eq!(ruleset(&world.here), before);
    }

    assert!(!output(netns, "ip", &["-6", "address", "show", "dev", "lo"]).contains("::6/"));
    assert_eq!(world.dial_from_here(APPLICATION, (THERE[0], APP)).await, arrived("there", APP, (THERE[0], APP)));
}

#[tokio::test]
async fn another_namespace_is_captured_by_its_path() {
    let world = World::new();
    let args = CaptureArgs { netns: Some(world.here.netns.path()), ..capture_args() };
    assert!(!capture::is_installed_at(&world.here.netns.path()).unwrap());

    capture::run(&args).unwrap();
    assert!(capture::is_installed_at(&world.here.netns.path()).unwrap());
    assert_eq!(world.dial_from_here(APPLICATION, (VIP[0], 80)).await, arrived("here", OUTBOUND, (VIP[0], 80)));

    capture::run(&CaptureArgs { remove: true, ..args }).unwrap();
    assert_eq!(ruleset(&world.here), "");
}

#[test]
fn a_pod_can_find_out_by_itself_whether_it_is_captured() {
    let fabric = Fabric::new(GATEWAY_V4, GATEWAY_V6).expect("these tests make network namespaces; run them as root");
    let pod = fabric.add_pod("alone", Ipv4Addr::new(10, 77, 0, 4), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 4)).unwrap();
    let args = CaptureArgs { check: true, ..capture_args() };
    let check = || pod.netns.run(|| capture::run(&args)).unwrap();

    let uncaptured = check().unwrap_err();
    assert!(uncaptured.to_string().contains("is Heddle's CNI plugin installed"), "{uncaptured}");

    pod.netns.run(|| capture::install(&Rules::default())).unwrap().unwrap();
    check().unwrap();
}

/// As without any flag.
fn capture_args() -> CaptureArgs {
    CaptureArgs {
        netns: None,
        remove: false,
        check: false,
        outbound_port: OUTBOUND,
        inbound_port: INBOUND,
        metrics_port: METRICS,
        uid: UID,
        mark: None,
        exclude_outbound_ports: vec![],
        exclude_inbound_ports: vec![],
        exclude_outbound_cidrs: vec![],
    }
}

#[tokio::test]
async fn the_largest_lists_of_exclusions_are_accepted_by_the_kernel() {
    let ports: Vec<_> = (0..128).map(|i| 20_000 + i * 3..=20_001 + i * 3).collect();
    let rules = Rules {
        exclude_outbound_ports: ports.clone(),
        exclude_inbound_ports: ports,
        exclude_outbound_cidrs: (0..128).map(|i| format!("fd{i:02x}::/33").parse().unwrap()).collect(),
        ..Rules::default()
    };
    let world = World::captured(&rules);
    assert_eq!(ruleset(&world.here).matches("return").count(), 128 * 3 + 7 + 2);
}

#[tokio::test]
async fn nothing_is_left_when_pods_are_dropped() {
    let world = World::captured(&Rules::default());
    let mut command = Command::new("sleep");
    command.arg("1000");
    let child = world.here.netns.spawn(command).unwrap();
    let process = format!("/proc/{}", child.id());
    let namespaces = [&world.here.netns, &world.there.netns, world.fabric.netns()].map(inode);
    assert!(namespaces.iter().all(|inode| holders(*inode) > 0));

    drop(child);
    drop(world);

    assert!(!std::path::Path::new(&process).exists());
    // A thread that was joined may be some way from having left its namespace.
    eventually("nothing holds the network namespaces", || namespaces.iter().all(|inode| holders(*inode) == 0));
}

/// Asks until it is so.
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn children_die_with_a_parent_that_is_killed() {
    let mut parent = role("parent").stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = parent.stdout.take().unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"child runs\n") {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "ended: {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }

    parent.kill().unwrap();
    parent.wait().unwrap();

    // The child, one process, holds the pipe's other end until it is dead.
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_program_started_through_pod_exec_runs_as_the_sidecars_user() {
    let output = role("exec-id").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().any(|line| line.ends_with("uid=1337 gid=1337 groups=1337")), "{text}");
}

#[test]
fn without_net_admin_the_error_says_what_is_needed() {
    let netns = Netns::new().expect("these tests make network namespaces; run them as root");
    let output = netns.run(|| role("unprivileged").uid(NOBODY).gid(NOBODY).output()).unwrap().unwrap();
    assert_passed(&output);
}

#[test]
fn in_a_user_namespace_marks_work_and_users_are_refused() {
    // Only a process with one thread may enter one, which a test is not: util-linux' tool does it. Root is mapped there
    // to 0 and nobody else to anything, as any other user would be.
    let role = role("user-namespace");
    let mut unshare = Command::new("unshare");
    let program = std::env::current_exe().unwrap();
    unshare.args(["--user", "--map-root-user", "--net", "--"]).arg(program).args(role.get_args());
    unshare.env(ROLE, "user-namespace");
    assert_passed(&unshare.output().unwrap());
}

/// The user nobody of Debian.
const NOBODY: u32 = 65534;
/// Names what [`in_a_process_of_its_own`] shall do.
const ROLE: &str = "HEDDLE_TEST_ROLE";

/// This program again, running one role.
fn role(name: &str) -> Command {
    // By this link another user needs no right to the directory the tests were built in.
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", "in_a_process_of_its_own", "--nocapture"]).env(ROLE, name);
    command
}

fn assert_passed(output: &std::process::Output) {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("1 passed") && said.contains("role done"), "{said}");
}

/// No test by itself: what the tests above run as another process.
#[test]
fn in_a_process_of_its_own() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.as_str() {
        "parent" => {
            let netns = Netns::new().unwrap();
            let mut command = self::role("exec-sleep");
            command.stdout(Stdio::inherit());
            let mut child = netns.spawn(command).unwrap();
            child.wait().unwrap();
        }
        "exec-sleep" => become_program(None, &["sh", "-c", "echo child runs; exec sleep 1000"]),
        "exec-id" => become_program(Some(UID), &["id"]),
        "unprivileged" => {
            let error = capture::install(&Rules::default()).unwrap_err();
            assert!(matches!(error, capture::Error::NotPermitted { .. }), "{error}");
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
            let error = Netns::new().unwrap_err();
            assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
        }
        "user-namespace" => in_a_user_namespace(),
        other => panic!("no such role: {other}"),
    }
    println!("role done");
}

fn become_program(uid: Option<u32>, command: &[&str]) {
    let command = command.iter().map(Into::into).collect();
    let Err(error) = pods::exec::main(&PodExecArgs { parent: nix::unistd::getppid().as_raw(), uid, command });
    panic!("{error}");
}

fn in_a_user_namespace() {
    // Root there, and nothing to enter any more.
    assert_eq!(user::enter("sudo heddle demo").unwrap(), Entered::Already);
    assert!(!capture::uid_is_mapped(UID).unwrap());

    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let world = World::new();
        let by_uid = world.here.netns.run(|| capture::install(&Rules::default())).unwrap().unwrap_err();
        assert!(matches!(by_uid, capture::Error::UidNotMapped { uid: UID }), "{by_uid}");
        assert!(by_uid.to_string().contains("use --mark"), "{by_uid}");

        let exempt = Exempt::Mark(MARK);
        world.here.netns.run(|| capture::install(&rules(exempt))).unwrap().unwrap();
        for (here, (there, vip)) in HERE.into_iter().zip(THERE.into_iter().zip(VIP)) {
            let app = world.dial_from_here(APPLICATION, (vip, 80)).await;
            assert_eq!(app, arrived("here", OUTBOUND, (vip, 80)));
            let by_proxy = world.dial_from_here(proxy(exempt), (there, APP)).await;
            assert_eq!(by_proxy, arrived("there", APP, (there, APP)));
            let from_outside = world.dial_from_there((here, APP)).await;
            assert_eq!(from_outside, arrived("here", INBOUND, (here, APP)));
            let to_itself = world.dial_from_here(proxy(exempt), (here, APP)).await;
            assert_eq!(to_itself, arrived("here", INBOUND, (here, APP)));
        }
    });
}

/// Which namespace it is.
fn inode(netns: &Netns) -> u64 {
    std::fs::metadata(netns.path()).unwrap().ino()
}

/// Threads and descriptors of this machine that hold the namespace.
fn holders(inode: u64) -> usize {
    let name = format!("net:[{inode}]");
    let entries = |path: String| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_it = |path: &std::path::Path| std::fs::read_link(path).is_ok_and(|link| link.as_os_str() == name.as_str());
    entries("/proc".into())
        .filter(|process| process.join("task").exists())
        .map(|process| {
            let tasks = entries(format!("{}/task", process.display())).filter(|task| is_it(&task.join("ns/net")));
            let descriptors = entries(format!("{}/fd", process.display())).filter(|descriptor| is_it(descriptor));
            tasks.count() + descriptors.count()
        })
        .sum()
}
