//! What a connection speaks, told from its first bytes.
//!
//! [`sniff`] is pure; [`Reader`] feeds it from a connection within limits, and watches the server's side of a
//! tentative connection meanwhile. What is read stays in the stream and is read again by whoever serves it.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::stream::Stream;

/// Most octets looked at. Holds a ClientHello with ML-KEM and a long ALPN list, and any request line worth serving
/// without a declared protocol.
pub const MAX_BYTES: usize = 8 * 1024;
/// Longest wait for the bytes that decide, from the first of them.
pub const MAX_WAIT: Duration = Duration::from_secs(10);
/// A client silent for this long may be waiting for the server to speak. Chosen: several round trips inside a data
/// centre, too short to be noticed by people.
pub const SILENCE: Duration = Duration::from_millis(50);

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// Not enough to tell.
    More,
    /// A TLS ClientHello has begun (RFC 8446 §5.1).
    Tls,
    /// A whole HTTP/1 request line.
    Http1,
    /// The HTTP/2 connection preface (RFC 9113 §3.4).
    Http2,
    /// Anything else.
    Opaque,
}

/// Tells what `bytes`, the beginning of a connection, are.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    match bytes {
        [] => Sniffed::More,
        [TLS_HANDSHAKE, ..] => sniff_tls(bytes),
        _ if bytes.starts_with(HTTP2_PREFACE) => Sniffed::Http2,
        _ if HTTP2_PREFACE.starts_with(bytes) => Sniffed::More,
        _ => sniff_http1(bytes),
    }
}

/// Record header `22, 3, x`, then a handshake message of type client_hello.
fn sniff_tls(bytes: &[u8]) -> Sniffed {
    match bytes {
        [_, major, ..] if *major != 3 => Sniffed::Opaque,
        [_, _, minor, ..] if *minor > 4 => Sniffed::Opaque,
        [_, _, _, _, _, message, ..] if *message != CLIENT_HELLO => Sniffed::Opaque,
        [_, _, _, _, _, _, ..] => Sniffed::Tls,
        _ => Sniffed::More,
    }
}

/// HTTP/1 is `method SP target SP HTTP/1.x` and the line's end (RFC 9112 §3). Empty lines before it are allowed
/// (§2.2) but tell nothing, so they are not taken for HTTP.
fn sniff_http1(bytes: &[u8]) -> Sniffed {
    let line_end = bytes.iter().position(|b| *b == b'\n');
    let line = &bytes[..line_end.unwrap_or(bytes.len())];
    let method_end = line.iter().position(|b| !is_token(*b));
    let method = &line[..method_end.unwrap_or(line.len())];
    if method.is_empty() || method.len() > MAX_METHOD_BYTES {
        return Sniffed::Opaque;
    }
    match method_end.map(|end| line[end]) {
        None if line_end.is_none() => Sniffed::More,
        Some(b' ') if line_end.is_some() => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let version = line.len().checked_sub(VERSION_BYTES).map(|at| &line[at..]);
            let is_http1 = version.is_some_and(|v| v.starts_with(b" HTTP/1.") && v[VERSION_BYTES - 1].is_ascii_digit());
            if is_http1 { Sniffed::Http1 } else { Sniffed::Opaque }
        }
        // A target holds neither controls nor spaces; what follows the second space can only be the version.
        Some(b' ') if line[method.len()..].iter().all(|b| *b >= b' ' || *b == b'\r') => Sniffed::More,
        _ => Sniffed::Opaque,
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether bytes that are no whole request line were meant as HTTP/1 all the same, where HTTP is declared: then
/// hyper's answer in words is better than a reset, and a request line longer than [`MAX_BYTES`] is served.
pub fn almost_http1(bytes: &[u8]) -> bool {
    let line_end = bytes.iter().position(|b| *b == b'\n');
    let line = &bytes[..line_end.unwrap_or(bytes.len())];
    let method = line.iter().take_while(|b| is_token(**b)).count();
    let names_version = line.windows(6).any(|window| window == b" HTTP/");
    let goes_on = line_end.is_none() && method > 0 && line.get(method) == Some(&b' ');
    names_version || goes_on
}

/// Why no verdict was reached within the limits; the connection is opaque then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`MAX_BYTES`] were read.
    Bytes,
    /// [`MAX_WAIT`] passed.
    Wait,
}

impl Limit {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Wait => "wait",
        }
    }
}

/// Waits until the client has sent anything at all, or ended, for at most `wait`; false if it was silent.
///
/// # Errors
/// If the connection breaks.
pub async fn client_speaks(client: &mut Stream, wait: Duration) -> io::Result<bool> {
    if !client.ahead().is_empty() {
        return Ok(true);
    }
    match tokio::time::timeout(wait, client.read_ahead(MAX_BYTES)).await {
        Ok(read) => read.map(|_| true),
        Err(_) => Ok(false),
    }
}

