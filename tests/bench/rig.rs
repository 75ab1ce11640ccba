//! Pods, programs, and one round of one peer.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use heddle::pods::{Child, Fabric, Netns, Pod, exec};
use heddle_proxy::capture::{self, Rules};

use crate::figures::Figures;
use crate::load::{self, Pace, Protocol, Seen};
use crate::{Arguments, envoy, machine, mesh, origin};

/// The bridge, and the control plane on it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The Service that both peers lead to the origin.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Idle connections whose memory is looked at.
const IDLE_CONNECTIONS: usize = 1_000;
/// Other programs' processors from which on a figure is taken again, and how often it is taken at most.
const NOISE: f64 = 0.3;
const ATTEMPTS: usize = 3;
/// How long a fresh sidecar is left alone before its memory is looked at. Chosen: start-up work is long over.
const SETTLE: Duration = Duration::from_secs(2);
/// Longest wait for a part to be ready.
const READY: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is between client and origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// Nothing.
    Direct,
    /// Two sidecars of ours and a control plane.
    Heddle,
    /// Two Envoys.
    Envoy,
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Direct => "direct",
            Self::Heddle => "heddle",
            Self::Envoy => "envoy",
        })
    }
}

/// Where one peer's traffic flows.
pub struct Pods {
    /// The client's pod.
    pub client: Pod,
    /// The origin's.
    pub server: Pod,
}

/// Everything that outlives rounds.
pub struct Rig {
    // Processes before the namespaces they are in, files last.
    control_plane: Option<Child>,
    direct: Pods,
    heddle: Pods,
    envoy: Pods,
    /// The bridge.
    pub fabric: Fabric,
    /// The programs to measure, where their user can read them.
    pub proxy: PathBuf,
    /// As [`Self::proxy`].
    pub envoy_program: PathBuf,
    own: PathBuf,
    directory: tempfile::TempDir,
}

/// A pair of running sidecars, client's and server's.
pub struct Sidecars([Child; 2]);

