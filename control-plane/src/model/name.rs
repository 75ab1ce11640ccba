//! Names: of Services, workloads, resources, identities, and of the objects something was made from.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A Service by namespace and name; shown as `<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

/// A Pod or Workload by namespace and name; shown as `<namespace>/<name>`. The two kinds share one space of names,
/// because `node.id` is `<name>.<namespace>` for both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

/// The name of a route table, a cluster or its endpoints. Made only by the functions below, so that no two kinds of
/// owner can share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ResourceName(Arc<str>);

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` (SPIFFE ID, section 2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SpiffeId(Arc<str>);

/// An object something was made from, for `explain`; shown as `<Kind>/<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceRef {
    /// Kubernetes kind.
    pub kind: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ServiceName {
    /// A name from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl WorkloadName {
    /// A name from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl ResourceName {
    /// `<namespace>/<service>/<port>`: the cluster of a Service's port, its endpoints and its route table.
    pub fn service_port(service: &ServiceName, port: u16) -> Self {
        Self(format!("{service}/{port}").into())
    }

    /// `<namespace>/<service>/<port>@<client namespace>`: the routes clients of that namespace brought themselves.
    pub fn consumer(service: &ServiceName, port: u16, client_namespace: &str) -> Self {
        Self(format!("{service}/{port}@{client_namespace}").into())
    }

    /// `<namespace>/workload/<name>/<ip>:<port>`: one address and port of a workload dialled directly. It has one
    /// part more than a Service's.
    pub fn direct(workload: &WorkloadName, address: SocketAddr) -> Self {
        Self(format!("{}/workload/{}/{address}", workload.namespace, workload.name).into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, shared.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl SpiffeId {
    /// The identity of a service account.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").into())
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SourceRef {
    /// A reference from its parts.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

impl Serialize for ServiceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for WorkloadName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for SourceRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_named_like_a_service_shares_no_resource_name_with_it() {
        let service = ResourceName::service_port(&ServiceName::new("shop", "workload"), 80);
        let direct = ResourceName::direct(&WorkloadName::new("shop", "workload"), "10.0.0.1:80".parse().unwrap());
        assert_eq!(service.as_str(), "shop/workload/80");
        assert_eq!(direct.as_str(), "shop/workload/workload/10.0.0.1:80");
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let name = ResourceName::direct(&WorkloadName::new("shop", "api"), "[2001:db8:0::1]:80".parse().unwrap());
        assert_eq!(name.as_str(), "shop/workload/api/[2001:db8::1]:80");
    }
}
