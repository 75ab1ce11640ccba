//! `heddle-proxy capture --check`: whether somebody else, a CNI plugin, captures this pod, found out without any right: a
//! connection to nowhere must arrive at the sidecar's port, where nobody listens yet but this check.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Error;

/// Makes sure that connections going out arrive at `outbound_port`. Must not run as the sidecar's user, whose connections pass.
///
/// # Errors
/// If they do not, or the port is not to be had.
pub fn check(outbound_port: u16) -> Result<(), Error> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, outbound_port));
    let listener = TcpListener::bind(address).map_err(|source| Error::CheckPort { address, source })?;
    let outcome = TcpStream::connect_timeout(&NOWHERE, TIMEOUT).and_then(|stream| arrived(&listener, &stream));
    outcome.map_err(|source| Error::NotCaptured { source })
}

/// Whether the connection is the one that waits at the listener. It is there as soon as the kernel has worked through its own
/// answer to itself.
fn arrived(listener: &TcpListener, stream: &TcpStream) -> io::Result<()> {
    let elsewhere = || io::Error::other(format!("{NOWHERE} answers"));
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match listener.accept() {
            Ok((_, peer)) if peer == stream.local_addr()? => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(POLL);
            }
            Err(_) => return Err(elsewhere()),
        }
    }
}

/// An address nobody has (RFC 5737, TEST-NET-1), and TCP's discard port.
const NOWHERE: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9));
/// Chosen: within the pod it takes microseconds; without capture, nobody answers however long one waits.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks.
const POLL: Duration = Duration::from_millis(1);
