//! Listener `inbound` → [`Inbound`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener as PbListener};
use ipnet::IpNet;
use serde::Deserialize;

use super::rbac;
use super::read::{self, Error, Within, at_most};
use crate::balance::{breaker, outlier};
use crate::tables::cluster::{LoadBalancing, Settings, UpstreamHttp};
use crate::tables::listener::Protocol;
use crate::tables::{Egress, Inbound, Mesh, Port, TlsMode};

/// Reads the resource `inbound`.
///
/// # Errors
/// The first field that is wrong.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Inbound, Error> {
    let message: PbListener = read::message(bytes)?;
    read::name("name", &message.name, name)?;
    let facts: ListenerFacts = read::facts(message.metadata.as_ref())?;
    at_most("cidrs", &facts.cidrs, MAX_NETWORKS).within("metadata")?;
    at_most("filter_chains", &message.filter_chains, MAX_PORTS)?;
    let workload = read::service_name(&facts.workload).within("metadata.workload")?;
    let mut ports = HashMap::with_capacity(message.filter_chains.len());
    for (index, chain) in message.filter_chains.iter().enumerate() {
        let (number, port) = numbered(chain).nth("filter_chains", index)?;
        if ports.insert(number, Arc::new(port)).is_some() {
            return Err(Error::new("filter_chains", format!("has port {number} twice")));
        }
    }
    let other =
        message.default_filter_chain.as_ref().ok_or_else(|| Error::new("default_filter_chain", "is missing"))?;
    Ok(Inbound {
        mesh: Mesh { cidrs: facts.cidrs, egress: facts.egress.into() },
        workload: workload.name,
        namespace: workload.namespace,
        ports,
        other_ports: Arc::new(port(other).within("default_filter_chain")?),
    })
}

#[derive(Deserialize)]
struct ListenerFacts {
    /// `<namespace>/<name>`.
    workload: String,
    cidrs: Vec<IpNet>,
    egress: EgressFact,
}

#[derive(Deserialize)]
struct ChainFacts {
    protocol: ProtocolFact,
    tls: TlsFact,
    service: Option<String>,
    settings: SettingsFacts,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SettingsFacts {
    load_balancing: LoadBalancingFact,
    connect_timeout_nanos: u64,
    idle_timeout_nanos: u64,
    connections: u32,
    pending: u32,
    requests: u32,
    retries: u32,
    outlier: Option<OutlierFacts>,
    retry_budget_percent: u32,
    retry_budget_floor: u32,
    upstream_http: UpstreamHttpFact,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutlierFacts {
    consecutive_failures: u32,
    base_ejection_nanos: u64,
    max_ejection_nanos: u64,
    max_ejected_percent: u32,
    panic_percent: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum EgressFact {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum ProtocolFact {
    Detect,
    Http,
    Http2,
    Tcp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum TlsFact {
    Strict,
    Permissive,
    Disable,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum LoadBalancingFact {
    P2cEwma,
    RoundRobin,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum UpstreamHttpFact {
    AsDownstream,
    Http1,
    Http2,
}

impl From<EgressFact> for Egress {
    fn from(fact: EgressFact) -> Self {
        match fact {
            EgressFact::Allow => Self::Allow,
            EgressFact::Deny => Self::Deny,
        }
    }
}

impl From<ProtocolFact> for Protocol {
    fn from(fact: ProtocolFact) -> Self {
        match fact {
            ProtocolFact::Detect => Self::Detect,
            ProtocolFact::Http => Self::Http,
            ProtocolFact::Http2 => Self::Http2,
            ProtocolFact::Tcp => Self::Tcp,
        }
    }
}

impl From<TlsFact> for TlsMode {
    fn from(fact: TlsFact) -> Self {
        match fact {
            TlsFact::Strict => Self::Strict,
            TlsFact::Permissive => Self::Permissive,
            TlsFact::Disable => Self::Disable,
        }
    }
}

impl From<SettingsFacts> for Settings {
    fn from(facts: SettingsFacts) -> Self {
        Self {
            policy: match facts.load_balancing {
                LoadBalancingFact::P2cEwma => LoadBalancing::P2cEwma,
                LoadBalancingFact::RoundRobin => LoadBalancing::RoundRobin,
            },
            connect_timeout: Duration::from_nanos(facts.connect_timeout_nanos),
            idle_timeout: Duration::from_nanos(facts.idle_timeout_nanos),
            limits: breaker::Limits {
                connections: facts.connections,
                pending: facts.pending,
                requests: facts.requests,
                retries: facts.retries,
            },
            outlier: facts.outlier.map(|outlier| outlier::Settings {
                consecutive_failures: outlier.consecutive_failures,
                base_ejection: Duration::from_nanos(outlier.base_ejection_nanos),
                max_ejection: Duration::from_nanos(outlier.max_ejection_nanos),
                max_ejected_percent: outlier.max_ejected_percent,
                panic_percent: outlier.panic_percent,
            }),
            retry_budget_percent: facts.retry_budget_percent,
            retry_budget_floor: facts.retry_budget_floor,
            upstream_http: match facts.upstream_http {
                UpstreamHttpFact::AsDownstream => UpstreamHttp::AsDownstream,
                UpstreamHttpFact::Http1 => UpstreamHttp::Http1,
                UpstreamHttpFact::Http2 => UpstreamHttp::Http2,
            },
        }
    }
}

/// A port by its number.
fn numbered(chain: &FilterChain) -> Result<(u16, Port), Error> {
    let field = "filter_chain_match.destination_port";
    let number = chain.filter_chain_match.as_ref().and_then(|found| found.destination_port.as_ref());
    let number = number.ok_or_else(|| Error::new(field, "is missing"))?.value;
    let number = u16::try_from(number).map_err(|_| Error::new(field, format!("is {number}, must be at most 65535")))?;
    Ok((number, port(chain)?))
}

fn port(chain: &FilterChain) -> Result<Port, Error> {
    let facts: ChainFacts = read::facts(chain.metadata.as_ref())?;
    for (field, nanos) in [
        ("connectTimeoutNanos", facts.settings.connect_timeout_nanos),
        ("idleTimeoutNanos", facts.settings.idle_timeout_nanos),
    ] {
        if nanos == 0 {
            return Err(Error::new(&format!("metadata.settings.{field}"), "is 0, must be above"));
        }
    }
    Ok(Port {
        protocol: facts.protocol.into(),
        tls: facts.tls.into(),
        service: facts.service.as_deref().map(read::service_name).transpose().within("metadata.service")?,
        policies: rbac::policies(&chain.filters)?,
        settings: facts.settings.into(),
    })
}

/// Ports of one workload that objects mention. Chosen: a pod that publishes more is a mistake.
const MAX_PORTS: usize = 1_024;
/// Networks of the mesh. Chosen: a node's pod network each in a cluster of some thousand nodes.
const MAX_NETWORKS: usize = 8_192;
