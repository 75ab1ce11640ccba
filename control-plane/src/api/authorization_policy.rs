//! `AuthorizationPolicy`: who may ask what of a workload.

use ipnet::IpNet;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::target;
use super::{FieldError, ObjectStatus, Selector, TargetRef};

/// Who may ask what. Any matching DENY policy denies. If any ALLOW policy applies to a workload, one must match; if
/// none applies, everything not denied is allowed.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    namespaced,
    status = "ObjectStatus",
    doc = "Who may ask what of workloads.",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Action","type":"string","jsonPath":".spec.action"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.targetRefs) || self.targetRefs.all(t, (!has(t.group) || t.group == '') && t.kind in ['Namespace', 'ServiceAccount', 'Service'])").message("target a Namespace, ServiceAccount or Service"))]
#[x_kube(validation = Rule::new("!(has(self.selector) && has(self.targetRefs) && size(self.targetRefs) > 0)").message("give either targetRefs or selector"))]
pub struct AuthorizationPolicySpec {
    /// The policy's own Namespace, ServiceAccounts, or Services (their workloads, at their target ports); at most 16.
    /// Default: all workloads of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Workloads by their labels, instead of targetRefs. Default: what targetRefs say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// ALLOW or DENY. Default: ALLOW.
    #[serde(default)]
    pub action: Action,
    /// Evaluated, counted and logged, never enforced. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// One must match; at most 64. Default: none, so that nothing matches: an ALLOW policy without rules lets nobody in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub rules: Vec<PolicyRule>,
}

/// What a match of a policy means.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets in.
    #[default]
    Allow,
    /// Keeps out.
    Deny,
}

/// One rule: `from` and `to`, where given, must both match. A rule with neither matches everything.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Who calls; one must match; at most 64. Default: anyone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub from: Vec<Source>,
    /// What is asked; one must match; at most 64. Default: anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub to: Vec<Operation>,
}

/// Who calls. Within a field one value must match; all given fields must. A caller without mutual TLS has no
/// principal and no namespace: it matches no positive condition on them, and every `not` condition.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1))]
pub struct Source {
    /// Identities: `<namespace>/<service account>` in this mesh's trust domain, or a whole SPIFFE ID. A `*` at the
    /// end of either is any rest; `*` alone is any identity. At most 64. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PRINCIPAL)))]
    pub principals: Vec<String>,
    /// Identities that must not match, written as in principals; at most 64. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PRINCIPAL)))]
    pub not_principals: Vec<String>,
    /// Namespaces of the caller's identity; a `*` at the start or the end is any text. At most 64. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PATTERN)))]
    pub namespaces: Vec<String>,
    /// Namespaces that must not match, written as in namespaces; at most 64. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PATTERN)))]
    pub not_namespaces: Vec<String>,
    /// Networks of the peer's address, as `10.0.0.0/8`, or single addresses; at most 64. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = BLOCK)))]
    pub ip_blocks: Vec<String>,
    /// Networks the peer's address must not be in, written as in ipBlocks; at most 64. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = BLOCK)))]
    pub not_ip_blocks: Vec<String>,
}

/// What is asked. Within a field one value must match; all given fields must. Conditions other than ports can only
/// be decided for HTTP: an opaque connection matches no ALLOW rule that has one, and is denied by a DENY rule that has.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1))]
pub struct Operation {
    /// Ports of the application, 1 to 65535; at most 64. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<i32>,
    /// Ports that must not match; at most 64. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub not_ports: Vec<i32>,
    /// HTTP methods, in upper case as clients send them; at most 64. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PATTERN)))]
    pub methods: Vec<String>,
    /// Methods that must not match; at most 64. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PATTERN)))]
    pub not_methods: Vec<String>,
    /// Paths without query, compared after normalisation; a `*` at the start or the end is any text. For gRPC,
    /// `/<service>/<method>`. At most 64. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PATH)))]
    pub paths: Vec<String>,
    /// Paths that must not match, written as in paths; at most 64. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PATH)))]
    pub not_paths: Vec<String>,
    /// Hosts, without port, compared without case; a `*` at the start or the end is any text. At most 64. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PATTERN)))]
    pub hosts: Vec<String>,
    /// Hosts that must not match, written as in hosts; at most 64. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = PATTERN)))]
    pub not_hosts: Vec<String>,
}

/// As `principal_is_readable`, for the schema.
const PRINCIPAL: &str = r"^(\*|spiffe://[^*]*\*?|[^*/]+/([^*/]+\*?|\*))$";
/// A text with at most one `*`, at its start or at its end.
const PATTERN: &str = r"^(\*[^*]*|[^*]+\*?)$";
/// The same, beginning with `/` unless with `*`.
const PATH: &str = r"^(\*[^*]*|/[^*]*\*?)$";
/// What a network or an address is written with; whether it is one, admission says.
const BLOCK: &str = r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$";

impl AuthorizationPolicySpec {
    /// What cannot be meant. A policy with an error here is not enforced in part: it is refused.
    pub fn check(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        target::check(&self.target_refs, self.selector.as_ref(), TARGETS, &mut found);
        limit("spec.rules", self.rules.len(), &mut found);
        for (i, rule) in self.rules.iter().enumerate() {
            check_rule(&format!("spec.rules[{i}]"), &rule.from, &rule.to, &mut found);
        }
        found
    }
}

