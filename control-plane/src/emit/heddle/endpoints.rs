//! `ClusterLoadAssignment`: the endpoints of a cluster, grouped by priority and locality.
//!
//! An endpoint that is spoken to over mutual TLS carries `envoy.transport_socket_match: {heddle: mtls}`. Facts: the
//! identity it must show (Envoy's dialect knows only a cluster's union), its workload.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality as PbLocality, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as PbEndpoint, LbEndpoint, LocalityLbEndpoints,
};
use heddle_xds::resource::Resource;
use serde::Serialize;

use crate::emit::pb;
use crate::model::{Endpoint, ForClient, Locality, SpiffeId, WorkloadName};

/// The endpoints of one cluster.
pub fn endpoints(endpoints: &ForClient<'_>) -> Resource {
    let mut localities: BTreeMap<(u32, Option<&Locality>), Vec<LbEndpoint>> = BTreeMap::new();
    for (priority, endpoint) in endpoints.by_priority() {
        localities.entry((priority, endpoint.locality.as_ref())).or_default().push(lb_endpoint(endpoint));
    }
    let localities = localities.into_iter().map(|((priority, locality), lb_endpoints)| LocalityLbEndpoints {
        priority,
        locality: locality.map(|locality| PbLocality {
            region: locality.region.as_deref().unwrap_or_default().to_owned(),
            zone: locality.zone.as_deref().unwrap_or_default().to_owned(),
            sub_zone: String::new(),
        }),
        lb_endpoints,
        ..LocalityLbEndpoints::default()
    });
    let message = ClusterLoadAssignment {
        cluster_name: endpoints.name.to_string(),
        endpoints: localities.collect(),
        ..ClusterLoadAssignment::default()
    };
    Resource::encode(endpoints.name.shared(), &message, [])
}

/// What Envoy has no field for.
#[derive(Serialize)]
struct Facts<'m> {
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'m SpiffeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'m WorkloadName>,
}

fn lb_endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let health = if endpoint.draining { HealthStatus::Draining } else { HealthStatus::Healthy };
    LbEndpoint {
        health_status: health as i32,
        load_balancing_weight: Some(pb::uint32(endpoint.weight)),
        metadata: metadata(endpoint),
        host_identifier: Some(HostIdentifier::Endpoint(PbEndpoint {
            address: Some(pb::address(endpoint.address)),
            ..PbEndpoint::default()
        })),
    }
}

/// One entry in each of the two maps, so the encoding has one order.
fn metadata(endpoint: &Endpoint) -> Option<Metadata> {
    if endpoint.mtls.is_none() && endpoint.workload.is_none() {
        return None;
    }
    let facts = pb::facts(&Facts { identity: endpoint.mtls.as_ref(), workload: endpoint.workload.as_ref() });
    let meshed = endpoint.mtls.as_ref().map(|_| pb::single(pb::MATCH_KEY, pb::MATCH_MTLS));
    let filter_metadata: HashMap<_, _> =
        meshed.map(|meshed| (pb::TRANSPORT_SOCKET_MATCH.to_owned(), meshed)).into_iter().collect();
    Some(Metadata { filter_metadata, ..facts })
}
