//! What a pod's author wants of its sidecar: annotations `heddle.dev/…`. A wrong value is refused, never ignored.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::quantity::nanos;
use super::settings::{self, AccessLog, QUANTITY, Resources};
use super::{INJECT, INJECTED, Settings};
use crate::api::FieldError;
use crate::api::workload::MAX_WEIGHT;
use crate::objects::pod::{EXCLUDE_INBOUND_PORTS, PROXYLESS, WEIGHT};
use crate::objects::ports::{self, MAX_EXCLUSIONS, PortRange};

/// The settings as they hold for one pod.
#[derive(Debug, Clone)]
pub(super) struct Wishes {
    pub(super) exclude_inbound_ports: Vec<PortRange>,
    pub(super) exclude_outbound_ports: Vec<PortRange>,
    pub(super) exclude_outbound_cidrs: Vec<IpNet>,
    pub(super) log: String,
    pub(super) access_log: AccessLog,
    pub(super) resources: Resources,
    /// Worker threads, if the pod says how many.
    pub(super) workers: Option<u16>,
    /// How long applications without a preStop hook of their own go on before they are told to end.
    pub(super) pre_stop_seconds: Option<u16>,
}

impl Wishes {
    /// What stays uncaptured, by annotation, as lists that `heddle-proxy capture` reads; no empty ones.
    pub(super) fn exclusions(&self) -> impl Iterator<Item = (&'static str, String)> {
        fn joined<T: ToString>(items: &[T]) -> String {
            items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }
        let all = [
            (EXCLUDE_INBOUND_PORTS, joined(&self.exclude_inbound_ports)),
            (EXCLUDE_OUTBOUND_PORTS, joined(&self.exclude_outbound_ports)),
            (EXCLUDE_OUTBOUND_CIDRS, joined(&self.exclude_outbound_cidrs)),
        ];
        all.into_iter().filter(|(_, list)| !list.is_empty())
    }
}

/// What the pod's annotations and the installation's settings come to, and what is wrong with the annotations.
pub(super) fn read(metadata: &ObjectMeta, settings: &Settings) -> (Wishes, Vec<FieldError>) {
    let mut reader = Reader { annotations: metadata.annotations.as_ref(), errors: Vec::new() };
    let mut wishes = Wishes {
        exclude_inbound_ports: settings.exclude_inbound_ports.clone(),
        exclude_outbound_ports: settings.exclude_outbound_ports.clone(),
        exclude_outbound_cidrs: settings.exclude_outbound_cidrs.clone(),
        log: settings.log.clone(),
        access_log: settings.access_log,
        resources: settings.resources.clone(),
        workers: reader.read(WORKERS, |text| number(text, 0, MAX_WORKERS)),
        pre_stop_seconds: reader.read(PRE_STOP_SECONDS, |text| number(text, 1, MAX_PRE_STOP_SECONDS)),
    };
    reader.extend(EXCLUDE_INBOUND_PORTS, &mut wishes.exclude_inbound_ports, str::parse);
    reader.extend(EXCLUDE_OUTBOUND_PORTS, &mut wishes.exclude_outbound_ports, str::parse);
    reader.extend(EXCLUDE_OUTBOUND_CIDRS, &mut wishes.exclude_outbound_cidrs, ports::network);
    if let Some(log) = reader.read(LOG, |text| settings::log_filter(text).map(|()| text.to_owned())) {
        wishes.log = log;
    }
    if let Some(access_log) = reader.read(ACCESS_LOG, access_log) {
        wishes.access_log = access_log;
    }
    for (annotation, name, limit) in QUANTITIES {
        let Some(value) = reader.read(annotation, quantity) else { continue };
        let part = if limit { &mut wishes.resources.limits } else { &mut wishes.resources.requests };
        part.insert(name.to_owned(), value);
    }
    // The control plane reads it of the pod.
    reader.read(WEIGHT, |text| number(text, 1, MAX_WEIGHT as u16));
    reader.read(PROXYLESS, not_proxyless);
    reader.compare(&wishes.resources);
    (wishes, reader.errors)
}

/// Annotations of ours that nobody knows: most likely misspelt, so that what they ask for does not happen.
pub(super) fn warnings(metadata: &ObjectMeta) -> Vec<String> {
    let all = metadata.annotations.iter().flatten().map(|(name, _)| name.as_str());
    let unknown = all.filter(|name| name.starts_with(PREFIX) && !KNOWN.contains(name));
    unknown
        .map(|name| format!("annotation {name} is unknown and does nothing; known are {}", KNOWN.join(", ")))
        .collect()
}

struct Reader<'p> {
    annotations: Option<&'p BTreeMap<String, String>>,
    errors: Vec<FieldError>,
}

