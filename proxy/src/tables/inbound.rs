//! What holds for traffic to this workload, and the facts of the mesh it lives in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::cluster::Settings;
use super::listener::Protocol;
use super::policy::PolicySet;
use super::rate_limit::RateLimit;
use super::{ServiceName, Sources};

/// The `inbound` resource of one workload.
#[derive(Debug)]
pub struct Inbound {
    /// Facts of the mesh.
    pub mesh: Mesh,
    /// This workload's name, as metrics show it.
    pub workload: Arc<str>,
    /// This workload's namespace.
    pub namespace: Arc<str>,
    /// By the application's port.
    pub ports: HashMap<u16, Arc<Port>>,
    /// For a port that no object mentions.
    pub other_ports: Arc<Port>,
    /// What it was made from.
    pub sources: Sources,
}

impl Inbound {
    /// What holds for the application's port `port`.
    pub fn port(&self, port: u16) -> &Arc<Port> {
        self.ports.get(&port).unwrap_or(&self.other_ports)
    }

    /// Goes on counting requests where `before` is.
    pub fn keep(&mut self, before: &Self) {
        for (number, port) in &mut self.ports {
            if let Some(old) = before.ports.get(number) {
                keep(port, old);
            }
        }
        keep(&mut self.other_ports, &before.other_ports);
    }
}

/// A port that is shared already is in force.
fn keep(port: &mut Arc<Port>, before: &Port) {
    for limit in Arc::get_mut(port).into_iter().flat_map(|port| &mut port.rate_limits) {
        limit.keep(&before.rate_limits);
    }
}

/// Facts that decide what an unknown original destination means.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Pod and Service networks: an address inside them is the mesh's own, never an outside host.
    pub cidrs: Vec<IpNet>,
    /// What happens to traffic for hosts outside the mesh.
    pub egress: Egress,
}

impl Mesh {
    /// Whether `ip` lies within the mesh's own networks.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.cidrs.iter().any(|cidr| cidr.contains(&ip))
    }
}

/// The egress default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Unknown destinations are relayed untouched.
    Allow,
    /// Unknown destinations are refused.
    Deny,
}

/// What holds for one port of the application.
#[derive(Debug)]
pub struct Port {
    /// Declared protocol.
    pub protocol: Protocol,
    /// Which connections are taken.
    pub tls: TlsMode,
    /// The Service that owns the port, if exactly one does.
    pub service: Option<ServiceName>,
    /// Authorization in force.
    pub policies: PolicySet,
    /// Rate limits in force, in the order they are asked.
    pub rate_limits: Vec<RateLimit>,
    /// Limits and timeouts towards the application.
    pub settings: Settings,
}

/// Which inbound connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// Only mutual TLS between sidecars.
    Strict,
    /// Mutual TLS where offered, else as it comes.
    Permissive,
    /// As it comes; mutual TLS is not offered.
    Disable,
}
