//! Objects → model → status, as golden YAML: one folder below `tests/golden` per behaviour.
//!
//! `UPDATE_GOLDEN=1 cargo test -p heddle-control-plane --test golden` writes what is made now; read the difference
//! before it is committed.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic here is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use heddle_control_plane::model::{Egress, Mesh};
use heddle_control_plane::objects::Objects;
use heddle_control_plane::source::manifest;
use heddle_control_plane::translate::{self, DEFAULT_ROOT_NAMESPACE, Settings};
use serde::Serialize;

fn settings() -> Settings {
    Settings {
        trust_domain: "mesh.example".into(),
        root_namespace: DEFAULT_ROOT_NAMESPACE.into(),
        mesh: Mesh { cidrs: vec!["10.0.0.0/8".parse().unwrap()], egress: Egress::Allow },
    }
}

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn objects(case: &Path) -> Objects {
    let text = fs::read_to_string(case.join("objects.yaml")).unwrap();
    let manifest = manifest::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", case.display()));
    Objects::of(manifest.objects.into_iter().map(|parsed| parsed.object))
}

fn yaml(value: &impl Serialize) -> String {
    serde_saphyr::to_string(value).unwrap()
}

/// What the objects of a case become, by file name.
fn made(case: &Path) -> Vec<(&'static str, String)> {
    let translation = translate::all(&objects(case), &settings());
    let statuses: BTreeMap<_, _> = translation.statuses.iter().map(|(key, status)| (key.to_string(), status)).collect();
    vec![("model.yaml", yaml(&translation.model)), ("status.yaml", yaml(&statuses))]
}

#[test]
fn objects_become_the_model_and_the_statuses_that_were_reviewed() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differing = Vec::new();
    for case in cases() {
        for (name, made) in made(&case) {
            let path = case.join(name);
            let wanted = fs::read_to_string(&path).unwrap_or_default();
            if wanted == made {
                continue;
            }
            if update {
                fs::write(&path, made).unwrap();
            } else {
                let line = wanted.lines().zip(made.lines()).position(|(a, b)| a != b);
                let line = line.unwrap_or_else(|| wanted.lines().count().min(made.lines().count()));
                let shown = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
                differing.push(format!(
                    "{}:{}: wanted `{}`, made `{}`",
                    path.display(),
                    line + 1,
                    shown(&wanted),
                    shown(&made)
                ));
            }
        }
    }
    assert!(differing.is_empty(), "\n{}", differing.join("\n"));
}

#[test]
fn there_are_at_least_forty_cases_and_each_is_whole() {
    let cases = cases();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    for case in cases {
        for name in ["objects.yaml", "model.yaml", "status.yaml"] {
            assert!(case.join(name).is_file(), "{} has no {name}", case.display());
        }
    }
}
