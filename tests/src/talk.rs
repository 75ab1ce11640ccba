//! Raw clients: bytes out, bytes in.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use heddle::pods::Netns;

use crate::PATIENCE;
use crate::pods::MeshPod;

/// Connects from inside `pod`.
pub fn connect(pod: &MeshPod, to: SocketAddr) -> TcpStream {
    connect_from(pod.netns(), to)
}

/// Connects from inside a network.
pub fn connect_from(network: &Netns, to: SocketAddr) -> TcpStream {
    let stream = network.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    let stream = stream.unwrap_or_else(|error| panic!("a connection to {to}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `bytes` on a new connection and reads until the other end closes or resets it.
pub fn exchange(pod: &MeshPod, to: SocketAddr, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    try_from(pod.netns(), to, bytes)
}

/// What comes back for `bytes`: nothing where the connection is reset, be it before it was seen to be there.
pub fn try_from(network: &Netns, to: SocketAddr, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let Some(mut stream) = not_reset(network, to) else { return Vec::new() };
    // A refused connection may be reset before everything was written.
    let _ = stream.write_all(bytes.as_ref());
    read_to_end(&mut stream)
}

/// [`exchange`], with the sending side closed after `bytes`.
pub fn exchange_half_closed(pod: &MeshPod, to: SocketAddr, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let Some(mut stream) = not_reset(pod.netns(), to) else { return Vec::new() };
    let _ = stream.write_all(bytes.as_ref());
    let _ = stream.shutdown(Shutdown::Write);
    read_to_end(&mut stream)
}

/// A connection, unless it is reset before it was seen to be there.
fn not_reset(network: &Netns, to: SocketAddr) -> Option<TcpStream> {
    let stream = match network.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap() {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
        Err(error) => panic!("a connection to {to}: {error}"),
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

/// Reads until the other end closes or resets.
pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), [0; 16 * 1024]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return all,
            Ok(len) => all.extend_from_slice(&chunk[..len]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("no end of the answer: {error}; so far: {}", String::from_utf8_lossy(&all)),
        }
    }
}

/// The answer to `GET path`, connection closed after it.
pub fn get(pod: &MeshPod, to: SocketAddr, path: &str) -> Response {
    request(pod, to, &format!("GET {path} HTTP/1.1\r\nHost: api.shop\r\nConnection: close\r\n\r\n"))
}

/// The one answer to `request`, which asks for the connection to be closed.
pub fn request(pod: &MeshPod, to: SocketAddr, request: &str) -> Response {
    request_from(pod.netns(), to, request)
}

/// [`request`] from inside a network.
pub fn request_from(network: &Netns, to: SocketAddr, request: &str) -> Response {
    let mut stream = connect_from(network, to);
    stream.write_all(request.as_bytes()).unwrap();
    Response::parse(&read_to_end(&mut stream))
}

/// An HTTP/1 response, as it came.
#[derive(Debug)]
pub struct Response {
    /// `HTTP/1.1 200 OK`.
    pub status_line: String,
    /// Fields in order, names as sent.
    pub fields: Vec<(String, String)>,
    /// What follows, framing included.
    pub body: String,
}

impl Response {
    /// Reads the bytes of a whole response.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP response: {text:?}"));
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap().to_owned();
        let fields = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned()));
        Self { status_line, fields: fields.collect(), body: body.to_owned() }
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    /// The first field of that name, in any case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}
