//! Which fields travel: hop-by-hop fields end here, identity is ours alone to say.

use std::net::SocketAddr;

use http::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Uri, Version};

/// Fields that belong to one connection whether or not `Connection` names them (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Removes every field that must not travel past this hop. `Trailer` stays (hyper writes only announced
/// trailers), `TE: trailers` stays because gRPC asks for it, any other `TE` goes.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        for name in named_by_connection(headers) {
            // Framing and routing fields can't be made hop-by-hop by a sender (RFC 9110 §7.6.1).
            if !NEVER_HOP_BY_HOP.contains(&name) {
                headers.remove(name);
            }
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        headers.remove(TE);
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

/// `Connection: close, host` must not delete Host: these are end-to-end whatever `Connection` says.
const NEVER_HOP_BY_HOP: [HeaderName; 6] =
    [HOST, http::header::CONTENT_LENGTH, TRAILER, TE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION];

/// The protocol a request wants to switch to, if it is an HTTP/1.1 upgrade (RFC 9110 §7.8).
pub fn upgrade_wanted(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = version == Version::HTTP_11 && named_by_connection(headers).contains(&UPGRADE);
    asked.then(|| headers.get(UPGRADE).cloned()).flatten()
}

/// A request in absolute-form leaves in origin-form, and its Host is the target's (RFC 9112 §3.2.2).
pub fn to_origin_form(request: &mut Parts) {
    let Some(authority) = request.uri.authority() else { return };
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers.insert(HOST, host);
    }
    request.uri = request.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
}

/// A request of HTTP/1.0 may name no host, but leaves in a version that must: it gets the address that was called
/// (RFC 9112 §3.3).
pub fn name_host(request: &mut Parts, called: SocketAddr) {
    if request.uri.authority().is_none() && !request.headers.contains_key(HOST) {
        // Digits, colons, dots and brackets always are a value.
        if let Ok(host) = HeaderValue::from_str(&called.to_string()) {
            request.headers.insert(HOST, host);
        }
    }
}

/// Puts the fields of an upgrade back after [`remove_hop_by_hop`].
pub fn restore_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn fields_named_by_connection_end_here_but_host_and_framing_do_not() {
        let mut headers = map(&[("connection", "close, x-hop, Host"), ("x-hop", "1"), ("host", "a"), ("x-end", "2")]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a"), ("x-end", "2")]));
    }

    #[test]
    fn a_request_without_a_host_gets_the_address_that_was_called_and_others_keep_theirs() {
        let named = |request: http::request::Builder| {
            let mut head = request.body(()).unwrap().into_parts().0;
            name_host(&mut head, "10.0.0.1:80".parse().unwrap());
            head.headers.get(HOST).cloned()
        };
        assert_eq!(named(http::Request::get("/")).unwrap(), "10.0.0.1:80");
        assert_eq!(named(http::Request::get("/").header(HOST, "a")).unwrap(), "a");
        assert_eq!(named(http::Request::get("http://a/")), None);
    }

    #[test]
    fn te_trailers_travels_and_other_te_does_not() {
        let mut headers = map(&[("te", "trailers")]);
        remove_hop_by_hop(&mut headers);
        assert!(headers.contains_key("te"));
        let mut headers = map(&[("te", "gzip")]);
        remove_hop_by_hop(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn an_upgrade_needs_both_fields_and_http_1_1() {
        let headers = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade_wanted(Version::HTTP_11, &headers).unwrap(), "websocket");
        assert!(upgrade_wanted(Version::HTTP_10, &headers).is_none());
        assert!(upgrade_wanted(Version::HTTP_11, &map(&[("upgrade", "websocket")])).is_none());
    }
}
