//! `heddle-proxy cni`: a chained CNI plugin (specification 1.0.0) that captures a pod's traffic before its first container
//! runs, for namespaces whose pod security refuses NET_ADMIN.
//!
//! It acts on pods that were injected, which it tells by their annotations; containerd and CRI-O hand those to a plugin whose
//! entry in the list asks for the capability [`ANNOTATIONS`]. So it talks to no API server, has no credentials, and cannot be
//! early or late. Everything else passes through. Whatever goes wrong fails the pod's sandbox: a pod that was injected must
//! not run uncaptured.

mod install;

use std::collections::BTreeMap;
use std::env;
use std::io::{Read, Write};
use std::path::PathBuf;

use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::capture::{self, CaptureArgs};
pub use install::{CniArgs, Error as InstallError, keep, remove};

/// What the runtime asks.
#[derive(Debug)]
struct Call {
    command: String,
    netns: Option<PathBuf>,
    config: Config,
}

/// The plugin's part of the network configuration, as the runtime passes it on standard input.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    cni_version: String,
    runtime_config: RuntimeConfig,
    /// What the plugins before this one did.
    prev_result: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: Option<BTreeMap<String, String>>,
}

/// Why a pod does not get its network. The numbers are the specification's ("Error") or, from 100 on, ours.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("standard input: {0}; it must be a CNI network configuration")]
    Decode(#[from] serde_json::Error),
    #[error("standard input: {0}")]
    Read(#[from] std::io::Error),
    #[error("CNI_COMMAND `{0}`: this plugin does ADD, DEL, CHECK and VERSION")]
    Command(String),
    #[error("CNI_NETNS is not set; ADD and CHECK need the pod's network namespace")]
    Netns,
    #[error("cniVersion `{version}` is not supported; use one of {}", VERSIONS.join(", "), version = .0)]
    Version(String),
    #[error("prevResult is not there; this plugin must stand behind one that makes the pod's interface")]
    NotChained,
    #[error(
        "runtimeConfig has no pod annotations; the plugin's entry needs `capabilities: {{\"{ANNOTATIONS}\": true}}` and a \
         runtime that knows it (containerd 1.5 or newer, CRI-O)"
    )]
    Annotations,
    #[error("annotations of the pod: {0}")]
    Exclusions(#[from] clap::Error),
    #[error(transparent)]
    Capture(#[from] capture::Error),
    #[error("the pod's traffic is not captured, or not as it should be: has somebody removed table inet heddle?")]
    NotCaptured,
}

/// The plugin as the runtime calls it: environment and standard input in, a result or an error on standard output.
/// Returns whether it was well.
///
/// # Errors
/// If standard output cannot be written.
pub fn plugin() -> std::io::Result<bool> {
    let call = Call::read();
    let version = call.as_ref().map_or_else(|_| String::new(), |call| call.config.cni_version.clone());
    let result = call.and_then(|call| call.answer());
    let well = result.is_ok();
    let said = result.unwrap_or_else(
        |error| json!({ "cniVersion": version, "code": error.code(), "msg": error.to_string(), "details": "heddle" }),
    );
    if !said.is_null() {
        writeln!(std::io::stdout().lock(), "{said}")?;
    }
    Ok(well)
}

impl Call {
    fn read() -> Result<Self, Error> {
        let mut text = String::new();
        std::io::stdin().lock().take(MAX_CONFIG_BYTES).read_to_string(&mut text)?;
        Self::of(env::var("CNI_COMMAND").unwrap_or_default(), env::var_os("CNI_NETNS").map(PathBuf::from), &text)
    }

    fn of(command: String, netns: Option<PathBuf>, text: &str) -> Result<Self, Error> {
        Ok(Self {
            command,
            netns: netns.filter(|path| !path.as_os_str().is_empty()),
            config: serde_json::from_str(text)?,
        })
    }

    /// What goes to standard output; null: nothing.
    fn answer(self) -> Result<Value, Error> {
        match self.command.as_str() {
            "VERSION" => Ok(json!({ "cniVersion": self.config.cni_version, "supportedVersions": VERSIONS })),
            // The namespace goes, and with it the rules.
            "DEL" => Ok(Value::Null),
            "ADD" => {
                let args = self.capture()?;
                let passed_on = self.config.prev_result.ok_or(Error::NotChained)?;
                if let Some(args) = args {
                    capture::run(&args)?;
                }
                Ok(passed_on)
            }
            "CHECK" => match self.capture()? {
                Some(args) => match args.netns.as_deref().map(capture::is_installed_at).transpose()? {
                    Some(true) | None => Ok(Value::Null),
                    Some(false) => Err(Error::NotCaptured),
                },
                None => Ok(Value::Null),
            },
            _ => Err(Error::Command(self.command)),
        }
    }

    /// What is to be captured; `None`: the pod has no sidecar.
    fn capture(&self) -> Result<Option<CaptureArgs>, Error> {
        if !VERSIONS.contains(&self.config.cni_version.as_str()) {
            return Err(Error::Version(self.config.cni_version.clone()));
        }
        let netns = self.netns.clone().ok_or(Error::Netns)?;
        let annotations = self.config.runtime_config.annotations.as_ref().ok_or(Error::Annotations)?;
        if !annotations.contains_key(INJECTED) {
            return Ok(None);
        }
        #[derive(Parser)]
        struct Flags {
            #[command(flatten)]
            capture: CaptureArgs,
        }
        // The flags are called as the annotations; only those that exclude are taken.
        let flags = EXCLUSIONS.iter().filter_map(|flag| {
            let list = annotations.get(&format!("{PREFIX}{flag}"))?;
            Some(format!("--{flag}={list}"))
        });
        let flags = Flags::try_parse_from(std::iter::once("capture".to_owned()).chain(flags))?;
        Ok(Some(CaptureArgs { netns: Some(netns), ..flags.capture }))
    }
}

impl Error {
    fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Command(_) | Self::Netns => 4,
            Self::Read(_) => 5,
            Self::Decode(_) => 6,
            Self::NotChained | Self::Annotations => 7,
            Self::Exclusions(_) => 100,
            Self::Capture(_) => 101,
            Self::NotCaptured => 102,
        }
    }
}

