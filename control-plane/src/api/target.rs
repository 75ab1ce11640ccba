//! What a policy attaches to.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FieldError;

/// An object in the policy's own namespace (Gateway API, GEP-713, "LocalPolicyTargetReference"). A policy never
/// reaches into another namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// API group of the target; empty for Kubernetes' own kinds, which is the default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub group: String,
    /// Kind of the target.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name of the target. For a Namespace it must be the policy's own.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Which workloads of the policy's namespace are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Selector {
    /// All of these labels, with these values; 1 to 16.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,
}

impl Selector {
    /// Whether `labels` has all of mine.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// Gateway API's group.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Errors in how many targets there are and of which kinds.
pub(super) fn check(
    targets: &[TargetRef],
    selector: Option<&Selector>,
    kinds: &[(&str, &str)],
    found: &mut Vec<FieldError>,
) {
    if targets.len() > MAX_TARGETS {
        found.push(FieldError::new("spec.targetRefs", targets.len(), format!("give at most {MAX_TARGETS} targets")));
    }
    if let Some(selector) = selector {
        if !targets.is_empty() {
            let remedy = "give either targetRefs or selector; for both, write two policies";
            found.push(FieldError::new("spec.selector", "set beside targetRefs", remedy));
        }
        if selector.match_labels.is_empty() {
            let remedy = "name at least one label; for all workloads of the namespace leave the selector out";
            found.push(FieldError::new("spec.selector.matchLabels", "{}", remedy));
        }
    }
    for (i, target) in targets.iter().enumerate() {
        if !kinds.contains(&(target.group.as_str(), target.kind.as_str())) {
            let known: Vec<_> = kinds.iter().map(|(group, kind)| shown(group, kind)).collect();
            let remedy = format!("target one of {}", known.join(", "));
            found.push(FieldError::new(
                format!("spec.targetRefs[{i}].kind"),
                shown(&target.group, &target.kind),
                remedy,
            ));
        }
    }
}

fn shown(group: &str, kind: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind} ({group})") }
}

/// Chosen: Gateway API's own policies allow 16.
const MAX_TARGETS: usize = 16;
