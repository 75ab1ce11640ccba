//! Shares of opaque connections, as `TcpProxy` has them.

use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};

use crate::model::{ResourceName, TcpShare};

/// Where connections go; what leads nowhere, to the cluster `nowhere`, which does not exist.
pub fn specifier(shares: &[TcpShare], nowhere: &str) -> ClusterSpecifier {
    let name = |share: &TcpShare| share.cluster.as_ref().map_or_else(|| nowhere.to_owned(), ResourceName::to_string);
    let some: Vec<_> = shares.iter().filter(|share| share.weight > 0).collect();
    match some.as_slice() {
        [] => ClusterSpecifier::Cluster(nowhere.to_owned()),
        [only] => ClusterSpecifier::Cluster(name(only)),
        several => {
            let clusters = several.iter().map(|share| ClusterWeight {
                name: name(share),
                weight: share.weight,
                ..ClusterWeight::default()
            });
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect() })
        }
    }
}
