//! A Pod as far as the mesh is concerned.
//!
//! A cluster has thousands of pods, and most of what each one says is none of the mesh's business: reading only this keeps a
//! list of them small while it is read, not only afterwards. The rest is skipped without being kept for a moment. Read from a
//! Pod's JSON, whichever source it comes from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;

use super::ports::PortRange;
use crate::api::workload::MAX_WEIGHT;

/// One Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "Written")]
pub struct Pod {
    /// Name, namespace, uid, labels, times, generation, and the annotations of our own group; nothing else.
    pub metadata: ObjectMeta,
    /// The ServiceAccount it runs under, in its own namespace.
    pub service_account: Arc<str>,
    /// What keeps it running, as people know it: a Deployment and not its ReplicaSet, a CronJob and not its Job; none if it
    /// was made alone.
    pub controller: Option<Arc<str>>,
    /// Whether it shares the network, and with it the address, of its node.
    pub host_network: bool,
    /// The node it runs on; none before it was scheduled.
    pub node: Option<Arc<str>>,
    /// TCP ports its containers and its native sidecars (KEP-753) declare, in the order they stand there.
    pub ports: Vec<PodPort>,
    /// Sorted, each once; empty before its network is there.
    pub addresses: Vec<IpAddr>,
    /// All its containers have ended, well or not.
    pub ended: bool,
    /// What its `Ready` condition says; none before anybody looked.
    pub ready: Option<bool>,
}

/// A TCP port a container declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPort {
    /// What a Service's `targetPort` may call it.
    pub name: Option<Arc<str>>,
    /// Its number.
    pub number: u16,
}

impl Pod {
    /// Whether it was given a sidecar when it was made. What its namespace says today decides nothing: a pod from before the
    /// namespace was labelled has none.
    pub fn injected(&self) -> bool {
        self.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(INJECTED))
    }

    /// Whether its servers are gRPC that is told by xDS whom it takes, instead of a sidecar.
    pub fn proxyless(&self) -> bool {
        let annotation = self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(PROXYLESS));
        annotation.is_some_and(|value| value == "true") && !self.injected()
    }

    /// Its share of what a Service's clients ask. What cannot be read is 1.
    pub fn weight(&self) -> u32 {
        let text = self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(WEIGHT));
        let weight = text.and_then(|text| text.parse().ok());
        weight.filter(|weight| (1..=MAX_WEIGHT).contains(weight)).unwrap_or(1)
    }

    /// Ports that are reached past the sidecar, the sidecar's own apart: no mutual TLS is spoken there. What cannot be read is
    /// none.
    pub fn excluded_ports(&self) -> Vec<PortRange> {
        let list = self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(EXCLUDE_INBOUND_PORTS));
        list.map(|list| list.split(',').filter_map(|text| text.parse().ok()).collect()).unwrap_or_default()
    }
}

/// The annotation with a pod's share of what a Service's clients ask, relative to its other endpoints; injection has checked it.
pub const WEIGHT: &str = "heddle.dev/weight";
/// The annotation with the ports of a pod that are reached past its sidecar; injection has checked it.
pub const EXCLUDE_INBOUND_PORTS: &str = "heddle.dev/exclude-inbound-ports";
/// The sidecar's own port of metrics and probes, which nobody redirects.
pub const METRICS_PORT: u16 = 15020;
/// The annotation of a pod that has a sidecar; its value is the version that injected it.
pub const INJECTED: &str = "heddle.dev/injected";
/// The annotation `true` of a pod without a sidecar whose servers are gRPC that is told by xDS whom it takes (gRFC A36).
pub const PROXYLESS: &str = "heddle.dev/proxyless";
/// Annotations whose names begin so are kept.
const OWN_ANNOTATIONS: &str = "heddle.dev/";

/// As the API writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<Arc<str>>,
    host_network: Option<bool>,
    node_name: Option<Arc<str>>,
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: Option<Arc<str>>,
    container_port: i32,
    protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    conditions: Option<Vec<Condition>>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

impl From<Written> for Pod {
    fn from(Written { metadata, spec, status }: Written) -> Self {
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        let mut addresses: Vec<IpAddr> = status
            .pod_ips
            .iter()
            .flatten()
            .map(|ip| ip.ip.as_str())
            .chain(status.pod_ip.as_deref())
            .filter_map(|text| text.parse().ok())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let ready = status.conditions.iter().flatten().find(|condition| condition.r#type == "Ready");
        Self {
            controller: metadata.controller().map(Arc::from),
            service_account: spec.service_account_name.clone().unwrap_or_else(|| DEFAULT_ACCOUNT.into()),
            host_network: spec.host_network.unwrap_or_default(),
            node: spec.node_name.clone(),
            ports: ports.filter_map(ContainerPort::tcp).collect(),
            addresses,
            ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ready: ready.map(|condition| condition.status == "True"),
            metadata: metadata.into(),
        }
    }
}

impl Metadata {
    fn controller(&self) -> Option<&str> {
        let owner = self.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
        let end = match owner.kind.as_str() {
            // `<Deployment>-<hash of the template>`, where a Deployment made it.
            "ReplicaSet" => self.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH)).map(String::as_str),
            // `<CronJob>-<minutes since 1970>`, where a CronJob made it.
            "Job" => owner.name.rsplit_once('-').map(|(_, end)| end).filter(|end| is_minutes(end)),
            _ => None,
        };
        let name = end.and_then(|end| owner.name.strip_suffix(end)?.strip_suffix('-'));
        Some(name.unwrap_or(&owner.name))
    }
}