impl Source {
    fn check(&self, at: &str, found: &mut Vec<FieldError>) {
        if *self == Self::default() {
            found.push(FieldError::new(at, "{}", "give at least one condition; for anyone leave `from` out"));
        }
        for (name, values) in [("principals", &self.principals), ("notPrincipals", &self.not_principals)] {
            limit(&format!("{at}.{name}"), values.len(), found);
            for (i, value) in values.iter().enumerate() {
                if !principal_is_readable(value) {
                    let remedy = "write <namespace>/<service account> or a whole SPIFFE ID, with `*` only at the end";
                    found.push(FieldError::new(format!("{at}.{name}[{i}]"), value, remedy));
                }
            }
        }
        for (name, values) in [("namespaces", &self.namespaces), ("notNamespaces", &self.not_namespaces)] {
            patterns(&format!("{at}.{name}"), values, found);
        }
        for (name, values) in [("ipBlocks", &self.ip_blocks), ("notIpBlocks", &self.not_ip_blocks)] {
            limit(&format!("{at}.{name}"), values.len(), found);
            for (i, value) in values.iter().enumerate() {
                if network(value).is_none() {
                    let remedy = "write a network as 10.0.0.0/8 or 2001:db8::/32, or one address";
                    found.push(FieldError::new(format!("{at}.{name}[{i}]"), value, remedy));
                }
            }
        }
    }
}

impl Operation {
    fn check(&self, at: &str, found: &mut Vec<FieldError>) {
        if *self == Self::default() {
            found.push(FieldError::new(at, "{}", "give at least one condition; for anything leave `to` out"));
        }
        for (name, ports) in [("ports", &self.ports), ("notPorts", &self.not_ports)] {
            limit(&format!("{at}.{name}"), ports.len(), found);
            for (i, port) in ports.iter().enumerate() {
                if !(1..=65535).contains(port) {
                    found.push(FieldError::new(format!("{at}.{name}[{i}]"), port, "give a port from 1 to 65535"));
                }
            }
        }
        let texts = [
            ("methods", &self.methods),
            ("notMethods", &self.not_methods),
            ("paths", &self.paths),
            ("notPaths", &self.not_paths),
            ("hosts", &self.hosts),
            ("notHosts", &self.not_hosts),
        ];
        for (name, values) in texts {
            patterns(&format!("{at}.{name}"), values, found);
        }
        for (name, paths) in [("paths", &self.paths), ("notPaths", &self.not_paths)] {
            for (i, path) in paths.iter().enumerate() {
                if !path.starts_with(['/', '*']) {
                    let remedy = "begin a path with `/`, or with `*` for any beginning";
                    found.push(FieldError::new(format!("{at}.{name}[{i}]"), path, remedy));
                }
            }
        }
    }
}

/// Checks the `from` and `to` of the rule at `at`.
pub(super) fn check_rule(at: &str, from: &[Source], to: &[Operation], found: &mut Vec<FieldError>) {
    limit(&format!("{at}.from"), from.len(), found);
    limit(&format!("{at}.to"), to.len(), found);
    for (i, source) in from.iter().enumerate() {
        source.check(&format!("{at}.from[{i}]"), found);
    }
    for (i, operation) in to.iter().enumerate() {
        operation.check(&format!("{at}.to[{i}]"), found);
    }
}

/// A network, or a single address as the network of just itself.
pub fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

fn principal_is_readable(value: &str) -> bool {
    let body = value.strip_suffix('*').unwrap_or(value);
    if body.contains('*') {
        return false;
    }
    if value == "*" || value.starts_with("spiffe://") {
        return true;
    }
    let mut parts = body.split('/');
    let (namespace, account, rest) = (parts.next(), parts.next(), parts.next());
    let whole = value == body;
    namespace.is_some_and(|text| !text.is_empty())
        && account.is_some_and(|text| !whole || !text.is_empty())
        && rest.is_none()
}

fn patterns(at: &str, values: &[String], found: &mut Vec<FieldError>) {
    limit(at, values.len(), found);
    for (i, value) in values.iter().enumerate() {
        let body = value.strip_prefix('*').or_else(|| value.strip_suffix('*')).unwrap_or(value);
        if value.is_empty() || body.contains('*') {
            let remedy = "write a text with at most one `*`, at its start or at its end";
            found.push(FieldError::new(format!("{at}[{i}]"), value, remedy));
        }
    }
}

fn limit(at: &str, count: usize, found: &mut Vec<FieldError>) {
    if count > MAX_VALUES {
        found.push(FieldError::new(at, count, format!("give at most {MAX_VALUES}")));
    }
}

/// Kinds an AuthorizationPolicy may target, and a RateLimitPolicy too.
pub(super) const TARGETS: &[(&str, &str)] = &[("", "Namespace"), ("", "ServiceAccount"), ("", "Service")];
/// Chosen: rules are walked for every request.
const MAX_VALUES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_are_accounts_or_whole_ids() {
        for good in
            ["shop/web", "shop/*", "shop/web-*", "*", "spiffe://mesh.example/ns/shop/sa/web", "spiffe://other/*"]
        {
            assert!(principal_is_readable(good), "{good}");
        }
        for bad in ["web", "", "shop/", "/web", "*/web", "shop/web/x", "spiffe://*/ns/x", "sh*"] {
            assert!(!principal_is_readable(bad), "{bad}");
        }
    }

    #[test]
    fn a_condition_that_could_match_by_accident_is_refused() {
        let spec = AuthorizationPolicySpec {
            rules: vec![PolicyRule {
                from: vec![Source { ip_blocks: vec!["10.0.0.0/33".into()], ..Source::default() }, Source::default()],
                to: vec![Operation {
                    ports: vec![0],
                    paths: vec!["admin*".into(), "/a*b*".into()],
                    ..Operation::default()
                }],
            }],
            ..AuthorizationPolicySpec::default()
        };
        let fields: Vec<_> = spec.check().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "spec.rules[0].from[0].ipBlocks[0]",
                "spec.rules[0].from[1]",
                "spec.rules[0].to[0].ports[0]",
                "spec.rules[0].to[0].paths[1]",
                "spec.rules[0].to[0].paths[0]",
            ]
        );
    }
}
