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
    /// Without a sidecar: gRPC that takes what it is sent by itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub proxyless: bool,
    /// Relative share, at least 1.
    pub weight: u32,
    /// On its way out: keeps its connections, gets no new requests.
    pub draining: bool,
    /// What is behind it, as metrics name it ([`super::Workload::known_as`]), if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadName>,
    /// Where it runs, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// The clients it is meant for, if only some.
    #[serde(skip_serializing_if = "Hints::is_empty")]
    pub hints: Hints,
}

/// The clients an endpoint is meant for (KEP-4444, KEP-3015: `trafficDistribution`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hints {
    /// Those in these zones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Arc<str>>,
    /// Those on these nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Arc<str>>,
}

/// Where a client runs, as far as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Its node.
    pub node: Option<Arc<str>>,
}

/// What of a client's place decides which endpoints it gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preference {
    /// Nothing: all clients get the same.
    #[default]
    None,
    /// Its zone.
    Zone,
    /// Its node, else its zone.
    Node,
}

impl Endpoints {
    /// What of a client's place decides.
    pub fn preference(&self) -> Preference {
        let of = |endpoint: &Endpoint| match (endpoint.hints.nodes.is_empty(), endpoint.hints.zones.is_empty()) {
            (false, _) => Preference::Node,
            (true, false) => Preference::Zone,
            (true, true) => Preference::None,
        };
        self.endpoints.iter().map(of).max().unwrap_or_default()
    }

    /// All of them, near for every client.
    pub fn for_everybody(&self) -> ForClient<'_> {
        ForClient { name: &self.name, near: self.endpoints.iter().collect(), far: Vec::new() }
    }

    /// The endpoints for a client at `place`. Near are those that kube-proxy would choose: meant for its node, else for its zone, if
    /// every endpoint says whom it is meant for and one is for this client; else all. Draining ones are near wherever they
    /// are: they get no new requests, and connections to them are not to be cut.
    pub fn for_client(&self, place: &Place) -> ForClient<'_> {
        let serving = || self.endpoints.iter().filter(|endpoint| !endpoint.draining);
        let chosen = |own: &Option<Arc<str>>, meant: fn(&Hints) -> &Vec<Arc<str>>| {
            let own = own.as_ref()?;
            let all_say = serving().all(|endpoint| !meant(&endpoint.hints).is_empty());
            let one_is = serving().any(|endpoint| meant(&endpoint.hints).contains(own));
            let is_near = |endpoint: &&Endpoint| endpoint.draining || meant(&endpoint.hints).contains(own);
            (all_say && one_is).then(|| self.endpoints.iter().partition(is_near))
        };
        let chosen = chosen(&place.node, |hints| &hints.nodes).or_else(|| chosen(&place.zone, |hints| &hints.zones));
        let Some((near, far)) = chosen else { return self.for_everybody() };
        ForClient { name: &self.name, near, far }
    }
}

/// Endpoints as one client is to use them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForClient<'e> {
    /// The cluster's name.
    pub name: &'e ResourceName,
    /// Those it is to use.
    pub near: Vec<&'e Endpoint>,
    /// Those that help out as far as the near ones are not well.
    pub far: Vec<&'e Endpoint>,
}

impl<'e> ForClient<'e> {
    /// All of them with their priority (xDS): 0 the near ones, 1 the far ones.
    pub fn by_priority(&self) -> impl Iterator<Item = (u32, &'e Endpoint)> {
        self.near.iter().map(|near| (0, *near)).chain(self.far.iter().map(|far| (1, *far)))
    }
}

impl Hints {
    /// Whether it is meant for everybody.
    pub fn is_empty(&self) -> bool {
        self.zones.is_empty() && self.nodes.is_empty()
    }
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

#[cfg(test)]
mod tests {
    use super::super::ServiceName;
    use super::*;

    fn endpoint(number: u8, zones: &[&str], nodes: &[&str], draining: bool) -> Endpoint {
        let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
        Endpoint {
            address: SocketAddr::from(([10, 1, 0, number], 80)),
            mtls: None,
            proxyless: false,
            weight: 1,
            draining,
            workload: None,
            locality: None,
            hints: Hints { zones: names(zones), nodes: names(nodes) },
        }
    }

    fn chosen(endpoints: &[Endpoint], zone: &str, node: &str) -> Vec<u16> {
        let name = ResourceName::service_port(&ServiceName::new("shop", "api"), 80);
        let endpoints = Endpoints { name, endpoints: endpoints.to_vec() };
        let place = Place { zone: Some(zone.into()), node: Some(node.into()) };
        let last = |endpoint: &Endpoint| match endpoint.address.ip() {
            std::net::IpAddr::V4(ip) => u16::from(ip.octets()[3]),
            std::net::IpAddr::V6(_) => 0,
        };
        endpoints.for_client(&place).near.into_iter().map(last).collect()
    }

    #[test]
    fn a_client_gets_the_endpoints_meant_for_its_zone() {
        let endpoints =
            [endpoint(1, &["a"], &[], false), endpoint(2, &["b"], &[], false), endpoint(3, &["a", "b"], &[], false)];
        assert_eq!(chosen(&endpoints, "a", "n"), [1, 3]);
        assert_eq!(chosen(&endpoints, "b", "n"), [2, 3]);
    }

    #[test]
    fn all_are_for_everybody_where_none_is_for_the_clients_zone_or_one_does_not_say() {
        let elsewhere = [endpoint(1, &["a"], &[], false), endpoint(2, &["b"], &[], false)];
        assert_eq!(chosen(&elsewhere, "c", "n"), [1, 2]);
        let silent = [endpoint(1, &["a"], &[], false), endpoint(2, &[], &[], false)];
        assert_eq!(chosen(&silent, "a", "n"), [1, 2]);
    }

    #[test]
    fn those_of_other_zones_are_far() {
        let name = ResourceName::service_port(&ServiceName::new("shop", "api"), 80);
        let endpoints = [endpoint(1, &["a"], &[], false), endpoint(2, &["b"], &[], false)];
        let all = Endpoints { name, endpoints: endpoints.to_vec() };
        let place = |zone: &str| Place { zone: Some(zone.into()), node: None };
        let of_a: Vec<_> = all.for_client(&place("a")).by_priority().collect();
        assert_eq!(of_a, [(0, &endpoints[0]), (1, &endpoints[1])]);
        assert_eq!(all.for_client(&place("c")).far, [] as [&Endpoint; 0]);
    }

    #[test]
    fn the_node_wins_over_the_zone() {
        let endpoints = [endpoint(1, &["a"], &["m"], false), endpoint(2, &["a"], &["n"], false)];
        assert_eq!(chosen(&endpoints, "a", "n"), [2]);
        assert_eq!(chosen(&endpoints, "a", "o"), [1, 2]);
    }

    #[test]
    fn draining_endpoints_stay_wherever_they_are_and_decide_nothing() {
        let endpoints =
            [endpoint(1, &["a"], &[], false), endpoint(2, &["b"], &[], true), endpoint(3, &["b"], &[], false)];
        assert_eq!(chosen(&endpoints, "a", "n"), [1, 2]);
        let gone = [endpoint(1, &["a"], &[], true), endpoint(2, &["b"], &[], false)];
        assert_eq!(chosen(&gone, "a", "n"), [1, 2]);
    }
}
