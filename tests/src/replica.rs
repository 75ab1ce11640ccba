//! A control plane of the test cluster: a process in the first node's network that has exactly the rights the chart gives it.
//!
//! Each test has control planes of its own, in a namespace of its own that stands for `heddle-system`: their Secret and their Lease
//! are there. What is the whole cluster's (statuses of routes, the roots in every namespace) belongs to whichever runs, so tests of
//! this kind run one after another.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use heddle::pods::{Child, Netns};
use heddle_control_plane::api;
use heddle_control_plane::cluster::access::{RULES, Scope};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::{Cluster, Namespace};
use crate::eventually;
use crate::installed::Heddle;

/// The rights of a control plane, and whom they were given to.
pub struct Account {
    binary: &'static str,
    directory: TempDir,
    namespace: String,
    network: Netns,
}

/// A control plane. Killed when dropped; if the test fails, what it said is shown.
pub struct Replica<'a> {
    account: &'a Account,
    child: Option<Child>,
    log: PathBuf,
    /// Its name among replicas.
    pub name: String,
    /// Metrics and pages.
    pub admin: SocketAddr,
    /// xDS and certificates over TLS, on every address of the node.
    pub tls: SocketAddr,
    /// xDS without TLS.
    pub plain: SocketAddr,
}

impl Account {
    /// Our definitions, a service account in `home` and the rights a control plane needs there; nothing else. `binary` is the
    /// `heddle` binary.
    pub fn in_namespace(cluster: &Cluster, home: &Namespace<'_>, binary: &'static str) -> Self {
        // Two would disagree about what is the whole cluster's.
        Heddle::absent(cluster);
        install_definitions(cluster);
        let name = &home.name;
        let subject = json!([{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": name }]);
        let group = "rbac.authorization.k8s.io";
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": ACCOUNT, "namespace": name } },
            { "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": { "name": name }, "rules": rules(Scope::Cluster) },
            { "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": { "name": name },
              "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": name }, "subjects": subject },
            { "apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": { "name": ACCOUNT, "namespace": name },
              "rules": rules(Scope::OwnNamespace) },
            { "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": { "name": ACCOUNT, "namespace": name },
              "roleRef": { "apiGroup": group, "kind": "Role", "name": ACCOUNT }, "subjects": subject },
        ]});
        cluster.apply(&list.to_string());
        let directory = tempfile::tempdir().unwrap();
        let token = home.kubectl(["create", "token", ACCOUNT, "--duration=1h"]);
        let admin: Value =
            serde_json::from_str(&cluster.kubectl(["config", "view", "--raw", "--flatten", "--output=json"])).unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": admin["clusters"][0]["cluster"] }],
            "users": [{ "name": "u", "user": { "token": token } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u", "namespace": name } }],
        });
        std::fs::write(directory.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        Self { binary, directory, namespace: name.clone(), network: cluster.network() }
    }

    /// From now on, control planes reach the API server through `address` in the node's network.
    pub fn through(&mut self, address: SocketAddr) {
        let path = self.directory.path().join("kubeconfig");
        let mut kubeconfig: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        kubeconfig["clusters"][0]["cluster"]["server"] = format!("https://{address}").into();
        std::fs::write(path, kubeconfig.to_string()).unwrap();
    }

    /// Where the API server is, in the node's network.
    pub fn server(&self) -> SocketAddr {
        let text = std::fs::read(self.directory.path().join("kubeconfig")).unwrap();
        let kubeconfig: Value = serde_json::from_slice(&text).unwrap();
        let server = kubeconfig["clusters"][0]["cluster"]["server"].as_str().unwrap();
        server.trim_start_matches("https://").parse().unwrap()
    }

