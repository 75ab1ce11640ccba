//! Accepting connections: TCP sockets, TLS handshakes with a limit on their time and number, and connections as tonic
//! takes them, with who is at the other end.
//!
//! A connection with a client certificate ends with that certificate, so nobody is believed, nor renews, beyond it; clients
//! come back with the renewed one and receive differences. One without ends after [`ANONYMOUS_LIFETIME`], so strangers
//! cannot hold the places. What certificate the server shows and whom it believes is looked
//! up for every handshake. Called by [`crate::app`].

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use heddle_certs::tls::server_config;
use heddle_certs::verify::{ClientAuth, reason, recheck};
use heddle_xds::server::PeerIdentity;
use prometheus::IntGauge;
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::authority::Current;
use crate::metrics::{Handshake, Metrics};

/// A connection as tonic serves it.
pub struct Connection {
    io: Io,
    peer: PeerIdentity,
    /// Ready when the connection must end.
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    _open: Open,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One of the connections that are allowed, counted while it lasts.
struct Open {
    _place: OwnedSemaphorePermit,
    gauge: IntGauge,
}

/// The server configuration in force and what it was made of.
#[derive(Clone)]
struct Tls {
    config: Arc<ServerConfig>,
    current: Current,
}

/// Binds a listener. Where the machine has no IPv6, "every address" is every IPv4 address.
///
/// # Errors
/// As the system says.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    match &bound {
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() && !has_ipv6() => {
            TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port())).await
        }
        _ => bound,
    }
}

/// Whether the machine's kernel has IPv6.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((std::net::Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Accepts TLS connections into `connections` until that is closed or `stopped` turns true; then the listener is closed.
/// Established connections end some time after `stopped`, see [`DRAIN`].
///
/// # Errors
/// If no server configuration can be made of `current`.
pub async fn accept_tls(
    listener: TcpListener,
    mut current: watch::Receiver<Current>,
    connections: mpsc::Sender<io::Result<Connection>>,
    max_connections: usize,
    mut stopped: watch::Receiver<bool>,
    metrics: Metrics,
) -> Result<(), rustls::Error> {
    let first = current.borrow_and_update().clone();
    let tls = Arc::new(RwLock::new(Tls::new(first)?));
    let places = Arc::new(Semaphore::new(max_connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = current.changed() => {
                if changed.is_err() { return Ok(()) }
                let newest = current.borrow_and_update().clone();
                match Tls::new(newest) {
                    Ok(newest) => *tls.write().unwrap_or_else(PoisonError::into_inner) = newest,
                    Err(error) => tracing::error!(%error, "the new certificate cannot be used; the old one stays"),
                }
                continue;
            }
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
            () = connections.closed() => return Ok(()),
        };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly out of descriptors: connections that end give some back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics.handshake(Handshake::Overflow);
            continue;
        };
        let open = Open::new(place, &metrics);
        let tls = tls.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (connections, metrics, stopped) = (connections.clone(), metrics.clone(), stopped.clone());
        tokio::spawn(async move {
            let handshake =
                tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.handshake(socket, address, open, stopped)).await;
            match handshake {
                Ok(Ok(connection)) => {
                    let mutual = connection.peer.spiffe_id.is_some();
                    metrics.handshake(if mutual { Handshake::Mutual } else { Handshake::Anonymous });
                    // Closed only if the server has ended.
                    let _ = connections.send(Ok(connection)).await;
                }
                Ok(Err(error)) => {
                    metrics.handshake(Handshake::Failed);
                    tracing::info!(%address, error, "TLS handshake failed");
                }
                Err(_) => metrics.handshake(Handshake::Timeout),
            }
        });
    }
}

/// Accepts plain connections, as [`accept_tls`].
pub async fn accept_plain(
    listener: TcpListener,
    connections: mpsc::Sender<io::Result<Connection>>,
    max_connections: usize,
    mut stopped: watch::Receiver<bool>,
    metrics: Metrics,
) {
    let places = Arc::new(Semaphore::new(max_connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = connections.closed() => return,
        };
        let Ok((socket, address)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        // Only latency suffers where it is refused.
        let _ = socket.set_nodelay(true);
        let connection = Connection {
            io: Io::Plain(socket),
            peer: PeerIdentity { address: Some(address), spiffe_id: None },
            end: Box::pin(ends(None, stopped.clone())),
            _open: Open::new(place, &metrics),
        };
        if connections.send(Ok(connection)).await.is_err() {
            return;
        }
    }
}

impl Tls {
    fn new(current: Current) -> Result<Self, rustls::Error> {
        let mut config = server_config(&current.identity, current.bundle.clone(), ClientAuth::Optional)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config), current })
    }

    async fn handshake(
        self,
        socket: TcpStream,
        address: SocketAddr,
        open: Open,
        stopped: watch::Receiver<bool>,
    ) -> Result<Connection, String> {
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream = TlsAcceptor::from(self.config).accept(socket).await.map_err(|error| explain(&error))?;
        let (_, session) = stream.get_ref();
        let mut spiffe_id = None;
        // Long enough to ask for a first certificate; who has one comes back with it.
        let mut left = ANONYMOUS_LIFETIME;
        if let Some(chain) = session.peer_certificates() {
            // rustls asks nobody on a resumed session; the roots and the time may have changed since.
            let now = SystemTime::now();
            let peer = recheck(chain, &self.current.bundle, now).map_err(|error| {
                let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
                format!("{error}{}", if resumed { " (resumed session)" } else { "" })
            })?;
            spiffe_id = Some(Arc::from(peer.id.as_str()));
            left = peer.not_after.duration_since(now).unwrap_or_default();
        }
        Ok(Connection {
            io: Io::Tls(Box::new(stream)),
            peer: PeerIdentity { address: Some(address), spiffe_id },
            end: Box::pin(ends(Some(left), stopped)),
            _open: open,
        })
    }
}

