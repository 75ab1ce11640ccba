//! A Pod or Workload: what is told to its own sidecar, and what others need to dial it directly.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::cluster::{Cluster, Settings};
use super::duration;
use super::endpoint::{Endpoint, Endpoints, Hints, Locality, Place};
use super::inbound::Inbound;
use super::listener::{HttpRoutes, OutboundListener, Owner, Protocol, TcpRoutes};
use super::name::{ResourceName, ServiceName, SourceRef, SpiffeId, WorkloadName};
use super::route::{Backend, Hedge, RetryPolicy, Route, RouteMatch, RouteTable, Rule};

/// One Pod or Workload that has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Which one.
    pub name: WorkloadName,
    /// The Deployment, StatefulSet, DaemonSet, CronJob or Job that keeps it running; `None`: it stands alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<WorkloadName>,
    /// Tells it from another one of the same name before or after it; none where nobody gives out such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<Arc<str>>,
    /// The service account it runs under, in its own namespace.
    pub service_account: Arc<str>,
    /// What its certificate says, or would say if it were meshed.
    pub identity: SpiffeId,
    /// Its addresses, sorted.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Arc<str>>,
    /// Shares its address with its host, so a peer's address proves nothing.
    pub host_network: bool,
    /// What its own sidecar is told; `None`: it has no sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Inbound>,
    /// What clients need that dial its address.
    pub direct: Direct,
}

/// What clients need to dial a workload's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Direct {
    /// By port.
    pub ports: BTreeMap<u16, DirectPort>,
    /// For every port no object mentions; `None` where the address belongs to others too (host network), so nothing
    /// is known of such a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_ports: Option<DirectPort>,
    /// On its way out.
    pub draining: bool,
    /// Where it runs, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// Objects this was made from, sorted.
    pub sources: Vec<SourceRef>,
}

/// What clients need to dial one port of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectPort {
    /// Declared protocol.
    pub protocol: Protocol,
    /// Whether mutual TLS is spoken: the workload is meshed and the port's mode is not DISABLE.
    pub mtls: bool,
    /// The Service that owns the port, if exactly one does; only then its TrafficPolicy is in the fields below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Limits and timeouts.
    #[serde(skip_serializing_if = "is_plain")]
    pub settings: Settings,
    /// As [`Rule::idle_timeout`].
    #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// As [`Rule::request_timeout`].
    #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
    /// As [`Rule::try_timeout`].
    #[serde(serialize_with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub try_timeout: Option<Duration>,
    /// As [`Rule::hedge`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// As [`Rule::retry`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
}

/// A directly dialled destination as the same four values a Service's port has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectDestination {
    /// The listener, with one address.
    pub listener: OutboundListener,
    /// Its routes; `None` where it carries no HTTP.
    pub routes: Option<RouteTable>,
    /// Its cluster.
    pub cluster: Cluster,
    /// The one endpoint.
    pub endpoints: Endpoints,
}

impl Workload {
    /// What a client gets that dials `address`; `None`: not this workload's, or nothing is known of the port.
    pub fn destination(&self, address: SocketAddr) -> Option<DirectDestination> {
        if !self.addresses.contains(&address.ip()) {
            return None;
        }
        let port = self.direct.ports.get(&address.port()).or(self.direct.other_ports.as_ref())?;
        let name = ResourceName::direct(&self.name, address);
        let http = port.protocol.may_be_http();
        let mut route = Route::default_to(name.clone());
        let rule = Arc::make_mut(&mut route.rule);
        rule.request_timeout = port.request_timeout;
        rule.idle_timeout = port.idle_timeout;
        rule.try_timeout = port.try_timeout;
        rule.retry.clone_from(&port.retry);
        rule.hedge = port.hedge;
        Some(DirectDestination {
            listener: OutboundListener {
                owner: Owner::Workload(self.name.clone()),
                port: address.port(),
                port_name: None,
                addresses: vec![address],
                protocol: port.protocol,
                http: http.then(|| HttpRoutes { table: name.clone(), consumers: BTreeMap::new() }),
                tcp: port.protocol.may_be_opaque().then(|| TcpRoutes::all_to(name.clone())),
                sources: self.direct.sources.clone(),
            },
            routes: http.then(|| RouteTable {
                name: name.clone(),
                service: port.service.clone(),
                routes: vec![route],
                sources: self.direct.sources.clone(),
            }),
            cluster: Cluster {
                name: name.clone(),
                service: port.service.clone(),
                settings: port.settings.clone(),
                identities: port.mtls.then(|| self.identity.clone()).into_iter().collect(),
                sources: self.direct.sources.clone(),
            },
            endpoints: Endpoints { name, endpoints: vec![self.endpoint(address, port)] },
        })
    }

    /// Every address with every port some object mentions, for clients that subscribe to everything.
    pub fn known_destinations(&self) -> impl Iterator<Item = DirectDestination> + '_ {
        let pairs = self.addresses.iter().flat_map(|ip| self.direct.ports.keys().map(|port| (*ip, *port)));
        pairs.filter_map(|pair| self.destination(pair.into()))
    }

    /// By what metrics name it: what keeps it running, or itself. A name for each pod would give every edge as many series
    /// as it ever had pods.
    pub fn known_as(&self) -> &WorkloadName {
        self.controller.as_ref().unwrap_or(&self.name)
    }

    fn endpoint(&self, address: SocketAddr, port: &DirectPort) -> Endpoint {
        Endpoint {
            address,
            mtls: port.mtls.then(|| self.identity.clone()),
            // Decides for gRPC only, which dials no addresses.
            proxyless: false,
            weight: 1,
            // Whoever dials an address means it, even while the workload is on its way out.
            draining: false,
            workload: Some(self.known_as().clone()),
            locality: self.direct.locality.clone(),
            hints: Hints::default(),
        }
    }

    /// Where it runs, for what it is told as a client.
    pub fn place(&self) -> Place {
        let locality = self.direct.locality.as_ref();
        Place { zone: locality.and_then(|locality| locality.zone.clone()), node: self.node.clone() }
    }
}

/// One endpoint has no outlier detection; golden files leave settings out that differ by nothing else.
pub(super) fn is_plain(settings: &Settings) -> bool {
    Settings { outlier: None, ..Settings::default() } == *settings
}

impl Route {
    /// The route of a port no route object speaks of: everything goes to `cluster`.
    pub fn default_to(cluster: ResourceName) -> Self {
        let rule = Rule {
            name: "default".into(),
            filters: Vec::new(),
            backends: vec![Backend { weight: 1, cluster: Some(cluster), filters: Vec::new() }],
            request_timeout: None,
            idle_timeout: None,
            try_timeout: None,
            retry: None,
            hedge: None,
            session: None,
        };
        Self { matches: RouteMatch::default(), rule: Arc::new(rule) }
    }
}
