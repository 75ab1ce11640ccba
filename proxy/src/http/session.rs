//! Sessions: a client comes back to the endpoint that answered it before (GEP-1619). Only the client keeps which one that
//! is: its address, and when the session ends, in a cookie or a header field.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use crate::tables::route::Session;

/// The endpoint of the request's session; `None`: it has none, or one that is over.
pub fn endpoint(session: &Session, request: &HeaderMap, now: SystemTime) -> Option<SocketAddr> {
    match session {
        Session::Header(name) => read(request.get(name)?.as_bytes(), now),
        Session::Cookie { name, .. } => {
            cookies(request).find_map(|(given, value)| (given == name.as_bytes()).then(|| read(value, now)).flatten())
        }
    }
}

/// Tells the client that `endpoint` has answered.
pub fn tell(session: &Session, endpoint: SocketAddr, response: &mut HeaderMap, now: SystemTime) {
    match session {
        Session::Header(name) => {
            response.insert(name, text(encoded(endpoint.to_string())));
        }
        Session::Cookie { name, lifetime: None } => {
            response.append(SET_COOKIE, text(format!("{name}={}; Path=/; HttpOnly", encoded(endpoint.to_string()))));
        }
        Session::Cookie { name, lifetime: Some(lifetime) } => {
            let end = unix(now).saturating_add(lifetime.as_secs());
            let value = encoded(format!("{endpoint};{end}"));
            let seconds = lifetime.as_secs();
            response.append(SET_COOKIE, text(format!("{name}={value}; Max-Age={seconds}; Path=/; HttpOnly")));
        }
    }
}

/// Names and values of the cookies in all Cookie fields (RFC 6265 §4.2).
pub fn cookies(request: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = request.get_all(COOKIE).into_iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((&pair[..at], &pair[at + 1..]))
    })
}

fn read(value: &[u8], now: SystemTime) -> Option<SocketAddr> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(value).ok()?).ok()?;
    match text.split_once(';') {
        None => text.parse().ok(),
        Some((address, end)) => address.parse().ok().filter(|_| end.parse().is_ok_and(|end: u64| unix(now) < end)),
    }
}

fn encoded(text: String) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// Base64, numbers, and a name that was checked: all of it may stand in a header.
fn text(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

fn unix(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: SystemTime = UNIX_EPOCH;

    fn told(session: &Session) -> HeaderMap {
        let mut response = HeaderMap::new();
        tell(session, "10.0.0.1:80".parse().unwrap(), &mut response, NOW);
        response
    }

    #[test]
    fn a_client_that_says_again_what_it_was_told_comes_back() {
        let session = Session::Header("x-session".parse().unwrap());
        assert_eq!(endpoint(&session, &told(&session), NOW), Some("10.0.0.1:80".parse().unwrap()));
        assert_eq!(endpoint(&session, &HeaderMap::new(), NOW), None);
        let wrong = HeaderMap::from_iter([("x-session".parse().unwrap(), HeaderValue::from_static("10.0.0.1:80"))]);
        assert_eq!(endpoint(&session, &wrong, NOW), None);
    }

    #[test]
    fn a_cookie_is_found_among_others_and_ends_with_its_lifetime() {
        let session = Session::Cookie { name: "Cart".into(), lifetime: Some(Duration::from_secs(60)) };
        let told = told(&session)[SET_COOKIE].to_str().unwrap().to_owned();
        let (cookie, attributes) = told.split_once(';').unwrap();
        assert_eq!(attributes, " Max-Age=60; Path=/; HttpOnly");
        let sent = |fields: &[String]| {
            let mut request = HeaderMap::new();
            for field in fields {
                request.append(COOKIE, field.parse().unwrap());
            }
            request
        };
        let request = sent(&["a=b".into(), format!("cart=x; {cookie}; c")]);
        let at = |seconds| endpoint(&session, &request, NOW + Duration::from_secs(seconds));
        assert_eq!(at(59), Some("10.0.0.1:80".parse().unwrap()));
        assert_eq!(at(60), None);
        assert_eq!(endpoint(&session, &sent(&["Cart=%%%".into()]), NOW), None);
    }

    #[test]
    fn a_cookie_for_a_browser_s_session_has_no_end() {
        let session = Session::Cookie { name: "cart".into(), lifetime: None };
        assert!(told(&session)[SET_COOKIE].to_str().unwrap().ends_with("; Path=/; HttpOnly"));
        assert!(!told(&session)[SET_COOKIE].to_str().unwrap().contains("Max-Age"));
    }
}
