//! Which connections a workload takes on a port: MeshTLSPolicy by nearness, then by age.
//!
//! Nearness: an entry for the port (a Service target's ports, or `portLevel`), then the workload (`selector` or
//! ServiceAccount target), then the namespace, then the mesh. Among port entries the policy that is nearer wins too.

use std::collections::BTreeSet;

use super::instance::Instance;
use super::{Settings, age, service};
use crate::api::mesh_tls_policy::Mode;
use crate::api::{MeshTlsPolicy, TargetRef};
use crate::model::{SourceRef, TlsMode};
use crate::objects::{Objects, name_of, namespace_of};

/// How near a policy is; the smaller wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Workload,
    Namespace,
    Mesh,
}

/// The mode of an instance's port. One that is reached past the sidecar takes what comes, whatever a policy says.
pub(super) fn mode(objects: &Objects, settings: &Settings, instance: &Instance, port: u16) -> TlsMode {
    if instance.is_excluded(port) {
        return TlsMode::Disable;
    }
    if applying(objects, settings, instance).is_empty() {
        return TlsMode::Permissive;
    }
    let owned: BTreeSet<String> = service::owners(objects, instance)
        .into_iter()
        .filter(|(_, _, target)| *target == port)
        .map(|(service, _, _)| name_of(&service.metadata).to_owned())
        .collect();
    decide(objects, settings, instance, Some((port, &owned)))
}

/// The mode of the ports nobody speaks of.
pub(super) fn other_ports(objects: &Objects, settings: &Settings, instance: &Instance) -> TlsMode {
    decide(objects, settings, instance, None)
}

/// Ports that some policy for this instance names by number.
pub(super) fn named_ports(objects: &Objects, settings: &Settings, instance: &Instance) -> BTreeSet<u16> {
    applying(objects, settings, instance)
        .into_iter()
        .flat_map(|(policy, _)| policy.spec.ports().map(|(p, _)| p))
        .collect()
}

/// The policies that reach this instance, for `explain`.
pub(super) fn sources(objects: &Objects, settings: &Settings, instance: &Instance) -> Vec<SourceRef> {
    let applying = applying(objects, settings, instance).into_iter();
    applying
        .map(|(policy, _)| SourceRef::new("MeshTLSPolicy", namespace_of(&policy.metadata), name_of(&policy.metadata)))
        .collect()
}

fn decide(
    objects: &Objects,
    settings: &Settings,
    instance: &Instance,
    port: Option<(u16, &BTreeSet<String>)>,
) -> TlsMode {
    let mut best: Option<((bool, Reach, _), Mode)> = None;
    for (policy, reach) in applying(objects, settings, instance) {
        let by_service =
            targets(policy, "Service").any(|target| port.is_some_and(|(_, owned)| owned.contains(&target.name)));
        let by_number =
            port.and_then(|(number, _)| policy.spec.ports().find(|(p, _)| *p == number)).map(|(_, mode)| mode);
        let only_services = reach == Reach::Workload
            && policy.spec.selector.is_none()
            && targets(policy, "ServiceAccount").all(|t| t.name != *instance.service_account);
        let for_port = by_number.or(policy.spec.mode.filter(|_| by_service));
        let candidate = match (for_port, policy.spec.mode) {
            (Some(mode), _) => Some((false, mode)),
            (None, Some(mode)) if !only_services => Some((true, mode)),
            (None, _) => None,
        };
        let Some((general, mode)) = candidate else { continue };
        let rank = (general, reach, age(&policy.metadata));
        if best.as_ref().is_none_or(|(other, _)| rank < *other) {
            best = Some((rank, mode));
        }
    }
    match best.map(|(_, mode)| mode) {
        Some(Mode::Strict) => TlsMode::Strict,
        Some(Mode::Disable) => TlsMode::Disable,
        Some(Mode::Permissive) | None => TlsMode::Permissive,
    }
}

/// Policies that reach the instance at all, with the nearest way they do.
fn applying<'o>(objects: &'o Objects, settings: &Settings, instance: &Instance) -> Vec<(&'o MeshTlsPolicy, Reach)> {
    let own = objects.mesh_tls_policies.in_namespace(&instance.name.namespace);
    let root = objects.mesh_tls_policies.in_namespace(&settings.root_namespace);
    let root = root.filter(|_| settings.root_namespace != *instance.name.namespace);
    let own = own.filter_map(|policy| Some((&**policy, reach(objects, settings, policy, instance)?)));
    let root = root.filter(|policy| mesh_wide(settings, policy)).map(|policy| (&**policy, Reach::Mesh));
    own.chain(root).filter(|(policy, _)| policy.spec.check().is_empty()).collect()
}

fn reach(objects: &Objects, settings: &Settings, policy: &MeshTlsPolicy, instance: &Instance) -> Option<Reach> {
    if mesh_wide(settings, policy) {
        return Some(Reach::Mesh);
    }
    if let Some(selector) = &policy.spec.selector {
        return selector.matches(&instance.labels).then_some(Reach::Workload);
    }
    if policy.spec.target_refs.is_empty() {
        return Some(Reach::Namespace);
    }
    let reaches = |target: &TargetRef| match target.kind.as_str() {
        "ServiceAccount" => (target.name == *instance.service_account).then_some(Reach::Workload),
        "Service" => owns(objects, instance, &target.name).then_some(Reach::Workload),
        _ => (target.name == *instance.name.namespace).then_some(Reach::Namespace),
    };
    policy.spec.target_refs.iter().filter_map(reaches).min()
}

/// Whether the Service leads to any port of the instance.
pub(super) fn owns(objects: &Objects, instance: &Instance, service: &str) -> bool {
    service::owners(objects, instance).iter().any(|(owner, _, _)| name_of(&owner.metadata) == service)
}

/// Whether a policy holds for the whole mesh.
pub(super) fn mesh_wide(settings: &Settings, policy: &MeshTlsPolicy) -> bool {
    namespace_of(&policy.metadata) == settings.root_namespace
        && policy.spec.selector.is_none()
        && policy.spec.target_refs.is_empty()
}

fn targets<'p>(policy: &'p MeshTlsPolicy, kind: &'p str) -> impl Iterator<Item = &'p TargetRef> {
    policy.spec.target_refs.iter().filter(move |target| target.kind == kind)
}
