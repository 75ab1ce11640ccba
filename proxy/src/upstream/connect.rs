//! Dialling an endpoint: TCP with the socket options a sidecar needs, then mutual TLS where the endpoint is meshed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use crate::http::error::{Cause, Error};
use crate::stream::Stream;
use crate::tables::cluster::{Endpoint, EndpointTls, KeepAlive, Settings};
use crate::tls::{self, Alpn};

/// Source of connections to the application: capture lets it pass, and the kernel accepts it because all of
/// 127.0.0.0/8 is local.
const INBOUND_SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
/// Capture adds it to the loopback interface.
const INBOUND_SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// A connection that was just made.
pub struct Dialled {
    /// The connection.
    pub stream: Stream,
    /// When it must end, because the peer's certificate has long expired; `None` without TLS.
    pub ends: Option<Instant>,
}

/// Which way a connection goes, for the source address it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Towards {
    /// The application beside this sidecar.
    Application,
    /// Another workload, or a host outside the mesh.
    Network,
}

/// What every dialled socket gets.
pub struct Dialer {
    /// SO_MARK, where capture exempts the proxy by mark instead of uid.
    pub mark: Option<u32>,
    /// This workload's certificate and the mesh's roots.
    pub identity: tls::Current,
    /// Handshakes by outcome.
    pub handshakes: crate::metrics::Handshakes,
}

impl Dialer {
    /// Connects to `endpoint` within the cluster's connect timeout, TLS handshake included.
    ///
    /// # Errors
    /// [`Cause::ConnectRefused`], [`Cause::ConnectTimeout`] or [`Cause::TlsFailure`].
    pub async fn dial(
        &self,
        endpoint: &Endpoint,
        settings: &Settings,
        alpn: Alpn,
        towards: Towards,
    ) -> Result<Dialled, Error> {
        let connect = self.establish(endpoint, settings, alpn, towards);
        match tokio::time::timeout(settings.connect_timeout, connect).await {
            Ok(result) => result,
            Err(_) => Err(Cause::ConnectTimeout.into()),
        }
    }

    async fn establish(
        &self,
        endpoint: &Endpoint,
        settings: &Settings,
        alpn: Alpn,
        towards: Towards,
    ) -> Result<Dialled, Error> {
        let tcp = self.tcp(endpoint.address, towards).await.map_err(|e| Error::new(Cause::ConnectRefused, e))?;
        if let Some(keep_alive) = &settings.connections.keep_alive {
            watch(&tcp, keep_alive);
        }
        match &endpoint.tls {
            EndpointTls::Plaintext => Ok(Dialled { stream: tcp.into(), ends: None }),
            EndpointTls::Mtls(expected) => {
                let dialled = tls::dial(&self.identity, tcp, expected, alpn).await;
                self.handshakes.dialled(&dialled);
                let (stream, peer) = dialled.map_err(|error| Error::new(Cause::TlsFailure, error))?;
                Ok(Dialled { stream: stream.into(), ends: Some(peer.ends) })
            }
        }
    }

    /// A plain TCP connection to `address`.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn tcp(&self, address: SocketAddr, towards: Towards) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = self.mark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        if towards == Towards::Application {
            // The port is chosen at connect, per destination: the range is not used up by the bind.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            let source = if address.is_ipv4() { INBOUND_SOURCE_V4 } else { INBOUND_SOURCE_V6 };
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Has the kernel find out that the other end is gone, also where it only waits for what was sent to be acknowledged
/// (`TCP_USER_TIMEOUT`, tcp(7)).
fn watch(tcp: &TcpStream, keep_alive: &KeepAlive) {
    let KeepAlive { time, interval, probes } = *keep_alive;
    let socket = SockRef::from(tcp);
    let probing = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(probes);
    // Both fail only on a socket that is already gone.
    let _ = socket.set_tcp_keepalive(&probing);
    let _ = socket.set_tcp_user_timeout(Some(time.saturating_add(interval.saturating_mul(probes))));
}
