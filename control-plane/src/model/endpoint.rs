//! The endpoints behind a cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use super::name::{ResourceName, SpiffeId, WorkloadName};

/// All endpoints of one cluster that are ready or draining.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// The cluster's name.
    pub name: ResourceName,
    /// Sorted by address, each address once.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The identity it must show over mutual TLS; `None`: it is spoken to as the application would, because it is not
    /// meshed or its port's mode is DISABLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<SpiffeId>,
    /// Relative share, at least 1.
    pub weight: u32,
    /// On its way out: keeps its connections, gets no new requests.
    pub draining: bool,
    /// The Pod or Workload behind it, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadName>,
    /// Where it runs, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
}

/// Where an endpoint runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Arc<str>>,
    /// `topology.kubernetes.io/zone`, or an EndpointSlice's `zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Arc<str>>,
}
