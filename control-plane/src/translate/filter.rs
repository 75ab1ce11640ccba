//! Filters of a rule or a backend.
//!
//! Left out: RequestMirror, CORS, ExternalAuth and ExtensionRef. A filter that cannot be applied is never skipped: the
//! requests it was for are answered 500 (Gateway API, `HTTPRouteFilter.type`).

use http::{HeaderName, HeaderValue};

use super::problem::Problem;
use crate::model::route::{self, Filter, HeaderChanges, PathChange, Redirect, Rewrite, Scheme};
use crate::objects::route::{HeaderModifier, NamedValue, PathModifier, RequestRedirect, RouteFilter, UrlRewrite};

/// The filters in our words, or what is wrong with the first that cannot be applied. `prefix_only`: all matches of the
/// rule are path prefixes, so that a prefix can be replaced.
pub(super) fn filters(given: &[RouteFilter], prefix_only: bool) -> Result<Vec<Filter>, Problem> {
    let filters = given.iter().map(|filter| one(filter, prefix_only)).collect::<Result<Vec<_>, _>>()?;
    let redirects = filters.iter().any(|filter| matches!(filter, Filter::Redirect(_)));
    let rewrites = filters.iter().any(|filter| matches!(filter, Filter::Rewrite(_)));
    if redirects && rewrites {
        return Err("RequestRedirect and URLRewrite exclude each other: keep one".into());
    }
    Ok(filters)
}

fn one(filter: &RouteFilter, prefix_only: bool) -> Result<Filter, Problem> {
    let missing = || format!("filter {}: the field of this type is missing", filter.r#type);
    match filter.r#type.as_str() {
        "RequestHeaderModifier" => {
            Ok(Filter::RequestHeaders(headers(filter.request_header_modifier.as_ref().ok_or_else(missing)?)?))
        }
        "ResponseHeaderModifier" => {
            Ok(Filter::ResponseHeaders(headers(filter.response_header_modifier.as_ref().ok_or_else(missing)?)?))
        }
        "RequestRedirect" => {
            Ok(Filter::Redirect(redirect(filter.request_redirect.as_ref().ok_or_else(missing)?, prefix_only)?))
        }
        "URLRewrite" => Ok(Filter::Rewrite(rewrite(filter.url_rewrite.as_ref().ok_or_else(missing)?, prefix_only)?)),
        other => Err(Problem::Unsupported(format!("filter {other} is not supported: its requests are answered 500"))),
    }
}

fn headers(given: &HeaderModifier) -> Result<HeaderChanges, String> {
    let values = |values: &[NamedValue]| values.iter().map(header).collect::<Result<Vec<_>, _>>();
    let remove = given.remove.iter().map(|text| name(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(HeaderChanges { set: values(&given.set)?, add: values(&given.add)?, remove })
}

fn header(given: &NamedValue) -> Result<route::HeaderValue, String> {
    if HeaderValue::from_str(&given.value).is_err() {
        return Err(format!("header {}: `{}` cannot be a header's value (RFC 9110 §5.5)", given.name, given.value));
    }
    Ok(route::HeaderValue { name: name(&given.name)?, value: given.value.clone() })
}

/// A header's name in lower case, if a route may change it.
pub(super) fn name(text: &str) -> Result<String, String> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("`{text}` cannot be a header's name (RFC 9110 §5.1)"))?;
    if FRAMING.contains(&name.as_str()) {
        return Err(format!(
            "header {name} frames the message and belongs to the connection: a route cannot change it"
        ));
    }
    Ok(name.as_str().to_owned())
}

fn redirect(given: &RequestRedirect, prefix_only: bool) -> Result<Redirect, String> {
    let scheme = match given.scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => return Err(format!("redirect scheme `{other}`: write http or https")),
    };
    let status = given.status_code.unwrap_or(DEFAULT_REDIRECT);
    let status = u16::try_from(status).ok().filter(|status| REDIRECTS.contains(status));
    let status =
        status.ok_or_else(|| format!("redirect status {:?}: write one of {REDIRECTS:?}", given.status_code))?;
    let port = match given.port {
        None => None,
        Some(port) => {
            let read = u16::try_from(port).ok().filter(|port| *port > 0);
            Some(read.ok_or_else(|| format!("redirect port {port}: write a port from 1 to 65535"))?)
        }
    };
    let hostname = given.hostname.as_deref().map(host).transpose()?;
    let path = given.path.as_ref().map(|path| path_change(path, prefix_only)).transpose()?;
    Ok(Redirect { scheme, hostname, path, port, status })
}

fn rewrite(given: &UrlRewrite, prefix_only: bool) -> Result<Rewrite, String> {
    let hostname = given.hostname.as_deref().map(host).transpose()?;
    Ok(Rewrite { hostname, path: given.path.as_ref().map(|path| path_change(path, prefix_only)).transpose()? })
}

fn path_change(given: &PathModifier, prefix_only: bool) -> Result<PathChange, String> {
    let (text, prefix) = match (given.r#type.as_str(), &given.replace_full_path, &given.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), _) => (path, false),
        ("ReplacePrefixMatch", _, Some(path)) => (path, true),
        (kind, _, _) => return Err(format!("path of type `{kind}`: the field of this type is missing")),
    };
    if prefix && !prefix_only {
        return Err("ReplacePrefixMatch needs a PathPrefix in every match of its rule".into());
    }
    if text.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') || !(text.is_empty() || text.starts_with('/'))
    {
        return Err(format!("path `{text}`: begin with `/` and percent-encode what is not plain ASCII"));
    }
    Ok(if prefix { PathChange::Prefix(text.clone()) } else { PathChange::Full(text.clone()) })
}

fn host(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    if text.is_empty() || !plain {
        return Err(format!("hostname `{text}`: write a name without port, as api.example"));
    }
    Ok(text.to_ascii_lowercase())
}

/// Gateway API's default.
const DEFAULT_REDIRECT: i64 = 302;
/// Gateway API, `HTTPRequestRedirectFilter.statusCode`.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
/// Hop-by-hop and framing fields (RFC 9110 §7.6.1, RFC 9112 §6), and what sidecars say to one another.
const FRAMING: [&str; 10] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-heddle-draining",
    "x-heddle-undelivered",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_headers_are_not_a_routes_to_change() {
        assert_eq!(name("X-Color"), Ok("x-color".into()));
        assert!(name("Transfer-Encoding").unwrap_err().contains("frames"));
        assert!(name("a b").is_err());
    }

    #[test]
    fn a_value_with_a_line_break_is_refused() {
        let value = NamedValue { name: "x-a".into(), value: "1\r\nx-b: 2".into(), ..NamedValue::default() };
        assert!(header(&value).is_err());
    }
}
