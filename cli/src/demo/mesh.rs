//! The demo's mesh: control plane, pods, sidecars, applications, as processes that die with this one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use heddle_control_plane::authority::join_token;
use heddle_proxy::capture::PROXY_UID;

use super::Interrupted;
use super::exposition::{self, Sample};
use super::files::Files;
use super::workloads::Tally;
use crate::pods::{Child, Fabric, Pod, exec};

/// SO_MARK of sidecars that cannot have a user of their own.
const MARK: u32 = 0x1dd1e;
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// Service addresses, as `examples/shop/30-services.yaml` gives them.
const WEB: &str = "10.96.0.11:80";
const CATALOG: &str = "10.96.0.13:80";
const CART: &str = "10.96.0.15:80";
const STOCK: &str = "10.96.0.16:80";
/// Leaves live a minute, so that their rotation can be watched.
const LEAF_LIFETIME: &str = "60s";
/// Longest wait for a part to be ready. Chosen: seconds are normal on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// Name, last part of the address, service account; addresses as `examples/shop/20-workloads.yaml` gives them.
const WORKLOADS: [(&str, u8, &str); 7] = [
    ("shopper", 10, "shopper"),
    ("web-a", 11, "web"),
    ("web-b", 12, "web"),
    ("catalog-v1", 13, "catalog"),
    ("catalog-v2", 14, "catalog"),
    ("cart", 15, "cart"),
    ("stock", 16, "stock"),
];

/// A running mesh.
pub struct Mesh {
    /// What describes it.
    pub files: Files,
    pods: Mutex<BTreeMap<&'static str, Running>>,
    tally: Arc<Mutex<Tally>>,
    _control_plane: Child,
    // Last: children are dropped before the namespaces they are in.
    fabric: Fabric,
}

/// One pod's processes.
struct Running {
    application: Child,
    sidecar: Child,
    pod: Pod,
}

/// How processes are started.
struct Starter<'s> {
    own: &'s Path,
    files: &'s Files,
    /// Sidecars are told apart by mark.
    by_mark: bool,
    workers: usize,
}

impl Mesh {
    /// Starts everything and waits until each sidecar is ready.
    pub fn start(own: &Path, workers: usize, by_mark: bool, interrupted: &Interrupted) -> anyhow::Result<Self> {
        let files = Files::new().context("the demo's directory")?;
        let fabric = Fabric::new(GATEWAY_V4, GATEWAY_V6)?;
        let starter = Starter { own, files: &files, by_mark, workers };
        let control_plane = starter.control_plane(&fabric)?;
        wait_until("the control plane serves", interrupted, || {
            let admin = SocketAddr::from(([127, 0, 0, 1], 15014));
            Ok(fabric.netns().run(|| ready(admin))?)
        })
        .with_context(|| log_tail(&files, "control-plane"))?;
        std::fs::copy(files.state().join("bundle.pem"), files.secrets().join("bundle.pem"))?;
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut pods = BTreeMap::new();
        // The customers come last, when the shop is open.
        for (name, number, account) in WORKLOADS.into_iter().rev() {
            let running = starter.pod(&fabric, name, number, account, &tally)?;
            wait_until(&format!("the sidecar of {name} is ready"), interrupted, || {
                Ok(running.pod.netns.run(|| ready(SocketAddr::from(([127, 0, 0, 1], 15020))))?)
            })
            .with_context(|| log_tail(&files, &format!("{name}-sidecar")))?;
            pods.insert(name, running);
        }
        Ok(Self { files, pods: Mutex::new(pods), tally, _control_plane: control_plane, fabric })
    }

    /// What the customers have seen.
    pub fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The metrics of every sidecar that answers, by workload.
    pub fn metrics(&self) -> BTreeMap<&'static str, Vec<Sample>> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let page = |running: &Running| {
            let page = running.pod.netns.run(|| get(SocketAddr::from(([127, 0, 0, 1], 15020)), "/metrics", &[]));
            Some(exposition::parse(&page.ok()?.ok()?))
        };
        pods.iter().filter_map(|(name, running)| Some((*name, page(running)?))).collect()
    }

    /// Status of `GET path` on `service`, called by `workload`.
    pub fn call(&self, workload: &str, path: &str) -> anyhow::Result<u16> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let running = pods.get(workload).with_context(|| format!("no workload {workload}"))?;
        let web: SocketAddr = WEB.parse()?;
        let answer = running.pod.netns.run(|| get(web, path, &["Host: web.shop"]))??;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.with_context(|| format!("no HTTP answer: {answer:?}"))
    }

    /// Kills application and sidecar of `workload`, with no time to say goodbye.
    pub fn kill(&self, workload: &str) -> anyhow::Result<()> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = pods.remove(workload).with_context(|| format!("no workload {workload}"))?;
        running.application.kill()?;
        running.sidecar.kill()?;
        Ok(())
    }

    /// A path to the bridge's network namespace, for other commands while this runs.
    pub fn fabric_path(&self) -> PathBuf {
        self.fabric.netns().path()
    }

    /// Paths to the pods' network namespaces, for other commands while this runs.
    pub fn pod_paths(&self) -> Vec<(&'static str, PathBuf)> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.iter().map(|(name, running)| (*name, running.pod.netns.path())).collect()
    }
}

