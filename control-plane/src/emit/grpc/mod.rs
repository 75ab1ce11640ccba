//! The model as a proxyless gRPC client understands it (`xds:///<service>.<namespace>:<port>`): everything by name.
//!
//! The listener is named as the target was written; it asks for the route table of the Service's port, that for clusters,
//! those for endpoints, under the names they have in the model. A server asks for a listener of its own by the address it
//! listens at ([`server`]). Source: gRFC A27 and, for what is inside, A28 (matching), A29 (TLS), A32 (circuit breaking), A36
//! (servers), A41 (authorization), A44 (retries), A48 (least request), A50 (outlier detection), A52 (policies).
//!
//! Where a client without a sidecar differs from one with:
//! - gRPC applies no header changes, redirects or rewrites, and knows no per-try timeout, retry budget or response codes.
//!   Routes that ask for a method other than POST or for query parameters can match no call and are left out.
//! - An invalid backend fails its share of calls with UNAVAILABLE.
//! - A hash is taken of what the Service says whose port is called, of headers and, for the client's address, of the channel
//!   (A42); Maglev is a ring, and a random choice one after another.
//! - Failures in a row are not counted: an endpoint is ejected when all calls of an interval failed.
//! - gRPC knows one kind of connection for each cluster. A client with certificates ([`Client::certificate_provider`]) is
//!   given the endpoints that are proxyless and meshed themselves, over mutual TLS, where there are such; else, and without
//!   certificates, all others, in plaintext: sidecars take gRPC's TLS for the application's own.
//!
//! Called by `publish` for the names a gRPC client subscribes to.

mod cluster;
mod endpoints;
mod listener;
mod route;
pub mod server;
pub mod target;
mod tls;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use heddle_xds::resource::{Kind, Resource};

use crate::emit::envoy;
use crate::model::{
    Cluster, Endpoints, HashOn, LoadBalancing, Model, OutboundListener, Place, ResourceName, RouteTable, Service,
    ServiceName,
};

pub use target::Target;

/// What is known of a gRPC client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Client {
    /// Its namespace, for the routes that namespace brought itself.
    pub namespace: Arc<str>,
    /// The certificate provider instance of its bootstrap that holds identity and roots ([`CERTIFICATE_PROVIDER`] by
    /// convention); `None`: it has none and speaks plaintext.
    pub certificate_provider: Option<Arc<str>>,
    /// Whether it counts the requests under way, for circuit breaking, only where it is to report load: grpc-java.
    pub counts_by_load: bool,
    /// Where it runs.
    pub place: Place,
}

/// The resource `name` of `kind` as `client` gets it; `None`: there is none.
pub fn resource(model: &Model, client: &Client, kind: Kind, name: &str) -> Option<Resource> {
    match kind {
        Kind::Listener => {
            let target = Target::parse(name)?;
            let listener = port(model, &target)?;
            let table = listener.http.as_ref()?.for_client(&client.namespace);
            Some(listener::listener(name, table, &listener.sources))
        }
        Kind::Route => {
            let (service, table) = table(model, client, name)?;
            Some(route::table(table, hash_on(service, name)))
        }
        Kind::Cluster if name == envoy::NO_CLUSTER => Some(cluster::nowhere()),
        Kind::Endpoints if name == envoy::NO_CLUSTER => Some(endpoints::none()),
        Kind::Cluster => {
            let (cluster, endpoints) = cluster(model, name)?;
            Some(cluster::cluster(cluster, endpoints, client))
        }
        Kind::Endpoints => {
            let (cluster, endpoints) = cluster(model, name)?;
            Some(endpoints::resource(cluster, endpoints, client))
        }
    }
}

fn port<'m>(model: &'m Model, target: &Target) -> Option<&'m OutboundListener> {
    model.services.get(&target.service)?.listeners.iter().find(|listener| listener.port == target.port)
}

/// A route table by name; routes a namespace brought itself are for its own clients only.
fn table<'m>(model: &'m Model, client: &Client, name: &str) -> Option<(&'m Service, &'m RouteTable)> {
    let (service, rest) = split(name)?;
    let service = model.services.get(&service)?;
    let key = match rest.split_once('@') {
        None => ResourceName::service_port(&service.name, rest.parse().ok()?),
        Some((port, namespace)) if namespace == &*client.namespace => {
            ResourceName::consumer(&service.name, port.parse().ok()?, namespace)
        }
        Some(_) => return None,
    };
    // A second spelling of the port (`080`) is no name.
    Some((service, service.routes.get(&key).filter(|table| table.name.as_str() == name)?))
}

/// What the Service says is hashed of calls to its port, which the route table `name` is of.
fn hash_on<'m>(service: &'m Service, name: &str) -> &'m [HashOn] {
    let port = split(name).and_then(|(_, rest)| rest.split('@').next()?.parse().ok());
    let cluster = port.and_then(|port| service.clusters.get(&ResourceName::service_port(&service.name, port)));
    match cluster.map(|cluster| &cluster.settings.load_balancing) {
        Some(LoadBalancing::RingHash(hash_on) | LoadBalancing::Maglev(hash_on)) => hash_on,
        _ => &[],
    }
}

/// A cluster by name with its endpoints.
fn cluster<'m>(model: &'m Model, name: &str) -> Option<(&'m Cluster, &'m Endpoints)> {
    let (service, port) = split(name)?;
    let service = model.services.get(&service)?;
    let key = ResourceName::service_port(&service.name, port.parse().ok()?);
    let cluster = service.clusters.get(&key).filter(|cluster| cluster.name.as_str() == name)?;
    Some((cluster, service.endpoints.get(&key)?))
}

/// `<namespace>/<service>/<rest>`.
fn split(name: &str) -> Option<(ServiceName, &str)> {
    let mut parts = name.splitn(3, '/');
    let (namespace, service, rest) = (parts.next()?, parts.next()?, parts.next()?);
    Some((ServiceName::new(namespace, service), rest))
}

/// The certificate provider instance (plugin `file_watcher`) of a client's bootstrap, by convention.
pub const CERTIFICATE_PROVIDER: &str = "default";
