//! Every setting of the control plane, parsed once into one struct and shown at `/config`.
//!
//! The only place of the control plane, with `main.rs`, that reads the environment: each flag can be given as the variable
//! named beside it. Nothing here is secret.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use heddle_certs::ca::{MAX_LEAF_LIFETIME, MIN_LEAF_LIFETIME, ROOT_LIFETIME};
use heddle_certs::identity::{CONTROL_PLANE_NAMESPACE, TrustDomain};
use heddle_certs::slots::Schedule;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::api::duration;
use crate::model;

/// Settings of `heddle-control-plane`.
#[derive(Debug, Clone, Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Reads the objects of the cluster it runs in, or else of the one KUBECONFIG names, and keeps its keys in a Secret there.
    /// Without it, --manifests and --state are needed.
    #[arg(long, env = "HEDDLE_KUBERNETES")]
    pub kubernetes: bool,
    /// Directory with the manifests that describe the mesh; watched.
    #[arg(long, env = "HEDDLE_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Directory for the root certificate's key and the key of join tokens, made at the first start; one control plane for
    /// each. `bundle.pem` in it is what clients need to believe this control plane.
    #[arg(long, env = "HEDDLE_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// With --kubernetes: the namespace this control plane runs in, and keeps its Secret and its Lease in.
    #[arg(long, env = "HEDDLE_NAMESPACE", value_name = "NAMESPACE", default_value = CONTROL_PLANE_NAMESPACE)]
    pub namespace: String,
    /// With --kubernetes: the name of this control plane's own pod, by which replicas tell each other apart. Default: the host
    /// name, which a pod has from its own.
    #[arg(long, env = "HEDDLE_POD", value_name = "NAME")]
    pub pod: Option<String>,
    /// With --kubernetes: the Secret with the root certificate's key and the key of join tokens. It is made at the first start
    /// if it is not there; one with `ca.crt` and `ca.key` alone brings an authority of your own.
    #[arg(long, env = "HEDDLE_ROOT_SECRET", value_name = "NAME", default_value = DEFAULT_ROOT_SECRET)]
    pub root_secret: String,
    /// With --kubernetes: the ClusterRole to which the Secret, the Lease and the ConfigMaps made here belong, so that they go with it.
    /// Default: none, and they stay.
    #[arg(long, env = "HEDDLE_OWNER", value_name = "NAME")]
    pub owner: Option<String>,
    /// With --kubernetes: where admission requests of the API server are answered, on every address.
    #[arg(long, env = "HEDDLE_WEBHOOK_PORT", value_name = "PORT", default_value_t = DEFAULT_WEBHOOK_PORT)]
    pub webhook_port: u16,
    /// With --kubernetes: a YAML file with what injected sidecars are given. Default: nothing is injected.
    #[arg(long, env = "HEDDLE_INJECTION", value_name = "FILE")]
    pub injection: Option<PathBuf>,
    /// Where xDS and certificates are served, over TLS 1.3.
    #[arg(long, env = "HEDDLE_LISTEN", value_name = "ADDRESS", default_value_t = DEFAULT_LISTEN)]
    pub listen: SocketAddr,
    /// Serves xDS without TLS too, on this loopback address: for tests and local tools. Whoever reaches it may be any
    /// workload.
    #[arg(long, env = "HEDDLE_PLAIN_ADS", value_name = "ADDRESS")]
    pub plain_ads: Option<SocketAddr>,
    /// Port of metrics and readiness, on every address; its other pages answer loopback only.
    #[arg(long, env = "HEDDLE_ADMIN_PORT", value_name = "PORT", default_value_t = DEFAULT_ADMIN_PORT)]
    pub admin_port: u16,
    /// The name every identity in this mesh begins with.
    #[arg(long, env = "HEDDLE_TRUST_DOMAIN", value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// Namespace whose MeshTLSPolicy holds for the whole mesh.
    #[arg(long, env = "HEDDLE_ROOT_NAMESPACE", value_name = "NAMESPACE", default_value = CONTROL_PLANE_NAMESPACE)]
    pub root_namespace: String,
    /// A network of pods or Services: an address inside is never an outside host. May be given more than once.
    #[arg(long = "mesh-cidr", env = "HEDDLE_MESH_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub mesh_cidrs: Vec<IpNet>,
    /// What sidecars do with traffic for hosts outside the mesh.
    #[arg(long, env = "HEDDLE_EGRESS", value_enum, default_value_t = Egress::Allow)]
    pub egress: Egress,
    /// Life of a workload's certificate unless it asks for less, 30s to 24h.
    #[arg(long, env = "HEDDLE_LEAF_LIFETIME", value_name = "DURATION", default_value = "24h", value_parser = leaf_lifetime)]
    #[serde(serialize_with = "seconds")]
    pub leaf_lifetime: Duration,
    /// Life of a root certificate made here.
    #[arg(long, env = "HEDDLE_ROOT_LIFETIME", value_name = "DURATION", default_value = "87600h", value_parser = positive)]
    #[serde(serialize_with = "seconds")]
    pub root_lifetime: Duration,
    /// How long the next root certificate is published before it signs.
    #[arg(long, env = "HEDDLE_ROOT_LEAD", value_name = "DURATION", default_value = "168h", value_parser = positive)]
    #[serde(serialize_with = "seconds")]
    pub root_lead: Duration,
    /// A DNS name or an address of this control plane, for clients that check names. May be given more than once.
    #[arg(long = "server-name", env = "HEDDLE_SERVER_NAMES", value_name = "NAME", value_delimiter = ',')]
    pub server_names: Vec<String>,
    /// Most connections at once; above it new ones are closed and counted.
    #[arg(long, env = "HEDDLE_MAX_CONNECTIONS", default_value_t = DEFAULT_MAX_CONNECTIONS)]
    pub max_connections: usize,
    /// What is logged, in the syntax of `tracing`: `info`, `heddle_control_plane=debug`.
    #[arg(long, env = "HEDDLE_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How it is logged, on standard error.
    #[arg(long, env = "HEDDLE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Where objects come from and keys are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'c> {
    /// Files.
    Directory {
        /// Directory with the objects.
        manifests: &'c Path,
        /// Directory with the keys.
        state: &'c Path,
    },
    /// The API server of a cluster.
    Kubernetes,
}