/// Reads from a client until its bytes tell what they are; it may be silent for `idle` before the first, unless the
/// sidecar is `ending`. A client that ended before is [`Sniffed::Opaque`]; so is one that reached a limit, which
/// `limited` is told.
///
/// # Errors
/// If the connection breaks, or the client was silent for too long.
pub async fn client_bytes(
    client: &mut Stream,
    idle: Duration,
    ending: impl Future<Output = ()>,
    mut limited: impl FnMut(Limit),
) -> io::Result<Sniffed> {
    let spoke = tokio::select! {
        biased;
        spoke = client_speaks(client, idle) => spoke?,
        () = ending => false,
    };
    if !spoke {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let deadline = Instant::now() + MAX_WAIT;
    loop {
        match sniff(client.ahead()) {
            Sniffed::More => {}
            verdict => return Ok(verdict),
        }
        match timeout_at(deadline, client.read_ahead(MAX_BYTES)).await {
            Ok(Ok(0)) => {
                if client.ahead().len() >= MAX_BYTES {
                    limited(Limit::Bytes);
                }
                return Ok(Sniffed::Opaque);
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                limited(Limit::Wait);
                return Ok(Sniffed::Opaque);
            }
        }
    }
}

/// Waits until one side of a tentative connection speaks or ends, or the sidecar is `ending`.
///
/// # Errors
/// If either side breaks, or both were silent to the end.
pub async fn who_speaks(
    client: &mut Stream,
    server: &mut Stream,
    ending: impl Future<Output = ()>,
) -> io::Result<Speaker> {
    tokio::select! {
        // Both at once: client bytes decide as ever.
        biased;
        read = client.read_ahead(MAX_BYTES) => read.map(|_| Speaker::Client),
        read = server.read_ahead(MAX_BYTES) => read.map(|_| Speaker::Server),
        () = ending => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// One side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// Who connected.
    Client,
    /// Who was connected to.
    Server,
}

/// RFC 8446 §5.1, ContentType handshake.
const TLS_HANDSHAKE: u8 = 22;
/// RFC 8446 §4, HandshakeType client_hello.
const CLIENT_HELLO: u8 = 1;
/// RFC 9113 §3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest registered method is UPDATEREDIRECTREF, 17 octets; what is longer is no method.
const MAX_METHOD_BYTES: usize = 32;
/// ` HTTP/1.1`.
const VERSION_BYTES: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_line_is_http_1_only_when_it_is_whole() {
        assert_eq!(sniff(b"GET / HTTP/1.1\r\n"), Sniffed::Http1);
        assert_eq!(sniff(b"GET / HTTP/1.0\nHost: a"), Sniffed::Http1);
        assert_eq!(sniff(b"M-SEARCH * HTTP/1.1\r\n"), Sniffed::Http1);
        assert_eq!(sniff(b"GET / HTTP/1.1"), Sniffed::More);
        assert_eq!(sniff(b"G"), Sniffed::More);
        assert_eq!(sniff(b"GET key\r\n"), Sniffed::Opaque, "Redis' inline command");
        assert_eq!(sniff(b"GET / HTTP/2.0\r\n"), Sniffed::Opaque);
        assert_eq!(sniff(b" GET / HTTP/1.1\r\n"), Sniffed::Opaque);
        assert_eq!(sniff(b"*1\r\n$4\r\nPING\r\n"), Sniffed::Opaque, "Redis");
        assert_eq!(sniff(b"\0\0\0\x08\x04\xd2\x16\x2f"), Sniffed::Opaque, "PostgreSQL's SSLRequest");
        assert_eq!(sniff(b"CONNECT {\"verbose\":false}\r\n"), Sniffed::Opaque, "NATS");
        assert_eq!(sniff(b"EHLO\r\n"), Sniffed::Opaque);
        assert_eq!(sniff(b"GET \x01"), Sniffed::Opaque);
    }

    #[test]
    fn tls_and_http_2_are_told_by_their_beginnings() {
        assert_eq!(sniff(HTTP2_PREFACE), Sniffed::Http2);
        assert_eq!(sniff(&HTTP2_PREFACE[..10]), Sniffed::More);
        assert_eq!(sniff(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"), Sniffed::Opaque);
        assert_eq!(sniff(&[22, 3, 1, 2, 0, 1]), Sniffed::Tls);
        assert_eq!(sniff(&[22, 3, 1, 2, 0]), Sniffed::More);
        assert_eq!(sniff(&[22, 3, 1, 2, 0, 2]), Sniffed::Opaque, "not a ClientHello");
        assert_eq!(sniff(&[22, 4]), Sniffed::Opaque);
    }

    proptest! {
        /// However the bytes are cut into reads, a verdict once given is the verdict of the whole.
        #[test]
        fn more_bytes_never_change_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..64) {
            let early = sniff(&bytes[..cut.min(bytes.len())]);
            prop_assert!(early == Sniffed::More || early == sniff(&bytes));
        }

        #[test]
        fn request_lines_are_recognised_at_any_cut(cut in 0usize..28) {
            let line = b"DELETE /a/b?c=d HTTP/1.1\r\nHo";
            let early = sniff(&line[..cut]);
            prop_assert!(early == Sniffed::More || early == Sniffed::Http1);
            prop_assert_eq!(sniff(line), Sniffed::Http1);
        }
    }
}
