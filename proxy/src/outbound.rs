//! One connection of the application, on its way out: what is its destination, what does it speak, who serves it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::detect::{self, Sniffed, Speaker};
use crate::http::error::Cause;
use crate::http::request::Connection;
use crate::http::serve;
use crate::listen::Accepted;
use crate::metrics::{Direction, TcpRecord};
use crate::opaque;
use crate::reading::{self, Reading};
use crate::stream::Stream;
use crate::tables::listener::{Listener, Opaque, Protocol, ServerNames, Shares};
use crate::tables::{Answer, Cluster, Destination, Egress, Millis, Seen, Tables};
use crate::tls::hello;
use crate::upstream::Towards;
use crate::worker::Worker;

/// A TLS record with the fatal alert `unrecognized_name` (RFC 8446 §6.2).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// How long it is remembered that a server speaks first. It saves the client's silence, never the parsing.
const SERVER_FIRST_MEMORY_MS: u64 = 5 * 60 * 1000;

/// Serves the connection to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let shared = &worker.shared;
    let refused = |cause| shared.refused(Direction::Outbound, accepted.peer, Some(accepted.original_dst), cause);
    let Some(_open) = shared.metrics.connections.open(Direction::Outbound, shared.config.max_connections) else {
        return refused(Cause::Overflow);
    };
    let stream = Stream::from(accepted.stream);
    let connection = Outbound { worker: &worker, peer: accepted.peer, original_dst: accepted.original_dst };
    let served = match find(&worker, accepted.original_dst).await {
        Ok(Found::Mesh(listener, seen)) => connection.to_mesh(stream, &listener, &seen).await,
        Ok(Found::Outside) => connection.to_outside(stream).await,
        Err(cause) => Err(cause),
    };
    if let Err(cause) = served {
        refused(cause);
    }
}

/// What the mesh says about a destination.
enum Found {
    Mesh(Arc<Listener>, Arc<Seen>),
    /// Not the mesh's, and the egress default lets it pass.
    Outside,
}

/// Looks the destination up, asking the control plane if nobody has yet.
async fn find(worker: &Worker, original_dst: SocketAddr) -> Result<Found, Cause> {
    let shared = &worker.shared;
    let destination = shared.destination(original_dst).await;
    match destination {
        Some(Destination { answer: Answer::Exists(listener), seen }) => {
            seen.touch(shared.now());
            Ok(Found::Mesh(listener, seen))
        }
        Some(Destination { answer: Answer::DoesNotExist, seen }) => {
            seen.touch(shared.now());
            egress(&shared.tables.load(), original_dst.ip(), true).map(|()| Found::Outside)
        }
        None => egress(&shared.tables.load(), original_dst.ip(), false).map(|()| Found::Outside),
    }
}

/// What holds for a destination that is not the mesh's (`certain`), or of which nothing is known: never plaintext past policy
/// because the control plane is away. Pure.
///
/// # Errors
/// Why it may not be reached.
pub fn egress(tables: &Tables, destination: IpAddr, certain: bool) -> Result<(), Cause> {
    let Some(inbound) = &tables.inbound else { return Err(Cause::ConfigUnavailable) };
    if !certain && inbound.mesh.contains(destination) {
        return Err(Cause::ConfigUnavailable);
    }
    match inbound.mesh.egress {
        Egress::Allow => Ok(()),
        Egress::Deny => Err(Cause::EgressDenied),
    }
}

/// The connection, once its destination is known.
struct Outbound<'c> {
    worker: &'c Rc<Worker>,
    peer: SocketAddr,
    original_dst: SocketAddr,
}

