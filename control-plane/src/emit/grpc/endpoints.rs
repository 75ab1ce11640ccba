//! Endpoints for calls. gRPC itself leaves out the draining ones.

use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use heddle_xds::resource::Resource;

use super::{Client, cluster};
use crate::emit::envoy;
use crate::model::{Cluster, Endpoint, Endpoints, LoadBalancing};

/// Those of `all`, the endpoints of `cluster`, that `client` can speak to: over mutual TLS where it speaks that, else in
/// plaintext. The far ones are of the next priority, which gRPC turns to when no near one can be connected to or all are
/// ejected.
pub fn resource(cluster: &Cluster, all: &Endpoints, client: &Client) -> Resource {
    let mutual_tls = cluster::mutual_tls(all, client).is_some();
    let for_client = all.for_client(&client.place);
    let spoken_to = |endpoint: &Endpoint| cluster::takes_mutual_tls(endpoint) == mutual_tls;
    let mut some: Vec<_> = for_client.by_priority().filter(|(_, endpoint)| spoken_to(endpoint)).collect();
    // gRPC refuses priorities that do not begin with 0.
    let first = some.iter().map(|(priority, _)| *priority).min().unwrap_or_default();
    some.iter_mut().for_each(|(priority, _)| *priority -= first);
    let message = match cluster.settings.load_balancing {
        LoadBalancing::RingHash(_) | LoadBalancing::Maglev(_) => on_a_ring(all.name.as_str(), &some),
        LoadBalancing::P2cEwma | LoadBalancing::LeastRequest | LoadBalancing::RoundRobin | LoadBalancing::Random => {
            envoy::endpoints::assignment(all.name.as_str(), some)
        }
    };
    Resource::encode(all.name.shared(), &message, [])
}

/// On a ring an endpoint's share is its weight times its locality's, of which some implementations do not take its part of the
/// locality (gRFC A113): with one locality they have the same ring, and weights are what they say.
fn on_a_ring(name: &str, endpoints: &[(u32, &Endpoint)]) -> ClusterLoadAssignment {
    let without = |endpoint: &Endpoint| Endpoint { locality: None, ..endpoint.clone() };
    let somewhere: Vec<_> = endpoints.iter().map(|(priority, endpoint)| (*priority, without(endpoint))).collect();
    envoy::endpoints::assignment(name, somewhere.iter().map(|(priority, endpoint)| (*priority, endpoint)))
}

/// Those of invalid backends.
pub fn none() -> Resource {
    Resource::encode(envoy::NO_CLUSTER, &envoy::endpoints::assignment(envoy::NO_CLUSTER, []), [])
}
