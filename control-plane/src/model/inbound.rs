//! What holds for traffic to one workload, and the facts of the mesh it lives in.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::cluster::Settings;
use super::listener::Protocol;
use super::name::{ServiceName, SourceRef};
use super::policy::PolicySet;
use super::rate_limit::{Concurrency, RateLimit};

/// The `inbound` resource of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inbound {
    /// Facts of the mesh.
    pub mesh: Mesh,
    /// By the application's port.
    pub ports: BTreeMap<u16, InboundPort>,
    /// For a port no object mentions.
    pub other_ports: InboundPort,
    /// Objects this was made from, sorted.
    pub sources: Vec<SourceRef>,
}

impl Inbound {
    /// What holds for the application's port `port`.
    pub fn port(&self, port: u16) -> &InboundPort {
        self.ports.get(&port).unwrap_or(&self.other_ports)
    }
}

/// Facts that decide what an unknown original destination means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// Pod and Service networks: an address inside them is never an outside host. Sorted.
    pub cidrs: Vec<IpNet>,
    /// What happens to traffic for hosts outside the mesh.
    pub egress: Egress,
}

/// The egress default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Egress {
    /// Unknown destinations are relayed untouched.
    Allow,
    /// Unknown destinations are refused.
    Deny,
}

/// What holds for one port of the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundPort {
    /// Declared protocol.
    pub protocol: Protocol,
    /// Which connections are taken.
    pub tls: TlsMode,
    /// The Service that owns the port, if exactly one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Authorization in force.
    #[serde(skip_serializing_if = "PolicySet::is_empty")]
    pub policies: PolicySet,
    /// Rate limits in force, in the order they are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// How many requests are let in at once; each must have room.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub concurrency: Vec<Concurrency>,
    /// Limits and timeouts towards the application.
    #[serde(skip_serializing_if = "super::workload::is_plain")]
    pub settings: Settings,
}

/// Which inbound connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TlsMode {
    /// Only mutual TLS between sidecars.
    Strict,
    /// Mutual TLS where offered, else as it comes.
    Permissive,
    /// As it comes; mutual TLS is not offered.
    Disable,
}
