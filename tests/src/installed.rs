//! Heddle in the test cluster, as its chart installs it.
//!
//! `scripts/test` has put the images into the nodes, and so does a developer by hand: `scripts/images`, then
//! `tests/cluster/cluster load-images target/images/*.tar`. Nothing here builds.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::chart;
use crate::cluster::Cluster;
use crate::eventually;
use crate::pypi;

/// Where the chart installs to, and the release's name.
pub const NAMESPACE: &str = "heddle-system";
/// The release's name.
pub const RELEASE: &str = "heddle";

/// A release of the chart in a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Heddle<'a> {
    /// The cluster it is in.
    pub cluster: &'a Cluster,
}

impl<'a> Heddle<'a> {
    /// The chart with its default values, installed now or before, and ready.
    pub fn installed(cluster: &'a Cluster) -> Self {
        Self::with_values(cluster, &[])
    }

    /// The chart with more arguments for Helm, such as `--set`; ready.
    pub fn with_values(cluster: &'a Cluster, more: &[&str]) -> Self {
        let heddle = Self { cluster };
        heddle.upgrade(&chart::directory(), more);
        heddle
    }

    /// The commit before this one, its chart and its images, ready; the release's revision.
    pub fn previous(cluster: &'a Cluster) -> u64 {
        let chart = chart::directory().join("../../target/previous/charts/heddle");
        assert!(chart.is_dir(), "{} is not there: tests/cluster/previous makes it", chart.display());
        let heddle = Self { cluster };
        heddle.upgrade(&chart, &[]);
        let history: Value = serde_json::from_str(&heddle.helm(&["history", RELEASE, "--output=json"])).unwrap();
        history.as_array().and_then(|history| history.last()?["revision"].as_u64()).unwrap()
    }

    fn upgrade(&self, chart: &Path, more: &[&str]) {
        let mut arguments = vec!["upgrade", RELEASE, chart.to_str().unwrap(), "--install", "--create-namespace"];
        // Tests without the chart apply the same definitions themselves.
        arguments.extend(["--wait", PATIENCE, "--reset-values", "--force-conflicts", "--take-ownership"]);
        arguments.extend(more);
        self.helm(&arguments);
        self.settled();
    }

    /// Goes back to an earlier revision of the release; ready.
    pub fn roll_back(&self, revision: u64) {
        self.helm(&["rollback", RELEASE, &revision.to_string(), "--wait", PATIENCE, "--force-conflicts"]);
        self.settled();
    }

    /// A control plane that ends may still answer the API server, with the settings it knew.
    fn settled(&self) {
        eventually("control planes of before are gone", || {
            let ending = "--output=jsonpath={.items[*].metadata.deletionTimestamp}";
            self.cluster.kubectl(["get", "pods", "--namespace", NAMESPACE, ending]).is_empty().then_some(())
        });
    }

    /// A cluster without the release and without anything it makes, but with its namespace.
    pub fn absent(cluster: &'a Cluster) -> Self {
        let heddle = Self { cluster };
        heddle.helm(&["uninstall", RELEASE, "--ignore-not-found", "--wait", PATIENCE]);
        // Those of control planes that no chart installed belong to nobody.
        let roots = ["delete", "configmaps", "--all-namespaces", "--field-selector=metadata.name=heddle-roots"];
        cluster.kubectl(roots);
        cluster.apply(&format!("{{ apiVersion: v1, kind: Namespace, metadata: {{ name: {NAMESPACE} }} }}"));
        eventually("nothing is left in its namespace", || {
            let all = ["get", "pods,secrets,configmaps,leases", "--output=name", "--namespace", NAMESPACE];
            (cluster.kubectl(all) == "configmap/kube-root-ca.crt").then_some(())
        });
        heddle
    }

    /// Helm in the release's namespace, to its end, which must be a success; what it wrote to standard output.
    pub fn helm(&self, arguments: &[&str]) -> String {
        let output = self.try_helm(arguments);
        if !output.status.success() {
            self.show();
            panic!("helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// [`Heddle::helm`] that may fail.
    pub fn try_helm(&self, arguments: &[&str]) -> Output {
        self.helm_command(arguments).output().unwrap()
    }

    fn helm_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.in_node(pypi::helm());
        command.args(["--namespace", NAMESPACE]).args(arguments);
        command
    }

    /// What is there, for whoever reads a failed test.
    pub fn show(&self) {
        for question in [
            &["get", "all,events", "--output=wide"][..],
            &["describe", "pods"],
            &["logs", "--selector=app.kubernetes.io/part-of=heddle", "--tail=50", "--all-containers", "--prefix"],
        ] {
            let said = self.cluster.try_kubectl([&["--namespace", NAMESPACE], question].concat());
            eprintln!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        }
    }
}

/// How long Helm waits for what must happen. Generous: only a failing test waits so long.
const PATIENCE: &str = "--timeout=90s";
