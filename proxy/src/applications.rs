//! The applications beside this sidecar, as clusters of one endpoint each, so that inbound requests take the same
//! path as outbound ones.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::tables::Port;
use crate::tables::cluster::{Cluster, Endpoint, EndpointSet, EndpointTls, Settings};

/// Most ports kept; beyond it each connection gets a cluster of its own. Chosen: a scan of all ports must not fill
/// memory, and no pod serves on so many.
const MAX_APPLICATIONS: usize = 256;

/// The cluster of each address and port that was called.
#[derive(Default)]
pub struct Applications {
    clusters: Mutex<HashMap<SocketAddr, Arc<Cluster>>>,
}

impl Applications {
    /// The cluster for the application at `address`, where `port` says what holds.
    pub fn cluster(&self, address: SocketAddr, port: &Port) -> Arc<Cluster> {
        // A panic while holding the lock leaves the map whole: every change is one insert.
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = clusters.get(&address)
            && cluster.service == port.service
            && same_limits(&cluster.settings, &port.settings)
        {
            return cluster.clone();
        }
        let cluster = Arc::new(cluster(address, port, clusters.get(&address)));
        if clusters.len() < MAX_APPLICATIONS || clusters.contains_key(&address) {
            clusters.insert(address, cluster.clone());
        }
        cluster
    }

    /// Names of the clusters kept.
    pub fn names(&self) -> HashSet<Arc<str>> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.values().map(|cluster| cluster.name.clone()).collect()
    }
}

/// Outlier detection apart, which an application beside us does not have.
fn same_limits(one: &Settings, other: &Settings) -> bool {
    *one == Settings { outlier: one.outlier, ..other.clone() }
}

fn cluster(address: SocketAddr, port: &Port, before: Option<&Arc<Cluster>>) -> Cluster {
    let endpoint = Endpoint {
        address,
        tls: EndpointTls::Plaintext,
        weight: 1,
        draining: false,
        far: false,
        workload: "".into(),
        state: Arc::default(),
    };
    Cluster {
        name: format!("inbound/{address}").into(),
        service: port.service.clone(),
        // The one endpoint is the application: there is nothing else to turn to.
        settings: Settings { outlier: None, ..port.settings.clone() },
        identities: Arc::new([]),
        sources: Arc::new([]),
        endpoints: EndpointSet::new(vec![Arc::new(endpoint)]).into_swap(),
        state: before.map(|cluster| cluster.state.clone()).unwrap_or_default(),
    }
}
