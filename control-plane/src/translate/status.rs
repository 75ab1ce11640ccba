//! What became of an object: conditions for routes, by parent, and for our own kinds.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Settings, accept, age, instance, overridden, rate_limit, rule, server_name, tls, traffic};
use crate::api::{FieldError, Selector, TargetRef};
use crate::model::ServiceName;
use crate::objects::{Kind, ObjectKey, Objects, Route, name_of, namespace_of};
use crate::status::{CONTROLLER, Condition, ConditionType, ObjectStatus, ParentStatus, Reason, RouteStatus, Status};

/// The status of the object under `key`; `None`: it is gone, or is of a kind whose status is not ours, or names no
/// parent of ours.
pub fn status(objects: &Objects, settings: &Settings, key: &ObjectKey) -> Option<Status> {
    let (namespace, name) = (&*key.namespace, &*key.name);
    match key.kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => route(objects, objects.route(key)?),
        Kind::TrafficPolicy => {
            let policy = objects.traffic_policies.get(namespace, name)?;
            let found = Attachment {
                errors: policy.spec.check(),
                targets: &policy.spec.target_refs,
                losing: traffic_losses(objects, policy),
                unused: traffic_unused(policy),
                overridden: overridden::overridden(objects, policy),
                ..Attachment::default()
            };
            Some(attached(objects, &policy.metadata, found))
        }
        Kind::AuthorizationPolicy => {
            let policy = objects.authorization_policies.get(namespace, name)?;
            let found = Attachment {
                errors: policy.spec.check(),
                targets: &policy.spec.target_refs,
                selector: policy.spec.selector.as_ref(),
                ..Attachment::default()
            };
            Some(attached(objects, &policy.metadata, found))
        }
        Kind::RateLimitPolicy => {
            let policy = objects.rate_limit_policies.get(namespace, name)?;
            let found = Attachment {
                errors: policy.spec.check(),
                targets: &policy.spec.target_refs,
                names: policy.spec.service.is_some(),
                unresolved: rate_limit::unresolved(objects, policy),
                selector: policy.spec.selector.as_ref(),
                ..Attachment::default()
            };
            Some(attached(objects, &policy.metadata, found))
        }
        Kind::MeshTlsPolicy => {
            let policy = objects.mesh_tls_policies.get(namespace, name)?;
            let found = Attachment {
                errors: policy.spec.check(),
                targets: &policy.spec.target_refs,
                selector: policy.spec.selector.as_ref(),
                losing: tls_losses(objects, settings, policy),
                ..Attachment::default()
            };
            Some(attached(objects, &policy.metadata, found))
        }
        Kind::FaultInjection => {
            let fault = objects.fault_injections.get(namespace, name)?;
            let generation = generation(&fault.metadata);
            let condition = match invalid(&fault.spec.check()) {
                Some(text) => Condition::new(ConditionType::Accepted, false, Reason::Invalid, text, generation),
                None => in_force(generation),
            };
            Some(Status::Object(ObjectStatus { conditions: vec![condition] }))
        }
        Kind::Workload => {
            let workload = objects.workloads.get(namespace, name)?;
            let generation = generation(&workload.metadata);
            let condition = if let Some(text) = invalid(&workload.spec.check()) {
                Condition::new(ConditionType::Accepted, false, Reason::Invalid, text, generation)
            } else if objects.pods.get(namespace, name).is_some() {
                let text = format!("Pod {namespace}/{name} has the same name: rename one of them");
                Condition::new(ConditionType::Accepted, false, Reason::Conflicted, text, generation)
            } else {
                in_force(generation)
            };
            Some(Status::Object(ObjectStatus { conditions: vec![condition] }))
        }
        Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::Pod
        | Kind::EndpointSlice
        | Kind::ReferenceGrant => None,
    }
}

fn route(objects: &Objects, route: &Route) -> Option<Status> {
    let generation = generation(&route.metadata);
    let mine = route.spec.parent_refs.iter().filter(|parent| parent.is_service());
    let parents: Vec<_> = mine
        .map(|parent| {
            let namespace = parent.namespace.as_deref().unwrap_or(namespace_of(&route.metadata));
            let built = rule::build(objects, route, &ServiceName::new(namespace, &parent.name));
            let mut conditions = Vec::new();
            match accept::acceptance(objects, route, parent) {
                Err((reason, text)) => {
                    conditions.push(Condition::new(ConditionType::Accepted, false, reason, text, generation));
                }
                Ok(_) if built.useless > 0 && built.useless == rule::rule_count(route) => {
                    let text = built.broken.join("; ");
                    let reason = Reason::UnsupportedValue;
                    conditions.push(Condition::new(ConditionType::Accepted, false, reason, text, generation));
                }
                Ok(ports) => {
                    conditions.push(accepted_route(route, generation));
                    let taken = server_name::taken(objects, route, parent, &ports);
                    let lost = taken.iter().map(|(name, holder)| format!("{name} is the older {holder}'s"));
                    let parts: Vec<_> = built.broken.iter().cloned().chain(lost).collect();
                    if !parts.is_empty() {
                        let text = parts.join("; ");
                        let reason =
                            if built.broken.is_empty() { Reason::Conflicted } else { Reason::UnsupportedValue };
                        conditions.push(Condition::new(
                            ConditionType::PartiallyInvalid,
                            true,
                            reason,
                            text,
                            generation,
                        ));
                    }
                }
            }
            conditions.push(resolved(&built.unresolved, generation));
            ParentStatus { parent_ref: parent.clone(), controller_name: CONTROLLER, conditions }
        })
        .collect();
    (!parents.is_empty()).then_some(Status::Route(RouteStatus { parents }))
}

