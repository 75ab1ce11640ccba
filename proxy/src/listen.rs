//! Accepting captured connections and finding out where they were going.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener as StdListener};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::drain::Phase;
use crate::http::error::Cause;
use crate::metrics::Direction;
use crate::worker::Worker;
use crate::{inbound, outbound};

/// SYNs that wait for accept. As Linux's own `net.core.somaxconn` since 5.4.
const BACKLOG: i32 = 4096;
/// Wait after accept failed for want of file descriptors or memory. Chosen: long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One accepted connection.
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// The other end.
    pub peer: SocketAddr,
    /// Where the other end meant to connect.
    pub original_dst: SocketAddr,
}

/// Listening sockets on `port` for both families, shareable between workers (SO_REUSEPORT).
///
/// # Errors
/// If the port is taken or a family is not there at all (IPv6 may be absent: that is no error).
pub fn bind(port: u16) -> io::Result<Vec<StdListener>> {
    let v4 = bind_one(SocketAddr::from(([0, 0, 0, 0], port)))?;
    match bind_one(SocketAddr::from(([0u16; 8], port))) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(vec![v4]),
        Err(error) => Err(error),
    }
}

fn bind_one(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts what capture redirected on its way out of the pod, until the sidecar terminates.
pub async fn outbound(worker: Rc<Worker>, listener: StdListener) {
    accept(&worker.clone(), listener, Direction::Outbound, |accepted| {
        tokio::task::spawn_local(outbound::serve(worker.clone(), accepted));
    })
    .await;
}

/// Accepts what capture redirected on its way into the pod, until the sidecar terminates.
pub async fn inbound(worker: Rc<Worker>, listener: StdListener) {
    accept(&worker.clone(), listener, Direction::Inbound, |accepted| {
        tokio::task::spawn_local(inbound::serve(worker.clone(), accepted));
    })
    .await;
}

async fn accept(worker: &Rc<Worker>, listener: StdListener, direction: Direction, mut serve: impl FnMut(Accepted)) {
    let metrics = &worker.shared.metrics.connections;
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen"),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = worker.shared.drain.reached(Phase::Terminating) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept; is the limit of open files reached?");
                metrics.accept_failed(direction);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match original_dst(&stream) {
            Some(original_dst) if !is_loop(worker, &stream, direction, original_dst) => {
                // Fails only on a connection that is already gone; reading from it will say so.
                let _ = stream.set_nodelay(true);
                serve(Accepted { stream, peer, original_dst });
            }
            original_dst => worker.shared.refused(direction, peer, original_dst, Cause::Loop),
        }
    }
}

/// Whether serving the connection would lead back to a listener of ours: it was not redirected at all, or it came
/// from outside for a port that is the sidecar's own.
fn is_loop(worker: &Worker, stream: &TcpStream, direction: Direction, original_dst: SocketAddr) -> bool {
    let not_redirected = stream.local_addr().is_ok_and(|local| local == original_dst);
    let own_port = direction == Direction::Inbound && worker.shared.config.is_own_port(original_dst.port());
    not_redirected || own_port
}

/// Where the connection was going before capture redirected it; `None` if it was not redirected.
fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    match stream.local_addr().ok()? {
        SocketAddr::V4(_) => {
            let address = getsockopt(stream, sockopt::OriginalDst).ok()?;
            let ip = u32::from_be(address.sin_addr.s_addr);
            Some(SocketAddrV4::new(ip.into(), u16::from_be(address.sin_port)).into())
        }
        SocketAddr::V6(_) => {
            let address = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
            let ip = address.sin6_addr.s6_addr;
            Some(SocketAddrV6::new(ip.into(), u16::from_be(address.sin6_port), 0, 0).into())
        }
    }
}
