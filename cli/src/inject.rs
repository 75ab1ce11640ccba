//! `heddle inject`: gives the pods in a manifest sidecars, offline, exactly as the webhook would in a cluster.
//!
//! What comes out on standard output can be applied as it is: workloads with their sidecars, everything else as it stood in
//! the file. What became of each workload is said on standard error. If one cannot be injected nothing comes out at all, so
//! that no half of a file is ever applied.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use heddle_control_plane::inject::{self, Decision, Namespace, Settings};
use heddle_control_plane::source::manifest;
use serde_json::Value;

/// Settings of `heddle inject`.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// Manifest with the workloads, YAML or JSON; `-`: standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Injection settings, the file that the chart keeps in ConfigMap heddle-injection. Default: every setting's own default.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
}

/// Prints the manifest with sidecars.
///
/// # Errors
/// If a file cannot be read, or a workload cannot be injected; nothing is printed then.
pub fn run(args: &InjectArgs) -> anyhow::Result<()> {
    let settings = match &args.settings {
        None => Settings::default(),
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("--settings {}", path.display()))?;
            Settings::parse(&text).with_context(|| format!("--settings {}", path.display()))?
        }
    };
    let text = read(args).with_context(|| format!("--file {}", args.file.display()))?;
    let injected = manifest(&text, &settings).with_context(|| args.file.display().to_string())?;
    for line in &injected.said {
        eprintln!("{line}");
    }
    std::io::stdout().lock().write_all(injected.text.as_bytes())?;
    Ok(())
}

fn read(args: &InjectArgs) -> std::io::Result<String> {
    if args.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text)?;
        return Ok(text);
    }
    fs::read_to_string(&args.file)
}

/// A manifest with sidecars, and what became of each workload, a line each.
#[derive(Debug, Default)]
struct Injected {
    text: String,
    said: Vec<String>,
}

/// Why there is no manifest with sidecars.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// A document cannot be read.
    #[error("the document that begins in line {line}: {error}")]
    Syntax {
        /// Where it begins, from 1.
        line: usize,
        /// What is wrong with it; lines count from there.
        error: manifest::Error,
    },
    /// Pods that must not be created like this.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// A document cannot be written again.
    #[error("{object}: {reason}")]
    Write {
        /// Which.
        object: String,
        /// Why.
        reason: String,
    },
}

fn manifest(text: &str, settings: &Settings) -> Result<Injected, Error> {
    let mut injected = Injected::default();
    let mut refused = Vec::new();
    for document in documents(text) {
        let values =
            manifest::documents(document.text).map_err(|error| Error::Syntax { line: document.line, error })?;
        let mut changed = false;
        let mut written = Vec::new();
        for mut value in values {
            changed |= object(&mut value, settings, &mut injected.said, &mut refused);
            written.push(value);
        }
        injected.text.push_str(document.separator);
        if !changed {
            injected.text.push_str(document.text);
            continue;
        }
        for value in written {
            let yaml = serde_saphyr::to_string(&value)
                .map_err(|error| Error::Write { object: Name(&value).to_string(), reason: error.to_string() })?;
            injected.text.push_str(&yaml);
        }
    }
    if refused.is_empty() { Ok(injected) } else { Err(Error::Refused(refused)) }
}

