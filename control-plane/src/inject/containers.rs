//! What a pod gets: capture container, sidecar, volume, annotation; and where they stand.
//!
//! Ours are the first init containers, so that nothing in the pod runs before its traffic is captured and served. The
//! capture container runs as root, because a capability given to another user is not effective; it has that one capability,
//! no other, and is gone when the pod runs. The sidecar has none.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use serde_json::{Value, json};

use super::annotations::{PREFIX, Wishes};
use super::check::{DEFAULT_GRACE_SECONDS, has_sidecar};
use super::patch::{Edits, pointer};
use super::probes::{PROBES, Specs};
use super::{
    CAPTURE_CONTAINER, IDENTITY_VOLUME, INJECTED, METRICS_PORT, PROXY_CONTAINER, PROXY_UID, Settings, VERSION,
};

/// Puts our containers into the pod, or brings those that are there in order.
pub(super) fn place(pod: &Pod, settings: &Settings, wishes: &Wishes, probes: &Specs, edits: &mut Edits) {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    if has_sidecar(spec) {
        add_probes(spec, probes, edits);
        bring_forward(spec, edits);
    } else {
        insert(spec, settings, wishes, probes, edits);
    }
    annotate(pod, wishes, edits);
}

fn insert(spec: &PodSpec, settings: &Settings, wishes: &Wishes, probes: &Specs, edits: &mut Edits) {
    match &spec.volumes {
        None => edits.add(pointer!["spec", "volumes"], json!([volume()])),
        Some(_) => edits.add(pointer!["spec", "volumes", "-"], volume()),
    }
    let ours = vec![capture(settings, wishes), sidecar(spec, settings, wishes, probes)];
    if spec.init_containers.is_none() {
        edits.add(pointer!["spec", "initContainers"], Value::Array(ours));
    } else {
        ours.into_iter().enumerate().for_each(|(i, ours)| edits.add(pointer!["spec", "initContainers", i], ours));
    }
}

/// Another webhook may have put init containers before ours.
fn bring_forward(spec: &PodSpec, edits: &mut Edits) {
    let mut order: Vec<&str> = spec.init_containers.iter().flatten().map(|container| container.name.as_str()).collect();
    let mut first = 0;
    for ours in [CAPTURE_CONTAINER, PROXY_CONTAINER] {
        let Some(at) = order.iter().position(|name| *name == ours) else { continue };
        if at != first {
            edits.shift(pointer!["spec", "initContainers", at], pointer!["spec", "initContainers", first]);
            let name = order.remove(at);
            order.insert(first, name);
        }
        first += 1;
    }
}

/// Probes of containers that came after the sidecar was made.
fn add_probes(spec: &PodSpec, probes: &Specs, edits: &mut Edits) {
    if probes.is_empty() {
        return;
    }
    let init = spec.init_containers.iter().flatten().enumerate();
    let Some((at, sidecar)) = init.into_iter().find(|(_, container)| container.name == PROXY_CONTAINER) else { return };
    let known = sidecar.env.iter().flatten().position(|variable| variable.name == PROBES);
    let before = known.and_then(|i| sidecar.env.as_ref()?.get(i)?.value.as_deref()).unwrap_or("{}");
    // One that cannot be read would keep the sidecar from starting: only what is written now is sure.
    let mut all: BTreeMap<String, Value> = serde_json::from_str(&before.replace("$$", "$")).unwrap_or_default();
    all.extend(probes.as_json());
    let all = Value::Object(all.into_iter().collect()).to_string();
    let variable = json!({ "name": PROBES, "value": literal(&all) });
    match (known, &sidecar.env) {
        (Some(i), _) => edits.replace(pointer!["spec", "initContainers", at, "env", i], variable),
        (None, Some(_)) => edits.add(pointer!["spec", "initContainers", at, "env", "-"], variable),
        (None, None) => edits.add(pointer!["spec", "initContainers", at, "env"], json!([variable])),
    }
}

