//! Listener `inbound` → [`Inbound`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener as PbListener};
use ipnet::IpNet;
use serde::Deserialize;

use super::read::{self, Error, Within, at_most};
use super::{rate_limit, rbac};
use crate::balance::breaker;
use crate::tables::cluster::{Connections, Settings, UpstreamHttp};
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
        sources: read::sources(message.metadata.as_ref())?,
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
#[serde(rename_all = "camelCase")]
struct ChainFacts {
    protocol: ProtocolFact,
    tls: TlsFact,
    service: Option<String>,
    settings: SettingsFacts,
    /// Control planes before 0.2 know none.
    #[serde(default)]
    rate_limits: Vec<rate_limit::Facts>,
    #[serde(default)]
    concurrency: Vec<rate_limit::ConcurrencyFacts>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SettingsFacts {
    connect_timeout_nanos: u64,
    idle_timeout_nanos: u64,
    connections: u32,
    pending: u32,
    requests: u32,
    retries: u32,
    retry_budget_percent: u32,
    retry_budget_floor: u32,
    upstream_http: UpstreamHttpFact,
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
            connect_timeout: Duration::from_nanos(facts.connect_timeout_nanos),
            connections: Connections {
                idle_timeout: Duration::from_nanos(facts.idle_timeout_nanos),
                ..Connections::default()
            },
            limits: breaker::Limits {
                connections: facts.connections,
                pending: facts.pending,
                requests: facts.requests,
                retries: facts.retries,
            },
            // There is one application: nothing to choose, and none to take out.
            outlier: None,
            retry_budget_percent: facts.retry_budget_percent,
            retry_budget_floor: facts.retry_budget_floor,
            upstream_http: match facts.upstream_http {
                UpstreamHttpFact::AsDownstream => UpstreamHttp::AsDownstream,
                UpstreamHttpFact::Http1 => UpstreamHttp::Http1,
                UpstreamHttpFact::Http2 => UpstreamHttp::Http2,
            },
            ..Self::default()
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
        rate_limits: rate_limit::limits(facts.rate_limits).within("metadata")?,
        concurrency: rate_limit::concurrency(facts.concurrency).within("metadata")?,
        settings: facts.settings.into(),
    })
}

/// Ports of one workload that objects mention. Chosen: a pod that publishes more is a mistake.
const MAX_PORTS: usize = 1_024;
/// Networks of the mesh. Chosen: a node's pod network each in a cluster of some thousand nodes.
const MAX_NETWORKS: usize = 8_192;

#[cfg(test)]
pub(super) mod tests {
    use envoy_types::pb::envoy::config::core::v3::Metadata;
    use envoy_types::pb::envoy::config::listener::v3::FilterChainMatch;
    use envoy_types::pb::google::protobuf::{Any, StringValue, UInt32Value};
    use prost::{Message, Name};

    use super::*;

    /// An `inbound` resource with nothing but a default.
    pub(in crate::sync) fn resource(workload: &str) -> Vec<u8> {
        message(workload).encode_to_vec()
    }

    fn message(workload: &str) -> PbListener {
        let facts = format!(r#"{{"workload": {workload:?}, "cidrs": ["10.0.0.0/8"], "egress": "allow"}}"#);
        PbListener {
            name: "inbound".into(),
            metadata: Some(metadata(&facts)),
            default_filter_chain: Some(chain("permissive", 1)),
            ..PbListener::default()
        }
    }

    fn chain(tls: &str, connect_timeout: u64) -> FilterChain {
        let settings = format!(
            r#"{{"loadBalancing": "p2cEwma", "connectTimeoutNanos": {connect_timeout}, "idleTimeoutNanos": 1,
                 "connections": 1, "pending": 1, "requests": 1, "retries": 1, "retryBudgetPercent": 1,
                 "retryBudgetFloor": 1, "upstreamHttp": "asDownstream"}}"#
        );
        let facts = format!(r#"{{"protocol": "detect", "tls": {tls:?}, "settings": {settings}, "later": 1}}"#);
        FilterChain { metadata: Some(metadata(&facts)), ..FilterChain::default() }
    }

    fn metadata(facts: &str) -> Metadata {
        let any = Any { type_url: StringValue::type_url(), value: StringValue { value: facts.into() }.encode_to_vec() };
        Metadata { typed_filter_metadata: HashMap::from([("heddle".into(), any)]), ..Metadata::default() }
    }

    fn refused(change: impl FnOnce(&mut PbListener)) -> String {
        let mut message = message("shop/cart-0");
        change(&mut message);
        parse("inbound", &message.encode_to_vec()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_known_yet_is_left_alone() {
        assert_eq!(parse("inbound", &resource("shop/cart-0")).unwrap().other_ports.tls, TlsMode::Permissive);
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_field() {
        let port = |number| {
            Some(FilterChainMatch {
                destination_port: Some(UInt32Value { value: number }),
                ..FilterChainMatch::default()
            })
        };
        let numbered = |number| FilterChain { filter_chain_match: port(number), ..chain("strict", 1) };
        assert_eq!(refused(|m| m.default_filter_chain = None), "default_filter_chain: is missing");
        let unknown = refused(|m| m.default_filter_chain = Some(chain("lax", 1)));
        assert!(
            unknown
                .starts_with("default_filter_chain.metadata.typed_filter_metadata[\"heddle\"]: unknown variant `lax`")
        );
        assert_eq!(
            refused(|m| m.default_filter_chain = Some(chain("strict", 0))),
            "default_filter_chain.metadata.settings.connectTimeoutNanos: is 0, must be above"
        );
        assert_eq!(
            refused(|m| m.filter_chains = vec![numbered(80), numbered(70_000)]),
            "filter_chains[1].filter_chain_match.destination_port: is 70000, must be at most 65535"
        );
        assert_eq!(refused(|m| m.filter_chains = vec![numbered(80), numbered(80)]), "filter_chains: has port 80 twice");
        assert!(
            refused(|m| m.metadata = None).starts_with("metadata.typed_filter_metadata[\"heddle\"]: missing field")
        );
    }
}
