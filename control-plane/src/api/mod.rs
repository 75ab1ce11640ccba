//! Our own kinds, group `heddle.dev/v1alpha1`, one file each.
//!
//! The schema a cluster enforces is generated from these types by `crdgen`. What a schema can say is said there; the
//! same conditions are checked by each kind's `check`, because a directory of files has no API server in front of it.
//! Nothing here knows other objects: whether a target exists is decided in `translate`.

pub mod authorization_policy;
pub mod connections;
pub mod duration;
pub mod fault_injection;
pub mod health_check;
pub mod load_balancing;
pub mod mesh_tls_policy;
pub mod rate_limit_policy;
pub mod required_header;
pub mod target;
pub mod traffic_policy;
pub mod workload;

use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;

pub use authorization_policy::{AuthorizationPolicy, AuthorizationPolicySpec};
pub use connections::Connections;
pub use duration::Duration;
pub use fault_injection::{FaultInjection, FaultInjectionSpec};
pub use health_check::HealthCheck;
pub use load_balancing::LoadBalancing;
pub use mesh_tls_policy::{MeshTlsPolicy, MeshTlsPolicySpec};
pub use rate_limit_policy::{RateLimitPolicy, RateLimitPolicySpec};
pub use target::{GATEWAY_GROUP, Selector, TargetRef};
pub use traffic_policy::{TrafficPolicy, TrafficPolicySpec};
pub use workload::{Workload, WorkloadSpec};

/// The group of all our kinds.
pub const GROUP: &str = "heddle.dev";
/// The version of all our kinds.
pub const VERSION: &str = "v1alpha1";

/// What became of an object of ours.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// `Accepted`: whether the object is in force, with the reason if it is not. `heddle.dev/Programmed`: whether all clients that
    /// use it have taken it over. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// What the clients say that use what was made of the object. Absent while none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientCounts>,
}

/// What clients say about what was made of an object: listeners, routes, clusters, endpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCounts {
    /// How many resources clients have taken over, over all clients and replicas of the control plane.
    pub accepted: i64,
    /// How many resources clients have refused and not taken over since; they keep the version before.
    pub refused: i64,
    /// Who refused what, and why, while one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<String>,
}

/// A field whose value cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where it is, as `spec.ports[0].port`.
    pub field: String,
    /// What stands there, as text.
    pub value: String,
    /// What would be right.
    pub remedy: String,
}

impl FieldError {
    /// `object` as the type that it should be, or the field that keeps it from that.
    ///
    /// # Errors
    /// With the field's path and value.
    pub fn read<T: DeserializeOwned>(object: &Value) -> Result<T, Self> {
        serde_path_to_error::deserialize(object).map_err(|error| {
            let path = error.path().to_string();
            let found = error.path().iter().try_fold(object, |at, segment| match segment {
                Segment::Seq { index } => at.get(index),
                Segment::Map { key } => at.get(key),
                Segment::Enum { .. } | Segment::Unknown => None,
            });
            let value = found.filter(|value| !value.is_object() && !value.is_array());
            let value = value.map(|value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned));
            let field = if path == "." { String::new() } else { path };
            Self::new(field, value.unwrap_or_default(), error.inner().to_string())
        })
    }

    /// An error from its parts.
    pub fn new(field: impl Into<String>, value: impl ToString, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), remedy: remedy.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        if !self.value.is_empty() {
            write!(f, "`{}`: ", self.value)?;
        }
        f.write_str(&self.remedy)
    }
}

/// All our definitions, for `crdgen`.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        AuthorizationPolicy::crd(),
        FaultInjection::crd(),
        MeshTlsPolicy::crd(),
        RateLimitPolicy::crd(),
        TrafficPolicy::crd(),
        Workload::crd(),
    ];
    let versions = all.iter_mut().flat_map(|definition| &mut definition.spec.versions);
    for schema in versions.filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut()) {
        drop_foreign_formats(schema);
    }
    all
}

/// Kubernetes knows no unsigned formats and warns of them; the limits say the same.
fn drop_foreign_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_ref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    schema.properties.iter_mut().flatten().for_each(|(_, inner)| drop_foreign_formats(inner));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_foreign_formats(items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_has_a_status_and_describes_every_field() {
        for definition in definitions() {
            let name = definition.metadata.name.clone().unwrap();
            for version in &definition.spec.versions {
                assert!(version.subresources.as_ref().is_some_and(|s| s.status.is_some()), "{name} has no status");
                let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).unwrap();
                let spec = schema.properties.as_ref().unwrap().get("spec").unwrap();
                undescribed(spec, &format!("{name}.spec"));
            }
        }
    }

    fn undescribed(schema: &JSONSchemaProps, path: &str) {
        for (field, inner) in schema.properties.iter().flatten() {
            let path = format!("{path}.{field}");
            let text = inner.description.as_deref().unwrap_or_default();
            assert!(text.len() > 10, "{path} has no description");
            let required = schema.required.iter().flatten().any(|name| name == field);
            assert!(required || text.contains("efault"), "{path} does not say what holds without it");
            undescribed(inner, &path);
            if let Some(JSONSchemaPropsOrArray::Schema(items)) = &inner.items {
                undescribed(items, &format!("{path}[]"));
            }
        }
    }
}
