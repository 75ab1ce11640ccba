//! Probes and lifecycle hooks in the kubelet's place, on port 15020 under `/probe/<container>/<probe>`.
//!
//! The kubelet has no certificate, so under STRICT it cannot ask the application itself. Injection turned its probes
//! towards the sidecar and wrote down what they were ([`Specs`]); the sidecar asks the application as inbound traffic
//! does, at the address the kubelet came to. What a probe means is the kubelet's own (Kubernetes 1.36,
//! `pkg/probe` and `pkg/kubelet/lifecycle`): statuses 200 to 399 are success, redirects on the same host are followed,
//! HTTPS is not verified, any answer at all to a hook is success. Nothing but what injection wrote can be asked for, so
//! whoever reaches the port can make the sidecar do no more than the kubelet does.
//!
//! Served by [`crate::admin`].

pub(crate) mod grpc;
mod http;
mod location;
mod spec;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::metrics;
use crate::upstream::{Dialer, Towards};
pub use spec::{Action, Error as SpecError, HttpGet, HttpHeader, Kind, Spec, Specs};

/// All that may be asked, and how it went.
pub struct Probes {
    known: BTreeMap<String, Known>,
    places: Semaphore,
    metrics: metrics::Probes,
}

struct Known {
    kind: Kind,
    spec: Spec,
    /// Whether it succeeded the last time; what changes is logged. Written at the end of each.
    well: AtomicBool,
}

/// What the kubelet is told.
#[derive(Debug)]
pub enum Answer {
    /// This status, with a line that says what happened.
    Say(StatusCode, String),
    /// Nothing: the connection is closed. The kubelet takes any answer to a hook for success.
    Close,
}

/// Why a probe is no success.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The application does not listen, or cannot be reached.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Where it was asked.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It answers, and says no.
    #[error("{address} answers {status}")]
    Status {
        /// Where it was asked.
        address: SocketAddr,
        /// What it said.
        status: StatusCode,
    },
    /// gRPC: it says no.
    #[error("{address} answers {answer}")]
    NotServing {
        /// Where it was asked.
        address: SocketAddr,
        /// What it said.
        answer: String,
    },
    /// What it sends is not what was to be expected.
    #[error("{address}: {reason}")]
    Protocol {
        /// Where it was asked.
        address: SocketAddr,
        /// What is wrong.
        reason: String,
    },
}

impl Probes {
    /// These probes, none of them tried yet.
    pub fn new(specs: Specs, metrics: metrics::Probes) -> Self {
        let known = specs.0.into_iter().filter_map(|(name, spec)| {
            let kind = Kind::of(&name)?;
            Some((name, Known { kind, spec, well: AtomicBool::new(true) }))
        });
        Self { known: known.collect(), places: Semaphore::new(MAX_AT_ONCE), metrics }
    }

    /// Does what `name`, `<container>/<probe>`, stands for, with the pod's address `pod` and the headers of the kubelet's
    /// request.
    pub async fn answer(&self, name: &str, dialer: &Dialer, pod: IpAddr, kubelet: &HeaderMap) -> Answer {
        let Some(known) = self.known.get(name) else {
            let names: Vec<_> = self.known.keys().map(String::as_str).collect();
            return Answer::Say(StatusCode::NOT_FOUND, format!("no probe `{name}`; known are {}\n", names.join(", ")));
        };
        let Ok(_place) = self.places.try_acquire() else {
            self.metrics.ended(known.kind.name(), "overflow");
            return Answer::Say(StatusCode::TOO_MANY_REQUESTS, format!("{MAX_AT_ONCE} probes are under way already\n"));
        };
        let limit = known.spec.limit();
        let asked = tokio::time::timeout(limit, ask(known, dialer, pod, kubelet)).await;
        let result = asked.unwrap_or(Err(Failure::Timeout(limit)));
        self.metrics.ended(known.kind.name(), result.as_ref().map_or_else(Failure::name, |()| "success"));
        known.log(name, &result);
        match result {
            Ok(()) => Answer::Say(StatusCode::OK, "ok\n".to_owned()),
            Err(_) if known.kind.is_hook() => Answer::Close,
            Err(failure) => Answer::Say(failure.answer(), format!("{name}: {failure}\n")),
        }
    }
}

async fn ask(known: &Known, dialer: &Dialer, pod: IpAddr, kubelet: &HeaderMap) -> Result<(), Failure> {
    match &known.spec.action {
        Action::HttpGet(get) => match http::get(get, dialer, pod, kubelet).await {
            // The kubelet looks at no hook's status.
            Err(Failure::Status { .. }) if known.kind.is_hook() => Ok(()),
            result => result,
        },
        Action::TcpSocket { port } => dial(dialer, SocketAddr::new(pod, *port)).await.map(drop),
        Action::Grpc { port, service } => grpc::check(dialer, SocketAddr::new(pod, *port), service).await,
    }
}

/// As inbound dials the application. Where the source address of that is not there, nothing is captured, and the
/// application is dialled as from outside.
async fn dial(dialer: &Dialer, address: SocketAddr) -> Result<TcpStream, Failure> {
    let dialled = match dialer.tcp(address, Towards::Application).await {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => dialer.tcp(address, Towards::Network).await,
        dialled => dialled,
    };
    dialled.map_err(|error| Failure::Connect { address, error })
}

impl Known {
    /// The kubelet shows nobody what it was told, so what changes stands in the log.
    fn log(&self, name: &str, result: &Result<(), Failure>) {
        let was_well = self.well.swap(result.is_ok(), Ordering::Relaxed);
        match result {
            Err(failure) if was_well => tracing::warn!(probe = name, %failure, "probe fails"),
            Err(failure) => tracing::debug!(probe = name, %failure, "probe still fails"),
            Ok(()) if !was_well => tracing::info!(probe = name, "probe succeeds again"),
            Ok(()) => {}
        }
    }
}

impl Failure {
    /// As metrics name it.
    fn name(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Timeout(_) => "timeout",
            Self::Status { .. } => "status",
            Self::NotServing { .. } => "not_serving",
            Self::Protocol { .. } => "protocol",
        }
    }

    /// The application's own status where there is one: the kubelet puts it into its event.
    fn answer(&self) -> StatusCode {
        match self {
            Self::Status { status, .. } => *status,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Protocol { .. } => StatusCode::BAD_GATEWAY,
            Self::Connect { .. } | Self::NotServing { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Probes under way at once. Chosen: a pod of twenty containers with three probes each, all at the same moment.
const MAX_AT_ONCE: usize = 64;