impl Starter<'_> {
    fn control_plane(&self, fabric: &Fabric) -> anyhow::Result<Child> {
        let mut command = exec::command(self.own, None, self.own);
        command
            .args(["control-plane", "--listen", "[::]:15012", "--leaf-lifetime", LEAF_LIFETIME])
            .args(["--mesh-cidr", "10.77.0.0/24,10.96.0.0/16,fd77::/64,fd96::/64"])
            .args(["--server-name", &GATEWAY_V4.to_string()])
            .arg("--manifests")
            .arg(self.files.manifests())
            .arg("--state")
            .arg(self.files.state());
        self.spawn(fabric.netns(), command, "control-plane", Stdio::null())
    }

    fn pod(
        &self,
        fabric: &Fabric,
        name: &'static str,
        number: u8,
        account: &str,
        tally: &Arc<Mutex<Tally>>,
    ) -> anyhow::Result<Running> {
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from_str_radix(&number.to_string(), 16)?);
        let pod = fabric.add_pod(name, Ipv4Addr::new(10, 77, 0, number), v6)?;
        let sidecar = self.sidecar(&pod, name, account)?;
        let mut application = self.application(&pod, name)?;
        if let Some(stdout) = application.stdout() {
            let tally = tally.clone();
            std::thread::Builder::new().name("tally".into()).spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Ok(seen) = serde_json::from_str(&line) {
                        *tally.lock().unwrap_or_else(PoisonError::into_inner) = seen;
                    }
                }
            })?;
        }
        Ok(Running { application, sidecar, pod })
    }

    fn sidecar(&self, pod: &Pod, name: &str, account: &str) -> anyhow::Result<Child> {
        let token = join_token(&self.files.state(), "shop", account, name, Duration::from_secs(24 * 3600))?;
        let token_file = self.files.secrets().join(format!("{name}.token"));
        std::fs::write(&token_file, token)?;
        let mut capture = exec::command(self.own, None, self.own);
        capture.args(["proxy", "capture"]);
        let uid = (!self.by_mark).then_some(PROXY_UID);
        let mut command = exec::command(self.own, uid, self.own);
        command.args(["proxy", "run", "--namespace", "shop", "--service-account", account, "--workload", name]);
        command.args([
            "--control-plane",
            &format!("https://{GATEWAY_V4}:15012"),
            "--workers",
            &self.workers.to_string(),
        ]);
        command.arg("--token").arg(&token_file).arg("--bundle").arg(self.files.secrets().join("bundle.pem"));
        if self.by_mark {
            capture.args(["--mark", &MARK.to_string()]);
            command.args(["--mark", &MARK.to_string()]);
        }
        let status = self.spawn(&pod.netns, capture, &format!("{name}-capture"), Stdio::null())?.wait()?;
        if !status.success() {
            bail!("capture in {name} failed: {}", log_tail(self.files, &format!("{name}-capture")));
        }
        self.spawn(&pod.netns, command, &format!("{name}-sidecar"), Stdio::null())
    }

    fn application(&self, pod: &Pod, name: &str) -> anyhow::Result<Child> {
        let mut command = exec::command(self.own, None, self.own);
        command.arg("demo-workload");
        if name == "shopper" {
            command.args(["shopper", "--web", WEB]);
            return self.spawn(&pod.netns, command, name, Stdio::piped());
        }
        let kind = name.split('-').next().unwrap_or(name);
        command.args([kind, "--name", name, "--behaviour"]).arg(self.files.behaviour(name));
        if kind == "web" {
            command.args(["--catalog", CATALOG, "--cart", CART, "--stock", STOCK]);
        }
        self.spawn(&pod.netns, command, name, Stdio::null())
    }

    fn spawn(
        &self,
        netns: &crate::pods::Netns,
        mut command: Command,
        name: &str,
        stdout: Stdio,
    ) -> anyhow::Result<Child> {
        let log = std::fs::File::create(self.files.log(name))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(log);
        Ok(netns.spawn(command)?)
    }
}

/// Waits, or says what did not happen.
pub fn wait_until(
    what: &str,
    interrupted: &Interrupted,
    mut happened: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    while !happened()? {
        if interrupted.is_set() {
            bail!("interrupted");
        }
        if Instant::now() > deadline {
            bail!("did not happen within {} s: {what}", READY.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Chosen: soon enough for people.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

fn ready(address: SocketAddr) -> bool {
    get_status(address, "/ready").is_ok_and(|status| status == 200)
}

fn get_status(address: SocketAddr, path: &str) -> anyhow::Result<u16> {
    let answer = get(address, path, &[])?;
    Ok(answer.split(' ').nth(1).context("no status")?.parse()?)
}

/// The whole answer to a GET, head included.
fn get(address: SocketAddr, path: &str, fields: &[&str]) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, CALL_TIMEOUT)?;
    stream.set_read_timeout(Some(CALL_TIMEOUT))?;
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n{fields}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Chosen: everything is on this machine.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a process said last.
fn log_tail(files: &Files, process: &str) -> String {
    let log = std::fs::read_to_string(files.log(process)).unwrap_or_default();
    let last: Vec<_> = log.lines().rev().take(5).collect();
    let last: Vec<_> = last.into_iter().rev().collect();
    format!("{process} said:\n{}", last.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_the_addresses_their_manifests_give_them() {
        let manifests = include_str!("../../../examples/shop/20-workloads.yaml");
        for (name, number, _) in WORKLOADS {
            let address = format!("10.77.0.{number}");
            let stanza = manifests.split("---").find(|stanza| stanza.contains(&format!("name: {name},"))).unwrap();
            assert!(stanza.contains(&format!("\"{address}\"")), "{name} {address}");
        }
    }
}
