//! Authorization policies as `authz` evaluates them.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

/// The policies in force on one port.
#[derive(Debug, Default)]
pub struct PolicySet {
    /// Any match denies.
    pub deny: Vec<Policy>,
    /// If there is any that is enforced, one must match.
    pub allow: Vec<Policy>,
}

/// One AuthorizationPolicy.
#[derive(Debug)]
pub struct Policy {
    /// `<namespace>/<name>`.
    pub name: Arc<str>,
    /// Evaluated and counted, never enforced.
    pub dry_run: bool,
    /// One must match.
    pub rules: Vec<Rule>,
}

/// One rule: every part that is given must match.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Who calls; empty: anyone. One must match.
    pub from: Vec<Source>,
    /// What is asked; empty: anything. One must match.
    pub to: Vec<Operation>,
}

/// Who calls. Within a field one value must match; all given fields must.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// SPIFFE IDs.
    pub principals: Vec<TextMatch>,
    /// SPIFFE IDs that must not match.
    pub not_principals: Vec<TextMatch>,
    /// Namespaces of the SPIFFE ID.
    pub namespaces: Vec<TextMatch>,
    /// Namespaces that must not match.
    pub not_namespaces: Vec<TextMatch>,
    /// Networks of the peer address.
    pub ip_blocks: Vec<IpNet>,
    /// Networks the peer address must not be in.
    pub not_ip_blocks: Vec<IpNet>,
}

/// What is asked. Within a field one value must match; all given fields must.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Application ports.
    pub ports: Vec<u16>,
    /// Ports that must not match.
    pub not_ports: Vec<u16>,
    /// HTTP methods.
    pub methods: Vec<TextMatch>,
    /// Methods that must not match.
    pub not_methods: Vec<TextMatch>,
    /// Normalised paths.
    pub paths: Vec<TextMatch>,
    /// Paths that must not match.
    pub not_paths: Vec<TextMatch>,
    /// Hosts, lower case, without port and trailing dot.
    pub hosts: Vec<TextMatch>,
    /// Hosts that must not match.
    pub not_hosts: Vec<TextMatch>,
}

impl Operation {
    /// Whether this operation can only be decided for an HTTP request.
    pub fn needs_http(&self) -> bool {
        let fields = [&self.methods, &self.not_methods, &self.paths, &self.not_paths, &self.hosts, &self.not_hosts];
        fields.iter().any(|field| !field.is_empty())
    }
}

impl PolicySet {
    /// Whether everything is allowed.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }

    /// Whether any policy here can only be decided for an HTTP request.
    pub fn needs_http(&self) -> bool {
        let policies = self.deny.iter().chain(&self.allow);
        policies.flat_map(|p| &p.rules).flat_map(|r| &r.to).any(Operation::needs_http)
    }
}

/// A text condition of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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

impl TextMatch {
    /// Whether `text` meets the condition.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(want) => text == want,
            Self::Prefix(want) => text.starts_with(want.as_str()),
            Self::Suffix(want) => text.ends_with(want.as_str()),
            Self::Present => !text.is_empty(),
        }
    }
}
