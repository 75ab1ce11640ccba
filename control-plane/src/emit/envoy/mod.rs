//! The model as a real Envoy understands it: the whole mesh for one workload's sidecar, by wildcard.
//!
//! Listeners: `outbound` takes what capture redirects to port 15001 and hands each connection to the listener of its
//! original destination (`outbound/<ip>:<port>`, not bound to a port); `inbound` takes port 15006. Endpoints and routes
//! are asked for by name. Key, chain and roots come from files the identity agent writes ([`tls`]).
//!
//! The cluster decides which of its endpoints are spoken to over mutual TLS, the listener which ALPN is offered: a
//! connection that came as HTTP/1 offers `heddle-http/1.1`, as HTTP/2 `heddle-h2`, as opaque bytes `heddle-tcp`.
//!
//! Where Envoy's answers differ from the sidecar's own:
//! - An endpoint may show any identity of its cluster; the sidecar expects one exactly.
//! - A client silent for [`Settings::detection_timeout`] on an undeclared port is opaque for that connection; there is no
//!   tentative connection. Bytes inside `heddle-tcp` are never sniffed for HTTP, so HTTP rules fail closed there.
//! - Authorization of opaque bytes waits for the client's first one, and the application is dialled before: a caller that
//!   is then refused may have had the greeting of a server that speaks first, but is never heard itself.
//! - Ports of a workload that no object mentions are relayed as opaque bytes, over mutual TLS where it is meshed.
//! - Least request takes the place of P2C with peak EWMA.
//! - Where a port has path rules, the application sees the normalised path, `%2f` as a slash; `..;x` is no dot segment.
//! - `date`, `x-forwarded-proto` and, in redirects to another port, an explicit well-known port are Envoy's own.
//!   There is no `x-heddle-error`; what is `undelivered` is marked by the header in HTTP/2 too, and believed of an endpoint
//!   in plaintext as well.
//! - Header changes cannot add to or remove Host, a backend cannot rewrite the path or redirect, and of the gRPC codes
//!   only 1, 4, 8, 13 and 14 can be retried.
//! - Upgrades other than WebSocket are not passed on.
//!
//! Called by `publish`, once for each Envoy that subscribes and whenever the model changes.

mod chain;
mod cluster;
pub(in crate::emit) mod endpoints;
mod headers;
mod http;
mod inbound;
mod listener;
mod outbound;
mod path;
mod rate_limit;
pub(in crate::emit) mod rbac;
mod redirect;
mod reply;
mod retry;
mod route;
pub mod tls;

#[cfg(test)]
pub(in crate::emit) mod sample;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use heddle_xds::resource::{Kind, Resource};

use crate::model::{Cluster, ForClient, Model, OutboundListener, ResourceName, RouteTable, Workload};

// What gRPC's dialect says in the same way.
pub(in crate::emit) use self::http::ROUTER;
pub(in crate::emit) use self::path::quote;
pub(in crate::emit) use self::retry::{back_off, grpc_condition};
pub(in crate::emit) use self::route::{NO_CLUSTER, header_match};

/// What an Envoy is told beside the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The directory the identity agent writes to, as Envoy sees it; without trailing slash.
    pub identity_directory: String,
    /// How long a connection to an undeclared port may stay silent before it is opaque.
    pub detection_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { identity_directory: DEFAULT_IDENTITY_DIRECTORY.to_owned(), detection_timeout: DEFAULT_DETECTION_TIMEOUT }
    }
}

