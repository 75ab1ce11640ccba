//! Endpoints for calls. gRPC itself leaves out the draining ones.

use heddle_xds::resource::Resource;

use super::{Client, cluster};
use crate::emit::envoy;
use crate::model::{Cluster, ForClient};

/// The endpoints of `cluster` that `client` can speak to: all near ones, or those of them that are meshed where it speaks
/// mutual TLS.
pub fn resource(cluster: &Cluster, endpoints: &ForClient<'_>, client: &Client) -> Resource {
    let meshed_only = cluster::mutual_tls(cluster, client).is_some();
    let some = endpoints.near.iter().filter(|endpoint| !meshed_only || endpoint.mtls.is_some());
    let message = envoy::endpoints::assignment(endpoints.name.as_str(), some.map(|endpoint| (0, *endpoint)));
    Resource::encode(endpoints.name.shared(), &message, [])
}

/// Those of invalid backends.
pub fn none() -> Resource {
    Resource::encode(envoy::NO_CLUSTER, &envoy::endpoints::assignment(envoy::NO_CLUSTER, []), [])
}
