//! What the control plane may do in a cluster: exactly what it does.
//!
//! The chart writes these rules as a ClusterRole and a Role, and the end-to-end tests run a control plane that has them and nothing
//! else.

use super::lease::LEASE;
use super::roots::ROOTS;
use crate::api::GROUP;
use crate::api::target::GATEWAY_GROUP;
use crate::config::DEFAULT_ROOT_SECRET;
use crate::webhook::bundle::{INJECTOR, VALIDATOR};

/// Where a rule holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere: in a ClusterRole.
    Cluster,
    /// In the control plane's own namespace: in a Role.
    OwnNamespace,
}

/// One rule, as RBAC writes it.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Where it holds.
    pub scope: Scope,
    /// API group; empty for the core's.
    pub group: &'static str,
    /// Resources, with their subresources.
    pub resources: &'static [&'static str],
    /// Objects by name; none: all. The Secret's is what `--root-secret` says.
    pub names: &'static [&'static str],
    /// What is done.
    pub verbs: &'static [&'static str],
    /// What for.
    pub why: &'static str,
}

const fn cluster(
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule { scope: Scope::Cluster, group, resources, names: &[], verbs, why }
}

const fn own(
    group: &'static str,
    resources: &'static [&'static str],
    names: &'static [&'static str],
    verbs: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule { scope: Scope::OwnNamespace, group, resources, names, verbs, why }
}

const READ: &[&str] = &["list", "watch"];

/// Everything.
pub const RULES: &[Rule] = &[
    cluster("", &["namespaces", "serviceaccounts", "services", "pods"], READ, "what the mesh is made of"),
    cluster("discovery.k8s.io", &["endpointslices"], READ, "who serves a Service"),
    cluster(GATEWAY_GROUP, &["httproutes", "grpcroutes", "tlsroutes", "tcproutes", "referencegrants"], READ, "routes"),
    cluster(
        GATEWAY_GROUP,
        &["httproutes/status", "grpcroutes/status", "tlsroutes/status", "tcproutes/status"],
        &["patch"],
        "what became of routes",
    ),
    cluster(
        GROUP,
        &[
            "authorizationpolicies",
            "faultinjections",
            "meshtlspolicies",
            "ratelimitpolicies",
            "trafficpolicies",
            "workloads",
        ],
        READ,
        "policies, and processes outside the cluster",
    ),
    cluster(
        GROUP,
        &[
            "authorizationpolicies/status",
            "faultinjections/status",
            "meshtlspolicies/status",
            "ratelimitpolicies/status",
            "trafficpolicies/status",
            "workloads/status",
        ],
        &["patch"],
        "what became of them",
    ),
    Rule {
        scope: Scope::Cluster,
        group: "",
        resources: &["configmaps"],
        names: &[ROOTS],
        // Applying to what is not there is creating it; by name, because an apply names what it creates.
        verbs: &["list", "watch", "create", "patch"],
        why: "the public roots, in every namespace",
    },
    Rule {
        scope: Scope::Cluster,
        group: "rbac.authorization.k8s.io",
        resources: &["clusterroles"],
        // As `--owner` says.
        names: &["heddle-control-plane"],
        verbs: &["get"],
        why: "itself, to say to whom belongs what is made",
    },
    cluster("authentication.k8s.io", &["tokenreviews"], &["create"], "whose a service account token is"),
    cluster("", &["namespaces"], &["get"], "whether a namespace made a moment ago wants sidecars"),
    cluster("events.k8s.io", &["events"], &["create", "patch"], "why a pod got no sidecar"),
    Rule {
        scope: Scope::Cluster,
        group: "admissionregistration.k8s.io",
        resources: &["mutatingwebhookconfigurations"],
        names: &[INJECTOR],
        verbs: &["list", "watch", "patch"],
        why: "the roots by which the API server believes the webhooks",
    },
    Rule {
        scope: Scope::Cluster,
        group: "admissionregistration.k8s.io",
        resources: &["validatingwebhookconfigurations"],
        names: &[VALIDATOR],
        verbs: &["list", "watch", "patch"],
        why: "the same",
    },
    own("", &["secrets"], &[], &["create"], "the root, at the first start; what is made has no name to restrict it by"),
    own("", &["secrets"], &[DEFAULT_ROOT_SECRET], &["get", "list", "watch", "update"], "the root"),
    own("coordination.k8s.io", &["leases"], &[], &["create"], "the lease, at the first start"),
    own(
        "coordination.k8s.io",
        &["leases"],
        &[LEASE],
        &["get", "update"],
        "which replica writes statuses and exchanges roots",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kubernetes::WATCHED;

    #[test]
    fn everything_that_is_watched_may_be_listed_and_watched_and_nothing_else_of_others() {
        let read: Vec<_> = RULES.iter().filter(|rule| rule.scope == Scope::Cluster && rule.verbs == READ).collect();
        let granted =
            |group: &str, plural: &str| read.iter().any(|rule| rule.group == group && rule.resources.contains(&plural));
        for watched in WATCHED {
            assert!(granted(watched.group, watched.plural), "{watched:?}");
        }
        for rule in &read {
            for resource in rule.resources {
                let needed = WATCHED.iter().any(|watched| watched.group == rule.group && watched.plural == *resource);
                assert!(needed, "{resource} is not watched");
            }
        }
    }

    #[test]
    fn secrets_are_read_by_name_and_nothing_is_everything() {
        for rule in RULES {
            assert!(!rule.resources.contains(&"*") && !rule.verbs.contains(&"*"), "{rule:?}");
            let reads_secrets = rule.resources.contains(&"secrets") && rule.verbs != ["create"];
            assert!(!reads_secrets || (!rule.names.is_empty() && rule.scope == Scope::OwnNamespace), "{rule:?}");
        }
    }
}