/// Everything the Envoy beside `workload` is told, each kind sorted by name, each name once.
///
/// Two owners of one address (a host network shared by workloads) would be one listener: the Service's stands, then the
/// first workload's by name.
pub fn resources(model: &Model, workload: &Workload, settings: &Settings) -> BTreeMap<Kind, Vec<Resource>> {
    let mut out = Out::default();
    let place = workload.place();
    let namespace = &*workload.name.namespace;
    let clusters: BTreeMap<&ResourceName, &Cluster> =
        model.services.values().flat_map(|service| &service.clusters).collect();
    for service in model.services.values() {
        for listener in &service.listeners {
            let table = listener.http.as_ref().map(|http| http.for_client(namespace));
            let table = table.and_then(|name| service.routes.get(name));
            out.destination(listener, table, &clusters, namespace, settings);
        }
        for (name, cluster) in &service.clusters {
            let endpoints = service.endpoints.get(name).map(|endpoints| endpoints.for_client(&place));
            out.cluster(cluster, endpoints.as_ref(), settings);
        }
    }
    for other in model.workloads.values() {
        for direct in other.known_destinations() {
            let clusters = BTreeMap::from([(&direct.cluster.name, &direct.cluster)]);
            out.destination(&direct.listener, direct.routes.as_ref(), &clusters, namespace, settings);
            out.cluster(&direct.cluster, Some(&direct.endpoints.for_everybody()), settings);
        }
    }
    outbound::emit(model, workload, settings, &mut out);
    if let Some(inbound) = &workload.inbound {
        inbound::emit(workload, inbound, settings, &mut out);
        rate_limit::clusters(inbound, &mut out);
    }
    out.resources.into_iter().map(|(kind, named)| (kind, named.into_values().collect())).collect()
}

/// Resources gathered by kind and name; the first of a name stands.
#[derive(Default)]
struct Out {
    resources: BTreeMap<Kind, BTreeMap<Arc<str>, Resource>>,
}

impl Out {
    fn add(&mut self, kind: Kind, resource: Resource) {
        self.resources.entry(kind).or_default().entry(resource.name.clone()).or_insert(resource);
    }

    /// The listeners of one destination and its route table.
    fn destination(
        &mut self,
        listener: &OutboundListener,
        table: Option<&RouteTable>,
        clusters: &BTreeMap<&ResourceName, &Cluster>,
        namespace: &str,
        settings: &Settings,
    ) {
        for resource in listener::listeners(listener, table.map(|table| &table.name), namespace, settings) {
            self.add(Kind::Listener, resource);
        }
        // A headless Service has routes but no address to dial; nobody would ask for its table.
        if let Some(table) = table.filter(|_| !listener.addresses.is_empty()) {
            self.add(Kind::Route, route::table(table, listener.port, clusters));
        }
    }

    fn cluster(&mut self, cluster: &Cluster, endpoints: Option<&ForClient<'_>>, settings: &Settings) {
        let made = cluster::eds(cluster, settings);
        if let Some(endpoints) = endpoints {
            // A cluster that changes is warmed anew, and Envoy waits 15 s for endpoints unless they come again.
            self.add(Kind::Endpoints, endpoints::resource(endpoints).with(&made));
        }
        self.add(Kind::Cluster, made);
    }
}

/// The address families a workload has, each with its wildcard address; IPv4 if it has none.
fn families(workload: &Workload) -> Vec<IpAddr> {
    let has = |v6: bool| workload.addresses.iter().any(|address| address.is_ipv6() == v6);
    let mut families = Vec::new();
    if has(false) || !has(true) {
        families.push(IpAddr::from(Ipv4Addr::UNSPECIFIED));
    }
    if has(true) {
        families.push(IpAddr::from(Ipv6Addr::UNSPECIFIED));
    }
    families
}

/// `<name>` for IPv4, `<name>-ipv6` for IPv6.
fn family_name(name: &str, wildcard: IpAddr) -> String {
    if wildcard.is_ipv6() { format!("{name}-ipv6") } else { name.to_owned() }
}

/// Where capture sends outbound connections (people's NetworkPolicies and dashboards know this number).
const OUTBOUND_PORT: u16 = 15001;
/// Where capture sends inbound connections (as above).
const INBOUND_PORT: u16 = 15006;
/// The agent's directory in a pod; chosen: on a volume of its own, in memory.
const DEFAULT_IDENTITY_DIRECTORY: &str = "/var/run/heddle/identity";
/// Chosen: longer than a client takes that means to speak, short enough for protocols where the server speaks first.
const DEFAULT_DETECTION_TIMEOUT: Duration = Duration::from_secs(1);
