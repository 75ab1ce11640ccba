//! Probes and lifecycle hooks that the kubelet sends over the network: under STRICT the application's ports take mutual
//! TLS only, so the kubelet asks the sidecar's port 15020, and the sidecar asks the application.
//!
//! What is asked there travels in the variable [`PROBES`], as JSON: by `<container>/<probe>` the action in Kubernetes'
//! own words, its port a number. `proxy/src/probes.rs` reads it. Left alone are actions with a host of their own, which
//! are not aimed at the pod; those at ports that stay uncaptured; those whose port name nobody defines, so that the
//! kubelet says so as ever; and `exec`.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Pod, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::{Value, json};

use super::annotations::Wishes;
use super::check::DEFAULT_GRACE_SECONDS;
use super::patch::{Edits, pointer};
use super::{CAPTURE_CONTAINER, METRICS_PORT, PROXY_CONTAINER};

/// The sidecar's environment variable.
pub(super) const PROBES: &str = "HEDDLE_PROBES";

/// What the sidecar is to ask, by `<container>/<probe>`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Specs(BTreeMap<String, Spec>);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(flatten)]
    action: Action,
    timeout_seconds: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Action {
    #[serde(rename_all = "camelCase")]
    HttpGet {
        scheme: String,
        port: u16,
        path: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        http_headers: Vec<Value>,
    },
    TcpSocket {
        port: u16,
    },
    Grpc {
        port: u16,
        service: String,
    },
}

impl Specs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn as_json(&self) -> BTreeMap<String, Value> {
        self.0.iter().map(|(name, spec)| (name.clone(), json!(spec))).collect()
    }
}

impl fmt::Display for Specs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", json!(self))
    }
}

/// Turns everything towards the sidecar that must be; returns what the sidecar is to do instead.
pub(super) fn rewrite(pod: &Value, typed: &Pod, wishes: &Wishes, edits: &mut Edits) -> Specs {
    let mut specs = Specs::default();
    let Some(spec) = &typed.spec else { return specs };
    let grace = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
    let lists = [("initContainers", spec.init_containers.as_deref()), ("containers", Some(&spec.containers[..]))];
    for (list, containers) in lists {
        for (at, container) in containers.into_iter().flatten().enumerate() {
            if [CAPTURE_CONTAINER, PROXY_CONTAINER].contains(&container.name.as_str()) {
                continue;
            }
            let written = &pod["spec"][list][at];
            let mut rewriter = Rewriter { list, at, written, container, wishes, specs: &mut specs, edits };
            rewriter.probes();
            rewriter.hooks(grace);
        }
    }
    specs
}

struct Rewriter<'r> {
    list: &'static str,
    at: usize,
    /// The container as it was written: what we do not know of stays.
    written: &'r Value,
    container: &'r Container,
    wishes: &'r Wishes,
    specs: &'r mut Specs,
    edits: &'r mut Edits,
}

impl Rewriter<'_> {
    fn probes(&mut self) {
        let container = self.container;
        let probes = [
            ("livenessProbe", "liveness", &container.liveness_probe),
            ("readinessProbe", "readiness", &container.readiness_probe),
            ("startupProbe", "startup", &container.startup_probe),
        ];
        for (field, name, probe) in probes {
            let Some(probe) = probe else { continue };
            let action = self.action(probe.http_get.as_ref(), probe.tcp_socket.as_ref(), probe.grpc.as_ref());
            let Some(action) = action else { continue };
            let mut new = self.written[field].clone();
            if let Some(fields) = new.as_object_mut() {
                fields.retain(|name, _| !["httpGet", "tcpSocket", "grpc"].contains(&name.as_str()));
                fields.insert("httpGet".to_owned(), self.towards_sidecar(name));
            }
            self.edits.replace(pointer!["spec", self.list, self.at, field], new);
            self.note(name, action, probe.timeout_seconds.map_or(DEFAULT_TIMEOUT_SECONDS, i64::from));
        }
    }

    /// A hook has as long as its pod has to end, or to begin.
    fn hooks(&mut self, grace: i64) {
        let Some(lifecycle) = &self.container.lifecycle else { return };
        let hooks = [
            ("postStart", "post-start", &lifecycle.post_start, POST_START_SECONDS),
            ("preStop", "pre-stop", &lifecycle.pre_stop, grace.max(1)),
        ];
        for (field, name, hook, seconds) in hooks {
            let http_get = hook.as_ref().and_then(|hook| hook.http_get.as_ref());
            let Some(action) = self.action(http_get, None, None) else { continue };
            let path = pointer!["spec", self.list, self.at, "lifecycle", field, "httpGet"];
            self.edits.replace(path, self.towards_sidecar(name));
            self.note(name, action, seconds);
        }
    }

    fn towards_sidecar(&self, name: &str) -> Value {
        let path = format!("{PATH}{}/{name}", self.container.name);
        json!({ "path": path, "port": METRICS_PORT, "scheme": "HTTP" })
    }

    fn note(&mut self, name: &str, action: Action, timeout_seconds: i64) {
        self.specs.0.insert(format!("{}/{name}", self.container.name), Spec { action, timeout_seconds });
    }

    fn action(
        &self,
        http: Option<&HTTPGetAction>,
        tcp: Option<&TCPSocketAction>,
        grpc: Option<&GRPCAction>,
    ) -> Option<Action> {
        let own = |host: Option<&String>| host.is_none_or(String::is_empty);
        if let Some(http) = http.filter(|http| own(http.host.as_ref())) {
            let headers = http.http_headers.iter().flatten();
            return Some(Action::HttpGet {
                scheme: http.scheme.clone().unwrap_or_else(|| "HTTP".to_owned()),
                port: self.captured(&http.port)?,
                path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
                http_headers: headers.map(|header| json!({ "name": header.name, "value": header.value })).collect(),
            });
        }
        if let Some(tcp) = tcp.filter(|tcp| own(tcp.host.as_ref())) {
            return Some(Action::TcpSocket { port: self.captured(&tcp.port)? });
        }
        let grpc = grpc?;
        let port = self.captured(&IntOrString::Int(grpc.port))?;
        Some(Action::Grpc { port, service: grpc.service.clone().unwrap_or_default() })
    }

    /// The port's number, if connections to it are captured. A name means a port of the same container (Kubernetes,
    /// `Probe`).
    fn captured(&self, port: &IntOrString) -> Option<u16> {
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                ports.find(|port| port.name.as_ref() == Some(name))?.container_port
            }
        };
        let number = u16::try_from(number).ok().filter(|number| *number > 0)?;
        let excluded = self.wishes.exclude_inbound_ports.iter().any(|range| range.contains(number));
        (number != METRICS_PORT && !excluded).then_some(number)
    }
}

/// What the sidecar answers for applications under; `proxy/src/probes.rs` has the same.
const PATH: &str = "/probe/";
/// Kubernetes' default of a probe's `timeoutSeconds`.
const DEFAULT_TIMEOUT_SECONDS: i64 = 1;
/// Chosen: the kubelet waits for postStart without limit; an hour is more than anyone wants it to.
const POST_START_SECONDS: i64 = 3600;
