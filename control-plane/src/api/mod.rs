//! Our own kinds, group `heddle.dev/v1alpha1`, one file each.
//!
//! The schema a cluster enforces is generated from these types by `crdgen`. What a schema can say is said there; the
//! same conditions are checked by each kind's `check`, because a directory of files has no API server in front of it.
//! Nothing here knows other objects: whether a target exists is decided in `translate`.

pub mod authorization_policy;
pub mod duration;
pub mod mesh_tls_policy;
pub mod target;
pub mod traffic_policy;
pub mod workload;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use authorization_policy::{AuthorizationPolicy, AuthorizationPolicySpec};
pub use duration::Duration;
pub use mesh_tls_policy::{MeshTlsPolicy, MeshTlsPolicySpec};
pub use target::{Selector, TargetRef};
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
    /// An error from its parts.
    pub fn new(field: impl Into<String>, value: impl ToString, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), remedy: remedy.into() }
    }
}

/// All our definitions, for `crdgen`.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![AuthorizationPolicy::crd(), MeshTlsPolicy::crd(), TrafficPolicy::crd(), Workload::crd()];
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
            assert!(inner.description.as_ref().is_some_and(|text| text.len() > 10), "{path} has no description");
            undescribed(inner, &path);
            if let Some(JSONSchemaPropsOrArray::Schema(items)) = &inner.items {
                undescribed(items, &format!("{path}[]"));
            }
        }
    }
}