/// What sidecars do with traffic for hosts outside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Egress {
    /// Relay it untouched.
    Allow,
    /// Refuse it.
    Deny,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to read objects from, or two things.
    #[error(
        "give either --kubernetes, or --manifests DIR and --state DIR: what describes the mesh comes from a cluster or from \
         files, never from both"
    )]
    Source,
    /// Plain ADS where others could reach it.
    #[error("--plain-ads {0}: only a loopback address is allowed, such as 127.0.0.1:15010; it asks for no certificate")]
    PlainAds(SocketAddr),
    /// Out of bounds.
    #[error("--leaf-lifetime {0:?}: it must be {MIN_LEAF_LIFETIME:?} to {MAX_LEAF_LIFETIME:?}")]
    LeafLifetime(Duration),
    /// A root that ends before leaves do.
    #[error("--root-lifetime {root:?}: it must be at least twice --leaf-lifetime, which is {leaf:?}")]
    RootLifetime {
        /// As given.
        root: Duration,
        /// As given.
        leaf: Duration,
    },
    /// A name that cannot stand in a certificate.
    #[error("--server-name `{0}`: it must be a DNS name or an address, without port")]
    ServerName(String),
    /// Nobody could ever connect.
    #[error("--max-connections 0: at least 1 is needed")]
    MaxConnections,
}

impl Config {
    /// A control plane fed from `manifests` that keeps its keys in `state`; everything else as by default.
    pub fn new(manifests: impl Into<PathBuf>, state: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        Self { manifests: Some(manifests.into()), state: Some(state.into()), ..Self::common(trust_domain) }
    }

    /// A control plane of the cluster the environment names; everything else as by default.
    pub fn of_cluster(trust_domain: TrustDomain) -> Self {
        Self { kubernetes: true, ..Self::common(trust_domain) }
    }

