//! `inbound`: what holds for traffic to the asking workload.
//!
//! One filter chain for each port some object mentions, the default filter chain for all others; the policies in force
//! are network filters of the chain ([`super::rbac`]). Facts of the listener: workload, mesh networks, egress default,
//! sources. Facts of a chain: protocol, TLS mode, service, and the settings towards the application, which in Envoy
//! would be a cluster of their own, and the rate limits, which would be filters of every connection manager.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use heddle_xds::resource::{INBOUND, Resource};
use ipnet::IpNet;
use serde::Serialize;

use super::rbac;
use crate::emit::pb;
use crate::model::cluster::Settings;
use crate::model::duration::nanos;
use crate::model::rate_limit::{Concurrency, RateLimit};
use crate::model::{
    Egress, InboundPort, Protocol, ServiceName, SourceRef, TlsMode, UpstreamHttp, Workload, WorkloadName,
};

/// The `inbound` resource of one workload; `None`: it has no sidecar.
pub fn inbound(workload: &Workload) -> Option<Resource> {
    let inbound = workload.inbound.as_ref()?;
    let chains = inbound.ports.iter().map(|(number, port)| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(pb::uint32(u32::from(*number))),
            ..FilterChainMatch::default()
        }),
        ..chain(number.to_string(), port)
    });
    let message = Listener {
        name: INBOUND.to_owned(),
        filter_chains: chains.collect(),
        default_filter_chain: Some(chain("other".to_owned(), &inbound.other_ports)),
        traffic_direction: TrafficDirection::Inbound as i32,
        metadata: Some(pb::facts(&ListenerFacts {
            workload: workload.known_as(),
            cidrs: &inbound.mesh.cidrs,
            egress: inbound.mesh.egress,
            sources: &inbound.sources,
        })),
        ..Listener::default()
    };
    Some(Resource::encode(INBOUND, &message, pb::sources(&inbound.sources)))
}

#[derive(Serialize)]
struct ListenerFacts<'m> {
    workload: &'m WorkloadName,
    cidrs: &'m [IpNet],
    egress: Egress,
    sources: &'m [SourceRef],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChainFacts<'m> {
    protocol: Protocol,
    tls: TlsMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'m ServiceName>,
    settings: SettingsFacts,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rate_limits: &'m [Arc<RateLimit>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    concurrency: &'m [Concurrency],
}

/// [`Settings`] that mean something towards one application, in numbers, so that nothing is lost to rounding.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SettingsFacts {
    /// Of no meaning towards the one application; sidecars before 0.2 want it said.
    load_balancing: &'static str,
    connect_timeout_nanos: u64,
    idle_timeout_nanos: u64,
    connections: u32,
    pending: u32,
    requests: u32,
    retries: u32,
    retry_budget_percent: u32,
    retry_budget_floor: u32,
    upstream_http: UpstreamHttp,
}

fn chain(name: String, port: &InboundPort) -> FilterChain {
    let facts = ChainFacts {
        protocol: port.protocol,
        tls: port.tls,
        service: port.service.as_ref(),
        settings: settings(&port.settings),
        rate_limits: &port.rate_limits,
        concurrency: &port.concurrency,
    };
    FilterChain {
        name,
        filters: rbac::filters(&port.policies),
        metadata: Some(pb::facts(&facts)),
        ..FilterChain::default()
    }
}

fn settings(settings: &Settings) -> SettingsFacts {
    SettingsFacts {
        load_balancing: "p2cEwma",
        connect_timeout_nanos: nanos(settings.connect_timeout),
        idle_timeout_nanos: nanos(settings.connections.idle_timeout),
        connections: settings.limits.connections,
        pending: settings.limits.pending,
        requests: settings.limits.requests,
        retries: settings.limits.retries,
        retry_budget_percent: settings.retry_budget.percent,
        retry_budget_floor: settings.retry_budget.floor,
        upstream_http: settings.upstream_http,
    }
}
