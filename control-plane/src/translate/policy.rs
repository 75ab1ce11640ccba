//! AuthorizationPolicies in force on a port of a workload.
//!
//! A policy with a value that cannot be meant never makes the mesh more open than meant: an ALLOW policy then allows
//! nothing, a DENY policy denies everything it is attached to.

use std::sync::Arc;

use super::instance::Instance;
use super::{Settings, service};
use crate::api::authorization_policy::{self as api, Action, network};
use crate::api::{AuthorizationPolicy, Selector, TargetRef};
use crate::model::{Operation, Policy, PolicyRule, PolicySet, Principals, SourceRef, SpiffeId, TextMatch};
use crate::objects::{Objects, name_of, namespace_of};

/// What holds on `port`; `None`: on the ports nobody speaks of.
pub(super) fn in_force(objects: &Objects, settings: &Settings, instance: &Instance, port: Option<u16>) -> PolicySet {
    let mut set = PolicySet::default();
    for policy in objects.authorization_policies.in_namespace(&instance.name.namespace) {
        if !applies(objects, policy, instance, port) {
            continue;
        }
        let translated = Arc::new(translate(policy, settings));
        match policy.spec.action {
            Action::Allow => set.allow.push(translated),
            Action::Deny => set.deny.push(translated),
        }
    }
    set
}

/// The policies that reach some port of this instance, for `explain`.
pub(super) fn sources(objects: &Objects, instance: &Instance) -> Vec<SourceRef> {
    let ports = ports(objects, instance);
    let reaches =
        |policy: &&Arc<AuthorizationPolicy>| ports.iter().any(|port| applies(objects, policy, instance, *port));
    let policies = objects.authorization_policies.in_namespace(&instance.name.namespace).filter(reaches);
    policies.map(|p| SourceRef::new("AuthorizationPolicy", namespace_of(&p.metadata), name_of(&p.metadata))).collect()
}

/// The ports that policies are in force on, and `None`, for those nobody speaks of.
pub(super) fn ports(objects: &Objects, instance: &Instance) -> Vec<Option<u16>> {
    let owned = service::owners(objects, instance);
    owned.iter().map(|(_, _, target)| Some(*target)).chain([None]).collect()
}

fn applies(objects: &Objects, policy: &AuthorizationPolicy, instance: &Instance, port: Option<u16>) -> bool {
    attached(objects, policy.spec.selector.as_ref(), &policy.spec.target_refs, instance, port)
}

/// Whether a policy of the instance's namespace reaches `port`, by its selector or targets; without either it does.
pub(super) fn attached(
    objects: &Objects,
    selector: Option<&Selector>,
    targets: &[TargetRef],
    instance: &Instance,
    port: Option<u16>,
) -> bool {
    if let Some(selector) = selector {
        return selector.matches(&instance.labels);
    }
    let hits = |target: &TargetRef| match target.kind.as_str() {
        "ServiceAccount" => target.name == *instance.service_account,
        "Service" => service::owners(objects, instance)
            .iter()
            .any(|(owner, _, number)| name_of(&owner.metadata) == target.name && port == Some(*number)),
        _ => target.name == *instance.name.namespace,
    };
    targets.is_empty() || targets.iter().any(hits)
}

fn translate(policy: &AuthorizationPolicy, settings: &Settings) -> Policy {
    let broken = !policy.spec.check().is_empty();
    let rules = match (broken, policy.spec.action) {
        (false, _) => policy.spec.rules.iter().map(|given| rule(&given.from, &given.to, settings)).collect(),
        (true, Action::Allow) => Vec::new(),
        (true, Action::Deny) => vec![PolicyRule::default()],
    };
    let name = format!("{}/{}", namespace_of(&policy.metadata), name_of(&policy.metadata));
    Policy { name: name.into(), dry_run: policy.spec.dry_run, rules }
}

/// Whom and what a rule means.
pub(super) fn rule(from: &[api::Source], to: &[api::Operation], settings: &Settings) -> PolicyRule {
    PolicyRule {
        from: from.iter().map(|source| principals(source, settings)).collect(),
        to: to.iter().map(operation).collect(),
    }
}

fn principals(source: &api::Source, settings: &Settings) -> Principals {
    let ids = |values: &[String]| values.iter().map(|value| principal(value, settings)).collect();
    let networks = |values: &[String]| values.iter().filter_map(|value| network(value)).collect();
    Principals {
        principals: ids(&source.principals),
        not_principals: ids(&source.not_principals),
        namespaces: texts(&source.namespaces),
        not_namespaces: texts(&source.not_namespaces),
        ip_blocks: networks(&source.ip_blocks),
        not_ip_blocks: networks(&source.not_ip_blocks),
    }
}

fn operation(given: &api::Operation) -> Operation {
    let ports = |values: &[i32]| values.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
    let hosts = |values: &[String]| {
        let lower: Vec<_> = values.iter().map(|host| host.trim_end_matches('.').to_ascii_lowercase()).collect();
        texts(&lower)
    };
    Operation {
        ports: ports(&given.ports),
        not_ports: ports(&given.not_ports),
        methods: texts(&given.methods),
        not_methods: texts(&given.not_methods),
        paths: texts(&given.paths),
        not_paths: texts(&given.not_paths),
        hosts: hosts(&given.hosts),
        not_hosts: hosts(&given.not_hosts),
    }
}

/// `<namespace>/<service account>` becomes a SPIFFE ID of this mesh; a `*` at the end any rest.
fn principal(value: &str, settings: &Settings) -> TextMatch {
    if value == "*" || value.starts_with("spiffe://") {
        return text(value);
    }
    let (namespace, account) = value.split_once('/').unwrap_or((value, ""));
    text(SpiffeId::new(&settings.trust_domain, namespace, account).as_str())
}

fn texts(values: &[String]) -> Vec<TextMatch> {
    values.iter().map(|value| text(value)).collect()
}

fn text(value: &str) -> TextMatch {
    if value == "*" {
        TextMatch::Present
    } else if let Some(end) = value.strip_prefix('*') {
        TextMatch::Suffix(end.to_owned())
    } else if let Some(start) = value.strip_suffix('*') {
        TextMatch::Prefix(start.to_owned())
    } else {
        TextMatch::Exact(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::AuthorizationPolicySpec;
    use crate::model::{Egress, Mesh};

    fn translated(action: Action) -> Policy {
        let broken = api::Source { ip_blocks: vec!["10.0.0.0/33".into()], ..api::Source::default() };
        let rule = api::PolicyRule { from: vec![broken], ..api::PolicyRule::default() };
        let spec = AuthorizationPolicySpec { action, rules: vec![rule], ..AuthorizationPolicySpec::default() };
        let settings = Settings {
            trust_domain: "mesh.example".into(),
            root_namespace: "heddle-system".into(),
            mesh: Mesh { cidrs: Vec::new(), egress: Egress::Allow },
        };
        translate(&AuthorizationPolicy::new("broken", spec), &settings)
    }

    #[test]
    fn a_policy_that_cannot_be_read_never_opens_anything() {
        assert_eq!(translated(Action::Allow).rules, [], "allows nothing");
        assert_eq!(translated(Action::Deny).rules, [PolicyRule::default()], "denies everything");
    }
}
