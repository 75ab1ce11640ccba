//! `ClusterLoadAssignment` → endpoints of a cluster.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use envoy_types::pb::google::protobuf::value;
use serde::Deserialize;

use super::read::{self, Error, Within};
use crate::tables::Millis;
use crate::tables::cluster::{Endpoint, EndpointSet, EndpointState, EndpointTls};

/// The endpoints of one cluster, each address once.
pub type Parsed = Vec<ParsedEndpoint>;

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub tls: Tls,
    /// Relative share, at least 1.
    pub weight: u32,
    /// Gets no new requests.
    pub draining: bool,
    /// Of a lower priority: for what the others cannot take.
    pub far: bool,
    /// `<namespace>/<name>`; empty if unknown.
    pub workload: Arc<str>,
}

/// How an endpoint is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// As the application would.
    Plaintext,
    /// Mutual TLS, and it must show this identity.
    Identity(Arc<[Arc<str>]>),
    /// Mutual TLS, and it must show one of the cluster's.
    ClusterIdentities,
}

/// Reads the resource `name`.
///
/// # Errors
/// The first field that is wrong.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Parsed, Error> {
    let message: ClusterLoadAssignment = read::message(bytes)?;
    read::name("cluster_name", &message.cluster_name, name)?;
    let total: usize = message.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum();
    if total > MAX_ENDPOINTS {
        return Err(Error::new("endpoints", format!("has {total} endpoints, at most {MAX_ENDPOINTS} are taken")));
    }
    let mut endpoints = Vec::with_capacity(total);
    let mut shared = Shared::default();
    let mut seen = std::collections::HashSet::with_capacity(total);
    for (locality_index, locality) in message.endpoints.iter().enumerate() {
        for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
            let parsed = self::endpoint(endpoint, &mut shared);
            let parsed = parsed.nth("lb_endpoints", index).nth("endpoints", locality_index)?;
            let parsed = parsed.map(|endpoint| ParsedEndpoint { far: locality.priority > 0, ..endpoint });
            endpoints.extend(parsed.filter(|endpoint| seen.insert(endpoint.address)));
        }
    }
    Ok(endpoints)
}

/// What the data path reads: identities of the cluster filled in, states of `before` kept where an endpoint has the
/// same address and is spoken to in the same way. Others are new at the moment given with `before`.
pub fn set(parsed: &Parsed, identities: &Arc<[Arc<str>]>, before: Option<(&EndpointSet, Millis)>) -> EndpointSet {
    let now = before.map_or(Millis::default(), |(_, now)| now);
    let before: HashMap<SocketAddr, &Arc<Endpoint>> =
        before.into_iter().flat_map(|(set, _)| &set.endpoints).map(|endpoint| (endpoint.address, endpoint)).collect();
    let endpoints = parsed.iter().map(|endpoint| {
        let tls = match &endpoint.tls {
            Tls::Plaintext => EndpointTls::Plaintext,
            Tls::Identity(identity) => EndpointTls::Mtls(identity.clone()),
            Tls::ClusterIdentities => EndpointTls::Mtls(identities.clone()),
        };
        let known = before.get(&endpoint.address).filter(|known| known.tls == tls);
        match known {
            Some(known) if same(known, endpoint) => Arc::clone(known),
            known => Arc::new(Endpoint {
                address: endpoint.address,
                tls,
                weight: endpoint.weight,
                draining: endpoint.draining,
                far: endpoint.far,
                workload: endpoint.workload.clone(),
                state: known.map_or_else(|| Arc::new(EndpointState::appeared(now)), |known| known.state.clone()),
            }),
        }
    });
    EndpointSet::new(endpoints.collect())
}

fn same(known: &Endpoint, parsed: &ParsedEndpoint) -> bool {
    known.weight == parsed.weight
        && known.draining == parsed.draining
        && known.far == parsed.far
        && known.workload == parsed.workload
}

#[derive(Deserialize)]
struct Facts {
    identity: Option<String>,
    workload: Option<String>,
}

/// One allocation for each identity of a set, however many endpoints show it.
#[derive(Default)]
struct Shared(HashMap<String, Arc<[Arc<str>]>>);

impl Shared {
    fn identity(&mut self, identity: String) -> Arc<[Arc<str>]> {
        let one = || -> Arc<[Arc<str>]> { Arc::new([Arc::from(identity.as_str())]) };
        self.0.entry(identity.clone()).or_insert_with(one).clone()
    }
}

