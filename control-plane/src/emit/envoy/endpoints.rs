//! `ClusterLoadAssignment`: the endpoints of a cluster, grouped by priority and locality.
//!
//! Every group carries its locality and its weight, because gRPC refuses the first missing and drops silently what lacks
//! the second; Envoy does not mind. Whether an endpoint is spoken to over mutual TLS stands in its metadata.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality as PbLocality, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as PbEndpoint, LbEndpoint, LocalityLbEndpoints,
};
use heddle_xds::resource::Resource;

use crate::emit::pb;
use crate::model::{Endpoint, ForClient, Locality};

/// All endpoints of a cluster.
pub fn resource(endpoints: &ForClient<'_>) -> Resource {
    let message = assignment(endpoints.name.as_str(), endpoints.by_priority());
    Resource::encode(endpoints.name.shared(), &message, [])
}

/// Some endpoints of the cluster `name` with their priorities; an unknown locality is one without names.
pub fn assignment<'m>(name: &str, endpoints: impl IntoIterator<Item = (u32, &'m Endpoint)>) -> ClusterLoadAssignment {
    let mut localities: BTreeMap<(u32, Locality), Vec<&Endpoint>> = BTreeMap::new();
    for (priority, endpoint) in endpoints {
        localities.entry((priority, endpoint.locality.clone().unwrap_or_default())).or_default().push(endpoint);
    }
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities
            .into_iter()
            .map(|((priority, locality), endpoints)| LocalityLbEndpoints { priority, ..group(&locality, &endpoints) })
            .collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn group(locality: &Locality, endpoints: &[&Endpoint]) -> LocalityLbEndpoints {
    // Envoy and gRPC refuse a sum of locality weights above 2^32 - 1; saturating keeps one group valid by itself.
    let weight = endpoints.iter().fold(0_u32, |sum, endpoint| sum.saturating_add(endpoint.weight.max(1)));
    LocalityLbEndpoints {
        locality: Some(PbLocality {
            region: locality.region.as_deref().unwrap_or_default().to_owned(),
            zone: locality.zone.as_deref().unwrap_or_default().to_owned(),
            sub_zone: String::new(),
        }),
        lb_endpoints: endpoints.iter().map(|endpoint| lb_endpoint(endpoint)).collect(),
        load_balancing_weight: Some(pb::uint32(weight)),
        ..LocalityLbEndpoints::default()
    }
}

fn lb_endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let health = if endpoint.draining { HealthStatus::Draining } else { HealthStatus::Healthy };
    LbEndpoint {
        health_status: health as i32,
        load_balancing_weight: Some(pb::uint32(endpoint.weight.max(1))),
        metadata: endpoint.mtls.as_ref().map(|_| meshed()),
        host_identifier: Some(HostIdentifier::Endpoint(PbEndpoint {
            address: Some(pb::address(endpoint.address)),
            ..PbEndpoint::default()
        })),
    }
}

/// One entry, so the encoding has one order.
fn meshed() -> Metadata {
    let entry = (pb::TRANSPORT_SOCKET_MATCH.to_owned(), pb::single(pb::MATCH_KEY, pb::MATCH_MTLS));
    Metadata { filter_metadata: HashMap::from([entry]), ..Metadata::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Hints, SpiffeId};

    fn endpoint(address: &str, zone: Option<&str>) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            mtls: None,
            proxyless: false,
            weight: 3,
            draining: false,
            workload: None,
            locality: zone.map(|zone| Locality { region: None, zone: Some(zone.into()) }),
            hints: Hints::default(),
        }
    }

    #[test]
    fn every_group_has_a_locality_and_the_weight_of_its_endpoints() {
        let endpoints =
            [endpoint("10.0.0.1:80", None), endpoint("10.0.0.2:80", Some("b")), endpoint("10.0.0.3:80", None)];

        let assignment = assignment("c", endpoints.iter().map(|endpoint| (0, endpoint)));

        let groups: Vec<_> =
            assignment.endpoints.iter().map(|group| (group.lb_endpoints.len(), group.load_balancing_weight)).collect();
        assert_eq!(groups, [(2, Some(pb::uint32(6))), (1, Some(pb::uint32(3)))]);
        assert!(assignment.endpoints.iter().all(|group| group.locality.is_some()));
        assert_eq!(assignment.endpoints[1].locality.as_ref().unwrap().zone, "b");
    }

    #[test]
    fn a_meshed_endpoint_says_so_and_a_draining_one_is_draining() {
        let mut one = endpoint("10.0.0.1:80", None);
        one.mtls = Some(SpiffeId::new("d", "n", "s"));
        one.draining = true;

        let built = lb_endpoint(&one);

        let metadata = built.metadata.unwrap();
        assert_eq!(metadata.filter_metadata[pb::TRANSPORT_SOCKET_MATCH], pb::single("heddle", "mtls"));
        assert_eq!(built.health_status, HealthStatus::Draining as i32);
    }
}