    /// Starts a control plane and waits until it is ready.
    pub fn start(&self, name: &str) -> Replica<'_> {
        let replica = self.launch(name, &[]);
        replica.ready();
        replica
    }

    /// Starts a control plane, with flags more.
    pub fn launch(&self, name: &str, flags: &[&str]) -> Replica<'_> {
        let [admin, tls, plain, webhook] = self.free_ports();
        let log = self.directory.path().join(format!("{name}.log"));
        let mut command = Command::new("setpriv");
        // Dies with this process, and knows nothing of the machine it is on.
        command.env_clear().args(["--pdeathsig", "KILL", "--", self.binary, "control-plane"]);
        command.env("KUBECONFIG", self.directory.path().join("kubeconfig"));
        command.args(["--kubernetes", "--namespace", &self.namespace, "--pod", name]);
        command.args(["--listen", &format!("0.0.0.0:{tls}"), "--plain-ads", &format!("127.0.0.1:{plain}")]);
        command.args(["--admin-port", &admin.to_string(), "--log", "info,heddle_control_plane=debug"]);
        command.args(["--webhook-port", &webhook.to_string()]);
        command.args(flags).stdin(Stdio::null()).stderr(File::create(&log).unwrap());
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Replica {
            account: self,
            child: Some(self.network.spawn(command).unwrap()),
            log,
            name: name.to_owned(),
            admin: local(admin),
            tls: local(tls),
            plain: local(plain),
        }
    }

    /// The node's network.
    pub fn network(&self) -> &Netns {
        &self.network
    }

    /// A folder for whatever the test keeps.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ports nobody listens on now, below those that the kernel gives to connections and the cluster to Services.
    fn free_ports(&self) -> [u16; 4] {
        let free = |port: u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        let next = || loop {
            let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
            if free(port) {
                return port;
            }
        };
        self.network.run(|| [next(), next(), next(), next()]).unwrap()
    }
}

impl Replica<'_> {
    /// Waits until it serves.
    pub fn ready(&self) {
        eventually(&format!("{} is ready", self.name), || {
            self.try_page("/ready")?.starts_with("HTTP/1.0 200").then_some(())
        });
    }

    /// A page of its admin port.
    pub fn page(&self, path: &str) -> String {
        let answer = self.try_page(path).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The value of a series, by its name and labels as exposed.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.page("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    }

    /// Waits until a series has the value.
    pub fn metric_becomes(&self, series: &str, value: f64) {
        eventually(&format!("{series} of {} is {value}", self.name), || {
            let text = self.try_page("/metrics")?;
            let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
            (line.parse::<f64>().ok()? == value).then_some(())
        });
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it in order, as a kubelet does.
    pub fn stop(mut self) {
        if let Some(mut child) = self.child.take() {
            child.signal(Signal::SIGTERM).unwrap();
            child.wait().unwrap();
        }
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.child.take();
    }

    fn try_page(&self, path: &str) -> Option<String> {
        let asked = self.account.network.run(|| {
            let mut stream = TcpStream::connect(self.admin).ok()?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        });
        asked.unwrap()
    }
}

impl Drop for Replica<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("control plane {} said:\n{}", self.name, std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Ours, made from the types this was built with; Gateway API's must be there.
pub fn install_definitions(cluster: &Cluster) {
    let gateway = cluster.try_kubectl(["get", "customresourcedefinition/httproutes.gateway.networking.k8s.io"]);
    let remedy = "tests/cluster/conformance/run control installs them";
    assert!(gateway.status.success(), "the cluster has no definitions of Gateway API: {remedy}");
    let definitions = json!({ "apiVersion": "v1", "kind": "List", "items": api::definitions() });
    cluster.apply(&definitions.to_string());
    let names = api::definitions().into_iter().filter_map(|definition| definition.metadata.name);
    let names: Vec<_> = names.map(|name| format!("customresourcedefinition/{name}")).collect();
    let wait = ["wait", "--for=condition=Established", "--timeout=60s"].map(str::to_owned);
    cluster.kubectl(wait.into_iter().chain(names));
}

fn rules(scope: Scope) -> Vec<Value> {
    let rules = RULES.iter().filter(|rule| rule.scope == scope).map(|rule| {
        let mut written = json!({ "apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs });
        if !rule.names.is_empty() {
            written["resourceNames"] = json!(rule.names);
        }
        written
    });
    rules.collect()
}

static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);
const ACCOUNT: &str = "heddle-control-plane";
