//! The Kubernetes cluster that `tests/cluster/cluster up` has started: kubectl, a namespace for each test, commands and
//! code inside the node.
//!
//! All of it goes through that script, which knows where the cluster is (`HEDDLE_CLUSTER`). Nothing here starts or ends
//! a cluster: `scripts/test` does, and a developer by hand, so that all tests share one.

use std::ffi::OsStr;
use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use heddle::pods::Netns;
use serde_json::Value;

use crate::eventually;

/// How long kubectl waits for what must happen, seconds. Generous: only a failing test waits so long.
const PATIENCE: &str = "60s";

/// A cluster that is up.
#[derive(Debug)]
pub struct Cluster {
    /// The first node's first process.
    process: u32,
}

impl Cluster {
    /// The cluster that is up; fails with the command that starts one if none is.
    pub fn running() -> Self {
        let process = text(succeed(script().arg("process")));
        Self { process: process.parse().unwrap() }
    }

    /// A namespace of the test's own, named after `purpose`; gone when dropped.
    pub fn namespace(&self, purpose: &str) -> Namespace<'_> {
        self.namespace_labelled(purpose, &[])
    }

    /// [`Cluster::namespace`] with labels from its beginning.
    pub fn namespace_labelled(&self, purpose: &str, labels: &[(&str, &str)]) -> Namespace<'_> {
        let labels: Value = labels.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        let metadata = serde_json::json!({ "generateName": format!("{purpose}-"), "labels": labels });
        let manifest = serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata });
        let create = ["create", "--filename=-", "--output=jsonpath={.metadata.name}"];
        let namespace =
            Namespace { cluster: self, name: text(fed(self.command().args(create), &manifest.to_string())) };
        // A pod made before its service account is refused.
        namespace.kubectl(["wait", "--for=create", "serviceaccount/default", &format!("--timeout={PATIENCE}")]);
        namespace
    }

    /// kubectl to its end, which must be a success; what it wrote to standard output, without white space around it.
    pub fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        text(succeed(self.command().args(arguments)))
    }

    /// kubectl to its end, which may be a failure.
    pub fn try_kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        run(self.command().args(arguments))
    }

    /// Makes these objects so, each in the namespace it names.
    pub fn apply(&self, manifests: &str) {
        fed(self.command().args(["apply", "--server-side", "--force-conflicts", "--filename=-"]), manifests);
    }

    /// What the API server answers if these objects are to be made so: for objects that must be refused.
    pub fn try_apply(&self, manifests: &str) -> Output {
        feed(self.command().args(["apply", "--server-side", "--force-conflicts", "--filename=-"]), manifests)
    }

    /// A command inside the first node: its network, its processes, its /etc, /opt, /run, /var/lib and /var/log.
    pub fn in_node(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = script();
        command.arg("exec").arg(program);
        command
    }

    /// The first node's network, from which pods and Services can be reached, for code and for programs.
    pub fn network(&self) -> Netns {
        Netns::open(Path::new(&format!("/proc/{}/ns/net", self.process))).unwrap()
    }

    /// Where pods and other nodes reach the first node.
    pub fn address(&self) -> IpAddr {
        let jsonpath = "--output=jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}";
        let addresses = self.kubectl(["get", "nodes", jsonpath]);
        let address = addresses.split_whitespace().find_map(|text| text.parse().ok().filter(IpAddr::is_ipv4));
        address.unwrap_or_else(|| panic!("no IPv4 address among {addresses:?}"))
    }

    /// The network of the pod that has `address`, on the first node: as a process in that pod sees it.
    pub fn pod_network(&self, address: IpAddr) -> Netns {
        // Made by the container runtime for each pod.
        let folder = format!("/proc/{}/root/run/netns", self.process);
        let networks = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut networks = networks.filter_map(|path| Netns::open(&path).ok());
        // Only who has an address can bind it.
        let has = |network: &Netns| network.run(|| UdpSocket::bind((address, 0)).is_ok()).unwrap();
        networks.find(has).unwrap_or_else(|| panic!("no pod on the first node has the address {address}"))
    }

    /// A kubeconfig with every right. Its API server is reached from [`Cluster::network`].
    pub fn kubeconfig(&self) -> PathBuf {
        text(succeed(self.in_node("printenv").arg("KUBECONFIG"))).into()
    }

    /// Puts OCI archives into every node.
    pub fn load_images<P: AsRef<OsStr>>(&self, files: impl IntoIterator<Item = P>) {
        succeed(script().arg("load-images").args(files));
    }

    fn command(&self) -> Command {
        let mut command = script();
        command.arg("kubectl");
        command
    }
}

/// A namespace of one test. If the test fails, what is in it is shown.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    /// As in the API server.
    pub name: String,
}

