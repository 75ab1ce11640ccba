//! `Workload`: a process outside Kubernetes, on a laptop or a VM. Services select it as they do pods.

use std::net::IpAddr;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FieldError, ObjectStatus};

/// A process outside Kubernetes. Its labels are `metadata.labels`.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "Workload",
    namespaced,
    status = "ObjectStatus",
    doc = "A process outside Kubernetes, which Services select as they do pods.",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Account","type":"string","jsonPath":".spec.serviceAccountName"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.addresses.all(a, isIP(a) && (ip(a).isGlobalUnicast() || ip(a).isLinkLocalUnicast()))").message("give IPv4 or IPv6 addresses other hosts can reach, without port"))]
#[x_kube(validation = Rule::new("!has(self.proxyless) || !self.proxyless || !has(self.meshed) || self.meshed").message("what is proxyless is meshed: leave meshed out"))]
#[x_kube(validation = Rule::new("!has(self.ports) || self.ports.all(p, self.ports.exists_one(q, q.port == p.port))").message("give each port once"))]
#[x_kube(validation = Rule::new("!has(self.ports) || self.ports.all(p, !has(p.name) || self.ports.exists_one(q, has(q.name) && q.name == p.name))").message("give each port name once"))]
pub struct WorkloadSpec {
    /// IPv4 or IPv6 addresses at which it listens; 1 to 4, each once. Loopback, unspecified and multicast
    /// addresses are refused.
    #[schemars(length(min = 1, max = 4), inner(length(max = 45)))]
    pub addresses: Vec<String>,
    /// The service account in its namespace that it runs under: the last part of its SPIFFE ID. Default: `default`,
    /// as for pods.
    #[serde(default = "default_account")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: String,
    /// The ports it listens on, which Services name in `targetPort`; at most 64. Default: none; a Service may still
    /// give a number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<WorkloadPort>,
    /// Whether it has a sidecar, or is `proxyless`. Default: true.
    #[serde(default = "yes")]
    pub meshed: bool,
    /// Whether its servers are gRPC that is told by xDS whom it takes, so that it needs no sidecar (gRFC A36). Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxyless: bool,
    /// Its share of what a Service's clients ask, relative to the other endpoints; 1 to 1000. Default: 1, as for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: Option<u32>,
    /// Whether it shares its addresses with other processes, so that the address of a peer proves nothing about who it
    /// is. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
}

/// A port a workload listens on.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadPort {
    /// The name Services use in `targetPort`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// TCP port number, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Transport protocol. Default: TCP, the only one that is carried.
    #[serde(default)]
    pub protocol: Transport,
    /// Application protocol, as Kubernetes' `appProtocol` (KEP-1507, KEP-3726): `http`, `kubernetes.io/h2c`, `grpc`,
    /// `tcp` and others. Default: detected per connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub app_protocol: Option<String>,
}

/// Transport protocol of a port.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    #[default]
    TCP,
}

impl WorkloadSpec {
    /// The addresses that can be read, sorted, each once.
    pub fn ips(&self) -> Vec<IpAddr> {
        let mut ips: Vec<IpAddr> = self.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    }

    /// What cannot be meant.
    pub fn check(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            let remedy = format!("give 1 to {MAX_ADDRESSES} addresses");
            found.push(FieldError::new("spec.addresses", self.addresses.len(), remedy));
        }
        for (i, text) in self.addresses.iter().enumerate() {
            let usable = text.parse::<IpAddr>().is_ok_and(reachable);
            if !usable {
                let remedy = "give an IPv4 or IPv6 address other hosts can reach, without port, as 10.0.0.7";
                found.push(FieldError::new(format!("spec.addresses[{i}]"), text, remedy));
            }
        }
        if self.service_account_name.is_empty() {
            found.push(FieldError::new(
                "spec.serviceAccountName",
                "",
                "name a service account, or leave the field out",
            ));
        }
        if self.proxyless && !self.meshed {
            let remedy = "leave `meshed` out: what takes its configuration by xDS is part of the mesh";
            found.push(FieldError::new("spec.meshed", false, remedy));
        }
        if let Some(weight) = self.weight.filter(|weight| !(1..=MAX_WEIGHT).contains(weight)) {
            found.push(FieldError::new("spec.weight", weight, format!("give a share from 1 to {MAX_WEIGHT}")));
        }
        if self.ports.len() > MAX_PORTS {
            found.push(FieldError::new("spec.ports", self.ports.len(), format!("give at most {MAX_PORTS} ports")));
        }
        for (i, port) in self.ports.iter().enumerate() {
            if !(1..=65535).contains(&port.port) {
                found.push(FieldError::new(format!("spec.ports[{i}].port"), port.port, "give a port from 1 to 65535"));
            }
            let twice = self
                .ports
                .iter()
                .take(i)
                .any(|other| other.port == port.port || (other.name.is_some() && other.name == port.name));
            if twice {
                let shown = port.name.clone().unwrap_or_else(|| port.port.to_string());
                found.push(FieldError::new(format!("spec.ports[{i}]"), shown, "give each port and each name once"));
            }
        }
        found
    }
}

fn reachable(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

fn default_account() -> String {
    "default".into()
}

fn yes() -> bool {
    true
}

/// Chosen: one of each family and as many again.
const MAX_ADDRESSES: usize = 4;
/// Chosen: enough to tell a large machine from a small one.
pub const MAX_WEIGHT: u32 = 1000;
/// Chosen: far above what a process listens on.
const MAX_PORTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_no_other_host_can_reach_are_refused() {
        for address in ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "10.0.0.1:80", "vm.example"] {
            let spec = WorkloadSpec { addresses: vec![address.into()], ..WorkloadSpec::default() };
            assert!(spec.check().iter().any(|e| e.field == "spec.addresses[0]" && e.value == address), "{address}");
        }
    }

    #[test]
    fn a_port_given_twice_is_refused() {
        let port = WorkloadPort { port: 80, ..WorkloadPort::default() };
        let spec = WorkloadSpec {
            addresses: vec!["10.0.0.1".into()],
            service_account_name: "api".into(),
            ports: vec![port.clone(), port],
            ..WorkloadSpec::default()
        };
        assert_eq!(spec.check().len(), 1);
    }
}
