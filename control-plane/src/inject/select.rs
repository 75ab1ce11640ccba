//! Whether a pod is to have a sidecar: what its author says, else what its namespace says.

use k8s_openapi::api::core::v1::Pod;

use super::{Namespace, Skip};
use crate::api::FieldError;

/// Namespace label, pod annotation and pod label: `enabled` or `disabled`. The pod's annotation wins over its label, and
/// that over the namespace's.
pub const INJECT: &str = "heddle.dev/inject";

/// Why a pod stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nobody asked for a sidecar.
    NotAsked,
    /// The pod, or its namespace, opted out.
    Disabled,
    /// Kubernetes' own namespaces and Heddle's.
    SystemNamespace,
    /// It lives in its node's network, where capture would redirect the node's own traffic.
    HostNetwork,
    /// Its node has no nftables.
    Windows,
    /// The API server's picture of a pod that a kubelet already runs from a file.
    Mirror,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::NotAsked, Self::Disabled, Self::SystemNamespace, Self::HostNetwork, Self::Windows, Self::Mirror];

    /// As metrics and events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAsked => "NotAsked",
            Self::Disabled => "Disabled",
            Self::SystemNamespace => "SystemNamespace",
            Self::HostNetwork => "HostNetwork",
            Self::Windows => "Windows",
            Self::Mirror => "MirrorPod",
        }
    }

    /// For people: what it means, and what to do about it.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotAsked => "no sidecar: neither the pod nor its namespace asks for one",
            Self::Disabled => "no sidecar: heddle.dev/inject is `disabled`",
            Self::SystemNamespace => "no sidecar: pods of this namespace are never meshed",
            Self::HostNetwork => {
                "no sidecar: the pod uses its node's network, which cannot be captured; it is reached in plaintext. \
                 Say `heddle.dev/inject: disabled` on the pod to confirm, or leave hostNetwork out"
            }
            Self::Windows => {
                "no sidecar: the pod is for Windows nodes, which have no sidecar; it is reached in plaintext. Say \
                 `heddle.dev/inject: disabled` on the pod to confirm"
            }
            Self::Mirror => "no sidecar: a kubelet runs this pod from a file; use `heddle inject` on that file",
        }
    }
}

/// Who wants a sidecar in this pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    ByPod,
    ByNamespace,
    No(Reason),
}

/// What becomes of the pod, as far as the question of a sidecar goes.
pub(super) enum Verdict {
    Inject,
    Skip(Skip),
    Refuse(FieldError),
}

/// Who asks. An error is a switch that stands on neither side.
pub(super) fn asked(pod: &Pod, namespace: &Namespace) -> Result<Asked, FieldError> {
    let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(INJECT));
    let label = pod.metadata.labels.as_ref().and_then(|all| all.get(INJECT));
    let own = [("annotation", annotation), ("label", label)];
    if let Some((place, value)) = own.into_iter().find_map(|(place, value)| Some((place, value?))) {
        return match value.as_str() {
            "enabled" => Ok(Asked::ByPod),
            "disabled" => Ok(Asked::No(Reason::Disabled)),
            other => Err(FieldError::new(format!("{place} {INJECT}"), other, "write `enabled` or `disabled`")),
        };
    }
    Ok(match namespace.inject.as_deref() {
        Some("enabled") => Asked::ByNamespace,
        Some("disabled") => Asked::No(Reason::Disabled),
        // A namespace's label is no reason to refuse its pods.
        Some(_) | None => Asked::No(Reason::NotAsked),
    })
}

pub(super) fn wanted(pod: &Pod, namespace: &Namespace, asked: Asked) -> Verdict {
    let quietly = |reason| Verdict::Skip(Skip { reason, tell: false });
    if SYSTEM_NAMESPACES.contains(&namespace.name.as_str()) {
        return quietly(Reason::SystemNamespace);
    }
    let by_pod = match asked {
        Asked::No(reason) => return quietly(reason),
        Asked::ByPod => true,
        Asked::ByNamespace => false,
    };
    if pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR)) {
        return quietly(Reason::Mirror);
    }
    let spec = pod.spec.as_ref();
    let windows = spec.and_then(|spec| spec.os.as_ref()).is_some_and(|os| os.name == "windows");
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or_default();
    let (reason, error) = if host_network {
        let remedy = "a pod in its node's network cannot be meshed, because capture would redirect the node's own \
                      traffic: leave hostNetwork out, or heddle.dev/inject";
        (Reason::HostNetwork, FieldError::new("spec.hostNetwork", true, remedy))
    } else if windows {
        let remedy = "there is no sidecar for Windows nodes: leave heddle.dev/inject out";
        (Reason::Windows, FieldError::new("spec.os.name", "windows", remedy))
    } else {
        return Verdict::Inject;
    };
    if by_pod { Verdict::Refuse(error) } else { Verdict::Skip(Skip { reason, tell: true }) }
}

/// Namespaces whose pods the cluster, or the mesh itself, cannot start without.
const SYSTEM_NAMESPACES: [&str; 4] = ["kube-system", "kube-node-lease", "kube-public", "heddle-system"];
/// Kubernetes, "Well-Known Labels, Annotations and Taints".
const MIRROR: &str = "kubernetes.io/config.mirror";