    fn common(trust_domain: TrustDomain) -> Self {
        Self {
            kubernetes: false,
            manifests: None,
            state: None,
            namespace: CONTROL_PLANE_NAMESPACE.to_owned(),
            pod: None,
            root_secret: DEFAULT_ROOT_SECRET.to_owned(),
            owner: None,
            webhook_port: DEFAULT_WEBHOOK_PORT,
            injection: None,
            listen: DEFAULT_LISTEN,
            plain_ads: None,
            admin_port: DEFAULT_ADMIN_PORT,
            trust_domain,
            root_namespace: CONTROL_PLANE_NAMESPACE.to_owned(),
            mesh_cidrs: Vec::new(),
            egress: Egress::Allow,
            leaf_lifetime: MAX_LEAF_LIFETIME,
            root_lifetime: ROOT_LIFETIME,
            root_lead: Schedule::default().publish_lead,
            server_names: Vec::new(),
            max_connections: DEFAULT_MAX_CONNECTIONS,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    /// Checks what a single flag's parser cannot see. Called by [`crate::app::start`].
    ///
    /// # Errors
    /// Names the flag, its value and what would be right.
    pub fn check(&self) -> Result<(), Error> {
        self.source()?;
        if let Some(address) = self.plain_ads.filter(|address| !address.ip().is_loopback()) {
            return Err(Error::PlainAds(address));
        }
        if !(MIN_LEAF_LIFETIME..=MAX_LEAF_LIFETIME).contains(&self.leaf_lifetime) {
            return Err(Error::LeafLifetime(self.leaf_lifetime));
        }
        if self.root_lifetime < self.leaf_lifetime * 2 {
            return Err(Error::RootLifetime { root: self.root_lifetime, leaf: self.leaf_lifetime });
        }
        if let Some(name) = self.server_names.iter().find(|name| !is_server_name(name)) {
            return Err(Error::ServerName(name.clone()));
        }
        if self.max_connections == 0 {
            return Err(Error::MaxConnections);
        }
        Ok(())
    }

    /// Where objects come from and keys are kept.
    ///
    /// # Errors
    /// If neither way is given whole, or both are.
    pub fn source(&self) -> Result<Source<'_>, Error> {
        match (self.kubernetes, &self.manifests, &self.state) {
            (true, None, None) => Ok(Source::Kubernetes),
            (false, Some(manifests), Some(state)) => Ok(Source::Directory { manifests, state }),
            _ => Err(Error::Source),
        }
    }

    /// The name by which this control plane is told from other replicas.
    pub fn replica(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let name = self.pod.clone().or_else(host).map(|name| name.trim().to_owned());
        // Only where there is neither a flag nor a Linux: two such replicas would both lead.
        name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("process-{}", std::process::id()))
    }

    /// When root certificates are exchanged.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            root_lifetime: self.root_lifetime,
            publish_lead: self.root_lead,
            leaf_lifetime: self.leaf_lifetime,
            ..Schedule::default()
        }
    }

    /// What every sidecar is told about the mesh.
    pub fn mesh(&self) -> model::Mesh {
        let mut cidrs = self.mesh_cidrs.clone();
        cidrs.sort_unstable();
        cidrs.dedup();
        let egress = match self.egress {
            Egress::Allow => model::Egress::Allow,
            Egress::Deny => model::Egress::Deny,
        };
        model::Mesh { cidrs, egress }
    }

    /// The names and the addresses among [`Config::server_names`].
    pub fn split_server_names(&self) -> (Vec<String>, Vec<IpAddr>) {
        let mut names = Vec::new();
        let mut addresses = Vec::new();
        for name in &self.server_names {
            match name.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => names.push(name.clone()),
            }
        }
        (names, addresses)
    }
}

fn is_server_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || rustls_pki_types::DnsName::try_from(name).is_ok()
}

fn positive(text: &str) -> Result<Duration, String> {
    let parsed: duration::Duration = text.parse()?;
    if parsed.is_zero() { Err("it must be more than nothing".to_owned()) } else { Ok(parsed.get()) }
}

fn leaf_lifetime(text: &str) -> Result<Duration, String> {
    let parsed = positive(text)?;
    if (MIN_LEAF_LIFETIME..=MAX_LEAF_LIFETIME).contains(&parsed) {
        Ok(parsed)
    } else {
        Err("it must be between 30s and 24h".to_owned())
    }
}

fn seconds<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{}s", value.as_secs_f64()))
}