fn accepted_route(route: &Route, generation: i64) -> Condition {
    let text = if route.spec.hostnames.is_empty() || route.kind == Kind::TlsRoute {
        "in force"
    } else {
        "in force; hostnames are ignored, because a Service is told by its address"
    };
    Condition::new(ConditionType::Accepted, true, Reason::Accepted, text, generation)
}

/// The first reason names the condition, the message says all.
fn resolved(unresolved: &[(Reason, String)], generation: i64) -> Condition {
    let Some((reason, _)) = unresolved.first() else {
        let text = "all references found";
        return Condition::new(ConditionType::ResolvedRefs, true, Reason::ResolvedRefs, text, generation);
    };
    let texts: Vec<_> = unresolved.iter().map(|(_, text)| text.as_str()).collect();
    Condition::new(ConditionType::ResolvedRefs, false, *reason, texts.join("; "), generation)
}

/// What decides a policy's conditions.
#[derive(Default)]
struct Attachment<'p> {
    errors: Vec<FieldError>,
    targets: &'p [TargetRef],
    selector: Option<&'p Selector>,
    /// Whether it names objects beside its targets.
    names: bool,
    /// Why one of these is of no use.
    unresolved: Option<(Reason, String)>,
    /// Targets at which another policy wins, each with that policy's name.
    losing: Vec<(String, String)>,
    /// Fields that have no meaning for the targets.
    unused: Option<String>,
    /// What says otherwise in a place, and comes first there.
    overridden: Vec<String>,
}

fn attached(objects: &Objects, metadata: &ObjectMeta, found: Attachment<'_>) -> Status {
    let generation = generation(metadata);
    let namespace = namespace_of(metadata);
    let mut conditions = Vec::new();
    let missing = found.targets.iter().filter(|target| !exists(objects, namespace, target));
    let missing: Vec<_> = missing
        .map(|target| match target.kind.as_str() {
            "Namespace" => format!("{}: a policy can only target its own namespace", shown(target)),
            _ => shown(target),
        })
        .collect();
    let known = found.targets.len() - missing.len();
    // A policy without target has one all the same: its namespace, its selector or the mesh.
    let places = if found.targets.is_empty() { 1 } else { known };
    let accepted = if let Some(text) = invalid(&found.errors) {
        Condition::new(ConditionType::Accepted, false, Reason::Invalid, text, generation)
    } else if places == 0 {
        let text = format!("in namespace {namespace} there is no {}", missing.join(", no "));
        Condition::new(ConditionType::Accepted, false, Reason::TargetNotFound, text, generation)
    } else if found.losing.len() == places {
        let text = losses(&found.losing);
        Condition::new(ConditionType::Accepted, false, Reason::Conflicted, text, generation)
    } else if let Some(selector) = found.selector.filter(|selector| !selects_any(objects, namespace, selector)) {
        let text =
            format!("in force; no workload of namespace {namespace} has the labels {:?} now", selector.match_labels);
        Condition::new(ConditionType::Accepted, true, Reason::Accepted, text, generation)
    } else {
        in_force(generation)
    };
    let partly = accepted.status && (!found.losing.is_empty() || found.unused.is_some());
    let overridden = accepted.status && !found.overridden.is_empty();
    conditions.push(accepted);
    if partly {
        let unused = found.unused.iter().cloned();
        let lost = (!found.losing.is_empty()).then(|| losses(&found.losing));
        let text = lost.into_iter().chain(unused).collect::<Vec<_>>().join("; ");
        let reason = if found.losing.is_empty() { Reason::UnsupportedValue } else { Reason::Conflicted };
        conditions.push(Condition::new(ConditionType::PartiallyInvalid, true, reason, text, generation));
    }
    if overridden {
        let text = overriding(&found.overridden);
        conditions.push(Condition::new(ConditionType::Overridden, true, Reason::Overridden, text, generation));
    }
    if !found.targets.is_empty() || found.names {
        let missing = (!missing.is_empty()).then(|| {
            (Reason::TargetNotFound, format!("in namespace {namespace} there is no {}", missing.join(", no ")))
        });
        let unresolved: Vec<_> = missing.into_iter().chain(found.unresolved).collect();
        conditions.push(resolved(&unresolved, generation));
    }
    Status::Object(ObjectStatus { conditions })
}

