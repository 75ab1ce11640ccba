//! URLRewrite: another host or path upstream than the client asked for.

use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderValue, header};

use crate::tables::route::{PathChange, Rewrite};

/// Applies `rewrite`; a path that would not be valid stays as it was.
pub fn apply(rewrite: &Rewrite, request: &mut Parts) {
    if let Some(host) = &rewrite.hostname {
        set_host(request, host);
    }
    if let Some(change) = &rewrite.path {
        let path = changed_path(change, request.uri.path());
        set_path(request, &path);
    }
}

/// HTTP/2 carries the host in the URI, HTTP/1 in its field; whichever is there is replaced.
fn set_host(request: &mut Parts, host: &HeaderValue) {
    if request.uri.authority().is_some() {
        let mut parts = std::mem::take(&mut request.uri).into_parts();
        if let Ok(authority) = host.as_bytes().try_into() {
            parts.authority = Some(authority);
        }
        request.uri = Uri::from_parts(parts).unwrap_or_default();
    }
    if request.headers.contains_key(header::HOST) || request.uri.authority().is_none() {
        request.headers.insert(header::HOST, host.clone());
    }
}

fn set_path(request: &mut Parts, path: &str) {
    let path_and_query = match request.uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    if let Ok(path_and_query) = path_and_query {
        let mut parts = std::mem::take(&mut request.uri).into_parts();
        parts.path_and_query = Some(path_and_query);
        request.uri = Uri::from_parts(parts).unwrap_or_default();
    }
}

/// The path after `change`: `/foo/bar` with prefix `/foo` replaced by `/xyz` is `/xyz/bar`, by `/` or nothing it
/// is `/bar` (Gateway API `ReplacePrefixMatch`).
pub fn changed_path(change: &PathChange, path: &str) -> String {
    match change {
        PathChange::Full(full) => full.clone(),
        PathChange::Prefix { matched, replacement } => {
            let rest = path.strip_prefix(matched.as_str()).unwrap_or(path);
            let joined = format!("{}{rest}", replacement.trim_end_matches('/'));
            if joined.starts_with('/') { joined } else { format!("/{joined}") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn prefix(matched: &str, replacement: &str, path: &str) -> String {
        let change = PathChange::Prefix { matched: matched.into(), replacement: replacement.into() };
        changed_path(&change, path)
    }

    #[test]
    fn a_prefix_is_replaced_as_the_gateway_api_table_says() {
        assert_eq!(prefix("/foo", "/xyz", "/foo/bar"), "/xyz/bar");
        assert_eq!(prefix("/foo", "/xyz/", "/foo/bar"), "/xyz/bar");
        assert_eq!(prefix("/foo", "/xyz", "/foo"), "/xyz");
        assert_eq!(prefix("/foo", "/xyz", "/foo/"), "/xyz/");
        assert_eq!(prefix("/foo", "", "/foo/bar"), "/bar");
        assert_eq!(prefix("/foo", "/", "/foo"), "/");
        assert_eq!(prefix("", "/xyz", "/bar"), "/xyz/bar");
    }

    #[test]
    fn the_query_stays_and_the_host_is_replaced() {
        let mut request = Request::get("/foo?q=1").header("host", "a").body(()).unwrap().into_parts().0;
        let rewrite =
            Rewrite { hostname: Some(HeaderValue::from_static("b")), path: Some(PathChange::Full("/new".into())) };
        apply(&rewrite, &mut request);
        assert_eq!(request.uri, "/new?q=1");
        assert_eq!(request.headers["host"], "b");
    }

    #[test]
    fn an_http2_authority_is_replaced_too() {
        let mut request = Request::get("http://a/x").body(()).unwrap().into_parts().0;
        apply(&Rewrite { hostname: Some(HeaderValue::from_static("b")), path: None }, &mut request);
        assert_eq!(request.uri, "http://b/x");
        assert!(request.headers.is_empty());
    }
}