/// Injects an object, or the objects of a list; whether anything changed.
fn object(object: &mut Value, settings: &Settings, said: &mut Vec<String>, refused: &mut Vec<String>) -> bool {
    let kind = object["kind"].as_str().unwrap_or_default();
    if kind == "List" {
        let mut changed = false;
        for item in object["items"].as_array_mut().into_iter().flatten() {
            changed |= self::object(item, settings, said, refused);
        }
        return changed;
    }
    let group =
        object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map_or("", |(group, _)| group);
    let Some(template) = template(group, kind) else { return false };
    let name = Name(object).to_string();
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(pod) = object.pointer_mut(template) else {
        refused.push(format!("{name}: {}: there is no pod here", template.trim_start_matches('/').replace('/', ".")));
        return false;
    };
    if pod["metadata"].is_null() {
        pod["metadata"] = Value::Object(serde_json::Map::new());
    }
    // Who calls this asks for sidecars; the pod itself may still opt out.
    let namespace = Namespace { name: namespace, inject: Some("enabled".to_owned()) };
    match inject::decide(pod, &namespace, settings) {
        Decision::Inject(injection) => {
            if let Err(error) = json_patch::patch(pod, &injection.patch) {
                refused.push(format!("{name}: {error}"));
                return false;
            }
            let has = injection.patch.0.is_empty();
            said.push(format!("{name}: {}", if has { "has its sidecar already" } else { "injected" }));
            said.extend(injection.warnings.iter().map(|warning| format!("{name}: warning: {warning}")));
            !has
        }
        Decision::Skip(skip) => {
            said.push(format!("{name}: {}", skip.reason.message()));
            false
        }
        Decision::Refuse(errors) => {
            refused.extend(errors.iter().map(|error| format!("{name}: {error}")));
            false
        }
    }
}

/// Where a kind of workload has its pod.
fn template(group: &str, kind: &str) -> Option<&'static str> {
    match (group, kind) {
        ("", "Pod") => Some(""),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job")
        | ("", "ReplicationController") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// `Deployment shop/api`, as far as it is known.
struct Name<'v>(&'v Value);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |path: &str| self.0.pointer(path).and_then(Value::as_str);
        write!(f, "{} ", text("/kind").unwrap_or("object"))?;
        if let Some(namespace) = text("/metadata/namespace") {
            write!(f, "{namespace}/")?;
        }
        f.write_str(text("/metadata/name").or_else(|| text("/metadata/generateName")).unwrap_or("without name"))
    }
}

/// One document as it stands in the file.
#[derive(Debug, PartialEq, Eq)]
struct Document<'t> {
    /// The line before it, with its end; empty before the first.
    separator: &'t str,
    /// All of it.
    text: &'t str,
    /// Its first line, from 1.
    line: usize,
}