impl Outbound<'_> {
    async fn to_mesh(&self, client: Stream, listener: &Listener, seen: &Seen) -> Result<(), Cause> {
        match listener.protocol {
            Protocol::Tcp => match &listener.tcp {
                Some(Opaque::ServerNames(names)) => self.by_server_name(client, names).await,
                _ => self.relay(client, listener.shares(), None).await,
            },
            Protocol::Http | Protocol::Http2 => self.declared_http(client, listener).await,
            Protocol::Detect => self.detect(client, listener, seen).await,
        }
    }

    async fn declared_http(&self, mut client: Stream, listener: &Listener) -> Result<(), Cause> {
        match reading::outbound(listener, self.sniff(&mut client).await?) {
            Reading::Http2 => self.http2(client).await,
            Reading::Http1 => self.http1(client).await,
            Reading::Opaque | Reading::ByServerName | Reading::Mismatch => {
                if listener.protocol == Protocol::Http && detect::almost_http1(client.ahead()) {
                    self.http1(client).await;
                } else if !client.ahead().is_empty() {
                    client.abort();
                    return Err(Cause::ProtocolMismatch);
                }
            }
        }
        Ok(())
    }

    async fn detect(&self, mut client: Stream, listener: &Listener, seen: &Seen) -> Result<(), Cause> {
        let wait = if server_speaks_first(seen, self.worker.shared.now()) { Duration::ZERO } else { detect::SILENCE };
        let spoke = detect::client_speaks(&mut client, wait).await.map_err(gone)?;
        if spoke {
            return self.by_client_bytes(client, listener, None).await;
        }
        let Some(cluster) = listener.shares().and_then(|shares| self.choose(shares).ok()) else {
            return self.by_client_bytes(client, listener, None).await;
        };
        let mut server = match opaque::dial(self.worker, &cluster, Towards::Network, self.peer.ip()).await {
            Ok(server) => server,
            Err(error) => {
                client.abort();
                return Err(error.cause);
            }
        };
        match detect::who_speaks(&mut client, &mut server.stream, self.worker.ending()).await.map_err(gone)? {
            Speaker::Client => self.by_client_bytes(client, listener, Some((cluster, server))).await,
            Speaker::Server => {
                seen.server_first.store(self.worker.shared.now().0.max(1), Ordering::Relaxed);
                self.relay(client, listener.shares(), Some((cluster, server))).await
            }
        }
    }

    /// Serves what the client's bytes say; a tentative connection is used if they are opaque, else closed unused.
    async fn by_client_bytes(
        &self,
        mut client: Stream,
        listener: &Listener,
        tentative: Option<(Arc<Cluster>, opaque::Dialled)>,
    ) -> Result<(), Cause> {
        match reading::outbound(listener, self.sniff(&mut client).await?) {
            Reading::Http1 => {
                drop(tentative);
                self.http1(client).await;
                Ok(())
            }
            Reading::Http2 => {
                drop(tentative);
                self.http2(client).await;
                Ok(())
            }
            Reading::Opaque | Reading::ByServerName | Reading::Mismatch => {
                self.relay(client, listener.shares(), tentative).await
            }
        }
    }

    /// Serves a TLS client by the name it asks for.
    async fn by_server_name(&self, mut client: Stream, names: &ServerNames) -> Result<(), Cause> {
        let asked = match self.sniff(&mut client).await? {
            Sniffed::Tls => hello::read(&mut client, hello::server_name).await?,
            Sniffed::Http1 | Sniffed::Http2 | Sniffed::Opaque | Sniffed::More => None,
        };
        let Some(name) = asked else {
            client.abort();
            return Err(Cause::ProtocolMismatch);
        };
        match name.and_then(|name| names.find(&name)) {
            Some(shares) => self.relay(client, Some(shares), None).await,
            None => {
                // Whoever does not read it sees that the connection ends.
                let _ = client.write_all(&UNRECOGNIZED_NAME).await;
                Err(Cause::NoRoute)
            }
        }
    }

    async fn sniff(&self, client: &mut Stream) -> Result<Sniffed, Cause> {
        let metrics = &self.worker.shared.metrics.connections;
        let limited = |limit| metrics.detection_limited(Direction::Outbound, limit);
        detect::client_bytes(client, serve::HEAD_TIMEOUT, self.worker.ending(), limited).await.map_err(gone)
    }

    async fn http1(&self, client: Stream) {
        serve::http1(self.connection(), client).await;
    }

    async fn http2(&self, client: Stream) {
        serve::http2(self.connection(), client).await;
    }

    fn connection(&self) -> Rc<Connection> {
        Connection::outbound(self.worker.clone(), self.peer, self.original_dst)
    }

    /// The cluster of this connection, by weight.
    fn choose(&self, shares: &Shares) -> Result<Arc<Cluster>, Cause> {
        shares.choose(&mut self.worker.rng.borrow_mut()).cloned().ok_or(Cause::InvalidBackend)
    }

    async fn relay(
        &self,
        client: Stream,
        shares: Option<&Shares>,
        dialled: Option<(Arc<Cluster>, opaque::Dialled)>,
    ) -> Result<(), Cause> {
        let Some(shares) = shares else {
            client.abort();
            return Err(Cause::ProtocolMismatch);
        };
        let (cluster, dialled) = match dialled {
            Some((cluster, server)) => (cluster, Some(server)),
            None => match self.choose(shares) {
                Ok(cluster) => (cluster, None),
                Err(cause) => {
                    client.abort();
                    return Err(cause);
                }
            },
        };
        let mut record = TcpRecord::new(self.worker, Direction::Outbound, None, cluster.service.as_ref());
        let server = match dialled {
            Some(server) => server,
            None => match opaque::dial(self.worker, &cluster, Towards::Network, self.peer.ip()).await {
                Ok(server) => server,
                Err(error) => {
                    tracing::debug!(cluster = %cluster.name, source = ?error.source, "opaque connection failed");
                    record.failed(error.cause);
                    client.abort();
                    return Ok(());
                }
            },
        };
        record.endpoint(&server.endpoint);
        opaque::relay(client, server, record, std::future::pending()).await;
        Ok(())
    }

    /// Relays to the original destination, untouched.
    async fn to_outside(&self, client: Stream) -> Result<(), Cause> {
        let mut record = TcpRecord::new(self.worker, Direction::Outbound, None, None);
        match opaque::dial_outside(self.worker, self.original_dst).await {
            Ok(server) => {
                opaque::relay_streams(client, server, record, std::future::pending()).await;
            }
            Err(error) => {
                record.failed(error.cause);
                client.abort();
            }
        }
        Ok(())
    }
}

/// The client went away while its bytes were awaited.
fn gone(_: io::Error) -> Cause {
    Cause::DownstreamClosed
}

fn server_speaks_first(seen: &Seen, now: Millis) -> bool {
    let last = seen.server_first.load(Ordering::Relaxed);
    last != 0 && now.0.saturating_sub(last) < SERVER_FIRST_MEMORY_MS
}
