//! A mesh with a real control plane: manifests in a directory, certificates and tables over the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use heddle::pods::Fabric;
use heddle_control_plane::app::{self as control_plane, ControlPlane};
use heddle_control_plane::authority::join_token;
use heddle_proxy::app;
use heddle_proxy::capture::{self, Exempt, Rules};
use heddle_proxy::config::Config;
use heddle_proxy::identity::IdentityConfig;
use heddle_proxy::link;
use heddle_proxy::metrics::AccessLogFormat;
use heddle_proxy::tables::Tables;
use tokio::runtime::Runtime;

use crate::eventually;
use crate::pods::{MARK, MeshPod};

/// Manifests, control plane and pods. The control plane runs on the bridge, which is every pod's gateway.
pub struct LiveMesh {
    directory: tempfile::TempDir,
    flags: Vec<String>,
    access_log: AccessLogFormat,
    running: Option<(Runtime, ControlPlane)>,
    fabric: Fabric,
}

/// What the control plane is told besides where things are.
const CONTROL_PLANE_FLAGS: [&str; 5] = [
    "heddle-control-plane",
    "--mesh-cidr",
    "10.77.0.0/24,10.96.0.0/16,fd77::/64,fd96::/64",
    "--server-name",
    "10.77.0.1",
];

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: heddle_control_plane::config::Config,
}

impl LiveMesh {
    /// A control plane that knows the namespace `shop`, the Services and the workloads given as manifests.
    pub fn start(manifests: &[(&str, &str)]) -> Self {
        Self::start_with(&[], manifests)
    }

