//! What the installation wants of every sidecar: one YAML file, which the chart keeps in a ConfigMap and `heddle inject`
//! takes with `--settings`. Unknown fields are errors.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use super::VERSION;
use super::quantity::nanos;
use crate::api::FieldError;
use crate::config::DEFAULT_TRUST_DOMAIN;
use crate::objects::ports::{self, MAX_EXCLUSIONS, PortRange};

/// The settings. A field that is left out has the value named at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Image of the sidecar and of the capture container. Default: `heddle.dev/heddle-proxy` of this version, as the chart's.
    pub image: String,
    /// When the image is pulled. Default: IfNotPresent.
    pub image_pull_policy: PullPolicy,
    /// Where sidecars find the control plane. Default: `https://heddle-control-plane.heddle-system.svc:15012`.
    pub control_plane: String,
    /// Trust domain of the mesh. Default: `cluster.local`.
    pub trust_domain: String,
    /// Filter of the sidecars' log, in the syntax of `tracing`. Default: `info`.
    pub log: String,
    /// One line a request on standard output. Default: off.
    pub access_log: AccessLog,
    /// Processor and memory of a sidecar, and of its capture container. Default: requests of 10m and 32Mi, no limits.
    pub resources: Resources,
    /// Whether a CNI plugin captures traffic, so that no container of a pod needs NET_ADMIN. Default: false.
    pub cni: bool,
    /// Destinations that go out uncaptured, of every pod. Default: none.
    #[serde(deserialize_with = "networks")]
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Ports that are reached uncaptured, of every pod. Default: none.
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Destination ports that go out uncaptured, of every pod. Default: none.
    pub exclude_outbound_ports: Vec<PortRange>,
}

/// When an image is pulled, as Kubernetes names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node lacks it.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// The sidecar's access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// None.
    Off,
    /// `name=value` pairs.
    Text,
    /// One JSON object a request or opaque connection.
    Json,
}

/// Resources of a container, in Kubernetes' quantities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// What is kept for it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
    /// What it may take.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
}

impl AccessLog {
    /// As the sidecar's flag names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let requests = [("cpu", "10m"), ("memory", "32Mi")];
        Self {
            image: format!("heddle.dev/heddle-proxy:{VERSION}"),
            image_pull_policy: PullPolicy::IfNotPresent,
            control_plane: DEFAULT_CONTROL_PLANE.to_owned(),
            trust_domain: DEFAULT_TRUST_DOMAIN.to_owned(),
            log: "info".to_owned(),
            access_log: AccessLog::Off,
            resources: Resources {
                requests: requests.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
                limits: BTreeMap::new(),
            },
            cni: false,
            exclude_outbound_cidrs: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
        }
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No YAML, an unknown field, or a value of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// A value that cannot be meant.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Values(Vec<FieldError>),
}

impl Settings {
    /// Reads a settings file. An empty one means the defaults.
    ///
    /// # Errors
    /// Names each field with its value and what would be right.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let read: Option<Self> =
            serde_saphyr::from_str(text).map_err(|error| Error::Syntax(error.without_snippet().to_string()))?;
        let settings = read.unwrap_or_default();
        let errors = settings.errors();
        if errors.is_empty() { Ok(settings) } else { Err(Error::Values(errors)) }
    }

    fn errors(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        if self.image.is_empty() || self.image.contains(char::is_whitespace) {
            found.push(FieldError::new("image", &self.image, "name the sidecar's image"));
        }
        if !self.control_plane.starts_with("https://") {
            let remedy = format!("write https://, a host and a port, as {DEFAULT_CONTROL_PLANE}");
            found.push(FieldError::new("controlPlane", &self.control_plane, remedy));
        }
        if let Err(error) = heddle_certs::identity::TrustDomain::parse(&self.trust_domain) {
            found.push(FieldError::new("trustDomain", &self.trust_domain, error.to_string()));
        }
        if let Err(error) = log_filter(&self.log) {
            found.push(FieldError::new("log", &self.log, error));
        }
        for (part, values) in [("requests", &self.resources.requests), ("limits", &self.resources.limits)] {
            for (name, value) in values.iter().filter(|(_, value)| nanos(value).is_none()) {
                found.push(FieldError::new(format!("resources.{part}.{name}"), value, QUANTITY));
            }
        }
        for (name, request) in &self.resources.requests {
            if self.resources.limits.get(name).is_some_and(|limit| nanos(limit) < nanos(request)) {
                let remedy = "ask for no more than the limit";
                found.push(FieldError::new(format!("resources.requests.{name}"), request, remedy));
            }
        }
        let lists = [
            ("excludeOutboundCidrs", self.exclude_outbound_cidrs.len()),
            ("excludeInboundPorts", self.exclude_inbound_ports.len()),
            ("excludeOutboundPorts", self.exclude_outbound_ports.len()),
        ];
        for (field, count) in lists.into_iter().filter(|(_, count)| *count > MAX_EXCLUSIONS) {
            found.push(FieldError::new(field, count, format!("give at most {MAX_EXCLUSIONS}")));
        }
        found
    }
}

/// Whether a sidecar can read the filter.
pub(super) fn log_filter(text: &str) -> Result<(), String> {
    let parsed = tracing_subscriber::EnvFilter::builder().parse(text);
    parsed.map(drop).map_err(|error| format!("{error}; write a filter as `info` or `info,heddle_proxy=debug`"))
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| ports::network(text).map_err(serde::de::Error::custom)).collect()
}

/// The control plane's Service, by the name every pod resolves whatever the cluster's domain.
const DEFAULT_CONTROL_PLANE: &str = "https://heddle-control-plane.heddle-system.svc:15012";
/// What would be right instead of a text that is no quantity.
pub(super) const QUANTITY: &str = "write a quantity above 0, as `100m` or `64Mi`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_means_the_defaults_and_they_are_sound() {
        for text in ["", "# nothing\n", "{}"] {
            assert_eq!(Settings::parse(text).unwrap(), Settings::default());
        }
        assert_eq!(Settings::default().errors(), []);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = "image: heddle-proxy:1\nimagePullPolicy: Never\nexcludeInboundPorts: [22, 9000-9010]\n\
                    excludeOutboundCidrs: [169.254.169.254, fd00::/8]\nresources: {limits: {memory: 1Gi}}\n";
        let settings = Settings::parse(text).unwrap();
        assert_eq!(settings.exclude_outbound_cidrs[0].to_string(), "169.254.169.254/32");
        assert!(settings.exclude_inbound_ports[1].contains(9005));
        assert_eq!(Settings::parse(&serde_saphyr::to_string(&settings).unwrap()).unwrap(), settings);
    }

    #[test]
    fn a_field_nobody_knows_and_values_that_cannot_be_meant_are_named() {
        for (text, named) in [
            ("imagePullpolicy: Always", "imagePullpolicy"),
            ("imagePullPolicy: Sometimes", "Sometimes"),
            ("excludeInboundPorts: [0]", "`0`"),
            ("excludeOutboundCidrs: [10.0.0.0/33]", "10.0.0.0/33"),
            ("controlPlane: http://a", "controlPlane"),
            ("log: a=b=c", "log"),
            ("trustDomain: A b", "trustDomain"),
            ("resources: {requests: {cpu: much}}", "resources.requests.cpu: `much`"),
            ("resources: {requests: {cpu: 2}, limits: {cpu: 1}}", "resources.requests.cpu"),
            ("resources: {claims: []}", "claims"),
            ("accessLog: xml", "xml"),
        ] {
            let error = Settings::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
