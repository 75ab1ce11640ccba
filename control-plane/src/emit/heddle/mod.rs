//! The dialect of heddle-proxy: on demand, one original destination at a time.
//!
//! | name | kind | what |
//! |---|---|---|
//! | `inbound` | LDS | what holds for traffic to the asking workload, [`inbound`] |
//! | `outbound/<ip>:<port>` | LDS | one original destination, [`listener`] |
//! | `<ns>/<svc>/<port>`, `<ns>/<svc>/<port>@<client ns>` | RDS | routes of a Service's port, [`route`] |
//! | `<ns>/<svc>/<port>` | CDS, EDS | a Service's port, [`cluster`], [`endpoints`] |
//! | `<ns>/workload/<name>/<ip>:<port>` | RDS, CDS, EDS | a workload dialled directly |
//!
//! Every field is used with the meaning Envoy gives it; what Envoy has no field for stands in
//! [`pb::facts`](super::pb::facts). The other half, which reads it, is the sidecar's `sync`; a round trip through both
//! is tested in the workspace's `tests/tests/dialect.rs`. Called by `publish` for names somebody subscribed to.

mod cluster;
mod endpoints;
mod headers;
mod inbound;
mod listener;
mod rbac;
mod route;

use heddle_xds::resource::{INBOUND, Kind, Resource, parse_outbound};

use super::index::{Destination, Index};
use crate::model::{DirectDestination, Model, ResourceName, ServiceName, WorkloadName};

pub use cluster::cluster;
pub use endpoints::endpoints;
pub use inbound::inbound;
pub use listener::listener;
pub use route::{INVALID_CLUSTER, route_table};

/// The resource `client` gets for a name; `None`: there is none by that name.
pub fn lookup(model: &Model, index: &Index, client: &WorkloadName, kind: Kind, name: &str) -> Option<Resource> {
    match kind {
        Kind::Listener if name == INBOUND => inbound(model.workloads.get(client)?),
        Kind::Listener => {
            let address = parse_outbound(name)?;
            Some(match index.destination(model, address)? {
                Destination::Service(_, found) => listener(found, address, &client.namespace),
                Destination::Direct(direct) => listener(&direct.listener, address, &client.namespace),
            })
        }
        Kind::Route => match Name::parse(name)? {
            Name::Port(service, name) => model.services.get(&service)?.routes.get(&name).map(route_table),
            Name::Direct(workload, address) => {
                direct(model, &workload, address, name)?.routes.as_ref().map(route_table)
            }
        },
        Kind::Cluster => match Name::parse(name)? {
            Name::Port(service, name) => model.services.get(&service)?.clusters.get(&name).map(cluster),
            Name::Direct(workload, address) => Some(cluster(&direct(model, &workload, address, name)?.cluster)),
        },
        Kind::Endpoints => match Name::parse(name)? {
            Name::Port(service, name) => {
                let found = model.services.get(&service)?.endpoints.get(&name)?;
                let place = model.workloads.get(client).map(|client| client.place()).unwrap_or_default();
                Some(endpoints(&found.for_client(&place)))
            }
            Name::Direct(workload, address) => {
                Some(endpoints(&direct(model, &workload, address, name)?.endpoints.for_everybody()))
            }
        },
    }
}

/// The workload's destination, if `name` is exactly the one it would be given.
fn direct(
    model: &Model,
    workload: &WorkloadName,
    address: std::net::SocketAddr,
    name: &str,
) -> Option<DirectDestination> {
    let found = model.workloads.get(workload)?.destination(address)?;
    (found.cluster.name.as_str() == name).then_some(found)
}

/// What a [`ResourceName`] says.
enum Name {
    Port(ServiceName, ResourceName),
    Direct(WorkloadName, std::net::SocketAddr),
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        let parts: Vec<&str> = name.split('/').collect();
        match parts[..] {
            [namespace, service, port] => {
                let service = ServiceName::new(namespace, service);
                let named = match port.split_once('@') {
                    Some((port, client)) => ResourceName::consumer(&service, port.parse().ok()?, client),
                    None => ResourceName::service_port(&service, port.parse().ok()?),
                };
                (named.as_str() == name).then_some(Self::Port(service, named))
            }
            [namespace, "workload", workload, address] => {
                Some(Self::Direct(WorkloadName::new(namespace, workload), address.parse().ok()?))
            }
            _ => None,
        }
    }
}
