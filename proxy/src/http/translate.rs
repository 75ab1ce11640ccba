//! From the version a message came in to the version it leaves in.
//!
//! HTTP/1 names the host in a field, HTTP/2 in `:authority`; HTTP/2 may split Cookie over several fields (RFC 9113
//! §8.2.3), HTTP/1 may not.

use http::header::{COOKIE, HOST, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Uri, Version};

use super::error::{Cause, Error};
use crate::upstream;

/// Makes `head`, in origin form with its hop-by-hop fields removed, ready to leave in `version`.
///
/// # Errors
/// [`Cause::ProtocolError`] if HTTP/2 needs an authority and the request has none.
pub fn request(head: &mut Parts, version: upstream::Version) -> Result<(), Error> {
    match version {
        upstream::Version::Http1 => to_http1(head),
        upstream::Version::Http2 => to_http2(head)?,
    }
    Ok(())
}

fn to_http1(head: &mut Parts) {
    if head.version == Version::HTTP_2 {
        if let Some(host) = head.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
            head.headers.insert(HOST, host);
        }
        join_cookies(head);
    }
    if head.uri.authority().is_some() || head.uri.scheme().is_some() {
        head.uri = head.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
    }
    head.version = Version::HTTP_11;
}

fn join_cookies(head: &mut Parts) {
    let crumbs: Vec<_> = head.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        head.headers.insert(COOKIE, cookie);
    }
}

fn to_http2(head: &mut Parts) -> Result<(), Error> {
    if head.uri.authority().is_none() {
        let host = head.headers.get(HOST).map(HeaderValue::as_bytes);
        let authority = host.and_then(|host| Authority::try_from(host).ok());
        let mut uri = std::mem::take(&mut head.uri).into_parts();
        uri.authority = Some(authority.ok_or_else(|| Error::new(Cause::ProtocolError, "HTTP/2 needs a host"))?);
        uri.scheme.get_or_insert(Scheme::HTTP);
        uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        head.uri = Uri::from_parts(uri).map_err(|error| Error::new(Cause::ProtocolError, error))?;
    }
    head.headers.remove(HOST);
    head.version = Version::HTTP_2;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(request: Request<()>) -> Parts {
        request.into_parts().0
    }

    #[test]
    fn the_host_moves_between_field_and_authority() {
        let mut h1 = head(Request::get("/a?b=c").header(HOST, "shop:80").body(()).unwrap());
        request(&mut h1, upstream::Version::Http2).unwrap();
        assert_eq!(h1.uri, "http://shop:80/a?b=c");
        assert!(!h1.headers.contains_key(HOST));
        request(&mut h1, upstream::Version::Http1).unwrap();
        assert_eq!((h1.uri.to_string().as_str(), &h1.headers[HOST]), ("/a?b=c", &HeaderValue::from_static("shop:80")));
    }

    #[test]
    fn cookie_crumbs_are_one_field_in_http_1() {
        let builder = Request::get("http://a/").version(Version::HTTP_2).header(COOKIE, "a=1").header(COOKIE, "b=2");
        let mut h2 = head(builder.body(()).unwrap());
        request(&mut h2, upstream::Version::Http1).unwrap();
        assert_eq!(h2.headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn http_2_without_a_host_is_refused() {
        let mut h1 = head(Request::get("/").version(Version::HTTP_10).body(()).unwrap());
        assert_eq!(request(&mut h1, upstream::Version::Http2).unwrap_err().cause, Cause::ProtocolError);
    }
}
