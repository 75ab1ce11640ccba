//! The Helm chart as tests see it: rendered by a real Helm, read as values.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::pypi;

/// A run of Helm on the chart, without a cluster.
pub fn helm(arguments: &[&str]) -> Output {
    let mut command = Command::new(pypi::helm());
    // Nothing of whoever runs the tests: no cluster, no plug-ins, no cache.
    command.env_clear().env("HOME", "/nonexistent").env("KUBECONFIG", "/nonexistent");
    command.args(arguments).output().unwrap()
}

/// The chart rendered with more arguments, such as `--set` and `--values`.
///
/// # Panics
/// If Helm refuses.
pub fn render(more: &[&str]) -> String {
    let output = try_render(more);
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// As [`render`], and Helm may refuse.
pub fn try_render(more: &[&str]) -> Output {
    let chart = directory();
    let mut arguments = vec!["template", "heddle", chart.to_str().unwrap(), "--namespace", "heddle-system"];
    arguments.extend(more);
    helm(&arguments)
}

/// The objects in a rendered chart, in its order.
pub fn objects(rendered: &str) -> Vec<Value> {
    let all = serde_saphyr::from_multiple::<Value>(rendered).unwrap();
    all.into_iter().filter(|object| !object.is_null()).collect()
}

/// The only object of a kind with a name.
///
/// # Panics
/// If there is none, or several.
pub fn object<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let found: Vec<_> =
        objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name).collect();
    let [object] = found[..] else { panic!("{} objects {kind} {name}", found.len()) };
    object
}

/// Where the chart is.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/heddle")
}
