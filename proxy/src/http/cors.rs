//! CORS: what pages of other origins may do (Fetch Standard, "HTTP CORS protocol"; GEP-1767).
//!
//! Preflights are answered here, whether their origin is allowed or not; responses to an allowed origin say so.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response};

use super::body::Body;
use super::route::string_matches;
use crate::tables::route::{Cors, Names, StringMatch};

/// What responses to an allowed origin say.
#[derive(Debug)]
pub struct Allowed {
    origin: HeaderValue,
    credentials: bool,
    exposed: Option<HeaderValue>,
}

/// What a request is told, if its origin is allowed.
pub fn allowed(cors: &Cors, request: &HeaderMap) -> Option<Allowed> {
    let origin = request.get(ORIGIN)?;
    let text = origin.to_str().ok()?;
    let takes = |condition: &StringMatch| {
        matches!(condition, StringMatch::Exact(all) if all == "*") || string_matches(condition, text)
    };
    cors.origins.iter().any(takes).then(|| Allowed {
        origin: origin.clone(),
        credentials: cors.credentials,
        exposed: match &cors.exposed {
            // With credentials a `*` would be a name.
            Names::Any if cors.credentials => None,
            Names::Any => Some(HeaderValue::from_static("*")),
            Names::These(names) => names.clone(),
        },
    })
}

/// The answer to a preflight; `None`: it is none.
pub fn preflight(cors: &Cors, allowed: Option<&Allowed>, request: &Parts) -> Option<Response<Body>> {
    let asked = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    if request.method != Method::OPTIONS || !request.headers.contains_key(ORIGIN) {
        return None;
    }
    let mut response = Response::new(Body::empty());
    let Some(allowed) = allowed else { return Some(response) };
    let headers = response.headers_mut();
    allowed.tell_origin(headers);
    let named = |names: &Names, asked: Option<&HeaderValue>| match names {
        Names::Any if cors.credentials => asked.cloned(),
        Names::Any => Some(HeaderValue::from_static("*")),
        Names::These(names) => names.clone(),
    };
    let wanted = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
    headers.extend(named(&cors.methods, Some(asked)).map(|names| (ACCESS_CONTROL_ALLOW_METHODS, names)));
    headers.extend(named(&cors.headers, wanted).map(|names| (ACCESS_CONTROL_ALLOW_HEADERS, names)));
    headers.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.clone());
    Some(response)
}

impl Allowed {
    /// Tells a page what it may do with this response.
    pub fn tell(self, headers: &mut HeaderMap) {
        self.tell_origin(headers);
        if let Some(exposed) = self.exposed {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }

    /// A cache must not give one origin's response to another.
    fn tell_origin(&self, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn cors(credentials: bool) -> Cors {
        Cors {
            origins: vec![StringMatch::Exact("https://shop.example".into())],
            credentials,
            methods: Names::These(Some(HeaderValue::from_static("GET, PUT"))),
            headers: Names::Any,
            exposed: Names::Any,
            max_age: HeaderValue::from_static("5"),
        }
    }

    fn request(method: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn fields(headers: &HeaderMap) -> Vec<String> {
        let mut fields: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        fields.sort();
        fields
    }

    #[test]
    fn a_preflight_is_told_what_it_may_and_a_stranger_nothing() {
        let asked = [
            ("origin", "https://shop.example"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a, x-b"),
        ];
        let answer = |cors: &Cors, request: &Parts| {
            let allowed = allowed(cors, &request.headers);
            preflight(cors, allowed.as_ref(), request).map(|response| fields(response.headers()))
        };
        let told = [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: x-a, x-b",
            "access-control-allow-methods: GET, PUT",
            "access-control-allow-origin: https://shop.example",
            "access-control-max-age: 5",
            "vary: origin",
        ];
        assert_eq!(answer(&cors(true), &request("OPTIONS", &asked)).unwrap(), told);
        let open = answer(&cors(false), &request("OPTIONS", &asked)).unwrap();
        assert!(open.contains(&"access-control-allow-headers: *".to_owned()), "{open:?}");
        let stranger = [("origin", "https://evil.example"), asked[1]];
        assert_eq!(answer(&cors(false), &request("OPTIONS", &stranger)).unwrap(), Vec::<String>::new());
        assert_eq!(answer(&cors(false), &request("GET", &asked)), None);
        assert_eq!(answer(&cors(false), &request("OPTIONS", &asked[..1])), None);
    }

    #[test]
    fn with_credentials_no_star_is_said() {
        let told = |credentials| {
            let request = request("GET", &[("origin", "https://shop.example")]);
            let mut headers = HeaderMap::new();
            allowed(&cors(credentials), &request.headers).unwrap().tell(&mut headers);
            fields(&headers)
        };
        let origin = "access-control-allow-origin: https://shop.example";
        assert_eq!(told(false), [origin, "access-control-expose-headers: *", "vary: origin"]);
        assert_eq!(told(true), ["access-control-allow-credentials: true", origin, "vary: origin"]);
    }
}
