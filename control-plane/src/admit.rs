//! Who may ask what: which workload an ADS stream speaks for, in which dialect, and which names it may subscribe to.
//!
//! A SPIFFE ID names a service account, which many pods share; `node.id` names the one that asks. It is believed only if
//! that workload exists, runs under exactly the certificate's namespace and service account and, unless it shares its
//! host's network, has the peer's address. `inbound` is then always that workload's own, because the name carries no
//! owner; outbound resources may be any Service's. Everything else is refused with a [`Reason`] that is counted.
//!
//! Pure. Called by [`crate::ads`].

use std::net::IpAddr;

use heddle_xds::Node;
use heddle_xds::resource::{INBOUND, Kind, WILDCARD, parse_outbound};

use crate::model::{Model, SpiffeId, WorkloadName};

/// What a client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dialect {
    /// heddle-proxy: one original destination at a time.
    Heddle,
    /// Envoy: everything, by wildcard.
    Envoy,
    /// Proxyless gRPC: targets by name.
    Grpc,
}

/// How much the connection proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof<'a> {
    /// Mutual TLS: the verified certificate's SPIFFE ID, if a certificate was shown, and the address of the peer.
    Certificate {
        /// As the certificate spells it.
        spiffe_id: Option<&'a str>,
        /// Where the connection comes from.
        address: Option<IpAddr>,
    },
    /// A loopback listener without TLS: nothing is proved, only the workload must exist.
    Loopback,
}

/// A workload that may ask, as it was when it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Which one.
    pub workload: WorkloadName,
    /// Under which identity it came.
    pub identity: SpiffeId,
    /// What it understands.
    pub dialect: Dialect,
}

/// Why somebody may not ask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No client certificate on the TLS port.
    #[error("no client certificate; get one from the Identity service of this control plane first")]
    NoCertificate,
    /// Not `<name>.<namespace>`.
    #[error("node id `{0}`: it must be `<pod or Workload>.<namespace>`")]
    NodeId(String),
    /// A client of a kind that is not known here.
    #[error("user agent `{0}`: it must be `heddle-proxy`, `envoy` or begin with `gRPC`")]
    UserAgent(String),
    /// The workload does not exist, or has no address yet.
    #[error("workload {0}: there is no Pod or Workload of that name with an address")]
    UnknownWorkload(WorkloadName),
    /// The certificate is another service account's.
    #[error("workload {workload} runs as `{expected}`, but the certificate says `{found}`")]
    Identity {
        /// Who it says it is.
        workload: WorkloadName,
        /// What that workload runs under.
        expected: SpiffeId,
        /// The certificate's.
        found: String,
    },
    /// The peer's address is not the workload's.
    #[error("workload {workload} does not have the address {}", address.map_or("of the peer".to_owned(), |ip| ip.to_string()))]
    Address {
        /// Who it says it is.
        workload: WorkloadName,
        /// The peer's.
        address: Option<IpAddr>,
    },
}

/// A refusal as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// [`Error::NoCertificate`].
    NoCertificate,
    /// [`Error::NodeId`].
    NodeId,
    /// [`Error::UserAgent`].
    UserAgent,
    /// [`Error::UnknownWorkload`].
    UnknownWorkload,
    /// [`Error::Identity`].
    Identity,
    /// [`Error::Address`].
    Address,
    /// A name the dialect does not have, or that is another's.
    Name,
}

/// Decides who is calling.
///
/// # Errors
/// Says which of the conditions does not hold.
pub fn caller(model: &Model, node: &Node, proof: Proof<'_>) -> Result<Caller, Error> {
    if let Proof::Certificate { spiffe_id: None, .. } = proof {
        return Err(Error::NoCertificate);
    }
    let name = workload_name(&node.id).ok_or_else(|| Error::NodeId(clip(&node.id)))?;
    let dialect = Dialect::of(node).ok_or_else(|| Error::UserAgent(clip(&node.user_agent_name)))?;
    let Some(workload) = model.workloads.get(&name) else { return Err(Error::UnknownWorkload(name)) };
    if let Proof::Certificate { spiffe_id: Some(found), address } = proof {
        if workload.identity.as_str() != found {
            let expected = workload.identity.clone();
            return Err(Error::Identity { workload: name, expected, found: found.to_owned() });
        }
        let address = address.map(|address| address.to_canonical());
        if !workload.host_network && !address.is_some_and(|address| workload.addresses.contains(&address)) {
            return Err(Error::Address { workload: name, address });
        }
    }
    Ok(Caller { workload: name, identity: workload.identity.clone(), dialect })
}

impl Caller {
    /// Whether it may subscribe to a name.
    ///
    /// # Errors
    /// The reason, for the client.
    pub fn allowed(&self, kind: Kind, name: &str) -> Result<(), String> {
        match self.dialect {
            Dialect::Heddle => self.heddle(kind, name),
            // Names in these two are made by the control plane for this one workload, and whatever the name, what is
            // answered is looked up among the resources made for it.
            Dialect::Envoy => Ok(()),
            Dialect::Grpc if name == WILDCARD => {
                Err("proxyless gRPC subscribes to names, not to everything".to_owned())
            }
            Dialect::Grpc => Ok(()),
        }
    }

