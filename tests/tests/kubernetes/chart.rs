//! The chart on a real cluster: installed, tested by itself, upgraded, and gone again.

use std::collections::BTreeSet;

use heddle_tests::chart;
use heddle_tests::cluster::Cluster;
use heddle_tests::eventually;
use heddle_tests::installed::{Heddle, NAMESPACE};
use serde_json::Value;

#[test]
fn it_installs_and_upgrades_and_uninstalling_leaves_its_definitions_alone() {
    let cluster = Cluster::running();
    Heddle::absent(&cluster);
    let before = everything(&cluster);

    let heddle = Heddle::installed(&cluster);
    heddle.helm(&["test", "heddle"]);
    let bundles = eventually("the API server is told whom to believe", || {
        let bundles = ca_bundles(&cluster);
        bundles.iter().all(|bundle| !bundle.is_empty()).then_some(bundles)
    });
    let root = get(&cluster, "secret/heddle-root")["data"]["ca.crt"].clone();
    assert!(root.is_string());
    eventually("namespaces know the roots", || {
        let maps =
            cluster.kubectl(["get", "configmaps", "--all-namespaces", "--output=jsonpath={.items[*].metadata.name}"]);
        let namespaces = cluster.kubectl(["get", "namespaces", "--output=jsonpath={.items[*].metadata.name}"]);
        let maps = maps.split_whitespace().filter(|name| *name == "heddle-roots").count();
        (maps == namespaces.split_whitespace().count()).then_some(())
    });

    // An upgrade with other settings: new pods, and everything that Heddle itself has put there stays.
    Heddle::with_values(&cluster, &["--set=sidecar.log=debug,controlPlane.replicas=2"]);
    assert_eq!(ca_bundles(&cluster), bundles);
    assert_eq!(get(&cluster, "secret/heddle-root")["data"]["ca.crt"], root);
    let deployment = get(&cluster, "deployment/heddle-control-plane");
    assert_eq!(deployment["status"]["readyReplicas"], 2);
    assert!(injection(&cluster).contains("log: debug"));
    heddle.helm(&["test", "heddle"]);
    heddle.helm(&["rollback", "heddle", "1", "--wait"]);
    assert!(injection(&cluster).contains("log: info"));
    assert_eq!(ca_bundles(&cluster), bundles);

    heddle.helm(&["uninstall", "heddle", "--wait"]);
    eventually("nothing that was not there before is left", || {
        let left: Vec<_> = everything(&cluster).difference(&before).cloned().collect();
        let definitions = left.iter().all(|name| DEFINITIONS.iter().any(|kind| name.starts_with(kind)));
        definitions.then_some(())
    });
    for definition in heddle_control_plane::api::definitions() {
        cluster.kubectl(["get", "customresourcedefinition", &definition.metadata.name.unwrap()]);
    }

    // What was kept is taken over again.
    Heddle::installed(&cluster);
}

#[test]
fn a_namespace_in_which_it_could_not_work_is_refused() {
    let cluster = Cluster::running();
    let chart = chart::directory();
    let mut command = cluster.in_node(heddle_tests::pypi::helm());
    command.args(["install", "heddle", chart.to_str().unwrap(), "--namespace=default"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("-n heddle-system --create-namespace"), "{said}");
}

#[test]
fn the_control_plane_may_do_nothing_that_it_does_not_need() {
    let cluster = Cluster::running();
    Heddle::installed(&cluster);
    for (allowed, request) in [
        (true, &["get", "secrets/heddle-root", "--namespace=heddle-system"][..]),
        (false, &["get", "secrets/other", "--namespace=heddle-system"]),
        (false, &["list", "secrets", "--namespace=heddle-system"]),
        (false, &["get", "secrets/heddle-root", "--namespace=default"]),
        (true, &["patch", "configmaps/heddle-roots", "--namespace=default"]),
        (false, &["patch", "configmaps/coredns", "--namespace=kube-system"]),
        (false, &["get", "configmaps/coredns", "--namespace=kube-system"]),
        (true, &["list", "pods", "--all-namespaces"]),
        (false, &["create", "pods", "--namespace=default"]),
        (false, &["patch", "pods", "--namespace=default"]),
        (false, &["create", "pods/exec", "--namespace=default"]),
        (false, &["create", "serviceaccounts/token", "--namespace=default"]),
        (true, &["patch", "mutatingwebhookconfigurations/heddle-injector"]),
        (false, &["patch", "mutatingwebhookconfigurations/other"]),
        (false, &["delete", "mutatingwebhookconfigurations/heddle-injector"]),
        (false, &["patch", "clusterroles/heddle-control-plane"]),
        (false, &["list", "nodes"]),
    ] {
        let who = format!("--as=system:serviceaccount:{NAMESPACE}:heddle-control-plane");
        let output = cluster.try_kubectl([&["auth", "can-i", &who][..], request].concat());
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(
            said,
            if allowed { "yes" } else { "no" },
            "{request:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The caBundle of every webhook.
fn ca_bundles(cluster: &Cluster) -> Vec<String> {
    let configurations =
        ["mutatingwebhookconfiguration/heddle-injector", "validatingwebhookconfiguration/heddle-validator"];
    let all = configurations.map(|name| get(cluster, name));
    let webhooks = all.iter().flat_map(|configuration| configuration["webhooks"].as_array().unwrap());
    webhooks.map(|webhook| webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned()).collect()
}

fn injection(cluster: &Cluster) -> String {
    get(cluster, "configmap/heddle-injection")["data"]["injection.yaml"].as_str().unwrap().to_owned()
}

fn get(cluster: &Cluster, object: &str) -> Value {
    let namespace = format!("--namespace={NAMESPACE}");
    serde_json::from_str(&cluster.kubectl(["get", object, &namespace, "--output=json"])).unwrap()
}

/// How the kinds that uninstalling leaves are seen.
const DEFINITIONS: [&str; 2] =
    ["apiextensions.k8s.io/v1 CustomResourceDefinition ", "apiregistration.k8s.io/v1 APIService "];

/// Every object of the cluster as `<version> <kind> <namespace>/<name>`, but for what comes and goes by itself.
fn everything(cluster: &Cluster) -> BTreeSet<String> {
    let types = cluster.kubectl(["api-resources", "--verbs=list", "--output=name"]);
    let types: Vec<_> =
        types.lines().filter(|name| !name.starts_with("events") && !name.starts_with("componentstatuses")).collect();
    let types = types.join(",");
    let columns =
        "--output=jsonpath={range .items[*]}{.apiVersion} {.kind} {.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let listed = cluster.kubectl(["get", &types, "--all-namespaces", "--ignore-not-found", columns]);
    listed.lines().map(ToOwned::to_owned).collect()
}
