//! Opaque connections: an endpoint is picked and dialled, then bytes go both ways until the end.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::balance::breaker::{self, Kind, Permit};
use crate::balance::outlier::{self, Outcome};
use crate::balance::{self, Nothing};
use crate::http::error::{Cause, Error};
use crate::http::hash;
use crate::metrics::TcpRecord;
use crate::relay::{self, End};
use crate::stream::Stream;
use crate::tables::cluster::{Cluster, Endpoint};
use crate::tls::Alpn;
use crate::upstream::Towards;
use crate::worker::Worker;

/// How long a host outside the mesh has to answer. Chosen: what works without a mesh must work with it; Linux itself gives
/// up after about two minutes (`tcp_syn_retries`), and few applications wait for a minute.
const OUTSIDE_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Further endpoints that are tried when one cannot be reached, as for requests.
const MAX_RETRIES: usize = 2;

/// A connection to an endpoint, for opaque bytes.
pub struct Dialled {
    /// The bytes.
    pub stream: Stream,
    /// Whose.
    pub endpoint: Arc<Endpoint>,
    cluster: Arc<Cluster>,
    ends: Option<Instant>,
    _permit: Permit,
}

/// Dials an endpoint of `cluster` for `client`; one that cannot be reached was sent nothing, so another is tried.
///
/// # Errors
/// The last failure.
pub async fn dial(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    towards: Towards,
    client: IpAddr,
) -> Result<Dialled, Error> {
    let mut tried = Vec::new();
    loop {
        let permit = breaker::permit(&cluster.state, &cluster.settings, Kind::Connections).ok_or(Cause::Overflow)?;
        let endpoint = pick(worker, cluster, &tried, client)?;
        tried.push(endpoint.id());
        match worker.shared.dialer.dial(&endpoint, &cluster.settings, Alpn::Tcp, towards).await {
            Ok(dialled) => {
                let (stream, ends, cluster) = (dialled.stream, dialled.ends, cluster.clone());
                return Ok(Dialled { stream, endpoint, cluster, ends, _permit: permit });
            }
            Err(error) => {
                note(worker, cluster, &endpoint, Outcome::NoResponse);
                if !error.cause.never_delivered() || tried.len() > MAX_RETRIES {
                    return Err(error);
                }
                worker.shared.metrics.retries.record(&cluster.name, "never_delivered");
            }
        }
    }
}

fn note(worker: &Worker, cluster: &Cluster, endpoint: &Endpoint, outcome: Outcome) {
    let ejected = outlier::note(cluster, endpoint, outcome, None, worker.shared.now());
    worker.shared.metrics.outliers.ejected(&cluster.name, &ejected);
}

fn pick(worker: &Worker, cluster: &Cluster, tried: &[u64], client: IpAddr) -> Result<Arc<Endpoint>, Error> {
    let mut view = balance::View {
        loads: &worker.loads.borrow(),
        rng: &mut worker.rng.borrow_mut(),
        now: Instant::now(),
        now_ms: worker.shared.now(),
        hash: (!cluster.settings.policy.hash_on().is_empty()).then(|| hash::of_client(client)),
    };
    balance::pick(cluster, tried, &mut view).map_err(|nothing| match nothing {
        Nothing::NoEndpoints => Cause::NoEndpoints.into(),
        Nothing::AllEjected => Cause::AllEjected.into(),
    })
}

/// Dials a host outside the mesh as the application would.
///
/// # Errors
/// If it cannot be reached.
pub async fn dial_outside(worker: &Worker, address: SocketAddr) -> Result<Stream, Error> {
    let connect = worker.shared.dialer.tcp(address, Towards::Network);
    match tokio::time::timeout(OUTSIDE_CONNECT_TIMEOUT, connect).await {
        Ok(Ok(stream)) => Ok(stream.into()),
        Ok(Err(error)) => Err(Error::new(Cause::ConnectRefused, error)),
        Err(_) => Err(Cause::ConnectTimeout.into()),
    }
}

/// Relays until both sides are done, one breaks, a certificate has long expired, or `revoked` says that policy no
/// longer allows it.
pub async fn relay(client: Stream, server: Dialled, record: TcpRecord, revoked: impl Future<Output = Cause>) {
    let Dialled { stream, endpoint, cluster, ends, _permit } = server;
    let worker = record.worker().clone();
    worker.loads.borrow_mut().begin(endpoint.id());
    let limited = async {
        match ends {
            None => revoked.await,
            Some(ends) => tokio::select! {
                cause = revoked => cause,
                () = tokio::time::sleep_until(ends.into()) => Cause::TlsFailure,
            },
        }
    };
    match relay_streams(client, stream, record, limited).await {
        // Its answer is what a server is known by, not that somebody took the connection.
        Relayed { received: 1.., .. } => note(&worker, &cluster, &endpoint, Outcome::Good),
        Relayed { received: 0, broken: true } => note(&worker, &cluster, &endpoint, Outcome::NoResponse),
        Relayed { received: 0, broken: false } => {}
    }
    worker.loads.borrow_mut().end(endpoint.id(), None, Instant::now());
}

/// How relaying ended.
pub struct Relayed {
    /// Octets that came from the server.
    received: u64,
    /// The server's end broke.
    broken: bool,
}

/// [`relay`] where there is no endpoint.
pub async fn relay_streams(
    mut client: Stream,
    mut server: Stream,
    mut record: TcpRecord,
    revoked: impl Future<Output = Cause>,
) -> Relayed {
    client.keep_alive();
    server.keep_alive();
    let (cause, broken) = tokio::select! {
        ended = relay::both_ways(&mut client, &mut server, &record) => match ended {
            Ok(()) => (None, false),
            Err(end) => (Some(Cause::ResetAfterResponse), end == End::Server),
        },
        cause = revoked => (Some(cause), false),
    };
    if let Some(cause) = cause {
        record.failed(cause);
        client.abort();
        server.abort();
    }
    Relayed { received: record.received_bytes(), broken }
}
