//! Authorization policies in force on a port.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

/// The policies in force on one port, each list sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySet {
    /// Any match denies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Arc<Policy>>,
    /// If any is enforced, one must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Arc<Policy>>,
}

impl PolicySet {
    /// Whether nothing is in force.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }
}

/// One AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `<namespace>/<name>`.
    pub name: Arc<str>,
    /// Evaluated and counted, never enforced.
    pub dry_run: bool,
    /// One must match; empty: none ever does, so an ALLOW policy without rules allows nothing.
    pub rules: Vec<PolicyRule>,
}

/// One rule: every part that is given must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Who calls; empty: anyone. One must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Principals>,
    /// What is asked; empty: anything. One must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Operation>,
}

/// Who calls. Within a field one value must match; all given fields must.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Principals {
    /// SPIFFE IDs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<TextMatch>,
    /// SPIFFE IDs that must not match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<TextMatch>,
    /// Namespaces of the SPIFFE ID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<TextMatch>,
    /// Namespaces that must not match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<TextMatch>,
    /// Networks of the peer address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<IpNet>,
    /// Networks the peer address must not be in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<IpNet>,
}

/// What is asked. Within a field one value must match; all given fields must.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Application ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Ports that must not match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<u16>,
    /// HTTP methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<TextMatch>,
    /// Methods that must not match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<TextMatch>,
    /// Normalised paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<TextMatch>,
    /// Paths that must not match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<TextMatch>,
    /// Hosts, lower case, without port and trailing dot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<TextMatch>,
    /// Hosts that must not match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<TextMatch>,
}

/// A text condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TextMatch {
    /// The whole text.
    Exact(String),
    /// How the text begins.
    Prefix(String),
    /// How the text ends.
    Suffix(String),
    /// Any text, but there must be one.
    Present,
}
