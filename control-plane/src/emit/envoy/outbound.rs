//! `outbound`: takes what capture redirects and hands it to the listener of its original destination. What has none is
//! known for certain to be no port any object mentions, because Envoy has the whole mesh:
//! - another port of a workload: relayed as opaque bytes, over mutual TLS where the workload is meshed;
//! - a host outside: the egress default decides;
//! - 15001 of the workload itself: a loop, closed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3::{CidrRange, TrafficDirection};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use heddle_xds::resource::{Kind, Resource};
use ipnet::IpNet;

use super::{OUTBOUND_PORT, Out, Settings, chain, cluster, families, family_name};
use crate::emit::pb;
use crate::model::cluster::Settings as ClusterSettings;
use crate::model::{Egress, Model, SpiffeId, Workload};

/// Adds the listener of each family of `workload` and the clusters it names.
pub(super) fn emit(model: &Model, workload: &Workload, settings: &Settings, out: &mut Out) {
    let egress = workload.inbound.as_ref().map_or(Egress::Allow, |inbound| inbound.mesh.egress);
    let unknown = match egress {
        Egress::Allow => PASSTHROUGH,
        Egress::Deny => NOWHERE,
    };
    let others = other_ports(model);
    for wildcard in families(workload) {
        let name = family_name("outbound", wildcard);
        let message = Listener {
            name: name.clone(),
            address: Some(pb::address(SocketAddr::new(wildcard, OUTBOUND_PORT))),
            traffic_direction: TrafficDirection::Outbound as i32,
            use_original_dst: Some(pb::boolean(true)),
            filter_chains: std::iter::once(loop_chain(workload)).chain(others.iter().map(other_ports_chain)).collect(),
            default_filter_chain: Some(chain::default_chain(chain::relay(unknown))),
            ..Listener::default()
        };
        out.add(Kind::Listener, Resource::encode(name, &message, []));
    }
    let limits = ClusterSettings::default();
    for identity in others.keys() {
        let peer = identity.as_ref().map(|identity| (identity, settings));
        let message = cluster::original_dst(&other_ports_cluster(identity.as_ref()), &limits, None, peer);
        out.add(Kind::Cluster, Resource::encode(message.name.clone(), &message, []));
    }
    let passthrough = cluster::original_dst(PASSTHROUGH, &limits, None, None);
    out.add(Kind::Cluster, Resource::encode(PASSTHROUGH, &passthrough, []));
    out.add(Kind::Cluster, Resource::encode(NOWHERE, &cluster::nowhere(NOWHERE), []));
}

/// Addresses by who listens on the ports no object mentions: an identity, or `None` for a workload that is not meshed.
fn other_ports(model: &Model) -> BTreeMap<Option<SpiffeId>, Vec<IpAddr>> {
    let mut others: BTreeMap<Option<SpiffeId>, Vec<IpAddr>> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for workload in model.workloads.values() {
        let Some(port) = &workload.direct.other_ports else { continue };
        let peer = port.mtls.then(|| workload.identity.clone());
        // One address in two chains would be refused.
        let addresses = workload.addresses.iter().filter(|address| taken.insert(**address));
        others.entry(peer).or_default().extend(addresses);
    }
    others.retain(|_, addresses| !addresses.is_empty());
    others
}

fn other_ports_chain((identity, addresses): (&Option<SpiffeId>, &Vec<IpAddr>)) -> FilterChain {
    let matches = FilterChainMatch { prefix_ranges: hosts(addresses), ..FilterChainMatch::default() };
    let cluster = other_ports_cluster(identity.as_ref());
    chain::chain(&cluster, matches, chain::relay(&cluster), None)
}

fn other_ports_cluster(identity: Option<&SpiffeId>) -> String {
    identity.map_or_else(|| PASSTHROUGH.to_owned(), |identity| format!("{IDENTITY_PREFIX}{identity}"))
}

/// A connection to this very port that was not redirected.
fn loop_chain(workload: &Workload) -> FilterChain {
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    let own: Vec<IpAddr> = workload.addresses.iter().copied().chain(loopback).collect();
    let matches = FilterChainMatch {
        destination_port: Some(pb::uint32(u32::from(OUTBOUND_PORT))),
        prefix_ranges: hosts(&own),
        ..FilterChainMatch::default()
    };
    chain::chain("loop", matches, chain::relay(NOWHERE), None)
}

fn hosts(addresses: &[IpAddr]) -> Vec<CidrRange> {
    addresses.iter().map(|address| pb::cidr(&IpNet::from(*address))).collect()
}

/// The cluster that dials whatever was dialled, in plaintext.
pub(super) const PASSTHROUGH: &str = "passthrough";
/// The cluster that has no endpoints.
pub(super) const NOWHERE: &str = "nowhere";
/// Before the identity that is expected at whatever was dialled.
const IDENTITY_PREFIX: &str = "identity/";
