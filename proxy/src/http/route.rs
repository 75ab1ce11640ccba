//! Pure matching of a request against a route table.
//!
//! The table is in order of precedence, so the first match wins. Called from `request`, once per request.

use http::request::Parts;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use crate::tables::route::{PathMatch, Route, RouteMatch, RouteTable, StringMatch};

/// The first route that matches, or `None`.
pub fn select<'t>(table: &'t RouteTable, request: &Parts) -> Option<&'t Route> {
    table.routes.iter().find(|route| miss(&route.matches, request).is_none())
}

/// A condition that a request does not meet.
#[derive(Debug, Clone, Copy)]
pub enum Miss<'m> {
    /// The method.
    Method,
    /// The path.
    Path,
    /// This header.
    Header(&'m HeaderName),
    /// This query parameter.
    Query(&'m str),
}

/// The first condition that `request` does not meet; `None`: it meets all.
pub fn miss<'m>(conditions: &'m RouteMatch, request: &Parts) -> Option<Miss<'m>> {
    if conditions.method.as_ref().is_some_and(|method| *method != request.method) {
        return Some(Miss::Method);
    }
    if conditions.path.as_ref().is_some_and(|path| !path_matches(path, request.uri.path())) {
        return Some(Miss::Path);
    }
    let headers = &request.headers;
    if let Some((name, _)) = conditions.headers.iter().find(|(name, want)| !header_matches(headers.get_all(name), want))
    {
        return Some(Miss::Header(name));
    }
    let query = request.uri.query();
    let missed = conditions.query.iter().find(|(name, want)| !query_matches(query, name, want));
    missed.map(|(name, _)| Miss::Query(name))
}

fn path_matches(condition: &PathMatch, path: &str) -> bool {
    match condition {
        PathMatch::Exact(want) => path == want,
        PathMatch::Prefix(want) => {
            path.strip_prefix(want.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                || want.is_empty()
        }
        PathMatch::Regex(regex) => whole(regex, path),
    }
}

/// Whether a header fulfils a condition. Repeated ones are one list, joined by commas (RFC 9110 §5.3).
pub fn header_matches(values: http::header::GetAll<'_, http::HeaderValue>, condition: &StringMatch) -> bool {
    let mut values = values.iter();
    let Some(first) = values.next() else { return false };
    let Some(second) = values.next() else {
        return std::str::from_utf8(first.as_bytes()).is_ok_and(|value| string_matches(condition, value));
    };
    let mut joined = Vec::from(first.as_bytes());
    for value in std::iter::once(second).chain(values) {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    std::str::from_utf8(&joined).is_ok_and(|value| string_matches(condition, value))
}

fn query_matches(query: Option<&str>, name: &str, condition: &StringMatch) -> bool {
    let first = query.unwrap_or_default().split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key)? == name).then_some(value)
    });
    first.and_then(decode).is_some_and(|value| string_matches(condition, &value))
}

/// Percent-decoding as HTML forms do it, `+` for a blank included; `None` where the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(Into::into)
}

/// Whether a value fulfils a condition.
pub fn string_matches(condition: &StringMatch, value: &str) -> bool {
    match condition {
        StringMatch::Exact(want) => value == want,
        StringMatch::Regex(regex) => whole(regex, value),
        StringMatch::Present => true,
    }
}

/// Whether `regex` matches all of `text`; the tables hold it anchored.
fn whole(regex: &regex::Regex, text: &str) -> bool {
    regex.is_match(text)
}

/// Whether a request is gRPC, by its content type (gRPC `PROTOCOL-HTTP2.md`).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    content_type.is_some_and(|value| {
        value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn matches(conditions: &RouteMatch, request: &Parts) -> bool {
        miss(conditions, request).is_none()
    }

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = Request::get(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn path(condition: PathMatch, uri: &str) -> bool {
        matches(&RouteMatch { path: Some(condition), ..RouteMatch::default() }, &request(uri, &[]))
    }

    #[test]
    fn a_prefix_matches_whole_segments_only() {
        let prefix = || PathMatch::Prefix("/abc".into());
        assert!(path(prefix(), "/abc"));
        assert!(path(prefix(), "/abc/"));
        assert!(path(prefix(), "/abc/d?q=1"));
        assert!(!path(prefix(), "/abcd"));
        assert!(!path(prefix(), "/ab"));
        assert!(path(PathMatch::Prefix(String::new()), "/anything"));
    }

    #[test]
    fn an_exact_path_matches_nothing_longer() {
        assert!(path(PathMatch::Exact("/a".into()), "/a?x"));
        assert!(!path(PathMatch::Exact("/a".into()), "/a/"));
    }

    #[test]
    fn repeated_headers_are_matched_as_one_list() {
        let name = HeaderName::from_static("x-color");
        let conditions =
            RouteMatch { headers: vec![(name, StringMatch::Exact("red,blue".into()))], ..RouteMatch::default() };
        assert!(matches(&conditions, &request("/", &[("X-Color", "red"), ("x-color", "blue")])));
        assert!(!matches(&conditions, &request("/", &[("x-color", "red")])));
    }

    #[test]
    fn the_first_of_repeated_query_parameters_counts_and_is_decoded() {
        let conditions = |value: &str| RouteMatch {
            query: vec![("animal".into(), StringMatch::Exact(value.into()))],
            ..RouteMatch::default()
        };
        let asked = request("/?x=1&animal=blue+wh%61le&animal=dolphin", &[]);
        assert!(matches(&conditions("blue whale"), &asked));
        assert!(!matches(&conditions("dolphin"), &asked));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        assert!(is_grpc(&request("/", &[("content-type", "application/grpc+proto")]).headers));
        assert!(!is_grpc(&request("/", &[("content-type", "application/grpc-web")]).headers));
    }
}
