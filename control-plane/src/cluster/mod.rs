//! What the control plane does in a cluster besides reading its objects: everything here talks to the API server.
//!
//! [`access`]: all that is done, as rules of access. [`lease`]: which replica does what only one may do. [`secret`]: where the authority is kept. [`roots`]: the public roots in every
//! namespace. [`review`]: whose a service account token is. [`status`]: what became of objects, written into them. [`owner`]: to whom belongs what
//! is made. [`connect`] makes
//! the clients they use.

pub mod access;
pub mod lease;
pub mod owner;
pub mod review;
pub mod roots;
pub mod secret;
pub mod status;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use http::header::USER_AGENT;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;

/// Why there is no client for an API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a pod's service account.
    #[error("no API server is known: {0}: run in a pod with a service account, or set KUBECONFIG")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration makes no client.
    #[error("the API server's address or credentials cannot be used: {0}")]
    Client(#[from] kube::Error),
}

/// Clients of one API server.
#[derive(Clone)]
pub struct Clients {
    /// For requests that are answered at once.
    pub calls: Client,
    /// For listings and watches, which may be silent for a while.
    pub watches: Client,
    /// To whom belongs what is made, if to anybody.
    pub owner: Option<OwnerReference>,
    /// The API server's address, if its name is one.
    server: Option<IpAddr>,
}

impl Clients {
    /// Where others in the cluster reach a port of this process: at the address from which it would reach the API server. `None`: the
    /// API server is known by name only, or there is no way to it.
    pub fn own_address(&self, port: u16) -> Option<SocketAddr> {
        let server = self.server?;
        let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // Sends nothing: the kernel only chooses a way.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((server, ANY_PORT)).ok()?;
        Some(SocketAddr::new(socket.local_addr().ok()?.ip(), port))
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// Makes clients from the environment, as `kubectl` does: a kubeconfig, else the pod's service account. Must be called within a
/// tokio runtime.
///
/// # Errors
/// If there is neither, or it cannot be used. Whether the API server answers is not tried.
pub async fn connect() -> Result<Clients, Error> {
    let mut config = kube::Config::infer().await?;
    if let Ok(agent) = FIELD_MANAGER_AND_VERSION.parse() {
        config.headers.push((USER_AGENT, agent));
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(CALL_TIMEOUT);
    config.write_timeout = Some(CALL_TIMEOUT);
    let calls = Client::try_from(config.clone())?;
    config.read_timeout = Some(WATCH + WATCH_MARGIN);
    let host = config.cluster_url.host().unwrap_or_default();
    let server = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    Ok(Clients { calls, watches: Client::try_from(config)?, owner: None, server })
}

/// How a watch of everything or of one object is asked for.
pub(crate) fn watch_config() -> kube::runtime::watcher::Config {
    let seconds = u32::try_from(WATCH.as_secs()).unwrap_or(u32::MAX);
    kube::runtime::watcher::Config::default().page_size(PAGE_OBJECTS).timeout(seconds)
}

/// Pause before the next try after so many failures and one more. Half of it by `chance` (0 to 1), so that replicas do not come
/// back together.
pub(crate) fn backoff(failures: u32, chance: f64) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_PAUSE);
    longest.mul_f64(0.5 + chance / 2.0)
}

/// Whether the API server refused with this code.
pub(crate) fn refused_with(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Who writes, as `metadata.managedFields` names it.
pub const FIELD_MANAGER: &str = "heddle-control-plane";
const FIELD_MANAGER_AND_VERSION: &str = concat!("heddle-control-plane/", env!("CARGO_PKG_VERSION"));

/// Not allowed, now or at all (RFC 9110).
pub(crate) const FORBIDDEN: u16 = 403;
/// There is no such object or resource (RFC 9110).
pub(crate) const NOT_FOUND: u16 = 404;
/// The object is another than the one that was read, or is there already (RFC 9110).
pub(crate) const CONFLICT: u16 = 409;
/// The API server no longer has the version a watch would go on from (RFC 9110).
pub(crate) const GONE: u16 = 410;

/// A way is chosen by address; any port but 0 will do.
const ANY_PORT: u16 = 443;
/// Objects of one page of a listing. As `kubectl` and client-go ask.
const PAGE_OBJECTS: u32 = 500;
/// Life of one watch request; the next goes on where it ended. Chosen: a connection that is dead without having said so is
/// noticed within it.
const WATCH: Duration = Duration::from_secs(60);
/// What the answer to a listing, or the end of a watch, may take longer.
const WATCH_MARGIN: Duration = Duration::from_secs(15);
/// How long a connection to the API server may take. Chosen: two lost SYNs survive.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the API server may be silent within one request. Chosen: ten times what a busy one takes.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the first failure. Chosen: an API server that restarts is back within seconds.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause. Chosen: a dozen watches a replica then ask as often as one impatient person.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_growing() {
        assert_eq!(backoff(0, 1.0), FIRST_PAUSE);
        assert_eq!(backoff(0, 0.0), FIRST_PAUSE / 2);
        assert_eq!(backoff(3, 1.0), FIRST_PAUSE * 8);
        assert_eq!(backoff(u32::MAX, 1.0), LONGEST_PAUSE);
    }
}