fn is_minutes(text: &str) -> bool {
    text.len() >= MINUTES_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl From<Metadata> for ObjectMeta {
    fn from(written: Metadata) -> Self {
        let annotations = written.annotations.map(|mut annotations| {
            annotations.retain(|name, _| name.starts_with(OWN_ANNOTATIONS));
            annotations
        });
        Self {
            name: written.name,
            namespace: written.namespace,
            uid: written.uid,
            generation: written.generation,
            labels: written.labels.filter(|labels| !labels.is_empty()),
            annotations: annotations.filter(|annotations| !annotations.is_empty()),
            creation_timestamp: written.creation_timestamp,
            deletion_timestamp: written.deletion_timestamp,
            ..Self::default()
        }
    }
}

impl ContainerPort {
    fn tcp(&self) -> Option<PodPort> {
        let number = u16::try_from(self.container_port).ok().filter(|number| *number > 0)?;
        let tcp = matches!(self.protocol.as_deref(), None | Some("TCP"));
        tcp.then(|| PodPort { name: self.name.clone(), number })
    }
}

/// The label by which a Deployment tells its ReplicaSets apart (Kubernetes, "Well-Known Labels").
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Digits of the minutes since 1970, from 1989 on.
const MINUTES_DIGITS: usize = 8;
/// Kubernetes, "Service Accounts": the one of pods that name none.
const DEFAULT_ACCOUNT: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_the_mesh_needs_is_kept_and_the_rest_is_not() {
        let pod = pod(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "api-1", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": {"app": "api"},
                "annotations": {"heddle.dev/injected": "0.1.0", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
                "managedFields": [{"manager": "kubelet"}], "ownerReferences": [{"name": "api"}],
            },
            "spec": {
                "serviceAccountName": "api", "nodeName": "node1",
                "containers": [{"name": "app", "image": "i", "ports": [
                    {"name": "http", "containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"},
                ]}],
                "initContainers": [
                    {"name": "once", "ports": [{"containerPort": 1}]},
                    {"name": "side", "restartPolicy": "Always", "ports": [{"containerPort": 9, "protocol": "TCP"}]},
                ],
            },
            "status": {
                "phase": "Running", "podIP": "10.1.0.2", "podIPs": [{"ip": "fd00::2"}, {"ip": "10.1.0.2"}],
                "conditions": [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}],
            },
        }));

        assert!(pod.injected());
        assert_eq!((&*pod.service_account, pod.node.as_deref()), ("api", Some("node1")));
        assert_eq!((pod.ended, pod.ready, pod.host_network), (false, Some(false), false));
        assert_eq!(pod.addresses, ["10.1.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        let ports: Vec<_> = pod.ports.iter().map(|port| (port.name.as_deref(), port.number)).collect();
        assert_eq!(ports, [(Some("http"), 8080), (None, 9)]);
        let ObjectMeta { annotations, resource_version, managed_fields, owner_references, .. } = pod.metadata;
        assert_eq!(annotations.unwrap().len(), 1);
        assert_eq!((resource_version, managed_fields, owner_references), (None, None, None));
    }

    #[test]
    fn a_pod_is_known_by_what_people_made() {
        let controller = |kind: &str, name: &str| {
            let pod = pod(serde_json::json!({"metadata": {
                "name": "a", "labels": {"pod-template-hash": "5d8c"},
                "ownerReferences": [{"kind": "Config", "name": "b"}, {"kind": kind, "name": name, "controller": true}],
            }}));
            pod.controller.unwrap().to_string()
        };
        assert_eq!(controller("ReplicaSet", "api-v2-5d8c"), "api-v2");
        assert_eq!(controller("ReplicaSet", "made-by-hand"), "made-by-hand");
        assert_eq!(controller("StatefulSet", "db"), "db");
        assert_eq!(controller("Job", "backup-29385120"), "backup");
        assert_eq!(controller("Job", "import-2026"), "import-2026");
        assert_eq!(pod(serde_json::json!({"metadata": {"name": "a"}})).controller, None);
    }

    #[test]
    fn a_pod_that_has_just_been_made_has_neither_address_nor_readiness() {
        let pod = pod(serde_json::json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}}));
        assert_eq!((pod.addresses.len(), pod.ready, &*pod.service_account), (0, None, "default"));
        assert!(!pod.injected());
    }

    #[test]
    fn nulls_are_nothing() {
        let pod = pod(serde_json::json!({
            "metadata": {"name": "a", "labels": null, "annotations": null, "creationTimestamp": null},
            "spec": {"containers": [{"name": "a", "ports": null}], "initContainers": null},
            "status": {"conditions": null, "podIPs": null, "phase": null},
        }));
        assert_eq!(pod.metadata.labels, None);
    }
}