/// By which name the plugin is called when its file has it: runtimes give no arguments.
pub const FILE_NAME: &str = "heddle-cni";
/// The capability by which runtimes hand over a pod's annotations.
pub const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Versions of the specification whose ADD, DEL and CHECK mean the same to a chained plugin.
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// What annotations of ours begin with.
const PREFIX: &str = "heddle.dev/";
/// The annotation of a pod that was injected.
const INJECTED: &str = "heddle.dev/injected";
/// Flags of `capture` that a pod may set; injection has checked them and added the installation's own.
const EXCLUSIONS: [&str; 3] = ["exclude-inbound-ports", "exclude-outbound-ports", "exclude-outbound-cidrs"];
/// Bytes of a network configuration. Chosen: annotations have at most 256 KiB (Kubernetes), and results are small.
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: &str, config: &Value) -> Result<Value, Error> {
        Call::of(command.to_owned(), Some("/proc/self/status".into()), &config.to_string())?.answer()
    }

    fn config(annotations: &Value) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "heddle-cni",
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
            "prevResult": { "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }] },
        })
    }

    #[test]
    fn a_pod_without_sidecar_passes_as_the_plugins_before_left_it() {
        let config = config(&json!({ "team": "shop" }));
        assert_eq!(call("ADD", &config).unwrap(), config["prevResult"]);
        assert_eq!(call("CHECK", &config).unwrap(), Value::Null);
        assert_eq!(call("DEL", &config).unwrap(), Value::Null);
    }

    #[test]
    fn an_injected_pod_is_captured_with_its_exclusions_and_nothing_else_of_its_annotations() {
        let annotations = json!({
            "heddle.dev/injected": "0.1.0", "heddle.dev/exclude-inbound-ports": "22,9000-9010", "heddle.dev/remove": "true",
        });
        let call = Call::of("ADD".into(), Some("/n".into()), &config(&annotations).to_string()).unwrap();
        let args = call.capture().unwrap().unwrap();
        assert_eq!(args.exclude_inbound_ports, [22..=22, 9000..=9010]);
        assert_eq!((args.netns.as_deref(), args.remove), (Some("/n".as_ref()), false));
    }

    #[test]
    fn a_pod_that_cannot_be_captured_gets_no_network() {
        let injected = config(&json!({ "heddle.dev/injected": "0.1.0" }));
        let error = call("ADD", &injected).unwrap_err();
        assert_eq!(error.code(), 101);
        assert!(error.to_string().contains("/proc/self/status"), "{error}");
        let wrong = config(&json!({ "heddle.dev/injected": "0.1.0", "heddle.dev/exclude-inbound-ports": "http" }));
        assert_eq!(call("ADD", &wrong).unwrap_err().code(), 100);
    }

    #[test]
    fn a_runtime_that_says_too_little_is_told_what_is_missing() {
        for (field, value, code) in
            [("runtimeConfig", json!({}), 7), ("prevResult", Value::Null, 7), ("cniVersion", json!("0.2.0"), 1)]
        {
            let mut config = config(&json!({}));
            config[field] = value;
            assert_eq!(call("ADD", &config).unwrap_err().code(), code, "{field}");
        }
        assert_eq!(call("GC", &config(&json!({}))).unwrap_err().code(), 4);
        assert_eq!(Call::of("ADD".into(), None, "{").unwrap_err().code(), 6);
        let versions = call("VERSION", &json!({ "cniVersion": "1.0.0" })).unwrap();
        assert_eq!(versions["supportedVersions"], json!(["0.4.0", "1.0.0", "1.1.0"]));
    }
}