    /// [`Self::start`] with further flags for the control plane.
    pub fn start_with(flags: &[&str], manifests: &[(&str, &str)]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("manifests")).unwrap();
        let fabric = Fabric::new(GATEWAY_V4, GATEWAY_V6).expect("tests of pods need root");
        let access_log = AccessLogFormat::Off;
        let mut mesh = Self { directory, flags, access_log, running: None, fabric };
        for (name, text) in manifests {
            mesh.apply(name, text);
        }
        mesh.start_control_plane();
        mesh
    }

    /// Sidecars that are started from now on in this process write access logs in JSON to its standard output.
    pub fn with_access_logs(self) -> Self {
        Self { access_log: AccessLogFormat::Json, ..self }
    }

    /// Starts the control plane, again after [`Self::stop_control_plane`]; it has kept its keys.
    pub fn start_control_plane(&mut self) {
        let (manifests, state) = (self.manifests(), self.state());
        let started = self.fabric.netns().run(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let flags = CONTROL_PLANE_FLAGS.map(Into::into).into_iter().chain([
                "--manifests".into(),
                manifests.into_os_string(),
                "--state".into(),
                state.into_os_string(),
            ]);
            let flags = flags.chain(self.flags.iter().map(Into::into));
            let config = Flags::parse_from(flags).config;
            let control_plane = runtime.block_on(control_plane::start(config)).unwrap();
            (runtime, control_plane)
        });
        self.running = Some(started.unwrap());
    }

    /// Stops the control plane: its port is closed, its streams end.
    pub fn stop_control_plane(&mut self) {
        if let Some((runtime, control_plane)) = self.running.take() {
            runtime.block_on(control_plane.shutdown());
        }
    }

    /// Puts a manifest in force.
    pub fn apply(&self, name: &str, text: &str) -> PathBuf {
        let path = self.manifests().join(name);
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, &path).unwrap();
        path
    }

    /// A pod without a sidecar at 10.77.0.`number`.
    pub fn pod(&self, name: &str, number: u8) -> MeshPod {
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number));
        let pod = self.fabric.add_pod(name, Ipv4Addr::new(10, 77, 0, number), v6).unwrap();
        MeshPod { pod, sidecar: None }
    }

    /// A pod at 10.77.0.`number` whose sidecar is ready; its Workload must be among the manifests, and its service
    /// account be called `account`.
    pub fn workload(&self, name: &str, number: u8, account: &str, workers: usize) -> MeshPod {
        let mut pod = self.pod(name, number);
        self.start_sidecar(&mut pod, name, account, workers);
        eventually(&format!("the sidecar of {name} is ready"), || {
            let shared = pod.shared();
            (shared.tables.load().inbound.is_some() && shared.dialer.identity.load().is_some()).then_some(())
        });
        pod
    }

    /// Starts a sidecar that says it is `workload`, without waiting for it to be ready. It shows the token in
    /// [`Self::token_file`], which is made for `account` if it is not there.
    pub fn start_sidecar(&self, pod: &mut MeshPod, workload: &str, account: &str, workers: usize) {
        let config = self.sidecar_config(workload, account, workers);
        let shared = pod.netns().run(|| {
            capture::install(&rules()).unwrap();
            let sidecar = app::start(config, Tables::default()).unwrap();
            let shared = sidecar.shared.clone();
            link::start(sidecar).unwrap();
            shared
        });
        pod.sidecar = Some(shared.unwrap());
    }

    /// A command that runs the sidecar of `workload` as a process of its own, by the `heddle` binary `binary`. It dies with
    /// this process. Capture is the caller's: see [`Self::capture`].
    pub fn sidecar_command(&self, binary: &str, workload: &str, account: &str, workers: usize) -> Command {
        let config = self.sidecar_config(workload, account, workers);
        let mut command = Command::new("setpriv");
        command.env_clear().args(["--pdeathsig", "KILL", "--", binary, "proxy", "run", "--namespace", "shop"]);
        command.args(["--workers", &workers.to_string(), "--mark", &MARK.to_string(), "--log", "warn"]);
        command.args(config.control_plane.iter().flat_map(|address| ["--control-plane", address]));
        command.args(["--service-account", account, "--workload", workload]);
        command.arg("--token").arg(config.identity.token).arg("--bundle").arg(config.identity.bundle);
        command
    }

    /// A command that keeps the certificate of `workload` in files in `directory`, by the `heddle` binary `binary`. It dies
    /// with this process.
    pub fn agent_command(&self, binary: &str, workload: &str, account: &str, directory: &Path) -> Command {
        let config = self.sidecar_config(workload, account, 1);
        let mut command = Command::new("setpriv");
        command.env_clear().args(["--pdeathsig", "KILL", "--", binary, "proxy", "agent", "--namespace", "shop"]);
        command.arg("--directory").arg(directory).args(["--mark", &MARK.to_string()]);
        command.args(config.control_plane.iter().flat_map(|address| ["--control-plane", address]));
        command.args(["--service-account", account, "--workload", workload]);
        command.arg("--token").arg(config.identity.token).arg("--bundle").arg(config.identity.bundle);
        command
    }

    /// Redirects the pod's traffic to a sidecar that exempts its own by mark.
    pub fn capture(&self, pod: &MeshPod) {
        pod.netns().run(|| capture::install(&rules()).unwrap()).unwrap();
    }

    /// Where the sidecar of `workload` reads its join token.
    pub fn token_file(&self, workload: &str) -> PathBuf {
        self.directory.path().join(format!("{workload}.token"))
    }

    fn sidecar_config(&self, workload: &str, account: &str, workers: usize) -> Config {
        let token_file = self.token_file(workload);
        if !token_file.exists() {
            let token = join_token(&self.state(), "shop", account, workload, Duration::from_secs(3600)).unwrap();
            std::fs::write(&token_file, token).unwrap();
        }
        Config {
            workers,
            mark: Some(MARK),
            access_log: self.access_log,
            control_plane: Some(format!("https://{GATEWAY_V4}:15012")),
            identity: IdentityConfig {
                namespace: "shop".into(),
                service_account: account.into(),
                workload: workload.into(),
                token: token_file,
                bundle: self.state().join("bundle.pem"),
                ..IdentityConfig::default()
            },
            ..Config::default()
        }
    }

    /// Where manifests are.
    pub fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// A directory for whatever the test keeps.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The bridge.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Where the control plane keeps its keys, and the roots in `bundle.pem`.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }
}

/// A Service's address on its bridge: 10.96.0.`number`, port 80.
pub fn vip(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, number)), 80)
}

/// Manifests of the namespace `shop` with its workloads, `(name, address, account, app)`, and its Services, `(name,
/// address, app)`: port 80 to the workloads' port 8080.
pub fn shop(workloads: &[(&str, u8, &str, &str)], services: &[(&str, u8, &str)]) -> String {
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n".to_owned();
    for (name, number, account, app) in workloads {
        text.push_str(&format!(
            "---\napiVersion: heddle.dev/v1alpha1\nkind: Workload\n\
             metadata: {{ name: {name}, namespace: shop, labels: {{ app: {app} }} }}\n\
             spec:\n  addresses: [\"10.77.0.{number}\", \"fd77::{number:x}\"]\n  serviceAccountName: {account}\n  \
             ports: [{{ port: 8080 }}]\n"
        ));
    }
    for (name, number, app) in services {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec:\n  clusterIP: 10.96.0.{number}\n  selector: {{ app: {app} }}\n  \
             ports: [{{ port: 80, targetPort: 8080 }}]\n"
        ));
    }
    text
}

/// The admin port of the control plane, where it has its metrics.
pub fn control_plane_admin() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(GATEWAY_V4), 15014)
}

fn rules() -> Rules {
    Rules { exempt: Exempt::Mark(MARK), ..Rules::default() }
}

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