/// Says that the pod has a sidecar, and what stays uncaptured: a CNI plugin reads it there, and the control plane, because
/// ports that are reached uncaptured take no mutual TLS.
fn annotate(pod: &Pod, wishes: &Wishes, edits: &mut Edits) {
    let is_new = !pod.spec.as_ref().is_some_and(has_sidecar);
    let before = pod.metadata.annotations.as_ref();
    let missing = |name: &str| before.is_none_or(|all| !all.contains_key(name));
    let mut new: Vec<(&str, String)> = Vec::new();
    if is_new || missing(INJECTED) {
        new.push((INJECTED, VERSION.to_owned()));
    }
    if is_new {
        new.extend(wishes.exclusions().filter(|(name, list)| before.and_then(|all| all.get(*name)) != Some(list)));
    }
    if before.is_none() && !new.is_empty() {
        edits.add(pointer!["metadata", "annotations"], json!({}));
    }
    for (name, value) in new {
        edits.add(pointer!["metadata", "annotations", name], value.into());
    }
}

/// Lets applications go on for a while after their pod was told to end, where they do not say themselves.
pub(super) fn pre_stop(pod: &Pod, wishes: &Wishes, edits: &mut Edits) {
    let Some(seconds) = wishes.pre_stop_seconds else { return };
    let wait = json!({ "sleep": { "seconds": seconds } });
    for (i, container) in pod.spec.iter().flat_map(|spec| &spec.containers).enumerate() {
        match &container.lifecycle {
            None => edits.add(pointer!["spec", "containers", i, "lifecycle"], json!({ "preStop": wait })),
            Some(lifecycle) if lifecycle.pre_stop.is_none() => {
                edits.add(pointer!["spec", "containers", i, "lifecycle", "preStop"], wait.clone());
            }
            Some(_) => {}
        }
    }
}