/// xDS and certificates over TLS, all addresses: the port the field knows for it (Istio serves the same two there).
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15012);
/// Metrics and readiness: the port the field knows for a control plane's.
pub const DEFAULT_ADMIN_PORT: u16 = 15014;
/// Made by the first control plane of a cluster.
pub const DEFAULT_ROOT_SECRET: &str = "heddle-root";
/// Admission webhooks: the port the field knows for a control plane's.
pub const DEFAULT_WEBHOOK_PORT: u16 = 15017;
/// Kubernetes' own default domain, as elsewhere in the field.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Chosen: a few thousand sidecars a replica with two connections each while they reconnect; some 100 KiB each.
pub const DEFAULT_MAX_CONNECTIONS: usize = 16_384;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn parse(more: &[&str]) -> Result<Config, String> {
        let needed = ["heddle-control-plane", "--manifests", "m", "--state", "s"];
        Cli::try_parse_from(needed.iter().chain(more)).map(|cli| cli.config).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_given_is_as_a_new_config() {
        let parsed = parse(&[]).unwrap();

        let default = Config::new("m", "s", TrustDomain::parse("cluster.local").unwrap());
        assert_eq!(serde_json::to_string(&parsed).unwrap(), serde_json::to_string(&default).unwrap());
        parsed.check().unwrap();
    }

    #[test]
    fn objects_come_from_a_cluster_or_from_files() {
        let given = |flags: &[&str]| {
            let config = Cli::try_parse_from(["heddle-control-plane"].iter().chain(flags)).unwrap().config;
            config.source().map(|source| source == Source::Kubernetes).map_err(|error| error.to_string())
        };
        assert_eq!(given(&["--kubernetes"]), Ok(true));
        assert_eq!(given(&["--manifests", "m", "--state", "s"]), Ok(false));
        assert!(given(&["--manifests", "m"]).unwrap_err().contains("--state"));
        assert!(given(&["--kubernetes", "--manifests", "m", "--state", "s"]).is_err());
        assert!(given(&[]).is_err());
        let of_cluster = Config::of_cluster(TrustDomain::parse("cluster.local").unwrap());
        let parsed = Cli::try_parse_from(["heddle-control-plane", "--kubernetes"]).unwrap().config;
        assert_eq!(serde_json::to_string(&parsed).unwrap(), serde_json::to_string(&of_cluster).unwrap());
    }

    #[test]
    fn plain_ads_is_for_loopback_only() {
        let refused = parse(&["--plain-ads", "0.0.0.0:15010"]).unwrap().check();
        assert!(matches!(refused, Err(Error::PlainAds(_))));
        parse(&["--plain-ads", "[::1]:15010"]).unwrap().check().unwrap();
    }

    #[test]
    fn a_leaf_lives_from_thirty_seconds_to_a_day() {
        assert_eq!(parse(&["--leaf-lifetime", "30s"]).unwrap().leaf_lifetime, Duration::from_secs(30));
        assert!(parse(&["--leaf-lifetime", "29s"]).unwrap_err().contains("30s"));
        assert!(parse(&["--leaf-lifetime", "25h"]).is_err());
    }

    #[test]
    fn a_root_outlives_its_leaves() {
        let refused = parse(&["--root-lifetime", "24h"]).unwrap().check();
        assert!(matches!(refused, Err(Error::RootLifetime { .. })));
    }

    #[test]
    fn server_names_are_told_from_addresses() {
        let config = parse(&["--server-name", "control-plane.local,10.0.0.1", "--server-name", "::1"]).unwrap();
        config.check().unwrap();
        let (names, addresses) = config.split_server_names();
        assert_eq!(names, ["control-plane.local"]);
        assert_eq!(addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    }

    #[test]
    fn a_server_name_with_a_port_is_refused() {
        let refused = parse(&["--server-name", "host:80"]).unwrap().check();
        assert!(matches!(refused, Err(Error::ServerName(name)) if name == "host:80"));
    }

    #[test]
    fn networks_are_told_once_and_in_order() {
        let config = parse(&["--mesh-cidr", "10.2.0.0/16,10.1.0.0/16", "--mesh-cidr", "10.2.0.0/16"]).unwrap();
        assert_eq!(config.mesh().cidrs, ["10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse::<IpNet>().unwrap()]);
    }
}
