//! What holds for traffic to this workload, and the facts of the mesh it lives in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::cluster::Settings;
use super::listener::Protocol;
use super::policy::PolicySet;
use super::rate_limit::{Concurrency, Counter, RateLimit};
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

    /// Names of the clusters that are asked whether requests may come in.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        let limits = self.ports.values().chain([&self.other_ports]).flat_map(|port| &port.rate_limits);
        limits.filter_map(|limit| match &limit.counter {
            Counter::Service(service, _) => Some(&service.cluster),
            Counter::Local(_) => None,
        })
    }

    /// How many requests ports let in at once; `None`: at the ports that no object mentions.
    pub fn concurrency(&self) -> impl Iterator<Item = (Option<u16>, &Concurrency)> {
        let ports = self.ports.iter().map(|(number, port)| (Some(*number), port)).chain([(None, &self.other_ports)]);
        ports.flat_map(|(number, port)| port.concurrency.iter().map(move |limit| (number, limit)))
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
    let Some(port) = Arc::get_mut(port) else { return };
    port.rate_limits.iter_mut().for_each(|limit| limit.keep(&before.rate_limits));
    port.concurrency.iter_mut().for_each(|limit| limit.keep(&before.concurrency));
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
    /// How many requests are let in at once; each must have room.
    pub concurrency: Vec<Concurrency>,
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
