//! What is to be asked, as injection wrote it into `HEDDLE_PROBES`: a JSON object of actions in Kubernetes' own words, by
//! `<container>/<probe>`. `control-plane/src/inject/probes.rs` writes it.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// All probes of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Specs(pub BTreeMap<String, Spec>);

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// What is asked.
    #[serde(flatten)]
    pub action: Action,
    /// How long the kubelet waits, in seconds; at least 1.
    pub timeout_seconds: u32,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// An HTTP request.
    HttpGet(HttpGet),
    /// A connection.
    TcpSocket {
        /// Where.
        port: u16,
    },
    /// gRPC's health protocol.
    Grpc {
        /// Where.
        port: u16,
        /// Whose health; empty: the whole server's.
        service: String,
    },
}

/// An HTTP request, as Kubernetes' `HTTPGetAction` without host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// With or without TLS.
    pub scheme: Scheme,
    /// Where.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Sent as they are; `Host`, `User-Agent` and `Accept` in the place of the kubelet's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<HttpHeader>,
}

/// One header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// With or without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    /// Without.
    Http,
    /// With, not verified.
    Https,
}

/// What a probe is for; its name is the last part of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Is the container to be started anew?
    Liveness,
    /// May it have traffic?
    Readiness,
    /// Has it begun?
    Startup,
    /// It has just begun.
    PostStart,
    /// It is about to end.
    PreStop,
}

/// Probes that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON that was expected.
    #[error("{0}; injection writes this, so is the sidecar's image older or newer than the control plane?")]
    Json(#[from] serde_json::Error),
    /// A name that is none.
    #[error("`{0}`: write <container>/liveness, readiness, startup, post-start or pre-stop")]
    Name(String),
}

impl FromStr for Specs {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let specs: Self = serde_json::from_str(text)?;
        match specs.0.keys().find(|name| Kind::of(name).is_none()) {
            Some(name) => Err(Error::Name(name.clone())),
            None => Ok(specs),
        }
    }
}

impl Spec {
    /// How long the application has, so that the kubelet, which is waiting too, hears what went wrong.
    pub(super) fn limit(&self) -> Duration {
        let whole = Duration::from_secs(self.timeout_seconds.max(1).into());
        whole - MARGIN
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Liveness, Self::Readiness, Self::Startup, Self::PostStart, Self::PreStop];

    /// The kind of `<container>/<kind>`.
    pub fn of(name: &str) -> Option<Self> {
        let (container, kind) = name.split_once('/')?;
        Self::ALL.into_iter().find(|known| !container.is_empty() && known.name() == kind)
    }

    /// As paths and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
            Self::PostStart => "post-start",
            Self::PreStop => "pre-stop",
        }
    }

    /// Whether it tells the application something, instead of asking it.
    pub(super) fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }
}

/// What is kept of a timeout for the answer's own way. Chosen: a tenth of the shortest timeout there is, 1 s.
const MARGIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_injection_writes_is_read() {
        let text = r#"{
            "api/liveness": {"httpGet":{"scheme":"HTTPS","port":8443,"path":"/up?a=b","httpHeaders":[{"name":"Host","value":"api"}]},"timeoutSeconds":5},
            "api/readiness": {"tcpSocket":{"port":8080},"timeoutSeconds":1},
            "api/pre-stop": {"grpc":{"port":9090,"service":"shop.Cart"},"timeoutSeconds":1}
        }"#;
        let specs: Specs = text.parse().unwrap();
        assert_eq!(specs.0.len(), 3);
        assert_eq!(specs.0["api/readiness"].action, Action::TcpSocket { port: 8080 });
        assert_eq!(serde_json::to_string(&specs).unwrap().parse::<Specs>().unwrap(), specs);
        assert_eq!("{}".parse::<Specs>().unwrap(), Specs::default());
    }

    #[test]
    fn a_name_that_is_none_and_an_unknown_action_are_refused() {
        let spec = r#"{"tcpSocket":{"port":80},"timeoutSeconds":1}"#;
        for name in ["api", "api/ready", "/liveness", "api/liveness/more"] {
            let error = format!("{{\"{name}\":{spec}}}").parse::<Specs>().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(r#"{"api/liveness":{"exec":{},"timeoutSeconds":1}}"#.parse::<Specs>().is_err());
    }

    #[test]
    fn the_application_has_a_little_less_time_than_the_kubelet_waits() {
        let spec = |timeout_seconds| Spec { action: Action::TcpSocket { port: 1 }, timeout_seconds };
        assert_eq!(spec(1).limit(), Duration::from_millis(900));
        assert_eq!(spec(0).limit(), Duration::from_millis(900));
    }
}
