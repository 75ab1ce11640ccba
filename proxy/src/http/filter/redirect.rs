//! RequestRedirect: an answer that sends the client elsewhere.

use http::header::{HOST, LOCATION};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderValue, Response};

use super::rewrite::changed_path;
use crate::http::body::Body;
use crate::tables::route::Redirect;

/// The redirect's answer. The port of the Location is left out where it is the scheme's own.
pub fn answer(redirect: &Redirect, request: &Parts, dialled_port: u16) -> Response<Body> {
    let scheme = redirect.scheme.as_ref().or(request.uri.scheme()).unwrap_or(&Scheme::HTTP);
    let host = redirect.hostname.as_deref().unwrap_or_else(|| request_host(request));
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => port,
        (None, Some(scheme)) => well_known_port(scheme),
        (None, None) => dialled_port,
    };
    let path = match &redirect.path {
        Some(change) => changed_path(change, request.uri.path()),
        None => request.uri.path().to_owned(),
    };
    let mut location = format!("{scheme}://{host}");
    if port != well_known_port(scheme) {
        location.push_str(&format!(":{port}"));
    }
    location.push_str(&path);
    if let Some(query) = request.uri.query() {
        location.push('?');
        location.push_str(query);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = redirect.status;
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// The host the client named, without port.
fn request_host(request: &Parts) -> &str {
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    let host = authority.or_else(|| request.headers.get(HOST)?.to_str().ok()).unwrap_or_default();
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

fn well_known_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::route::PathChange;
    use http::{Request, StatusCode};

    fn redirect() -> Redirect {
        Redirect { scheme: None, hostname: None, path: None, port: None, status: StatusCode::FOUND }
    }

    fn location(redirect: &Redirect, host: &str, port: u16) -> String {
        let request = Request::get("/a/b?q").header("host", host).body(()).unwrap().into_parts().0;
        let response = answer(redirect, &request, port);
        assert_eq!(response.status(), redirect.status);
        response.headers()["location"].to_str().unwrap().to_owned()
    }

    #[test]
    fn what_is_not_given_is_the_request_s_own() {
        assert_eq!(location(&redirect(), "shop:80", 80), "http://shop/a/b?q");
        assert_eq!(location(&redirect(), "shop", 8080), "http://shop:8080/a/b?q");
        assert_eq!(location(&redirect(), "[::1]:80", 80), "http://[::1]/a/b?q");
    }

    #[test]
    fn a_new_scheme_brings_its_own_port() {
        let to_https = Redirect { scheme: Some(Scheme::HTTPS), ..redirect() };
        assert_eq!(location(&to_https, "shop", 8080), "https://shop/a/b?q");
    }

    #[test]
    fn host_port_and_path_can_be_replaced() {
        let path = Some(PathChange::Full("/z".into()));
        let all = Redirect { hostname: Some("b".into()), port: Some(81), path, ..redirect() };
        assert_eq!(location(&all, "shop", 80), "http://b:81/z?q");
    }
}
