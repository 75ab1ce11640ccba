//! The bootstrap: every setting of `heddle-proxy run`, parsed once into one struct and shown at `/config`.
//!
//! The only place of the data plane, with `main.rs`, that reads the environment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::Args;
use serde::Serialize;

use crate::identity::IdentityConfig;
use crate::logging::LogFormat;
use crate::metrics::AccessLogFormat;
use crate::probes::Specs;

/// Settings of `heddle-proxy run`. Each flag can be given as the environment variable named beside it.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Config {
    /// Worker threads of the data path; 0: one per available processor, at most the CPU quota.
    #[arg(long, env = "HEDDLE_WORKERS", default_value_t = 0)]
    pub workers: usize,
    /// Port capture redirects outgoing connections to.
    #[arg(long, env = "HEDDLE_OUTBOUND_PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// Port capture redirects incoming connections to.
    #[arg(long, env = "HEDDLE_INBOUND_PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// Admin port, on loopback only.
    #[arg(long, env = "HEDDLE_ADMIN_PORT", default_value_t = 15000)]
    pub admin_port: u16,
    /// Port of metrics, readiness and probes, on every address.
    #[arg(long, env = "HEDDLE_METRICS_PORT", default_value_t = 15020)]
    pub metrics_port: u16,
    /// Where the control plane serves xDS and signs certificates, as `https://host:port`; absent: tables are given.
    #[arg(long, env = "HEDDLE_CONTROL_PLANE")]
    pub control_plane: Option<String>,
    /// SO_MARK for the proxy's own connections, where capture exempts the proxy by mark instead of uid.
    #[arg(long, env = "HEDDLE_MARK")]
    pub mark: Option<u32>,
    /// One line a request or opaque connection on standard output.
    #[arg(long, env = "HEDDLE_ACCESS_LOG", value_enum, default_value_t = AccessLogFormat::Off)]
    pub access_log: AccessLogFormat,
    /// Longest wait, in seconds, for what is in flight when the sidecar is told to end.
    #[arg(long, env = "HEDDLE_DRAIN_SECONDS", default_value_t = DEFAULT_DRAIN_SECONDS)]
    pub drain_seconds: u64,
    /// Filter of the log, in the syntax of `tracing`: `info`, `heddle_proxy=debug`.
    #[arg(long, env = "HEDDLE_LOG", default_value = "info")]
    pub log: String,
    /// How it is logged, on standard error.
    #[arg(long, env = "HEDDLE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Probes of the application's that the sidecar does for the kubelet, as injection wrote them: JSON by
    /// `<container>/<probe>`.
    #[arg(long, env = "HEDDLE_PROBES", value_name = "JSON", default_value = "{}")]
    pub probes: Specs,
    /// Who this workload is.
    #[command(flatten)]
    pub identity: IdentityConfig,
    /// Most downstream connections at once; above it new ones are closed and counted.
    #[arg(long, env = "HEDDLE_MAX_CONNECTIONS", default_value_t = DEFAULT_MAX_CONNECTIONS)]
    pub max_connections: usize,
}

/// Chosen: two descriptors a connection fit the usual hard limit of 1,048,576 many times over, and idle ones hold
/// about 1 GiB at the very worst.
pub const DEFAULT_MAX_CONNECTIONS: usize = 32_768;

/// Chosen: below the 30 s a pod has by default (Kubernetes `terminationGracePeriodSeconds`).
pub const DEFAULT_DRAIN_SECONDS: u64 = 25;

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 0,
            outbound_port: 15001,
            inbound_port: 15006,
            admin_port: 15000,
            metrics_port: 15020,
            control_plane: None,
            mark: None,
            access_log: AccessLogFormat::Off,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            probes: Specs::default(),
            identity: IdentityConfig::default(),
            drain_seconds: DEFAULT_DRAIN_SECONDS,
            max_connections: DEFAULT_MAX_CONNECTIONS,
        }
    }
}

/// Settings of `heddle-proxy drain`.
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// Admin port of the sidecar.
    #[arg(long, env = "HEDDLE_ADMIN_PORT", default_value_t = 15000)]
    pub admin_port: u16,
}

impl Config {
    /// Whether `port` is one this sidecar listens on.
    pub fn is_own_port(&self, port: u16) -> bool {
        [self.outbound_port, self.inbound_port, self.admin_port, self.metrics_port].contains(&port)
    }

    /// Worker threads to start.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            // Knows of CPU quotas and affinity.
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// Where the admin page is served.
    pub fn admin_address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.admin_port)
    }
}
