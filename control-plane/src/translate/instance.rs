//! A Pod or a Workload as translation sees it: one running process with addresses, labels and ports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api;
use crate::model::{Locality, Protocol, SourceRef, WorkloadName};
use crate::objects::{Objects, name_of, namespace_of};

/// One Pod or Workload.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) name: WorkloadName,
    pub(super) source: SourceRef,
    pub(super) labels: BTreeMap<String, String>,
    /// Sorted, each once; empty while a Pod has none.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) service_account: Arc<str>,
    pub(super) ports: Vec<Port>,
    pub(super) meshed: bool,
    pub(super) host_network: bool,
    pub(super) ready: bool,
    pub(super) draining: bool,
    pub(super) locality: Option<Locality>,
}

/// A port an instance declares.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) number: u16,
    /// What the instance itself says of it.
    pub(super) app_protocol: Option<String>,
}

/// The instance with this name. A Pod takes a name from a Workload.
pub(super) fn named(objects: &Objects, namespace: &str, name: &str) -> Option<Instance> {
    if let Some(pod) = objects.pods.get(namespace, name) {
        return of_pod(objects, pod);
    }
    objects.workloads.get(namespace, name).and_then(|workload| of_workload(workload))
}

/// All instances of a namespace, by name.
pub(super) fn in_namespace(objects: &Objects, namespace: &str) -> Vec<Instance> {
    let pods = objects.pods.in_namespace(namespace).filter_map(|pod| of_pod(objects, pod));
    let free = |workload: &&Arc<api::Workload>| objects.pods.get(namespace, name_of(&workload.metadata)).is_none();
    let workloads = objects.workloads.in_namespace(namespace).filter(free).filter_map(|workload| of_workload(workload));
    let mut all: Vec<_> = pods.chain(workloads).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

impl Instance {
    /// Whether the Service's selector names this instance. A Service without selector selects nothing.
    pub(super) fn selected_by(&self, service: &Service) -> bool {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        namespace_of(&service.metadata) == &*self.name.namespace
            && selector.is_some_and(|selector| {
                !selector.is_empty() && selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
            })
    }

    /// The number a Service's `targetPort` means here: itself, or that of the port with its name.
    pub(super) fn target_port(&self, target: Option<&IntOrString>, service_port: u16) -> Option<u16> {
        match target {
            None | Some(IntOrString::Int(0)) => Some(service_port),
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok().filter(|number| *number > 0),
            Some(IntOrString::String(name)) => {
                self.ports.iter().find(|port| port.name.as_ref() == Some(name)).map(|port| port.number)
            }
        }
    }
}

fn of_pod(objects: &Objects, pod: &Pod) -> Option<Instance> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    // A pod whose containers have all ended has nothing left to talk to.
    if matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return None;
    }
    let namespace = namespace_of(&pod.metadata);
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or_default();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    // Without any condition nobody has looked yet: a manifest written by hand means a pod that runs.
    let ready = conditions.iter().find(|c| c.type_ == "Ready").is_none_or(|c| c.status == "True");
    let mut addresses: Vec<IpAddr> = Vec::new();
    if let Some(status) = status {
        let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
        addresses.extend(all.filter_map(|text| text.parse::<IpAddr>().ok()));
    }
    addresses.sort_unstable();
    addresses.dedup();
    Some(Instance {
        name: WorkloadName::new(namespace, name_of(&pod.metadata)),
        source: SourceRef::new("Pod", namespace, name_of(&pod.metadata)),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses,
        service_account: spec.and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default").into(),
        ports: spec
            .map(|spec| spec.containers.iter().chain(sidecars(spec)).flat_map(container_ports).collect())
            .unwrap_or_default(),
        meshed: !host_network && injected(objects, pod),
        host_network,
        ready,
        draining: pod.metadata.deletion_timestamp.is_some(),
        locality: locality(&pod.metadata.labels.clone().unwrap_or_default()),
    })
}

fn of_workload(workload: &api::Workload) -> Option<Instance> {
    // What the check refuses must not be half in force.
    if !workload.spec.check().is_empty() {
        return None;
    }
    let namespace = namespace_of(&workload.metadata);
    let labels = workload.metadata.labels.clone().unwrap_or_default();
    let ports = workload.spec.ports.iter().filter_map(|port| {
        let number = u16::try_from(port.port).ok()?;
        Some(Port { name: port.name.clone(), number, app_protocol: port.app_protocol.clone() })
    });
    Some(Instance {
        name: WorkloadName::new(namespace, name_of(&workload.metadata)),
        source: SourceRef::new("Workload", namespace, name_of(&workload.metadata)),
        addresses: workload.spec.ips(),
        service_account: workload.spec.service_account_name.as_str().into(),
        ports: ports.collect(),
        meshed: workload.spec.meshed,
        host_network: workload.spec.host_network,
        ready: true,
        draining: workload.metadata.deletion_timestamp.is_some(),
        locality: locality(&labels),
        labels,
    })
}

/// The pod's own annotation decides, else its namespace's label.
fn injected(objects: &Objects, pod: &Pod) -> bool {
    let own = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(INJECT));
    match own.map(String::as_str) {
        Some("true") => true,
        Some("false") => false,
        _ => {
            let namespace = objects.namespaces.get("", namespace_of(&pod.metadata));
            let labels = namespace.and_then(|namespace| namespace.metadata.labels.as_ref());
            labels.and_then(|labels| labels.get(INJECT)).is_some_and(|value| value == "enabled")
        }
    }
}

/// Init containers that keep running (KEP-753) listen like any other.
fn sidecars(spec: &k8s_openapi::api::core::v1::PodSpec) -> impl Iterator<Item = &Container> {
    let init = spec.init_containers.iter().flatten();
    init.filter(|container| container.restart_policy.as_deref() == Some("Always"))
}

fn container_ports(container: &Container) -> impl Iterator<Item = Port> + '_ {
    let ports = container.ports.iter().flatten().filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    ports.filter_map(|port| {
        let number = u16::try_from(port.container_port).ok().filter(|number| *number > 0)?;
        Some(Port { name: port.name.clone(), number, app_protocol: None })
    })
}

fn locality(labels: &BTreeMap<String, String>) -> Option<Locality> {
    let label = |name: &str| labels.get(name).map(|value| Arc::from(value.as_str()));
    let locality = Locality { region: label(REGION), zone: label(ZONE) };
    (locality != Locality::default()).then_some(locality)
}

/// What an `appProtocol` says of the bytes on a port (KEP-1507, KEP-3726, Gateway API GEP-1911). Names nobody has
/// defined mean nothing.
pub(super) fn protocol(app_protocol: Option<&str>) -> Protocol {
    let Some(name) = app_protocol else { return Protocol::Detect };
    match name.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => Protocol::Http,
        "http2" | "h2c" | "kubernetes.io/h2c" | "grpc" => Protocol::Http2,
        "tcp" | "tls" | "https" | "kubernetes.io/wss" | "mysql" | "postgresql" | "postgres" | "redis" | "mongo"
        | "mongodb" | "amqp" | "kafka" | "smtp" | "nats" => Protocol::Tcp,
        _ => Protocol::Detect,
    }
}

/// Pod annotation (`true`, `false`) and namespace label (`enabled`).
const INJECT: &str = "heddle.dev/inject";
/// Kubernetes, "Well-Known Labels".
const REGION: &str = "topology.kubernetes.io/region";
/// Kubernetes, "Well-Known Labels".
const ZONE: &str = "topology.kubernetes.io/zone";