fn exists(objects: &Objects, namespace: &str, target: &TargetRef) -> bool {
    let name = target.name.as_str();
    match target.kind.as_str() {
        "Service" => objects.services.get(namespace, name).is_some(),
        "HTTPRoute" => objects.http_routes.get(namespace, name).is_some(),
        "GRPCRoute" => objects.grpc_routes.get(namespace, name).is_some(),
        "Namespace" => name == namespace,
        // An account need not be written down in a directory: who runs under it is proof enough.
        "ServiceAccount" => {
            objects.service_accounts.get(namespace, name).is_some()
                || instance::in_namespace(objects, namespace).iter().any(|i| *i.service_account == *name)
        }
        _ => false,
    }
}

fn selects_any(objects: &Objects, namespace: &str, selector: &Selector) -> bool {
    instance::in_namespace(objects, namespace).iter().any(|instance| selector.matches(&instance.labels))
}

/// Targets of a TrafficPolicy at which an older one wins.
fn traffic_losses(objects: &Objects, policy: &crate::api::TrafficPolicy) -> Vec<(String, String)> {
    let namespace = namespace_of(&policy.metadata);
    let lost =
        policy.spec.target_refs.iter().filter(|target| exists(objects, namespace, target)).filter_map(|target| {
            let winner = traffic::winner(objects, namespace, &|other| other == target)?;
            (age(&winner.metadata) != age(&policy.metadata))
                .then(|| (shown(target), name_of(&winner.metadata).to_owned()))
        });
    lost.collect()
}

/// A route takes only retries and timeouts.
fn traffic_unused(policy: &crate::api::TrafficPolicy) -> Option<String> {
    let spec = &policy.spec;
    let route = spec.target_refs.iter().find(|target| target.kind.ends_with("Route"))?;
    let set = [
        ("loadBalancing", spec.load_balancing.is_some()),
        ("connectTimeout", spec.connect_timeout.is_some()),
        ("circuitBreaker", spec.circuit_breaker.is_some()),
        ("outlierDetection", spec.outlier_detection.is_some()),
        ("healthCheck", spec.health_check.is_some()),
        ("connections", spec.connections.is_some()),
    ];
    let unused: Vec<_> = set.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    let only_for = format!("not in force for {}: {}; target the Service for these", shown(route), unused.join(", "));
    (!unused.is_empty()).then_some(only_for)
}

/// Places of a MeshTLSPolicy at which an older one of the same nearness wins.
fn tls_losses(objects: &Objects, settings: &Settings, policy: &crate::api::MeshTlsPolicy) -> Vec<(String, String)> {
    if policy.spec.selector.is_some() || policy.spec.mode.is_none() {
        return Vec::new();
    }
    let namespace = namespace_of(&policy.metadata);
    let places = |policy: &crate::api::MeshTlsPolicy| -> BTreeSet<String> {
        if policy.spec.selector.is_some() || policy.spec.mode.is_none() || !policy.spec.check().is_empty() {
            BTreeSet::new()
        } else if policy.spec.target_refs.is_empty() {
            let mesh = tls::mesh_wide(settings, policy);
            BTreeSet::from([if mesh { "the mesh".to_owned() } else { format!("Namespace {namespace}") }])
        } else {
            policy.spec.target_refs.iter().filter(|target| exists(objects, namespace, target)).map(shown).collect()
        }
    };
    let rivals: Vec<_> = objects.mesh_tls_policies.in_namespace(namespace).collect();
    let lost = places(policy).into_iter().filter_map(|place| {
        let winner =
            rivals.iter().filter(|rival| places(rival).contains(&place)).min_by_key(|rival| age(&rival.metadata))?;
        (age(&winner.metadata) != age(&policy.metadata)).then(|| (place, name_of(&winner.metadata).to_owned()))
    });
    lost.collect()
}

/// The first of them, and how many more there are: a status has room for no more than that.
fn overriding(phrases: &[String]) -> String {
    let shown = phrases.iter().take(MAX_SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match phrases.len().saturating_sub(MAX_SHOWN) {
        0 => format!("what is nearer comes first: {shown}"),
        more => format!("what is nearer comes first: {shown}; and {more} more"),
    }
}

fn losses(losing: &[(String, String)]) -> String {
    let texts: Vec<_> =
        losing.iter().map(|(place, winner)| format!("{winner} is older and holds for {place}")).collect();
    texts.join("; ")
}

fn shown(target: &TargetRef) -> String {
    format!("{} {}", target.kind, target.name)
}

fn invalid(errors: &[FieldError]) -> Option<String> {
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Places named in one condition; its message may have 32 KiB (Kubernetes API conventions).
const MAX_SHOWN: usize = 20;

fn in_force(generation: i64) -> Condition {
    Condition::new(ConditionType::Accepted, true, Reason::Accepted, "in force", generation)
}

fn generation(metadata: &ObjectMeta) -> i64 {
    metadata.generation.unwrap_or_default()
}
