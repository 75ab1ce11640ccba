//! Objects → model → xDS → status, as golden YAML: one folder below `tests/golden` per behaviour.
//!
//! `xds.yaml` shows each resource in the sidecar's own dialect as its protobuf reads, fields at their default left out.
//!
//! `UPDATE_GOLDEN=1 cargo test -p heddle-control-plane --test golden` writes what is made now; read the difference
//! before it is committed.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic here is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use heddle_control_plane::emit;
use heddle_control_plane::model::{Egress, Mesh, Model};
use heddle_control_plane::objects::Objects;
use heddle_control_plane::source::manifest;
use heddle_control_plane::translate::{self, DEFAULT_ROOT_NAMESPACE, Settings};
use heddle_xds::resource::{Kind, Resource};
use prost::Message;
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
    vec![
        ("model.yaml", yaml(&translation.model)),
        ("xds.yaml", yaml(&resources(&translation.model))),
        ("status.yaml", yaml(&statuses)),
    ]
}

/// One resource, readable.
#[derive(Serialize)]
struct Shown {
    kind: String,
    name: String,
    message: String,
}

/// Every resource some sidecar would get, as a client in a namespace of no routes gets it, then what differs for others.
fn resources(model: &Model) -> Vec<Shown> {
    let mut all = Vec::new();
    let services = model.services.values();
    for service in services {
        for listener in &service.listeners {
            let consumers = listener.http.iter().flat_map(|http| http.consumers.keys().map(|namespace| &**namespace));
            for namespace in std::iter::once("").chain(consumers) {
                for address in &listener.addresses {
                    let mut shown =
                        show::<Listener>(Kind::Listener, &emit::heddle::listener(listener, *address, namespace));
                    if !namespace.is_empty() {
                        shown.name = format!("{} for clients in {namespace}", shown.name);
                    }
                    all.push(shown);
                }
            }
        }
        all.extend(
            service.routes.values().map(|it| show::<RouteConfiguration>(Kind::Route, &emit::heddle::route_table(it))),
        );
        all.extend(service.clusters.values().map(|it| show::<Cluster>(Kind::Cluster, &emit::heddle::cluster(it))));
        let endpoints = service.endpoints.values();
        all.extend(
            endpoints.map(|it| {
                show::<ClusterLoadAssignment>(Kind::Endpoints, &emit::heddle::endpoints(&it.for_everybody()))
            }),
        );
    }
    for workload in model.workloads.values() {
        let inbound = emit::heddle::inbound(workload);
        all.extend(inbound.map(|inbound| {
            let shown = show::<Listener>(Kind::Listener, &inbound);
            Shown { name: format!("{} of {}", shown.name, workload.name), ..shown }
        }));
    }
    all
}

fn show<M: Message + Default + std::fmt::Debug>(kind: Kind, resource: &Resource) -> Shown {
    let message = format!("{:#?}", M::decode(resource.bytes.clone()).unwrap());
    let message = bytes_as_text(&message);
    let lines = message.lines().filter(|line| !is_default(line));
    Shown {
        kind: kind.short_name().to_owned(),
        name: resource.name.to_string(),
        message: lines.collect::<Vec<_>>().join("\n"),
    }
}

/// A packed message is one line, its bytes escaped, instead of a number a line.
fn bytes_as_text(message: &str) -> String {
    let mut text = String::new();
    let mut lines = message.lines();
    while let Some(line) = lines.next() {
        let packed = line.strip_suffix("value: [").map(|indent| {
            let bytes: Vec<u8> =
                lines.by_ref().map_while(|number| number.trim().trim_end_matches(',').parse().ok()).collect();
            format!("{indent}value: b\"{}\"", bytes.escape_ascii())
        });
        text.push_str(packed.as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}

/// A field at protobuf's default, as `Debug` writes it.
fn is_default(line: &str) -> bool {
    let value = line.split_once(": ").map(|(_, value)| value.trim_end_matches(','));
    matches!(value, Some("None" | "[]" | "{}" | "false" | "0" | "0.0" | "\"\"" | "b\"\""))
}

#[test]
fn objects_become_the_model_the_resources_and_the_statuses_that_were_reviewed() {
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
        for name in ["objects.yaml", "model.yaml", "xds.yaml", "status.yaml"] {
            assert!(case.join(name).is_file(), "{} has no {name}", case.display());
        }
    }
}