/// Done when what a connection may last is over, or some time after the server was stopped.
async fn ends(left: Option<Duration>, mut stopped: watch::Receiver<bool>) {
    let expiry = async {
        match left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    let stop = async {
        // An error means that the server is gone without a word.
        let _ = stopped.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = expiry => {}
        () = stop => {}
    }
}

/// The certificate's fault in our own words, where it was ours to find.
fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    inner.and_then(reason).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Open {
    fn new(place: OwnedSemaphorePermit, metrics: &Metrics) -> Self {
        let gauge = metrics.connections().clone();
        gauge.inc();
        Self { _place: place, gauge }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            // Polled again it would panic; an ended connection stays ended.
            self.end = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "what this connection may last is over")));
        }
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// How long a TLS handshake may take. Chosen: several round trips with losses; what stands open without speaking is gone
/// after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long established connections go on after the server was stopped: answers under way arrive, streams end. Chosen: an
/// answer takes milliseconds.
pub const DRAIN: Duration = Duration::from_millis(500);
/// How long a connection without client certificate may last. Chosen: a first certificate takes milliseconds, and a slow
/// machine's several tries still fit.
pub const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(300);
/// Wait after a failed accept, so that a machine without descriptors is not kept busy by it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use heddle_certs::identity::TrustDomain;
    use heddle_certs::tls::bootstrap_client_config;
    use rustls_pki_types::ServerName;
    use tokio::io::AsyncReadExt;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::authority::Authority;
    use crate::config::Config;

    struct Server {
        authority: Authority,
        address: SocketAddr,
        accepted: mpsc::Receiver<io::Result<Connection>>,
        metrics: Metrics,
        stop: watch::Sender<bool>,
        _directory: tempfile::TempDir,
    }

    impl Server {
        async fn start(max_connections: usize) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let config = Config::new("unused", directory.path(), TrustDomain::parse("mesh.example").unwrap());
            let metrics = Metrics::new().unwrap();
            let authority = Authority::open(&config, directory.path(), metrics.clone(), SystemTime::now()).unwrap();
            let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (connections, accepted) = mpsc::channel(8);
            let (stop, stopped) = watch::channel(false);
            let current = authority.current();
            tokio::spawn(accept_tls(listener, current, connections, max_connections, stopped, metrics.clone()));
            Self { authority, address, accepted, metrics, stop, _directory: directory }
        }

        /// The serial number of the certificate that is shown.
        async fn serial(&self) -> io::Result<String> {
            let bundle = self.authority.current().borrow().bundle.clone();
            let expected = Arc::from([bundle.trust_domain().control_plane().unwrap()]);
            let connector = TlsConnector::from(Arc::new(bootstrap_client_config(bundle, expected).unwrap()));
            let socket = TcpStream::connect(self.address).await?;
            let stream = connector.connect(ServerName::from(self.address.ip()), socket).await?;
            let chain = stream.get_ref().1.peer_certificates().unwrap();
            Ok(heddle_certs::verify::peer_identity(chain).unwrap().serial_hex)
        }

        fn metric(&self, line: &str) -> bool {
            String::from_utf8(self.metrics.text().unwrap()).unwrap().lines().any(|found| found == line)
        }
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_to_the_next_who_connects() {
        let mut server = Server::start(8).await;
        let before = server.serial().await.unwrap();
        server.accepted.recv().await.unwrap().unwrap();

        let now = SystemTime::now();
        assert!(server.authority.exchange(now, now).await.unwrap());

        let after = server.serial().await.unwrap();
        assert_ne!(after, before);
        assert_eq!(after, server.authority.current().borrow().identity.serial_hex());
    }

    #[tokio::test]
    async fn a_connection_above_the_limit_is_closed_and_counted_and_a_free_place_is_used_again() {
        let mut server = Server::start(1).await;
        server.serial().await.unwrap();
        let first = server.accepted.recv().await.unwrap().unwrap();

        assert!(server.serial().await.is_err());
        assert!(server.metric("heddle_handshakes_total{outcome=\"overflow\"} 1"));
        assert!(server.metric("heddle_connections 1"));

        drop(first);
        server.serial().await.unwrap();
    }

    #[tokio::test]
    async fn a_stopped_server_does_not_accept_and_ends_what_is_open() {
        let mut server = Server::start(8).await;
        server.serial().await.unwrap();
        let mut connection = server.accepted.recv().await.unwrap().unwrap();
        assert_eq!(connection.connect_info().spiffe_id, None);

        server.stop.send_replace(true);

        assert!(server.accepted.recv().await.is_none());
        assert!(connection.read_u8().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_its_certificate_does() {
        let (_stop, stopped) = watch::channel(false);
        let begin = tokio::time::Instant::now();

        ends(Some(Duration::from_secs(60)), stopped).await;

        assert_eq!(begin.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_connection_ends_only_with_the_server() {
        let (stop, stopped) = watch::channel(false);
        let mut end = std::pin::pin!(ends(None, stopped));
        assert!(tokio::time::timeout(Duration::from_secs(1_000_000), end.as_mut()).await.is_err());

        stop.send_replace(true);

        tokio::time::timeout(DRAIN * 2, end).await.unwrap();
    }
}
