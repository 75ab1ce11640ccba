//! A Pod or a Workload as translation sees it: one running process with addresses, labels and ports.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api;
use crate::model::{Locality, Protocol, SourceRef, WorkloadName};
use crate::objects::pod::METRICS_PORT;
use crate::objects::ports::PortRange;
use crate::objects::{Objects, Pod, name_of, namespace_of};

/// One Pod or Workload.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) name: WorkloadName,
    /// What keeps it running and metrics name it by, if it does not stand alone.
    pub(super) controller: Option<WorkloadName>,
    pub(super) uid: Option<Arc<str>>,
    pub(super) node: Option<Arc<str>>,
    pub(super) source: SourceRef,
    pub(super) labels: BTreeMap<String, String>,
    /// Sorted, each once; empty while a Pod has none.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) service_account: Arc<str>,
    pub(super) ports: Vec<Port>,
    pub(super) meshed: bool,
    /// Meshed without a sidecar.
    pub(super) proxyless: bool,
    /// Ports that are reached past its sidecar, the sidecar's own apart.
    pub(super) excluded: Vec<PortRange>,
    pub(super) host_network: bool,
    pub(super) ready: bool,
    pub(super) draining: bool,
    pub(super) locality: Option<Locality>,
    /// Relative share, at least 1.
    pub(super) weight: u32,
}

/// A port an instance declares.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) name: Option<Arc<str>>,
    pub(super) number: u16,
    /// What the instance itself says of it.
    pub(super) app_protocol: Option<String>,
}

/// The instance with this name. A Pod takes a name from a Workload.
pub(super) fn named(objects: &Objects, namespace: &str, name: &str) -> Option<Instance> {
    if let Some(pod) = objects.pods.get(namespace, name) {
        return of_pod(pod);
    }
    objects.workloads.get(namespace, name).and_then(|workload| of_workload(workload))
}

/// All instances of a namespace, by name.
pub(super) fn in_namespace(objects: &Objects, namespace: &str) -> Vec<Instance> {
    let pods = objects.pods.in_namespace(namespace).filter_map(|pod| of_pod(pod));
    let free = |workload: &&Arc<api::Workload>| objects.pods.get(namespace, name_of(&workload.metadata)).is_none();
    let workloads = objects.workloads.in_namespace(namespace).filter(free).filter_map(|workload| of_workload(workload));
    let mut all: Vec<_> = pods.chain(workloads).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The instances of a namespace, made when somebody needs all of them: for one endpoint out of thousands nobody does.
#[derive(Debug)]
pub(super) struct Namespace<'o> {
    objects: &'o Objects,
    name: &'o str,
    all: OnceCell<Vec<Instance>>,
}

impl<'o> Namespace<'o> {
    pub(super) fn new(objects: &'o Objects, name: &'o str) -> Self {
        Self { objects, name, all: OnceCell::new() }
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> &[Instance] {
        self.all.get_or_init(|| in_namespace(self.objects, self.name))
    }
}

impl Instance {
    /// By what metrics name it.
    pub(super) fn known_as(&self) -> WorkloadName {
        self.controller.clone().unwrap_or_else(|| self.name.clone())
    }

    /// Whether the Service's selector names this instance. A Service without selector selects nothing.
    pub(super) fn selected_by(&self, service: &Service) -> bool {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        namespace_of(&service.metadata) == &*self.name.namespace
            && selector.is_some_and(|selector| {
                !selector.is_empty() && selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
            })
    }

    /// Whether connections to `port` pass its sidecar by.
    pub(super) fn is_excluded(&self, port: u16) -> bool {
        port == METRICS_PORT || self.excluded.iter().any(|range| range.contains(port))
    }

    /// The number a Service's `targetPort` means here: itself, or that of the port with its name.
    pub(super) fn target_port(&self, target: Option<&IntOrString>, service_port: u16) -> Option<u16> {
        match target {
            None | Some(IntOrString::Int(0)) => Some(service_port),
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok().filter(|number| *number > 0),
            Some(IntOrString::String(name)) => {
                self.ports.iter().find(|port| port.name.as_deref() == Some(name)).map(|port| port.number)
            }
        }
    }
}

fn of_pod(pod: &Pod) -> Option<Instance> {
    // A pod whose containers have all ended has nothing left to talk to.
    if pod.ended {
        return None;
    }
    let namespace = namespace_of(&pod.metadata);
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let ports = pod.ports.iter();
    Some(Instance {
        name: WorkloadName::new(namespace, name_of(&pod.metadata)),
        controller: pod.controller.as_deref().map(|controller| WorkloadName::new(namespace, controller)),
        uid: pod.metadata.uid.as_deref().map(Arc::from),
        node: pod.node.clone(),
        source: SourceRef::new("Pod", namespace, name_of(&pod.metadata)),
        addresses: pod.addresses.clone(),
        service_account: pod.service_account.clone(),
        ports: ports.map(|port| Port { name: port.name.clone(), number: port.number, app_protocol: None }).collect(),
        meshed: !pod.host_network && (pod.injected() || pod.proxyless()),
        proxyless: !pod.host_network && pod.proxyless(),
        excluded: pod.excluded_ports(),
        host_network: pod.host_network,
        // Before anybody has looked: a manifest written by hand means a pod that runs.
        ready: pod.ready.unwrap_or(true),
        draining: pod.metadata.deletion_timestamp.is_some(),
        weight: pod.weight(),
        locality: locality(&labels),
        labels,
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
        Some(Port { name: port.name.as_deref().map(Arc::from), number, app_protocol: port.app_protocol.clone() })
    });
    Some(Instance {
        name: WorkloadName::new(namespace, name_of(&workload.metadata)),
        controller: None,
        uid: workload.metadata.uid.as_deref().map(Arc::from),
        node: None,
        source: SourceRef::new("Workload", namespace, name_of(&workload.metadata)),
        addresses: workload.spec.ips(),
        service_account: workload.spec.service_account_name.as_str().into(),
        ports: ports.collect(),
        meshed: workload.spec.meshed,
        proxyless: workload.spec.proxyless,
        excluded: Vec::new(),
        host_network: workload.spec.host_network,
        ready: true,
        draining: workload.metadata.deletion_timestamp.is_some(),
        weight: workload.spec.weight.unwrap_or(1),
        locality: locality(&labels),
        labels,
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

/// Kubernetes, "Well-Known Labels".
const REGION: &str = "topology.kubernetes.io/region";
/// Kubernetes, "Well-Known Labels".
const ZONE: &str = "topology.kubernetes.io/zone";
