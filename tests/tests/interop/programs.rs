//! The applications of `tests/interop` in pods.

use std::path::{Path, PathBuf};
use std::process::Command;

use heddle_tests::live::LiveMesh;
use heddle_tests::pods::MeshPod;
use heddle_tests::programs::{Program, Server};
use heddle_tests::{eventually, pypi};
use serde_json::{Value, json};

use super::world::PORT;

/// A workload's certificate in files, and the agent that keeps it there.
pub struct Identity {
    workload: String,
    directory: PathBuf,
    /// Runs in the workload's pod.
    pub agent: Server,
}

impl Identity {
    /// That of the Workload and the service account that are called as the pod.
    pub fn of(mesh: &LiveMesh, pod: &MeshPod) -> Self {
        let workload = pod.pod.name.clone();
        let directory = mesh.directory().join(&workload);
        let agent = mesh.agent_command(env!("CARGO_BIN_EXE_heddle-under-test"), &workload, &workload, &directory);
        let agent = Server::start(pod, agent, "certificate received");
        eventually(&format!("the agent of {workload} writes its files"), || {
            ["key.pem", "chain.pem", "bundle.pem"].iter().all(|name| directory.join(name).exists()).then_some(())
        });
        Self { workload, directory, agent }
    }

    /// Where files are in the form of gRFC A65 and of the plugin `file_watcher` (A29).
    fn files(&self) -> Value {
        json!({
            "certificate_file": self.directory.join("chain.pem"),
            "private_key_file": self.directory.join("key.pem"),
            "ca_certificate_file": self.directory.join("bundle.pem"),
            "refresh_interval": "60s",
        })
    }

    /// Writes the bootstrap of a process that shows the certificate of `shown`; where it is.
    fn bootstrap(&self, shown: &Self) -> PathBuf {
        let bootstrap = json!({
            "xds_servers": [{
                "server_uri": "10.77.0.1:15012",
                // Each takes the first that it knows.
                "channel_creds": [
                    { "type": "heddle_file_tls", "config": self.files() },
                    { "type": "tls", "config": self.files() },
                ],
                "server_features": ["xds_v3"],
            }],
            "node": {
                "id": format!("{}.shop", self.workload),
                "metadata": { "heddle.dev/certificate-provider": "default" },
            },
            "certificate_providers": { "default": { "plugin_name": "file_watcher", "config": shown.files() } },
            "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
        });
        let file = self.directory.join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        file
    }
}

/// Builds them, unless they are there.
pub fn build() {
    let built = Command::new(format!("{SOURCES}/build")).status().unwrap();
    assert!(built.success(), "tests/interop/build says why it cannot build its applications");
}

/// A server in plaintext that is called as its pod.
pub fn server(pod: &MeshPod, port: u16) -> Server {
    let mut command = go();
    command.args(["-name", &pod.pod.name, "-listen", &format!("0.0.0.0:{port}")]);
    Server::start(pod, command, "ready")
}

/// A server that is told by xDS, and shows the certificate of `shown`.
pub fn go_server(pod: &MeshPod, identity: &Identity, shown: &Identity) -> Server {
    let mut command = go();
    command.env("GRPC_XDS_BOOTSTRAP", identity.bootstrap(shown));
    command.args(["-xds", "-name", &pod.pod.name, "-listen", &format!("0.0.0.0:{PORT}")]);
    Server::start(pod, command, "ready")
}

/// As [`go_server`].
pub fn java_server(pod: &MeshPod, identity: &Identity) -> Server {
    let mut command = java(identity);
    command.args([&pod.pod.name, &PORT.to_string()]);
    Server::start(pod, command, "ready")
}

/// A client.
pub fn go_client(pod: &MeshPod, identity: &Identity) -> Server {
    let mut command = go();
    command.env("GRPC_XDS_BOOTSTRAP", identity.bootstrap(identity));
    Server::start(pod, command, "ready")
}

/// A client of targets that are not xDS'.
pub fn go_client_without_xds(pod: &MeshPod) -> Server {
    Server::start(pod, go(), "ready")
}

/// A client.
pub fn java_client(pod: &MeshPod, identity: &Identity) -> Server {
    Server::start(pod, java(identity), "ready")
}

/// A client.
pub fn grpcio_client(pod: &MeshPod, identity: &Identity) -> Server {
    let mut command = pypi::python_with_grpcio(&format!("{SOURCES}/client.py"));
    command.env("GRPC_XDS_BOOTSTRAP", identity.bootstrap(identity));
    Server::start(pod, command, "ready")
}

fn go() -> Command {
    let mut command = Command::new("setpriv");
    command.env_clear().args(["--pdeathsig", "KILL", "--"]).arg(Path::new(BUILT).join("go"));
    command
}

fn java(identity: &Identity) -> Command {
    let mut command = Program { name: "java", package: "openjdk-17-jre-headless" }.command();
    command.env("GRPC_XDS_BOOTSTRAP", identity.bootstrap(identity));
    // Made for starting fast: compiled once and not well.
    command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-cp"]);
    command.arg(format!("{BUILT}/java/classes:{BUILT}/java/jars/*")).arg("Interop");
    command
}

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop");
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/interop");