/// `None`: it is not to be used.
fn endpoint(pb: &LbEndpoint, shared: &mut Shared) -> Result<Option<ParsedEndpoint>, Error> {
    let draining = match HealthStatus::try_from(pb.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => false,
        Ok(HealthStatus::Draining) => true,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => return Ok(None),
        Err(_) => return Err(Error::new("health_status", format!("is {}, which is none", pb.health_status))),
    };
    let Some(HostIdentifier::Endpoint(host)) = &pb.host_identifier else {
        return Err(Error::new("endpoint", "is missing"));
    };
    let address = read::socket_address(host.address.as_ref()).within("endpoint.address")?;
    let facts: Facts = read::facts(pb.metadata.as_ref())?;
    let tls = match (is_mtls(pb.metadata.as_ref()), facts.identity) {
        (false, None) => Tls::Plaintext,
        (true, Some(identity)) => Tls::Identity(shared.identity(identity)),
        (true, None) => Tls::ClusterIdentities,
        (false, Some(_)) => {
            let reason = "must hold {heddle: mtls} for an endpoint whose identity is given";
            return Err(Error::new("metadata.filter_metadata[\"envoy.transport_socket_match\"]", reason));
        }
    };
    Ok(Some(ParsedEndpoint {
        address,
        tls,
        // Envoy's default, and its least (`LbEndpoint.load_balancing_weight`).
        weight: read::uint32(pb.load_balancing_weight.as_ref(), 1).max(1),
        draining,
        far: false,
        workload: facts.workload.unwrap_or_default().into(),
    }))
}

fn is_mtls(metadata: Option<&Metadata>) -> bool {
    let fields = metadata.and_then(|metadata| metadata.filter_metadata.get("envoy.transport_socket_match"));
    let value = fields.and_then(|fields| fields.fields.get("heddle")).and_then(|value| value.kind.as_ref());
    matches!(value, Some(value::Kind::StringValue(text)) if text == "mtls")
}

/// Endpoints of one cluster. Chosen: twice the pods of the largest clusters Kubernetes is tested for (5,000 nodes,
/// 150,000 pods) behind ten Services.
const MAX_ENDPOINTS: usize = 30_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(address: &str, tls: Tls) -> ParsedEndpoint {
        ParsedEndpoint {
            address: address.parse().unwrap(),
            tls,
            weight: 1,
            draining: false,
            far: false,
            workload: "".into(),
        }
    }

    fn identity(name: &str) -> Tls {
        Tls::Identity(Arc::new([Arc::from(name)]))
    }

    fn none() -> Arc<[Arc<str>]> {
        Arc::new([])
    }

    #[test]
    fn state_is_kept_for_the_same_address_spoken_to_in_the_same_way() {
        let before =
            set(&vec![parsed("10.0.0.1:80", identity("a")), parsed("10.0.0.2:80", Tls::Plaintext)], &none(), None);
        let mut heavier = parsed("10.0.0.1:80", identity("a"));
        heavier.weight = 7;

        let after = set(&vec![heavier, parsed("10.0.0.2:80", Tls::Plaintext)], &none(), Some((&before, Millis(7))));

        assert_eq!(after.endpoints[0].id(), before.endpoints[0].id());
        assert_eq!(after.endpoints[0].weight, 7);
        assert!(Arc::ptr_eq(&after.endpoints[1], &before.endpoints[1]));
    }

    #[test]
    fn another_identity_at_the_same_address_is_another_endpoint() {
        let before = set(&vec![parsed("10.0.0.1:80", identity("a"))], &none(), None);

        let after = set(&vec![parsed("10.0.0.1:80", identity("b"))], &none(), Some((&before, Millis(7))));
        let plain = set(&vec![parsed("10.0.0.1:80", Tls::Plaintext)], &none(), Some((&before, Millis(7))));

        assert_ne!(after.endpoints[0].id(), before.endpoints[0].id());
        assert_ne!(plain.endpoints[0].id(), before.endpoints[0].id());
        let since = [&before, &after].map(|set| set.endpoints[0].state.since);
        assert_eq!(since, [Millis(0), Millis(7)], "of the first set none is new");
    }

    #[test]
    fn an_endpoint_without_identity_of_its_own_gets_the_cluster_s() {
        let identities: Arc<[Arc<str>]> = Arc::new(["spiffe://a".into(), "spiffe://b".into()]);

        let set = set(&vec![parsed("10.0.0.1:80", Tls::ClusterIdentities)], &identities, None);

        assert_eq!(set.endpoints[0].tls, EndpointTls::Mtls(identities));
    }
}
