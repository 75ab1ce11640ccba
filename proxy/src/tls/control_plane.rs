//! Connections to the control plane: TLS 1.3 to its SPIFFE ID, with this workload's certificate once there is one. A name is
//! resolved anew for each, see [`crate::resolve`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_certs::bundle::Bundle;
use heddle_certs::credential::Identity;
use heddle_certs::tls::{bootstrap_client_config, client_config};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::resolve;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one.
    #[error("control plane address `{address}`: {reason}; right would be https://heddle-control-plane:15012")]
    Address {
        /// As configured.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The roots say nothing usable.
    #[error("TLS towards the control plane: {0}")]
    Tls(#[from] rustls::Error),
    /// Its identity cannot be named.
    #[error("identity of the control plane: {0}")]
    Identity(#[from] heddle_certs::identity::Error),
    /// Nobody answers, or somebody else.
    #[error("cannot reach the control plane: {}", causes(.0))]
    Connect(#[from] tonic::transport::Error),
}

/// What is wanted of a connection.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// `https://host:port`, or `http://` to loopback for tests.
    pub address: String,
    /// SO_MARK, so that capture lets it pass.
    pub mark: Option<u32>,
}

impl ControlPlane {
    /// Connects with `identity`, or without a certificate.
    ///
    /// # Errors
    /// If it cannot be reached or does not show the control plane's identity.
    pub async fn connect(&self, roots: &Arc<Bundle>, identity: Option<&Identity>) -> Result<Channel, Error> {
        let expected: Arc<[_]> = Arc::new([roots.trust_domain().control_plane()?]);
        let mut config = match identity {
            Some(identity) => client_config(identity, roots.clone(), expected)?,
            None => bootstrap_client_config(roots.clone(), expected)?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (config, mark) = (Arc::new(config), self.mark);
        let endpoint = self.endpoint()?;
        let connector = tower::service_fn(move |uri: Uri| dial(uri, mark, config.clone()));
        Ok(endpoint.connect_with_connector(connector).await?)
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let wrong = |reason: String| Error::Address { address: self.address.clone(), reason };
        let uri: Uri = self.address.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
        if uri.scheme_str() != Some("https") || uri.host().is_none() {
            return Err(wrong("not https:// with a host".to_owned()));
        }
        let endpoint = Endpoint::from_shared(self.address.clone()).map_err(|error| wrong(error.to_string()))?;
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true))
    }
}

async fn dial(
    uri: Uri,
    mark: Option<u32>,
    config: Arc<ClientConfig>,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
    let addresses = resolve::addresses(host).await?.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
    let tcp = resolve::first(addresses, |address| tcp(address, mark)).await?;
    // The session store's key only: identity is what is verified.
    let name = ServerName::IpAddress(tcp.peer_addr()?.ip().into());
    TlsConnector::from(config).connect(name, tcp).await.map(TokioIo::new)
}

async fn tcp(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &mark)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// tonic's own text is "transport error"; what happened is in its sources.
fn causes(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// xDS and identity over mutual TLS, by the convention of the field.
const DEFAULT_PORT: u16 = 15012;
/// Chosen: a SYN that was lost is sent again after 1 s and 3 s (RFC 6298 §2).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead control plane is noticed after twice this. Chosen: a ping every 30 s is nothing, and configuration that is a
/// minute late is still better than a broken connection.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
