//! What became of an object, as conditions. The pure part: `translate` makes it, the golden cases show it, a writer
//! with a clock adds transition times and puts it into the object ([`merge`]). Not here: writing.

pub mod merge;

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::objects::route::ParentRef;

/// The status of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Status {
    /// An HTTPRoute's or GRPCRoute's: one entry per parent that is a Service.
    Route(RouteStatus),
    /// One of our own kinds'.
    Object(ObjectStatus),
}

/// Gateway API's `RouteStatus`, our entries only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// In the order of the route's own parentRefs.
    pub parents: Vec<ParentStatus>,
}

/// What became of a route at one parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// As the route wrote it.
    pub parent_ref: ParentRef,
    /// [`CONTROLLER`].
    pub controller_name: &'static str,
    /// By type.
    pub conditions: Vec<Condition>,
}

/// The status of our own kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// By type.
    pub conditions: Vec<Condition>,
}

/// One condition (Kubernetes API conventions, "Typical status properties"), without its transition time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is judged.
    pub r#type: ConditionType,
    /// The judgement.
    #[serde(serialize_with = "truth")]
    pub status: bool,
    /// Why, in one word.
    pub reason: Reason,
    /// Why, for the operator: what was found, and what would be right.
    pub message: Arc<str>,
    /// The generation of the object that was judged.
    pub observed_generation: i64,
}

/// Types of conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ConditionType {
    /// Whether the object is in force.
    Accepted,
    /// Whether all references could be followed.
    ResolvedRefs,
    /// Present and true where a part of the object is not in force.
    PartiallyInvalid,
    /// Present and true where something nearer to the requests says otherwise.
    Overridden,
}

/// Reasons, Gateway API's where it has one (`RouteConditionReason`, `PolicyConditionReason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Reason {
    /// In force.
    Accepted,
    /// All references found.
    ResolvedRefs,
    /// The parent is not there, or has no such port.
    NoMatchingParent,
    /// A value is not supported or cannot be meant.
    UnsupportedValue,
    /// Another object holds the same place and wins.
    Conflicted,
    /// Another object holds a nearer place and comes first there (GEP-713).
    Overridden,
    /// A target is not there.
    TargetNotFound,
    /// A value cannot be meant.
    Invalid,
    /// A backend is not there, or has no such port.
    BackendNotFound,
    /// A backend in another namespace, and no ReferenceGrant there.
    RefNotPermitted,
    /// A backend that is no Service.
    InvalidKind,
    /// What a filter names is not there.
    FilterNotFound,
    /// A backend whose port carries no HTTP.
    UnsupportedProtocol,
}

impl Condition {
    /// A condition from its parts.
    pub fn new(
        r#type: ConditionType,
        status: bool,
        reason: Reason,
        message: impl Into<Arc<str>>,
        generation: i64,
    ) -> Self {
        Self { r#type, status, reason, message: message.into(), observed_generation: generation }
    }
}

impl Status {
    /// All conditions, over all parents.
    pub fn conditions(&self) -> Vec<&Condition> {
        match self {
            Self::Route(status) => status.parents.iter().flat_map(|parent| &parent.conditions).collect(),
            Self::Object(status) => status.conditions.iter().collect(),
        }
    }
}

fn truth<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *value { "True" } else { "False" })
}

/// Who wrote a route's status (Gateway API, `RouteParentStatus.controllerName`).
pub const CONTROLLER: &str = "heddle.dev/control-plane";