    fn heddle(&self, kind: Kind, name: &str) -> Result<(), String> {
        if name == WILDCARD {
            return Err("heddle-proxy subscribes to names, not to everything".to_owned());
        }
        match kind {
            Kind::Listener if name == INBOUND || parse_outbound(name).is_some() => Ok(()),
            Kind::Listener => Err("a listener is `inbound` or `outbound/<ip>:<port>`".to_owned()),
            Kind::Route => match name.split_once('@') {
                Some((_, namespace)) if namespace != &*self.workload.namespace => {
                    Err(format!("routes that namespace `{namespace}` brought are for its own workloads"))
                }
                _ => Ok(()),
            },
            Kind::Cluster | Kind::Endpoints => Ok(()),
        }
    }
}

impl Dialect {
    /// Each once.
    pub const ALL: [Self; 3] = [Self::Heddle, Self::Envoy, Self::Grpc];

    /// As metrics and pages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heddle => "heddle",
            Self::Envoy => "envoy",
            Self::Grpc => "grpc",
        }
    }

    fn of(node: &Node) -> Option<Self> {
        match node.user_agent_name.as_str() {
            HEDDLE_USER_AGENT => Some(Self::Heddle),
            ENVOY_USER_AGENT => Some(Self::Envoy),
            agent
                if agent
                    .get(..GRPC_USER_AGENT.len())
                    .is_some_and(|begin| begin.eq_ignore_ascii_case(GRPC_USER_AGENT)) =>
            {
                Some(Self::Grpc)
            }
            _ => None,
        }
    }
}

impl Error {
    /// As metrics name it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCertificate => Reason::NoCertificate,
            Self::NodeId(_) => Reason::NodeId,
            Self::UserAgent(_) => Reason::UserAgent,
            Self::UnknownWorkload(_) => Reason::UnknownWorkload,
            Self::Identity { .. } => Reason::Identity,
            Self::Address { .. } => Reason::Address,
        }
    }
}

impl Reason {
    /// Each once.
    pub const ALL: [Self; 7] = [
        Self::NoCertificate,
        Self::NodeId,
        Self::UserAgent,
        Self::UnknownWorkload,
        Self::Identity,
        Self::Address,
        Self::Name,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::NodeId => "node_id",
            Self::UserAgent => "user_agent",
            Self::UnknownWorkload => "unknown_workload",
            Self::Identity => "identity",
            Self::Address => "address",
            Self::Name => "name",
        }
    }
}

/// `<name>.<namespace>`: a pod's name may contain dots (DNS-1123 subdomain), a namespace may not (DNS-1123 label).
fn workload_name(node_id: &str) -> Option<WorkloadName> {
    let (name, namespace) = node_id.rsplit_once('.')?;
    (!name.is_empty() && !namespace.is_empty()).then(|| WorkloadName::new(namespace, name))
}

/// Text of a client in a message of ours.
fn clip(text: &str) -> String {
    text.chars().take(MAX_QUOTED_CHARS).collect()
}