impl Namespace<'_> {
    /// [`Cluster::kubectl`] in this namespace.
    pub fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        text(succeed(self.command().args(arguments)))
    }

    /// [`Cluster::try_kubectl`] in this namespace.
    pub fn try_kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        run(self.command().args(arguments))
    }

    /// Makes these objects so, in this namespace unless they name another.
    pub fn apply(&self, manifests: &str) {
        fed(self.command().args(["apply", "--server-side", "--force-conflicts", "--filename=-"]), manifests);
    }

    /// What the API server answers if these objects are to be made so: for objects that must be refused.
    pub fn try_apply(&self, manifests: &str) -> Output {
        feed(self.command().args(["apply", "--server-side", "--force-conflicts", "--filename=-"]), manifests)
    }

    /// Waits until all pods of a Deployment, StatefulSet or DaemonSet (`deployment/echo`) are ready as it asks for.
    pub fn rolled_out(&self, workload: &str) {
        self.kubectl(["rollout", "status", workload, &format!("--timeout={PATIENCE}")]);
    }

    /// Waits until an object (`pod/client`) is as `condition` says, in the words of `kubectl wait --for`.
    pub fn wait(&self, object: &str, condition: &str) {
        self.kubectl(["wait", object, &format!("--for={condition}"), &format!("--timeout={PATIENCE}")]);
    }

    /// An object as the API server has it.
    pub fn get(&self, object: &str) -> Value {
        serde_json::from_str(&self.kubectl(["get", object, "--output=json"])).unwrap()
    }

    /// Names of the pods that have these labels (`app=echo`), sorted.
    pub fn pods(&self, selector: &str) -> Vec<String> {
        let output = "--output=jsonpath={.items[*].metadata.name}";
        let names =
            self.kubectl(["get", "pods", &format!("--selector={selector}"), "--sort-by=.metadata.name", output]);
        names.split_whitespace().map(ToOwned::to_owned).collect()
    }

    /// A pod's network, for programs of this machine: its sidecar takes what they send for the pod's own.
    pub fn network(&self, pod: &str) -> Netns {
        let pod = self.get(&format!("pod/{pod}"));
        self.cluster.pod_network(pod["status"]["podIP"].as_str().unwrap().parse().unwrap())
    }

    /// Runs a program in a pod (`client`, or `deployment/client`), in its container `--container=NAME` or its default
    /// one, to its end, which must be a success; what it wrote to standard output, without white space around it.
    pub fn exec(&self, pod: &str, program: &[&str]) -> String {
        text(succeed(&mut self.exec_command(pod, program)))
    }

    /// [`Namespace::exec`] that may fail.
    pub fn try_exec(&self, pod: &str, program: &[&str]) -> Output {
        run(&mut self.exec_command(pod, program))
    }

    /// Runs a program in a pod until it succeeds and `found` finds something in its standard output.
    pub fn exec_until<T>(&self, pod: &str, program: &[&str], found: impl Fn(&str) -> Option<T>) -> T {
        eventually(&format!("{program:?} in {pod} says what it should"), || {
            let output = self.try_exec(pod, program);
            output.status.success().then(|| found(text(output).as_str())).flatten()
        })
    }

    fn exec_command(&self, pod: &str, program: &[&str]) -> Command {
        let mut command = self.command();
        command.args(["exec", pod, "--quiet"]);
        // An option of kubectl's own before the program, for the container.
        let (options, program) = program.split_at(program.iter().take_while(|word| word.starts_with("--")).count());
        command.args(options).arg("--").args(program);
        command
    }

    fn command(&self) -> Command {
        let mut command = self.cluster.command();
        command.arg(format!("--namespace={}", self.name));
        command
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what was in the namespace {}:", self.name);
            for question in [
                &["get", "all,httproutes,grpcroutes", "--output=wide", "--ignore-not-found"][..],
                &["describe", "pods"],
                &["get", "events", "--sort-by=.lastTimestamp"],
            ] {
                let said = self.try_kubectl(question);
                eprintln!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
            }
        }
        // The next test has a namespace of its own and need not wait for this one's end.
        self.try_kubectl(["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// The script that knows the cluster.
fn script() -> Command {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/cluster"))
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn succeed(command: &mut Command) -> Output {
    let output = run(command);
    assert_success(command, &output);
    output
}

/// Runs the command with an input of its own.
fn feed(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It reads all of its input before it writes more than a pipe holds. A command that ends early says why itself.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn fed(command: &mut Command, input: &str) -> Output {
    let output = feed(command, input);
    assert_success(command, &output);
    output
}

fn assert_success(command: &Command, output: &Output) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
}

fn text(output: Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
