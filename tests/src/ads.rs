//! A client of the control plane's xDS, as a sidecar is one: subscribes by name and keeps what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use heddle::pods::Netns;
use heddle_xds::Node;
use heddle_xds::client::{self, Subscriptions};
use heddle_xds::delta::client::Update;
use heddle_xds::nack::Reject;
use heddle_xds::resource::Kind;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::transport::Endpoint;

use crate::eventually;

/// A stream that lives until this is dropped.
pub struct AdsClient {
    subscriptions: Subscriptions,
    held: Held,
    _runtime: Runtime,
}

type Held = Arc<Mutex<BTreeMap<(Kind, String), Bytes>>>;

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Where it is.
    pub address: SocketAddr,
    /// On its way out.
    pub draining: bool,
    /// Spoken to over mutual TLS.
    pub mtls: bool,
    /// Of a lower priority.
    pub far: bool,
}

impl AdsClient {
    /// Speaks for the workload `node` (`<pod>.<namespace>`) to a port without TLS, from within `network`; refuses the resources
    /// named in `refuse`.
    pub fn connect(network: &Netns, address: SocketAddr, node: &str, refuse: &[&str]) -> Self {
        let held = Held::default();
        let handler = handler(Arc::clone(&held), refuse);
        let node = Node { id: node.into(), user_agent_name: "heddle-proxy".into(), ..Node::default() };
        let connect = move || async move {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
            endpoint.connect().await.map_err(|error| error.to_string())
        };
        let started = network.run(|| {
            // Its threads stay in the network they are made in.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let (subscriptions, task) = client::new(node, connect, handler);
            runtime.spawn(task);
            (runtime, subscriptions)
        });
        let (runtime, subscriptions) = started.unwrap();
        Self { subscriptions, held, _runtime: runtime }
    }

    /// Wants a resource.
    pub fn subscribe(&self, kind: Kind, name: &str) {
        self.subscriptions.subscribe(kind, name).unwrap();
    }

    /// Waits until it has a resource of this name.
    pub fn has(&self, kind: Kind, name: &str) {
        eventually(&format!("{kind} {name} arrives"), || {
            self.held().contains_key(&(kind, name.to_owned())).then_some(())
        });
    }

    /// Waits until it has none.
    pub fn has_not(&self, kind: Kind, name: &str) {
        eventually(&format!("{kind} {name} goes"), || {
            (!self.held().contains_key(&(kind, name.to_owned()))).then_some(())
        });
    }

    /// Waits until the endpoints of a cluster are as `wanted` says.
    pub fn endpoints_become(&self, name: &str, what: &str, wanted: impl Fn(&BTreeSet<Seen>) -> bool) -> BTreeSet<Seen> {
        eventually(&format!("endpoints of {name}: {what}"), || self.endpoints(name).filter(&wanted))
    }

    /// The endpoints of a cluster, if it was told of them.
    pub fn endpoints(&self, name: &str) -> Option<BTreeSet<Seen>> {
        let bytes = self.held().get(&(Kind::Endpoints, name.to_owned()))?.clone();
        let message = ClusterLoadAssignment::decode(bytes).unwrap();
        Some(message.endpoints.iter().flat_map(Seen::of_group).collect())
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<(Kind, String), Bytes>> {
        self.held.lock().unwrap()
    }
}

fn handler(held: Held, refuse: &[&str]) -> impl FnMut(&Update) -> Vec<Reject> + Send + 'static {
    let refuse: Vec<String> = refuse.iter().map(|name| (*name).to_owned()).collect();
    move |update: &Update| {
        let mut held = held.lock().unwrap();
        let mut refused = Vec::new();
        for added in &update.added {
            if refuse.iter().any(|name| **name == *added.name) {
                let (field, reason) = ("test".into(), "this client refuses it".into());
                refused.push(Reject { name: added.name.clone(), field, reason });
            } else {
                held.insert((update.kind, added.name.to_string()), added.bytes.clone());
            }
        }
        for removed in &update.removed {
            held.remove(&(update.kind, removed.to_string()));
        }
        refused
    }
}

impl Seen {
    fn of_group(group: &LocalityLbEndpoints) -> impl Iterator<Item = Self> {
        group.lb_endpoints.iter().map(|endpoint| Self::of(endpoint, group.priority > 0))
    }

    fn of(endpoint: &LbEndpoint, far: bool) -> Self {
        let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!("{endpoint:?}") };
        let Some(Address::SocketAddress(address)) = host.address.as_ref().and_then(|address| address.address.as_ref())
        else {
            panic!("{endpoint:?}");
        };
        let Some(PortSpecifier::PortValue(port)) = address.port_specifier else { panic!("{endpoint:?}") };
        let metadata = endpoint.metadata.as_ref();
        Self {
            address: SocketAddr::new(address.address.parse().unwrap(), u16::try_from(port).unwrap()),
            draining: endpoint.health_status == HealthStatus::Draining as i32,
            mtls: metadata.is_some_and(|m| m.filter_metadata.contains_key("envoy.transport_socket_match")),
            far,
        }
    }
}
