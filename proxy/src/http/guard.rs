//! What a request must be before anything looks at it: one framing, one host, one reading.
//!
//! hyper parses; it also settles some ambiguities silently (it drops Content-Length where Transfer-Encoding is
//! there, collapses equal Content-Lengths) and re-frames every body itself, so a second reading can never travel.
//! This guard refuses what hyper lets through and what two parsers could still understand differently.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Version};

/// Why a request is refused with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// RFC 9112 §3.2, RFC 9113 §8.3.1: a request names its host exactly once; HTTP/1.0 need not.
    #[error("the request must have exactly one Host field")]
    Host,
    /// RFC 9110 §7.2, RFC 3986 §3.2: the authority is not a host with an optional port.
    #[error("the Host field is not a host with an optional port")]
    HostValue,
    /// RFC 9112 §6.1: only `chunked` frames a request body.
    #[error("Transfer-Encoding must be chunked alone")]
    TransferEncoding,
    /// RFC 9112 §6.1: HTTP/1.0 has no Transfer-Encoding.
    #[error("Transfer-Encoding is not defined for HTTP/1.0")]
    TransferEncodingHttp10,
    /// RFC 9112 §6.3: one length only.
    #[error("Content-Length must appear once")]
    ContentLength,
    /// A mesh is no forward proxy.
    #[error("CONNECT is not served")]
    Connect,
}

/// Checks the head of a request.
pub fn check(request: &Parts) -> Result<(), Refused> {
    if request.method == Method::CONNECT {
        return Err(Refused::Connect);
    }
    check_hosts(request)?;
    if request.version != Version::HTTP_2 {
        check_coding(request)?;
    }
    if request.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Refused::ContentLength);
    }
    Ok(())
}

/// The authority of the target stands above Host (RFC 9112 §3.2.2, RFC 9113 §8.3.1), yet only HTTP/2 lets Host be
/// absent beside it.
fn check_hosts(request: &Parts) -> Result<(), Refused> {
    let authority = request.uri.authority();
    if let Some(authority) = authority {
        check_host(authority.as_str().as_bytes())?;
    }
    let mut hosts = request.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => check_host(host.as_bytes()),
        (None, None) if request.version == Version::HTTP_10 => Ok(()),
        (None, None) if request.version == Version::HTTP_2 && authority.is_some() => Ok(()),
        _ => Err(Refused::Host),
    }
}

fn check_coding(request: &Parts) -> Result<(), Refused> {
    let mut codings = request.headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if request.version == Version::HTTP_10 {
        return Err(Refused::TransferEncodingHttp10);
    }
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(Refused::TransferEncoding);
    }
    Ok(())
}

/// `uri-host [":" port]`; an empty host is what a client sends that has no authority (RFC 9112 §3.2).
fn check_host(host: &[u8]) -> Result<(), Refused> {
    if host.is_empty() {
        return Ok(());
    }
    let authority = http::uri::Authority::try_from(host).map_err(|_| Refused::HostValue)?;
    // What stands behind the host is a colon and digits, or nothing; a user is none of either.
    let port = authority.as_str().strip_prefix(authority.host());
    let port = port.map(|port| port.strip_prefix(':').unwrap_or(port));
    let valid = port.is_some_and(|port| port.is_empty() || port.bytes().all(|digit| digit.is_ascii_digit()));
    if valid { Ok(()) } else { Err(Refused::HostValue) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn checked(version: Version, fields: &[(&str, &str)]) -> Result<(), Refused> {
        let mut builder = Request::get("/").version(version);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        check(&builder.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_request_has_exactly_one_valid_host() {
        assert_eq!(checked(Version::HTTP_11, &[("host", "shop:80")]), Ok(()));
        assert_eq!(checked(Version::HTTP_11, &[]), Err(Refused::Host));
        assert_eq!(checked(Version::HTTP_11, &[("host", "a"), ("host", "a")]), Err(Refused::Host));
        assert_eq!(checked(Version::HTTP_11, &[("host", "a b")]), Err(Refused::HostValue));
        assert_eq!(checked(Version::HTTP_11, &[("host", "u@a")]), Err(Refused::HostValue));
        assert_eq!(checked(Version::HTTP_11, &[("host", "a:x")]), Err(Refused::HostValue));
        assert_eq!(checked(Version::HTTP_11, &[("host", "[fd00::1]:80")]), Ok(()));
        assert_eq!(checked(Version::HTTP_11, &[("host", "[fd00::1]")]), Ok(()));
        assert_eq!(checked(Version::HTTP_11, &[("host", "")]), Ok(()));
        assert_eq!(checked(Version::HTTP_10, &[]), Ok(()));
        assert_eq!(checked(Version::HTTP_2, &[]), Err(Refused::Host));
        assert_eq!(checked(Version::HTTP_2, &[("host", "a"), ("host", "b")]), Err(Refused::Host));
    }

    #[test]
    fn the_targets_authority_is_a_host_too() {
        let target = |uri: &str, version| check(&Request::get(uri).version(version).body(()).unwrap().into_parts().0);
        assert_eq!(target("http://a:80/", Version::HTTP_2), Ok(()));
        assert_eq!(target("http://u@a/", Version::HTTP_2), Err(Refused::HostValue));
        assert_eq!(target("http://u@a/", Version::HTTP_11), Err(Refused::HostValue));
        assert_eq!(target("http://a/", Version::HTTP_11), Err(Refused::Host), "Host is missing all the same");
    }

    #[test]
    fn only_chunked_frames_a_body_and_only_once() {
        let with = |value: &'static str| checked(Version::HTTP_11, &[("host", "a"), ("transfer-encoding", value)]);
        assert_eq!(with("Chunked"), Ok(()));
        assert_eq!(with("gzip, chunked"), Err(Refused::TransferEncoding));
        assert_eq!(with("identity"), Err(Refused::TransferEncoding));
        assert_eq!(
            checked(Version::HTTP_10, &[("transfer-encoding", "chunked")]),
            Err(Refused::TransferEncodingHttp10)
        );
        let twice = [("host", "a"), ("content-length", "1"), ("content-length", "2")];
        assert_eq!(checked(Version::HTTP_11, &twice), Err(Refused::ContentLength));
        assert_eq!(checked(Version::HTTP_2, &twice), Err(Refused::ContentLength));
    }
}
