//! The rules of the house: who may import whom, and what may be linked in. Reads sources and Cargo.lock as text.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// In files below these places, none of these words may start a path in code.
const FORBIDDEN: &[(&[&str], &[&str], &str)] = &[
    (
        &["xds/src", "certs/src"],
        &["heddle_xds", "heddle_certs", "heddle_proxy", "heddle_control_plane", "heddle"],
        "xds and certs import no other Heddle crate",
    ),
    (&["proxy/src"], &["heddle_control_plane", "heddle"], "proxy imports neither the control plane nor the tool"),
    (&["control-plane/src"], &["heddle_proxy", "heddle"], "the control plane imports neither proxy nor tool"),
    (
        &["xds/src", "certs/src", "proxy/src"],
        &["kube", "k8s_openapi", "gateway_api"],
        "Kubernetes types stay in control-plane and cli",
    ),
    (&["xds/src", "proxy/src", "control-plane/src", "cli/src"], &["rcgen"], "rcgen only in certs"),
    (
        &["proxy/src"],
        &["envoy_types", "prost"],
        "sync, and the protocol of rate limit services, are the only places in proxy that name protobuf",
    ),
    (
        &["proxy/src/http", "proxy/src/balance", "proxy/src/authz.rs", "proxy/src/tables", "proxy/src/explain"],
        &["crate::sync"],
        "the data path knows configuration only as tables",
    ),
    (&["proxy/src/metrics"], &["crate::sync", "crate::outbound", "crate::inbound"], "metrics stand apart"),
    (
        &["control-plane/src/model"],
        &["crate::", "kube", "k8s_openapi", "gateway_api", "envoy_types", "heddle_xds"],
        "model imports nothing of ours, no kube, no protobuf",
    ),
    (
        &["control-plane/src/translate"],
        &["crate::emit", "crate::source", "crate::publish", "envoy_types", "heddle_xds"],
        "translate knows api, objects and model",
    ),
    (
        &["control-plane/src/emit"],
        &["crate::translate", "crate::objects", "crate::api", "crate::source", "kube", "k8s_openapi"],
        "emit knows model and xds",
    ),
    (
        &[
            "control-plane/src/objects.rs",
            "control-plane/src/objects",
            "control-plane/src/translate",
            "control-plane/src/model",
            "control-plane/src/emit",
            "control-plane/src/status.rs",
            "control-plane/src/status",
            "control-plane/src/publish.rs",
            "control-plane/src/mesh.rs",
            "control-plane/src/ads.rs",
            "control-plane/src/admit.rs",
            "control-plane/src/issue.rs",
            "control-plane/src/authority.rs",
            "control-plane/src/authority",
            "control-plane/src/replicas.rs",
        ],
        &["kube::Client", "kube::Api", "kube::api", "kube::runtime"],
        "only source, cluster and admission talk to the API server",
    ),
    (
        &["control-plane/src/inject", "control-plane/src/validate"],
        &["crate::source", "crate::cluster", "crate::webhook", "crate::emit", "kube", "tokio"],
        "admission decides about one object, and asks nobody",
    ),
    (
        &[
            "proxy/src/explain",
            "proxy/src/reading.rs",
            "proxy/src/http/route.rs",
            "proxy/src/balance",
            "proxy/src/tables",
            "proxy/src/authz.rs",
            "control-plane/src/objects.rs",
            "control-plane/src/translate",
            "control-plane/src/model",
            "control-plane/src/emit",
            "control-plane/src/inject",
            "control-plane/src/validate",
            "xds/src/delta",
            "xds/src/sotw",
        ],
        &["Instant::now", "SystemTime::now", "fastrand::Rng::new", "std::env", "std::net::Tcp", "tokio::net"],
        "pure places read no clock, no randomness, no environment, no socket",
    ),
];

/// Places that a rule excepts.
const EXCEPTED: &[(&str, &str)] = &[
    ("proxy/src/rate_limit/wire.rs", "envoy_types"),
    ("proxy/src/rate_limit/wire.rs", "prost"),
    ("proxy/src/sync", "envoy_types"),
    ("proxy/src/sync", "prost"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rust_files(place: &Path, found: &mut Vec<PathBuf>) {
    if place.is_file() {
        found.push(place.to_owned());
    }
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let is_code = path.extension().is_some_and(|extension| extension == "rs");
        // A file called so is a test module whole.
        let is_test = path.file_name().is_some_and(|name| name == "tests.rs");
        if path.is_dir() || (is_code && !is_test) {
            rust_files(&path, found);
        }
    }
}

/// Code up to the file's test module, comments left out.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(i, line)| (i + 1, line))
}

fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let starts = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
        let is_path = word.contains("::") || matches!(after, Some(':' | ';' | ' '));
        let whole = word.ends_with(':') || after.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        starts
            && is_path
            && whole
            && (word.contains("::") || line.contains(&format!("{word}::")) || line.trim_start().starts_with("use "))
    })
}

#[test]
fn nobody_imports_what_is_not_theirs_to_import() {
    let root = root();
    let mut broken = Vec::new();
    for (places, words, rule) in FORBIDDEN {
        for place in *places {
            let mut files = Vec::new();
            rust_files(&root.join(place), &mut files);
            for file in files {
                let shown = file.strip_prefix(&root).unwrap().display().to_string();
                let text = fs::read_to_string(&file).unwrap();
                for (number, line) in code(&text) {
                    for word in *words {
                        let excepted = EXCEPTED.iter().any(|(p, w)| shown.starts_with(p) && w == word);
                        if !excepted && names(line, word) {
                            broken.push(format!("{shown}:{number}: `{word}`: {rule}"));
                        }
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn one_version_each_of_what_must_not_be_twice_and_none_of_what_is_banned() {
    // Cargo.lock also lists optional dependencies nobody enables; the tree lists what is built.
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--locked", "--offline", "--prefix", "none", "--edges", "normal,build,dev"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let versions = |name: &str| {
        let lines = tree.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(" v"));
        lines.filter_map(|rest| rest.split(' ').next()).collect::<BTreeSet<_>>()
    };
    for name in ["hyper", "http", "rustls", "prost", "tonic", "aws-lc-rs"] {
        assert_eq!(versions(name).len(), 1, "{name} must be linked in one version: {:?}", versions(name));
    }
    for name in ["ring", "openssl", "native-tls", "rustables", "serde_yaml"] {
        assert!(versions(name).is_empty(), "{name} is banned, see deny.toml");
    }
}

#[test]
fn the_rule_reader_tells_paths_from_words() {
    assert!(names("use kube::Api;", "kube"));
    assert!(names("    let x: kube::Api<T>;", "kube"));
    assert!(!names("let kube = 1;", "kube"));
    assert!(!names("use my_kube::Api;", "kube"));
    assert!(names("let now = Instant::now();", "Instant::now"));
    assert!(names("use crate::sync::listener;", "crate::sync"));
    assert!(!names("use crate::synchrony;", "crate::sync"));
    assert!(names("use crate::objects;", "crate::"));
    assert!(names("use heddle::demo;", "heddle"));
    assert!(!names("use heddle_xds::delta;", "heddle"));
}
