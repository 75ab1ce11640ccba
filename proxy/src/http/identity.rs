//! Who called, told to the application: `x-forwarded-client-cert` in Envoy's format.
//!
//! Only inbound writes it, over whatever came: a client cannot forge it.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::tls::Peer;

/// Envoy documentation, "x-forwarded-client-cert".
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// The value for requests of one connection; `own` is this workload's SPIFFE ID.
pub fn forwarded_client_cert(own: &str, peer: &Peer) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("By={own};Hash={};URI={}", peer.certificate_hash, peer.principal)).ok()
}

/// Says who called, or that nobody is known.
pub fn tell(headers: &mut HeaderMap, value: Option<&HeaderValue>) {
    match value {
        Some(value) => drop(headers.insert(X_FORWARDED_CLIENT_CERT, value.clone())),
        None => drop(headers.remove(X_FORWARDED_CLIENT_CERT)),
    }
}
