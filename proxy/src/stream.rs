//! A connection's bytes: plain TCP or inside mutual TLS, with what was read ahead replayed first.
//!
//! [`Stream`] is what every part of the data path reads and writes. Detection reads ahead into its buffer; whoever
//! takes the stream over sees every byte once, in order.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

/// One end of a connection.
pub struct Stream {
    /// Read ahead and not yet consumed.
    ahead: BytesMut,
    transport: Transport,
}

enum Transport {
    Tcp(TcpStream),
    Accepted(Box<server::TlsStream<Stream>>),
    Dialled(Box<client::TlsStream<TcpStream>>),
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self { ahead: BytesMut::new(), transport: Transport::Tcp(tcp) }
    }
}

impl From<server::TlsStream<Stream>> for Stream {
    fn from(tls: server::TlsStream<Stream>) -> Self {
        Self { ahead: BytesMut::new(), transport: Transport::Accepted(Box::new(tls)) }
    }
}

impl From<client::TlsStream<TcpStream>> for Stream {
    fn from(tls: client::TlsStream<TcpStream>) -> Self {
        Self { ahead: BytesMut::new(), transport: Transport::Dialled(Box::new(tls)) }
    }
}

impl Stream {
    /// What was read ahead; it stays to be read again.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Reads once and keeps what came, at most `limit` octets in all; `Ok(0)` is the end of the stream, or a full
    /// buffer.
    ///
    /// Cancel safe: what was read is kept.
    pub async fn read_ahead(&mut self, limit: usize) -> io::Result<usize> {
        let room = limit.saturating_sub(self.ahead.len());
        if room == 0 {
            return Ok(0);
        }
        self.ahead.reserve(room.min(READ_AHEAD_BYTES));
        let mut ahead = (&mut self.ahead).limit(room);
        match &mut self.transport {
            Transport::Tcp(io) => io.read_buf(&mut ahead).await,
            Transport::Accepted(io) => io.read_buf(&mut ahead).await,
            Transport::Dialled(io) => io.read_buf(&mut ahead).await,
        }
    }

    /// Closes with RST: the other end learns that this is no orderly end.
    pub fn abort(mut self) {
        self.reset_on_close();
    }

    /// Makes a later close a RST.
    pub fn reset_on_close(&mut self) {
        // Fails only on a socket that is already gone.
        let _ = self.tcp().map(|tcp| SockRef::from(tcp).set_linger(Some(Duration::ZERO)));
    }

    /// Lets the kernel find out that the other end is gone: opaque connections may be silent for ever.
    pub fn keep_alive(&self) {
        let probes = TcpKeepalive::new().with_time(KEEP_ALIVE_IDLE).with_interval(KEEP_ALIVE_INTERVAL);
        // Fails only on a socket that is already gone.
        let _ = self.tcp().map(|tcp| SockRef::from(tcp).set_tcp_keepalive(&probes));
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match &self.transport {
            Transport::Tcp(tcp) => Some(tcp),
            Transport::Accepted(tls) => tls.get_ref().0.tcp(),
            Transport::Dialled(tls) => Some(tls.get_ref().0),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if !stream.ahead.is_empty() {
            let len = stream.ahead.len().min(buf.remaining());
            buf.put_slice(&stream.ahead[..len]);
            stream.ahead.advance(len);
            if stream.ahead.is_empty() {
                stream.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        match &mut stream.transport {
            Transport::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            // Without TLS's `close_notify` the end is an error (RFC 8446 §6.1): rustls never takes a cut stream for
            // a whole one.
            Transport::Accepted(io) => Pin::new(io).poll_read(cx, buf),
            Transport::Dialled(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Transport::Accepted(io) => Pin::new(io).poll_write(cx, buf),
            Transport::Dialled(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Transport::Accepted(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Transport::Dialled(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(io) => io.is_write_vectored(),
            Transport::Accepted(io) => io.is_write_vectored(),
            Transport::Dialled(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(io) => Pin::new(io).poll_flush(cx),
            Transport::Accepted(io) => Pin::new(io).poll_flush(cx),
            Transport::Dialled(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Transport::Accepted(io) => Pin::new(io).poll_shutdown(cx),
            Transport::Dialled(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// Read at a time while detecting: a request line or a ClientHello with ML-KEM (1.7 KiB) in one go.
const READ_AHEAD_BYTES: usize = 4 * 1024;
/// Silence before the first probe. Chosen: below the 5 min after which many NATs and firewalls forget a connection.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(240);
/// Between two probes; Linux gives up after nine (`tcp_keepalive_probes`).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
