//! Pods → injected pods, as golden YAML: one folder below `tests/inject` per behaviour. `settings.yaml` holds the namespace
//! and the installation's settings, `result.yaml` what the pod becomes.
//!
//! `UPDATE_GOLDEN=1 cargo test -p heddle-control-plane --test inject` writes what is made now; read the difference before
//! it is committed.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic here is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use heddle_control_plane::inject::{Decision, Namespace, Settings, decide};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `settings.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    namespace: String,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    settings: Settings,
}

/// `result.yaml`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Shown {
    Inject {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<String>,
        pod: Value,
    },
    Skip {
        reason: &'static str,
        message: &'static str,
        tell: bool,
    },
    Refuse(Vec<String>),
}

struct Case {
    path: PathBuf,
    pod: Value,
    namespace: Namespace,
    settings: Settings,
}

impl Case {
    fn read(path: PathBuf) -> Self {
        let text = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        let given: Given = serde_saphyr::from_str(&text("settings.yaml"))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let pod: Value = serde_saphyr::from_str(&text("pod.yaml")).unwrap();
        let namespace = Namespace { name: given.namespace, inject: given.label };
        Self { path, pod, namespace, settings: given.settings }
    }

    fn decide(&self, pod: &Value) -> Decision {
        decide(pod, &self.namespace, &self.settings)
    }

    /// The pod after injection.
    fn injected(&self) -> Option<Value> {
        let Decision::Inject(injection) = self.decide(&self.pod) else { return None };
        let mut pod = self.pod.clone();
        json_patch::patch(&mut pod, &injection.patch)
            .unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
        Some(pod)
    }

    fn shown(&self) -> Shown {
        match self.decide(&self.pod) {
            Decision::Inject(injection) => {
                Shown::Inject { warnings: injection.warnings, pod: self.injected().unwrap() }
            }
            Decision::Skip(skip) => {
                Shown::Skip { reason: skip.reason.name(), message: skip.reason.message(), tell: skip.tell }
            }
            Decision::Refuse(errors) => Shown::Refuse(errors.iter().map(ToString::to_string).collect()),
        }
    }
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject");
    let mut paths: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(Case::read).collect()
}

#[test]
fn pods_become_what_was_reviewed() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differing = Vec::new();
    for case in cases() {
        let path = case.path.join("result.yaml");
        let made = serde_saphyr::to_string(&serde_json::to_value(case.shown()).unwrap()).unwrap();
        let wanted = fs::read_to_string(&path).unwrap_or_default();
        if update {
            fs::write(&path, made).unwrap();
        } else if wanted != made {
            differing.push(format!("{}: made\n{made}", path.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn a_pod_that_was_injected_is_in_order() {
    for case in cases() {
        let Some(injected) = case.injected() else { continue };
        match case.decide(&injected) {
            Decision::Inject(again) => assert!(again.patch.0.is_empty(), "{}: {:?}", case.path.display(), again.patch),
            other => panic!("{}: {other:?}", case.path.display()),
        }
    }
}

#[test]
fn what_is_injected_is_a_pod_that_kubernetes_types_can_hold() {
    for case in cases().into_iter().filter(|case| !case.path.ends_with("fields_nobody_knows_stay")) {
        let Some(injected) = case.injected() else { continue };
        let typed: k8s_openapi::api::core::v1::Pod = serde_json::from_value(injected.clone()).unwrap();
        let mut read = serde_json::to_value(typed).unwrap();
        strip(&mut read, &injected);
        assert_eq!(read, injected, "{}", case.path.display());
    }
}

/// Takes out what only the typed pod has: empty values of fields that are always written.
fn strip(read: &mut Value, written: &Value) {
    if let (Value::Object(read), Value::Object(written)) = (&mut *read, written) {
        read.retain(|name, _| written.contains_key(name));
        for (name, value) in read {
            strip(value, &written[name]);
        }
    } else if let (Value::Array(read), Value::Array(written)) = (read, written) {
        read.iter_mut().zip(written).for_each(|(read, written)| strip(read, written));
    }
}

#[test]
fn there_are_at_least_twenty_cases() {
    assert!(cases().len() >= 20);
}