/// The documents of a file. `---` at the beginning of a line separates them, whatever stands around it (YAML 1.2 §9.1.4).
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut all = Vec::new();
    let (mut separator, mut begin, mut line, mut at) = ("", 0, 1, 0);
    for (i, whole) in text.split_inclusive('\n').enumerate() {
        let separates =
            whole.strip_prefix("---").is_some_and(|rest| rest.trim_start().is_empty() || rest.starts_with([' ', '\t']));
        // Something may stand beside it; then it belongs to the document that begins.
        if separates {
            let bare = whole.trim_end() == "---" || whole.trim_start_matches("---").trim_start().starts_with('#');
            if at > begin || !separator.is_empty() {
                all.push(Document { separator, text: &text[begin..at], line });
            }
            (separator, begin, line) = if bare { (whole, at + whole.len(), i + 2) } else { ("", at, i + 1) };
        }
        at += whole.len();
    }
    all.push(Document { separator, text: &text[begin..], line });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injected(text: &str) -> Result<Injected, Error> {
        manifest(text, &Settings::default())
    }

    fn values(text: &str) -> Vec<Value> {
        manifest::documents(text).unwrap().into_iter().filter(|value| !value.is_null()).collect()
    }

    const SPEC: &str = "spec: {containers: [{name: a, image: 'a:1'}]}";

    #[test]
    fn documents_are_separated_and_nothing_is_lost() {
        let text = "# head\na: 1\n---\nb: |\n  ---x\n--- # two\nc: 3\n---\n";
        let all = documents(text);
        assert_eq!(
            all.iter().map(|document| document.text).collect::<Vec<_>>(),
            ["# head\na: 1\n", "b: |\n  ---x\n", "c: 3\n", ""]
        );
        assert_eq!(all.iter().map(|document| document.line).collect::<Vec<_>>(), [1, 4, 7, 9]);
        let again: String = all.iter().map(|document| document.separator.to_owned() + document.text).collect();
        assert_eq!(again, text);
        assert_eq!(documents("--- {a: 1}\n--- {b: 2}").len(), 2);
    }

    #[test]
    fn every_kind_of_workload_gets_its_sidecar_where_its_pod_is() {
        for (version, kind, open, close, template) in [
            ("v1", "Pod", "", "", ""),
            ("apps/v1", "Deployment", "spec: {template: {", "}}", "/spec/template"),
            ("apps/v1", "StatefulSet", "spec: {template: {", "}}", "/spec/template"),
            ("apps/v1", "DaemonSet", "spec: {template: {", "}}", "/spec/template"),
            ("apps/v1", "ReplicaSet", "spec: {template: {", "}}", "/spec/template"),
            ("batch/v1", "Job", "spec: {template: {", "}}", "/spec/template"),
            (
                "batch/v1",
                "CronJob",
                "spec: {jobTemplate: {spec: {template: {",
                "}}}}",
                "/spec/jobTemplate/spec/template",
            ),
        ] {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n{open}{SPEC}{close}\n");
            let injected = injected(&text).unwrap();
            let pod = values(&injected.text)[0].pointer(template).unwrap().clone();
            assert_eq!(pod["spec"]["initContainers"][1]["name"], "heddle-proxy", "{kind}");
            assert!(pod["metadata"]["annotations"]["heddle.dev/injected"].is_string(), "{kind}");
            assert_eq!(injected.said, [format!("{kind} x: injected")]);
        }
    }

    #[test]
    fn the_items_of_a_list_are_injected_and_other_documents_stay_as_they_stand() {
        let service = "# as it was\napiVersion: v1\nkind: Service\nmetadata: {name: s}   # here\n";
        let text = format!(
            "{service}---\napiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Pod, metadata: {{name: p}}, {SPEC}}}\n\
             - {{apiVersion: v1, kind: Secret, metadata: {{name: q}}}}\n"
        );
        let injected = injected(&text).unwrap();
        assert!(injected.text.starts_with(service), "{}", injected.text);
        let list = &values(&injected.text)[1];
        assert_eq!(list["items"][0]["spec"]["initContainers"][0]["name"], "heddle-capture");
        assert_eq!(list["items"][1]["kind"], "Secret");
    }

    #[test]
    fn injecting_twice_is_injecting_once() {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: x}}\n{SPEC}\n");
        let once = injected(&text).unwrap().text;
        let twice = injected(&once).unwrap();
        assert_eq!(twice.text, once);
        assert_eq!(twice.said, ["Pod x: has its sidecar already"]);
    }

    #[test]
    fn one_that_cannot_be_injected_keeps_everything_back_and_is_named() {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: fine}}\n{SPEC}\n---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: x, namespace: shop, annotations: {{heddle.dev/workers: many}}}}\n{SPEC}\n"
        );
        let error = injected(&text).unwrap_err().to_string();
        assert!(error.starts_with("Pod shop/x: annotation heddle.dev/workers: `many`: write"), "{error}");
        let error = injected("a: 1\n---\na: [\n").unwrap_err().to_string();
        assert!(error.starts_with("the document that begins in line 3: "), "{error}");
        let error = injected("apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\n").unwrap_err().to_string();
        assert_eq!(error, "Job j: spec.template: there is no pod here");
    }

    #[test]
    fn one_that_opted_out_stays_and_is_told() {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: x, annotations: {{heddle.dev/inject: disabled}}}}\n{SPEC}\n"
        );
        let injected = injected(&text).unwrap();
        assert_eq!(injected.text, text);
        assert!(injected.said[0].contains("`disabled`"), "{:?}", injected.said);
    }
}
