//! What cannot be meshed as it is written: the sidecar's own user, ports and names in somebody else's hands.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::annotations::{PRE_STOP_SECONDS, Wishes};
use super::{CAPTURE_CONTAINER, IDENTITY_VOLUME, PROXY_CONTAINER, PROXY_UID};
use crate::api::FieldError;

/// Everything that is wrong with the pod.
pub(super) fn errors(pod: &Pod, wishes: &Wishes) -> Vec<FieldError> {
    let mut found = Vec::new();
    let Some(spec) = &pod.spec else { return found };
    for (field, container) in others(spec) {
        user(spec, &field, container, &mut found);
        own_ports(&field, container, &mut found);
    }
    names(spec, &mut found);
    pre_stop(spec, wishes, &mut found);
    found
}

/// Whether the pod has a sidecar already.
pub(super) fn has_sidecar(spec: &PodSpec) -> bool {
    spec.init_containers.iter().flatten().any(|container| container.name == PROXY_CONTAINER)
}

/// All containers but ours, with their paths.
fn others(spec: &PodSpec) -> impl Iterator<Item = (String, &Container)> {
    let init = spec.init_containers.iter().flatten().enumerate();
    let init = init.map(|(i, container)| (format!("spec.initContainers[{i}]"), container));
    let main = spec.containers.iter().enumerate().map(|(i, container)| (format!("spec.containers[{i}]"), container));
    init.chain(main).filter(|(_, container)| ![CAPTURE_CONTAINER, PROXY_CONTAINER].contains(&container.name.as_str()))
}

/// Capture tells the sidecar's connections by their user.
fn user(spec: &PodSpec, field: &str, container: &Container, found: &mut Vec<FieldError>) {
    let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    if own.or(of_pod) == Some(PROXY_UID) {
        let field = match own {
            Some(_) => format!("{field}.securityContext.runAsUser"),
            None => "spec.securityContext.runAsUser".to_owned(),
        };
        if found.iter().all(|error| error.field != field) {
            let remedy = "this user is the sidecar's, whose traffic passes uncaptured: run the application as another";
            found.push(FieldError::new(field, PROXY_UID, remedy));
        }
    }
}

fn own_ports(field: &str, container: &Container, found: &mut Vec<FieldError>) {
    for (i, port) in container.ports.iter().flatten().enumerate() {
        let tcp = matches!(port.protocol.as_deref(), None | Some("TCP"));
        if tcp && OWN_PORTS.contains(&port.container_port) {
            let field = format!("{field}.ports[{i}].containerPort");
            let remedy = format!("the sidecar listens on {OWN_PORTS:?}: use another port");
            found.push(FieldError::new(field, port.container_port, remedy));
        }
    }
}

/// Names of ours on what is not ours.
fn names(spec: &PodSpec, found: &mut Vec<FieldError>) {
    let remedy = "the name is the sidecar's: use another";
    for (i, container) in spec.containers.iter().enumerate() {
        if [CAPTURE_CONTAINER, PROXY_CONTAINER].contains(&container.name.as_str()) {
            found.push(FieldError::new(format!("spec.containers[{i}].name"), &container.name, remedy));
        }
    }
    if has_sidecar(spec) {
        return;
    }
    for (i, container) in spec.init_containers.iter().flatten().enumerate() {
        if container.name == CAPTURE_CONTAINER {
            found.push(FieldError::new(format!("spec.initContainers[{i}].name"), &container.name, remedy));
        }
    }
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        if volume.name == IDENTITY_VOLUME {
            found.push(FieldError::new(format!("spec.volumes[{i}].name"), &volume.name, remedy));
        }
    }
}

/// The API server refuses a sleep beyond the pod's end, without a word of the annotation.
fn pre_stop(spec: &PodSpec, wishes: &Wishes, found: &mut Vec<FieldError>) {
    let grace = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
    if let Some(seconds) = wishes.pre_stop_seconds.filter(|seconds| i64::from(*seconds) > grace) {
        let remedy = format!("the pod has {grace} s to end: raise terminationGracePeriodSeconds, or wait less");
        found.push(FieldError::new(format!("annotation {PRE_STOP_SECONDS}"), seconds, remedy));
    }
}

/// Ports of `heddle-proxy run`: admin, outbound, inbound, metrics.
const OWN_PORTS: [i32; 4] = [15000, 15001, 15006, 15020];
/// Kubernetes' default of `terminationGracePeriodSeconds`.
pub(super) const DEFAULT_GRACE_SECONDS: i64 = 30;
