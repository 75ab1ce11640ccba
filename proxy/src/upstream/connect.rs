//! Dialling an endpoint: TCP with the socket options a sidecar needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use crate::http::error::{Cause, Error};
use crate::tables::cluster::{Endpoint, EndpointTls, Settings};

/// Source of connections to the application: capture lets it pass, and the kernel accepts it because all of
/// 127.0.0.0/8 is local.
const INBOUND_SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
/// Capture adds it to the loopback interface.
const INBOUND_SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// An established connection to an endpoint.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// What every dialled socket gets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dialer {
    /// SO_MARK, where capture exempts the proxy by mark instead of uid.
    pub mark: Option<u32>,
}

impl Dialer {
    /// Connects to `endpoint` within the cluster's connect timeout, TLS handshake included.
    pub async fn dial(
        self,
        endpoint: &Endpoint,
        settings: &Settings,
        to_application: bool,
    ) -> Result<TcpStream, Error> {
        let connect = self.establish(endpoint, to_application);
        match tokio::time::timeout(settings.connect_timeout, connect).await {
            Ok(result) => result,
            Err(_) => Err(Cause::ConnectTimeout.into()),
        }
    }

    async fn establish(self, endpoint: &Endpoint, to_application: bool) -> Result<TcpStream, Error> {
        let tcp = self.tcp(endpoint.address, to_application).await.map_err(|e| Error::new(Cause::ConnectRefused, e))?;
        match &endpoint.tls {
            EndpointTls::Plaintext => Ok(tcp),
            EndpointTls::Mtls(_) => Err(Cause::TlsFailure.into()),
        }
    }

    /// A plain TCP connection to `address`.
    pub async fn tcp(self, address: SocketAddr, to_application: bool) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = self.mark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        if to_application {
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