impl Reader<'_> {
    fn read<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.annotations?.get(name)?;
        match parse(value.trim()) {
            Ok(read) => Some(read),
            Err(remedy) => {
                self.errors.push(FieldError::new(format!("annotation {name}"), value, remedy));
                None
            }
        }
    }

    /// A list adds to what holds for every pod.
    fn extend<T: PartialEq>(&mut self, name: &str, all: &mut Vec<T>, item: impl Fn(&str) -> Result<T, String>) {
        let before = all.len();
        let more = self.read(name, |text| {
            let more = ports::list(text, item)?;
            if before + more.len() > MAX_EXCLUSIONS {
                return Err(format!("together with the installation's own give at most {MAX_EXCLUSIONS}"));
            }
            Ok(more)
        });
        for item in more.into_iter().flatten() {
            if !all.contains(&item) {
                all.push(item);
            }
        }
    }

    /// A request above its limit, which the API server would refuse without saying where they come from.
    fn compare(&mut self, resources: &Resources) {
        for (annotation, name, is_limit) in QUANTITIES {
            let (request, limit) = (resources.requests.get(name), resources.limits.get(name));
            let Some((request, limit)) = request.zip(limit) else { continue };
            let given = self.annotations.is_some_and(|all| all.contains_key(annotation));
            if given && nanos(request) > nanos(limit) {
                let value = if is_limit { limit } else { request };
                let remedy = format!("the sidecar's request of {request} is above its limit of {limit}: set both");
                self.errors.push(FieldError::new(format!("annotation {annotation}"), value, remedy));
            }
        }
    }
}

fn number(text: &str, least: u16, most: u16) -> Result<u16, String> {
    let read = text.parse().ok().filter(|number| (least..=most).contains(number));
    read.ok_or_else(|| format!("write a whole number from {least} to {most}"))
}

fn quantity(text: &str) -> Result<String, String> {
    if nanos(text).is_some() { Ok(text.to_owned()) } else { Err(QUANTITY.to_owned()) }
}

fn not_proxyless(text: &str) -> Result<(), String> {
    match text {
        "false" => Ok(()),
        _ => Err(format!("annotate the pod with {INJECT}: disabled too: it has a sidecar, or is gRPC without one")),
    }
}

fn access_log(text: &str) -> Result<AccessLog, String> {
    match text {
        "off" => Ok(AccessLog::Off),
        "text" => Ok(AccessLog::Text),
        "json" => Ok(AccessLog::Json),
        _ => Err("write `off`, `text` or `json`".to_owned()),
    }
}

/// What all annotations of ours begin with.
pub(super) const PREFIX: &str = "heddle.dev/";
const EXCLUDE_OUTBOUND_PORTS: &str = "heddle.dev/exclude-outbound-ports";
const EXCLUDE_OUTBOUND_CIDRS: &str = "heddle.dev/exclude-outbound-cidrs";
const LOG: &str = "heddle.dev/log";
const ACCESS_LOG: &str = "heddle.dev/access-log";
const WORKERS: &str = "heddle.dev/workers";
/// The annotation by which an application goes on for a while after its pod was told to end.
pub(super) const PRE_STOP_SECONDS: &str = "heddle.dev/pre-stop-seconds";
const CPU_REQUEST: &str = "heddle.dev/proxy-cpu-request";
const CPU_LIMIT: &str = "heddle.dev/proxy-cpu-limit";
const MEMORY_REQUEST: &str = "heddle.dev/proxy-memory-request";
const MEMORY_LIMIT: &str = "heddle.dev/proxy-memory-limit";
/// Annotation, resource, and whether it is the limit.
const QUANTITIES: [(&str, &str, bool); 4] = [
    (CPU_REQUEST, "cpu", false),
    (CPU_LIMIT, "cpu", true),
    (MEMORY_REQUEST, "memory", false),
    (MEMORY_LIMIT, "memory", true),
];
/// All that mean something on a pod.
const KNOWN: [&str; 15] = [
    INJECT,
    INJECTED,
    EXCLUDE_INBOUND_PORTS,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_CIDRS,
    LOG,
    ACCESS_LOG,
    WORKERS,
    PRE_STOP_SECONDS,
    WEIGHT,
    PROXYLESS,
    CPU_REQUEST,
    CPU_LIMIT,
    MEMORY_REQUEST,
    MEMORY_LIMIT,
];
/// Chosen: more threads than any sidecar could use.
const MAX_WORKERS: u16 = 256;
/// Chosen: an hour, more than any endpoint takes to be forgotten.
const MAX_PRE_STOP_SECONDS: u16 = 3600;