/// Where a CNI plugin captures, the container only looks whether it did, without any right: a node whose plugin is not
/// there yet must not run the pod in plaintext.
fn capture(settings: &Settings, wishes: &Wishes) -> Value {
    let mut args = vec!["capture".to_owned()];
    let (capabilities, user) = if settings.cni {
        args.push("--check".to_owned());
        (json!({ "drop": ["ALL"] }), CHECK_UID)
    } else {
        // The flags are called as the annotations.
        args.extend(wishes.exclusions().map(|(name, list)| format!("--{}={list}", name.trim_start_matches(PREFIX))));
        (json!({ "add": ["NET_ADMIN"], "drop": ["ALL"] }), 0)
    };
    json!({
        "name": CAPTURE_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": args,
        "resources": wishes.resources,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": capabilities,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": user,
            "runAsNonRoot": user != 0,
            "runAsUser": user,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

fn sidecar(spec: &PodSpec, settings: &Settings, wishes: &Wishes, probes: &Specs) -> Value {
    json!({
        "name": PROXY_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "args": ["run"],
        "env": environment(spec, settings, wishes, probes),
        "ports": [{ "name": METRICS_PORT_NAME, "containerPort": METRICS_PORT, "protocol": "TCP" }],
        "resources": wishes.resources,
        "startupProbe": ready(STARTUP_PERIOD_SECONDS, STARTUP_FAILURES),
        "readinessProbe": ready(READINESS_PERIOD_SECONDS, READINESS_FAILURES),
        "lifecycle": { "preStop": { "exec": { "command": [BINARY, "drain"] } } },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{ "name": IDENTITY_VOLUME, "mountPath": IDENTITY_PATH, "readOnly": true }],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "runAsUser": PROXY_UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

fn environment(spec: &PodSpec, settings: &Settings, wishes: &Wishes, probes: &Specs) -> Value {
    let given = |name: &str, value: &str| json!({ "name": name, "value": literal(value) });
    let own = |name: &str, field: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": field } } });
    let mut all = vec![
        given("HEDDLE_CONTROL_PLANE", &settings.control_plane),
        given("HEDDLE_TRUST_DOMAIN", &settings.trust_domain),
        own("HEDDLE_NAMESPACE", "metadata.namespace"),
        own("HEDDLE_WORKLOAD", "metadata.name"),
        own("HEDDLE_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        given("HEDDLE_LOG", &wishes.log),
        given("HEDDLE_ACCESS_LOG", wishes.access_log.name()),
        given("HEDDLE_DRAIN_SECONDS", &drain_seconds(spec).to_string()),
    ];
    if let Some(workers) = wishes.workers {
        all.push(given("HEDDLE_WORKERS", &workers.to_string()));
    }
    if !probes.is_empty() {
        all.push(given(PROBES, &probes.to_string()));
    }
    Value::Array(all)
}

/// The kubelet reads `$(NAME)` in a value as another variable, and `$$` as a dollar sign (Kubernetes, `EnvVar.value`).
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// How long the sidecar finishes what is in flight: inside what the pod has, so that it ends by itself.
fn drain_seconds(spec: &PodSpec) -> i64 {
    let grace = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
    (grace - DRAIN_MARGIN_SECONDS).clamp(1, DEFAULT_GRACE_SECONDS - DRAIN_MARGIN_SECONDS)
}

fn ready(period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": "/ready", "port": METRICS_PORT },
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": READY_TIMEOUT_SECONDS,
    })
}

/// No group owns it: an fsGroup would change the owners of the application's volumes. Files of a projected volume are
/// readable by every user of the pod as long as its containers run as different ones, as ours do.
fn volume() -> Value {
    json!({
        "name": IDENTITY_VOLUME,
        "projected": {
            "defaultMode": FILE_MODE,
            "sources": [
                {
                    "serviceAccountToken": {
                        "audience": TOKEN_AUDIENCE,
                        "expirationSeconds": TOKEN_SECONDS,
                        "path": "token",
                    },
                },
                { "configMap": { "name": ROOTS_CONFIG_MAP, "items": [{ "key": ROOTS_KEY, "path": ROOTS_KEY }] } },
            ],
        },
    })
}

/// Whoever looks whether traffic is captured: not root, and not the sidecar, whose own passes.
const CHECK_UID: i64 = 65532;
/// Where the image has its program.
const BINARY: &str = "/usr/local/bin/heddle-proxy";
/// Where the sidecar looks for token and roots.
const IDENTITY_PATH: &str = "/var/run/secrets/heddle";
/// Whom the token is for: the control plane asks the API server for tokens of this audience.
const TOKEN_AUDIENCE: &str = "heddle";
/// Life of the token, in seconds. Chosen: the kubelet renews it at four fifths; a certificate needs it for a moment.
const TOKEN_SECONDS: u32 = 3600;
/// The public bundle of each namespace.
const ROOTS_CONFIG_MAP: &str = "heddle-roots";
/// Its key, and the file's name.
const ROOTS_KEY: &str = "bundle.pem";
/// Kubernetes' default for projected volumes, 0644: the token's readers are this pod's containers.
const FILE_MODE: u32 = 0o644;
/// For scrapers that choose ports by name; at most 15 characters (RFC 6335 §5.1).
const METRICS_PORT_NAME: &str = "heddle-metrics";
/// Seconds between startup probes. The least: the application waits for it.
const STARTUP_PERIOD_SECONDS: u32 = 1;
/// Startup probes until the sidecar is started anew. Chosen: two minutes for a control plane that is just being rolled.
const STARTUP_FAILURES: u32 = 120;
/// Seconds between readiness probes. Chosen: half of Kubernetes' default, since readiness changes once.
const READINESS_PERIOD_SECONDS: u32 = 5;
/// Kubernetes' default.
const READINESS_FAILURES: u32 = 3;
/// Seconds. Chosen: above Kubernetes' 1 s, for a machine that starts many pods at once.
const READY_TIMEOUT_SECONDS: u32 = 3;
/// Seconds between the end of draining and the end of the pod. Chosen: as the sidecar's own default of 25 s leaves.
const DRAIN_MARGIN_SECONDS: i64 = 5;