/// What heddle-proxy says it is.
pub const HEDDLE_USER_AGENT: &str = "heddle-proxy";
/// What Envoy says it is (`envoy/config/core/v3/base.proto`, `Node.user_agent_name`).
const ENVOY_USER_AGENT: &str = "envoy";
/// What every gRPC implementation's user agent begins with (gRFC A27): `gRPC C-core …`, `grpc-java …`, `gRPC Go`.
const GRPC_USER_AGENT: &str = "gRPC";
/// Chosen: the longest right value, a pod's name and a namespace, fits.
const MAX_QUOTED_CHARS: usize = 320;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::model::{Direct, Workload};

    const ID: &str = "spiffe://mesh/ns/shop/sa/web";

    fn workload(name: &str, address: &str, host_network: bool) -> (WorkloadName, Arc<Workload>) {
        let name = WorkloadName::new("shop", name);
        let workload = Workload {
            name: name.clone(),
            controller: None,
            uid: None,
            node: None,
            service_account: "web".into(),
            identity: SpiffeId::new("mesh", "shop", "web"),
            addresses: vec![address.parse().unwrap()],
            host_network,
            inbound: None,
            direct: Direct {
                ports: BTreeMap::new(),
                other_ports: None,
                draining: false,
                locality: None,
                sources: Vec::new(),
            },
        };
        (name, Arc::new(workload))
    }

    fn model() -> Model {
        let workloads = [workload("web.1", "10.0.0.1", false), workload("node", "192.0.2.1", true)];
        Model { workloads: workloads.into_iter().collect(), ..Model::default() }
    }

    fn node(id: &str) -> Node {
        Node { id: id.into(), user_agent_name: HEDDLE_USER_AGENT.into(), ..Node::default() }
    }

    fn mtls<'a>(spiffe_id: &'a str, address: &str) -> Proof<'a> {
        Proof::Certificate { spiffe_id: Some(spiffe_id), address: Some(address.parse().unwrap()) }
    }

    fn reason(node: &Node, proof: Proof<'_>) -> Reason {
        caller(&model(), node, proof).unwrap_err().reason()
    }

    #[test]
    fn a_workload_with_its_own_certificate_and_address_may_ask() {
        let found = caller(&model(), &node("web.1.shop"), mtls(ID, "10.0.0.1")).unwrap();

        assert_eq!(found.workload, WorkloadName::new("shop", "web.1"));
        assert_eq!(found.dialect, Dialect::Heddle);
    }

    #[test]
    fn an_ipv4_peer_on_a_dual_stack_socket_is_the_ipv4_address_it_is() {
        assert!(caller(&model(), &node("web.1.shop"), mtls(ID, "::ffff:10.0.0.1")).is_ok());
    }

    #[test]
    fn another_service_accounts_certificate_is_refused() {
        for id in ["spiffe://mesh/ns/shop/sa/api", "spiffe://mesh/ns/other/sa/web", "spiffe://other/ns/shop/sa/web"] {
            assert_eq!(reason(&node("web.1.shop"), mtls(id, "10.0.0.1")), Reason::Identity, "{id}");
        }
    }

    #[test]
    fn another_pods_name_under_the_same_service_account_is_refused_by_its_address() {
        assert_eq!(reason(&node("web.1.shop"), mtls(ID, "10.0.0.2")), Reason::Address);
        let nowhere = Proof::Certificate { spiffe_id: Some(ID), address: None };
        assert_eq!(reason(&node("web.1.shop"), nowhere), Reason::Address);
    }

    #[test]
    fn an_address_proves_nothing_on_the_hosts_network_and_is_not_asked_for() {
        assert!(caller(&model(), &node("node.shop"), mtls(ID, "10.9.9.9")).is_ok());
    }

    #[test]
    fn a_workload_that_is_not_there_may_not_ask() {
        for proof in [mtls(ID, "10.0.0.1"), Proof::Loopback] {
            assert_eq!(reason(&node("web.2.shop"), proof), Reason::UnknownWorkload);
        }
    }

    #[test]
    fn without_a_certificate_only_loopback_may_ask() {
        let none = Proof::Certificate { spiffe_id: None, address: Some("10.0.0.1".parse().unwrap()) };
        assert_eq!(reason(&node("web.1.shop"), none), Reason::NoCertificate);
        assert!(caller(&model(), &node("web.1.shop"), Proof::Loopback).is_ok());
    }

    #[test]
    fn a_node_id_without_both_parts_is_refused() {
        for id in ["", "web", ".shop", "web."] {
            assert_eq!(reason(&node(id), Proof::Loopback), Reason::NodeId, "{id}");
        }
    }

    #[test]
    fn the_user_agent_tells_the_dialect() {
        let dialect = |agent: &str| {
            let node = Node { user_agent_name: agent.into(), ..node("web.1.shop") };
            caller(&model(), &node, Proof::Loopback).map(|caller| caller.dialect).map_err(|error| error.reason())
        };
        assert_eq!(dialect("heddle-proxy"), Ok(Dialect::Heddle));
        assert_eq!(dialect("envoy"), Ok(Dialect::Envoy));
        assert_eq!(dialect("gRPC C-core linux"), Ok(Dialect::Grpc));
        assert_eq!(dialect("grpc-java"), Ok(Dialect::Grpc));
        assert_eq!(dialect("curl"), Err(Reason::UserAgent));
        assert_eq!(dialect("grü"), Err(Reason::UserAgent));
    }

    #[test]
    fn heddle_proxy_may_subscribe_to_its_inbound_and_to_any_outbound_name() {
        let caller = caller(&model(), &node("web.1.shop"), Proof::Loopback).unwrap();
        let allowed = |kind, name| caller.allowed(kind, name).is_ok();

        assert!(allowed(Kind::Listener, "inbound"));
        assert!(allowed(Kind::Listener, "outbound/10.1.2.3:80"));
        assert!(allowed(Kind::Route, "other/api/80"));
        assert!(allowed(Kind::Route, "other/api/80@shop"));
        assert!(allowed(Kind::Cluster, "other/api/80"));
        assert!(allowed(Kind::Endpoints, "other/workload/x/10.0.0.9:80"));
        assert!(!allowed(Kind::Listener, "inbound/web.2.shop"));
        assert!(!allowed(Kind::Listener, "outbound/10.1.2.3"));
        assert!(!allowed(Kind::Route, "other/api/80@other"));
        assert!(!allowed(Kind::Cluster, WILDCARD));
    }
}
