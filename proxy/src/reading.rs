//! What is made of a connection's first bytes where a protocol is declared, or none. Pure; asked by `outbound`, `inbound` and
//! `explain`.

use crate::detect::Sniffed;
use crate::tables::listener::{Listener, Opaque, Protocol};

/// How a connection is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As HTTP/1.
    Http1,
    /// As HTTP/2.
    Http2,
    /// Relayed.
    Opaque,
    /// Relayed to where the server name in the client's TLS leads.
    ByServerName,
    /// Not at all: it is not what is declared.
    Mismatch,
}

/// On its way out, to `listener`.
pub fn outbound(listener: &Listener, sniffed: Sniffed) -> Reading {
    match (listener.protocol, sniffed) {
        (Protocol::Tcp, _) if matches!(listener.tcp, Some(Opaque::ServerNames(_))) => Reading::ByServerName,
        (Protocol::Tcp, _) => Reading::Opaque,
        (Protocol::Http | Protocol::Http2, Sniffed::Http2) => Reading::Http2,
        (Protocol::Http, Sniffed::Http1) => Reading::Http1,
        (Protocol::Http | Protocol::Http2, _) => Reading::Mismatch,
        (Protocol::Detect, Sniffed::Http1) if listener.http.is_some() => Reading::Http1,
        (Protocol::Detect, Sniffed::Http2) if listener.http.is_some() => Reading::Http2,
        (Protocol::Detect, _) => Reading::Opaque,
    }
}

/// On its way in without a sidecar at the other end, to a port of this `protocol`.
pub fn inbound(protocol: Protocol, sniffed: Sniffed) -> Reading {
    match (protocol, sniffed) {
        (Protocol::Detect | Protocol::Http, Sniffed::Http1) => Reading::Http1,
        (Protocol::Detect | Protocol::Http | Protocol::Http2, Sniffed::Http2) => Reading::Http2,
        (Protocol::Http | Protocol::Http2, _) => Reading::Mismatch,
        (Protocol::Detect | Protocol::Tcp, _) => Reading::Opaque,
    }
}
