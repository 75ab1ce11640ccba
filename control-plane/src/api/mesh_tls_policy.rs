//! `MeshTLSPolicy`: which inbound connections a workload takes.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::target;
use super::{FieldError, ObjectStatus, Selector, TargetRef};

/// Which inbound connections workloads take. A port's mode wins over the workload's, that over the namespace's, that
/// over the mesh's; of two that reach equally near the oldest wins. The mesh's is the one without target in
/// `heddle-system`; without any, the mode is PERMISSIVE.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "MeshTLSPolicy",
    root = "MeshTlsPolicy",
    plural = "meshtlspolicies",
    namespaced,
    status = "ObjectStatus",
    doc = "Which inbound connections workloads take: STRICT, PERMISSIVE or DISABLE.",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.targetRefs) || self.targetRefs.all(t, (!has(t.group) || t.group == '') && t.kind in ['Namespace', 'ServiceAccount', 'Service'])").message("target a Namespace, ServiceAccount or Service"))]
#[x_kube(validation = Rule::new("!(has(self.selector) && has(self.targetRefs) && size(self.targetRefs) > 0)").message("give either targetRefs or selector"))]
#[x_kube(validation = Rule::new("has(self.mode) || (has(self.portLevel) && size(self.portLevel) > 0)").message("give mode, portLevel, or both"))]
#[x_kube(validation = Rule::new("!has(self.portLevel) || self.portLevel.all(p, p.matches('^[1-9][0-9]{0,4}$') && int(p) <= 65535)").message("write ports in portLevel as numbers from 1 to 65535, without sign or leading zero"))]
#[x_kube(validation = Rule::new("!has(self.portLevel) || size(self.portLevel) == 0 || !has(self.targetRefs) || self.targetRefs.all(t, t.kind != 'Service')").message("leave portLevel out: a Service target means the Service's target ports"))]
pub struct MeshTlsPolicySpec {
    /// The policy's own Namespace, ServiceAccounts, or Services (their workloads, at their target ports); at most 16.
    /// Default: all workloads of the namespace; in `heddle-system`, of the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Workloads by their labels, instead of targetRefs. Default: what targetRefs say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// STRICT, PERMISSIVE or DISABLE, for all ports that portLevel does not name. Default: what a wider policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// By the application's port number, as text; at most 64. Default: none. Not together with a Service target, whose
    /// target ports are meant already.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub port_level: BTreeMap<String, Mode>,
}

/// Which connections are taken: STRICT, PERMISSIVE or DISABLE. Default, where it may be left out: what a wider policy says.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
pub enum Mode {
    /// Only mutual TLS between sidecars.
    Strict,
    /// Mutual TLS where offered, else as it comes.
    Permissive,
    /// As it comes; mutual TLS is not offered.
    Disable,
}

impl MeshTlsPolicySpec {
    /// The modes by port whose numbers can be read.
    pub fn ports(&self) -> impl Iterator<Item = (u16, Mode)> + '_ {
        self.port_level.iter().filter_map(|(port, mode)| Some((read_port(port)?, *mode)))
    }

    /// What cannot be meant.
    pub fn check(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        target::check(&self.target_refs, self.selector.as_ref(), TARGETS, &mut found);
        if self.mode.is_none() && self.port_level.is_empty() {
            found.push(FieldError::new("spec.mode", "absent", "give mode, portLevel, or both"));
        }
        if self.port_level.len() > MAX_PORTS {
            let remedy = format!("give at most {MAX_PORTS} ports");
            found.push(FieldError::new("spec.portLevel", self.port_level.len(), remedy));
        }
        for port in self.port_level.keys() {
            if read_port(port).is_none() {
                found.push(FieldError::new(format!("spec.portLevel.{port}"), port, "give a port from 1 to 65535"));
            }
        }
        if !self.port_level.is_empty() && self.target_refs.iter().any(|target| target.kind == "Service") {
            let remedy = "leave portLevel out: a Service target means the Service's target ports";
            found.push(FieldError::new("spec.portLevel", "set beside a Service target", remedy));
        }
        found
    }
}

fn read_port(text: &str) -> Option<u16> {
    // No sign, no leading zero: one spelling each, so that a port cannot stand there twice.
    let port = text.parse::<u16>().ok()?;
    (port > 0 && port.to_string() == text).then_some(port)
}

/// Kinds a MeshTLSPolicy may target.
const TARGETS: &[(&str, &str)] = &[("", "Namespace"), ("", "ServiceAccount"), ("", "Service")];
/// Chosen: as many as a Workload may have.
const MAX_PORTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_spelling_only() {
        let port_level = [("80", Mode::Strict), ("080", Mode::Disable), ("+81", Mode::Strict), ("0", Mode::Strict)];
        let spec = MeshTlsPolicySpec {
            port_level: port_level.iter().map(|(port, mode)| ((*port).to_owned(), *mode)).collect(),
            ..MeshTlsPolicySpec::default()
        };
        assert_eq!(spec.ports().collect::<Vec<_>>(), [(80, Mode::Strict)]);
        assert_eq!(spec.check().len(), 3);
    }

    #[test]
    fn a_policy_that_says_nothing_is_refused() {
        assert_eq!(MeshTlsPolicySpec::default().check()[0].field, "spec.mode");
    }
}