impl Rig {
    /// Builds what is to be measured, makes the pods, starts the origins and the control plane.
    pub fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        // Two descriptors a connection in this process: the client's end and the origin's.
        machine::raise_open_files(4 * IDLE_CONNECTIONS as u64)?;
        let directory = tempfile::Builder::new().prefix("heddle-bench-").tempdir()?;
        open_to_all(directory.path())?;
        let proxy = arguments.proxy.clone().map_or_else(build, Ok)?;
        let proxy = copy_program(&proxy, directory.path())?;
        let envoy_program = if arguments.peers.contains(&Peer::Envoy) {
            copy_program(&arguments.envoy, directory.path()).context("Envoy; scripts/test installs it")?
        } else {
            PathBuf::new()
        };
        let fabric = Fabric::new(GATEWAY, GATEWAY_V6).context("the benchmark needs root")?;
        let path = |name: &str, numbers: [u8; 2]| {
            let pod = |role: &str, number: u8| {
                let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into());
                fabric.add_pod(&format!("{name}-{role}"), Ipv4Addr::new(10, 77, 0, number), v6)
            };
            let path = Pods { client: pod("client", numbers[0])?, server: pod("server", numbers[1])? };
            origin::start(&path.server.netns)?;
            anyhow::Ok(path)
        };
        let (direct, heddle, envoy) = (path("direct", [2, 3])?, path("heddle", [4, 5])?, path("envoy", [6, 7])?);
        for path in [&heddle, &envoy] {
            for pod in [&path.client, &path.server] {
                pod.netns.run(|| capture::install(&Rules::default()))??;
            }
        }
        let own = std::env::current_exe()?;
        let mut rig = Self { control_plane: None, direct, heddle, envoy, fabric, proxy, envoy_program, own, directory };
        if arguments.peers.contains(&Peer::Heddle) {
            rig.control_plane = Some(mesh::start_control_plane(&rig, &rig.heddle)?);
        }
        Ok(rig)
    }

    /// One round of one peer.
    pub fn measure(&self, peer: Peer, figures: &mut Figures) -> anyhow::Result<()> {
        let (path, address) = self.path(peer);
        let sidecars = self.start(peer)?;
        if let Some(Sidecars([client, server])) = &sidecars {
            std::thread::sleep(SETTLE);
            figures.add("memory, MiB resident", "client's, idle", peer, mib(client)?);
            figures.add("memory, MiB resident", "server's, idle", peer, mib(server)?);
        }
        if peer == Peer::Heddle {
            let first = || path.client.netns.run(|| load::calls_on_new_connections(mesh::new_destinations()));
            let section = "a call on a new connection, µs";
            figures.add(section, "to a new destination", peer, median(first()??));
            figures.add(section, "to a known destination", peer, median(first()??));
        }
        for (section, protocol, pace) in [
            ("HTTP/1.1 1 KiB, 64 connections", Protocol::Http1, Pace::Closed),
            ("HTTP/1.1 1 KiB, 2,000/s", Protocol::Http1, Pace::Open),
            ("gRPC, 4 × 16 streams", Protocol::Grpc, Pace::Closed),
            ("gRPC, 2,000/s", Protocol::Grpc, Pace::Open),
        ] {
            let (seen, costs) = self.figure(figures, path, address, sidecars.as_ref(), protocol, pace)?;
            let requests = seen.latencies.len() as f64;
            if pace == Pace::Closed {
                figures.add(section, "requests/s", peer, requests / seen.lasted.as_secs_f64());
            }
            figures.add(section, "p50, µs", peer, seen.quantile(0.5));
            figures.add(section, "p99, µs", peer, seen.quantile(0.99));
            if sidecars.is_some() {
                let [client, server] = costs.map(|cost| cost.as_secs_f64() * 1e6 / requests);
                figures.add(section, "CPU µs/request, client's", peer, client);
                figures.add(section, "CPU µs/request, server's", peer, server);
                figures.add(section, "CPU µs/request, pair", peer, client + server);
            }
        }
        if let Some(Sidecars([client, server])) = &sidecars {
            figures.add("memory, MiB resident", "client's, after load", peer, mib(client)?);
            figures.add("memory, MiB resident", "server's, after load", peer, mib(server)?);
        }
        drop(sidecars);
        // Afresh: what a sidecar took under load it keeps.
        if let Some(Sidecars([client, server])) = self.start(peer)? {
            let pids = [client.id(), server.id()];
            let both = path.client.netns.run(|| {
                machine::pin_here(machine::APPLICATIONS)?;
                load::idle(address, IDLE_CONNECTIONS, move || {
                    Ok([machine::resident_kib(pids[0])?, machine::resident_kib(pids[1])?])
                })
            })??;
            figures.add("memory, MiB resident", "client's, 1,000 idle conns", peer, both[0] as f64 / 1024.0);
            figures.add("memory, MiB resident", "server's, 1,000 idle conns", peer, both[1] as f64 / 1024.0);
        }
        Ok(())
    }

    /// Starts a peer and calls through it until this process is stopped.
    pub fn run_for_profiler(&self, peer: Peer, protocol: Protocol, pace: Pace) -> anyhow::Result<()> {
        let (path, address) = self.path(peer);
        let sidecars = self.start(peer)?;
        if let Some(Sidecars([client, server])) = &sidecars {
            println!("client's sidecar: {}, server's: {}", client.id(), server.id());
        }
        loop {
            let (seen, costs) =
                self.figure(&mut Figures::default(), path, address, sidecars.as_ref(), protocol, pace)?;
            let requests = seen.latencies.len();
            let [client, server] = costs.map(|cost| cost.as_secs_f64() * 1e6 / requests as f64);
            println!(
                "{:.0} requests/s, p50 {:.0} µs, p99 {:.0} µs; CPU µs/request {client:.1} + {server:.1}",
                requests as f64 / seen.lasted.as_secs_f64(),
                seen.quantile(0.5),
                seen.quantile(0.99),
            );
        }
    }

    fn path(&self, peer: Peer) -> (&Pods, IpAddr) {
        match peer {
            Peer::Direct => (&self.direct, self.direct.server.ipv4.into()),
            Peer::Heddle => (&self.heddle, SERVICE.into()),
            Peer::Envoy => (&self.envoy, SERVICE.into()),
        }
    }

    fn start(&self, peer: Peer) -> anyhow::Result<Option<Sidecars>> {
        let children = match peer {
            Peer::Direct => return Ok(None),
            Peer::Heddle => mesh::start_sidecars(self, &self.heddle)?,
            Peer::Envoy => envoy::start_sidecars(self, &self.envoy)?,
        };
        for child in &children {
            machine::pin_process(child.id(), machine::PROXIES)?;
        }
        Ok(Some(Sidecars(children)))
    }

    /// One figure, taken again while others disturb it; and the CPU time it cost each sidecar.
    fn figure(
        &self,
        figures: &mut Figures,
        path: &Pods,
        address: IpAddr,
        sidecars: Option<&Sidecars>,
        protocol: Protocol,
        pace: Pace,
    ) -> anyhow::Result<(Seen, [Duration; 2])> {
        let pids = sidecars.map_or(vec![], |Sidecars(children)| children.iter().map(Child::id).collect());
        let ours = [pids.clone(), self.control_plane.iter().map(Child::id).collect()].concat();
        for attempt in 1.. {
            let (seen, costs, others) = path.client.netns.run(|| {
                machine::pin_here(machine::APPLICATIONS)?;
                let read = |pids: &[u32]| pids.iter().map(|&pid| machine::cpu_time(pid)).collect::<Result<Vec<_>, _>>();
                let before = Rc::new(Cell::new(None));
                let after = Rc::new(Cell::new(None));
                let (start, end) = (before.clone(), after.clone());
                let (start_pids, end_pids, ours) = (pids.clone(), pids.clone(), ours.clone());
                let seen = load::run(
                    address,
                    protocol,
                    pace,
                    move || {
                        start.set(Some((read(&start_pids)?, machine::Others::watch(&ours)?)));
                        Ok(())
                    },
                    move || {
                        end.set(Some(read(&end_pids)?));
                        Ok(())
                    },
                )?;
                let (before, others) = before.take().context("not begun")?;
                let after = after.take().context("not ended")?;
                let mut costs = [Duration::ZERO; 2];
                for (cost, (after, before)) in costs.iter_mut().zip(after.iter().zip(before)) {
                    *cost = after.saturating_sub(before);
                }
                anyhow::Ok((seen, costs, others.cores()?))
            })??;
            if others <= NOISE {
                return Ok((seen, costs));
            }
            if attempt == ATTEMPTS {
                figures.disturbed();
                return Ok((seen, costs));
            }
        }
        bail!("no figure")
    }

    /// A directory for this run's files; everybody can read it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts `program` in `netns` as `uid`; what it says goes into the file `name`.log.
    pub fn spawn(
        &self,
        netns: &Netns,
        name: &str,
        uid: Option<u32>,
        program: &Path,
        arguments: &[String],
    ) -> anyhow::Result<Child> {
        let log = fs::File::create(self.directory().join(format!("{name}.log")))?;
        let mut command = exec::command(&self.own, uid, program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(netns.spawn(command)?)
    }

    /// This program, to be another of Heddle's commands.
    pub fn own(&self) -> &Path {
        &self.own
    }

    /// Waits until `GET path` on a loopback port in `netns` is answered with 200.
    pub fn wait_ready(&self, netns: &Netns, name: &str, port: u16, path: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        while !netns.run(|| answers(port, path))? {
            if Instant::now() > deadline {
                let log = fs::read_to_string(self.directory().join(format!("{name}.log"))).unwrap_or_default();
                bail!("{name} was not ready within {} s; it said:\n{log}", READY.as_secs());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

fn answers(port: u16, path: &str) -> bool {
    use std::io::{Read, Write};
    let get = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_read_timeout(Some(READY))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    get().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}

/// Builds `heddle-proxy`, released. Together with this crate, so that both want the same features of what they share and
/// nothing is built twice.
fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "-p", "heddle-proxy", "-p", env!("CARGO_PKG_NAME"), "--bin", "heddle-proxy"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .context("cargo")?;
    ensure!(status.success(), "heddle-proxy does not build");
    // Where this program is too, be it a release or not.
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("not in a target directory")?;
    Ok(target.join("release/heddle-proxy"))
}

fn copy_program(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let copy = to.join(from.file_name().context("no file name")?);
    fs::copy(from, &copy).with_context(|| from.display().to_string())?;
    open_to_all(&copy)?;
    Ok(copy)
}

fn open_to_all(path: &Path) -> anyhow::Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn mib(process: &Child) -> anyhow::Result<f64> {
    Ok(machine::resident_kib(process.id())? as f64 / 1024.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
