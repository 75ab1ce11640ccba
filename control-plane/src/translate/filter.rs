//! Filters of a rule or a backend.
//!
//! Left out: ExternalAuth, and ExtensionRef to anything but a FaultInjection. A filter that cannot be applied is never skipped: the requests it was for are
//! answered 500 (Gateway API, `HTTPRouteFilter.type`); but a mirror to nowhere is left out (`HTTPRequestMirrorFilter`).

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::problem::Problem;
use super::{cors, fault};
use crate::api::FaultInjection;
use crate::model::ResourceName;
use crate::model::route::{self, Filter, HeaderChanges, Mirror, PathChange, Redirect, Rewrite, Scheme};
use crate::objects::route::{
    BackendRef, HeaderModifier, NamedValue, PathModifier, RequestMirror, RequestRedirect, RouteFilter, UrlRewrite,
};

/// Where filters stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a rule; `prefix_only`: all its matches are path prefixes, so that a prefix can be replaced.
    Rule { prefix_only: bool },
    /// At a backend of such a rule.
    Backend { prefix_only: bool },
}

/// Follows what filters name.
pub(super) trait Follow {
    /// Where a mirror's copies go; `None`: it leads nowhere, which was noted.
    fn mirror(&mut self, to: &BackendRef) -> Option<ResourceName>;

    /// A FaultInjection of the route's namespace.
    fn fault(&mut self, name: &str) -> Option<Arc<FaultInjection>>;
}

/// The filters in our words, or what is wrong with the first that cannot be applied.
pub(super) fn filters(given: &[RouteFilter], place: Place, follow: &mut impl Follow) -> Result<Vec<Filter>, Problem> {
    let mut filters = Vec::with_capacity(given.len());
    for filter in given {
        filters.extend(one(filter, place, follow)?);
    }
    let redirects = filters.iter().any(|filter| filter.redirect().is_some());
    let rewrites = filters.iter().any(|filter| filter.rewrite().is_some());
    if redirects && rewrites {
        return Err("RequestRedirect and URLRewrite exclude each other: keep one".into());
    }
    if filters.iter().filter(|filter| filter.cors().is_some()).count() > 1 {
        return Err("CORS stands twice in one rule: keep one".into());
    }
    if filters.iter().filter(|filter| filter.fault().is_some()).count() > 1 {
        return Err("two FaultInjections stand in one rule: keep one".into());
    }
    Ok(filters)
}

fn one(filter: &RouteFilter, place: Place, follow: &mut impl Follow) -> Result<Option<Filter>, Problem> {
    let (Place::Rule { prefix_only } | Place::Backend { prefix_only }) = place;
    let missing = || format!("filter {}: the field of this type is missing", filter.r#type);
    let filter = match filter.r#type.as_str() {
        "RequestHeaderModifier" => {
            Filter::RequestHeaders(headers(filter.request_header_modifier.as_ref().ok_or_else(missing)?)?)
        }
        "ResponseHeaderModifier" => {
            Filter::ResponseHeaders(headers(filter.response_header_modifier.as_ref().ok_or_else(missing)?)?)
        }
        "RequestRedirect" => {
            Filter::Redirect(redirect(filter.request_redirect.as_ref().ok_or_else(missing)?, prefix_only)?)
        }
        "URLRewrite" => Filter::Rewrite(rewrite(filter.url_rewrite.as_ref().ok_or_else(missing)?, prefix_only)?),
        "RequestMirror" => {
            return Ok(mirror(filter.request_mirror.as_ref().ok_or_else(missing)?, follow)?.map(Filter::Mirror));
        }
        "CORS" if place == (Place::Rule { prefix_only }) => {
            Filter::Cors(cors::cors(filter.cors.as_ref().ok_or_else(missing)?)?)
        }
        "CORS" => {
            let text = "filter CORS is not supported at a backend, because preflights are answered before one is chosen: \
                        write it at the rule";
            return Err(Problem::Unsupported(text.to_owned()));
        }
        "ExtensionRef" => return extension(filter, place, follow).map(Some),
        other => {
            let text = format!("filter {other} is not supported: its requests are answered 500");
            return Err(Problem::Unsupported(text));
        }
    };
    Ok(Some(filter))
}

fn extension(filter: &RouteFilter, place: Place, follow: &mut impl Follow) -> Result<Filter, Problem> {
    let Some(name) = filter.fault() else {
        let named = filter.extension_ref.clone().unwrap_or_default();
        let text = format!(
            "filter ExtensionRef to {} {} of group `{}` is not supported, only to a FaultInjection of group heddle.dev: its requests \
             are answered 500",
            named.kind, named.name, named.group
        );
        return Err(Problem::Unsupported(text));
    };
    if let Place::Backend { .. } = place {
        let text = "a FaultInjection is not supported at a backend, because it happens before one is chosen: write it at the rule";
        return Err(Problem::Unsupported(text.to_owned()));
    }
    let given = follow.fault(name);
    let text = match given.as_ref().map(|given| given.spec.check()) {
        None => format!("there is no FaultInjection {name}: its requests are answered 500"),
        Some(errors) if !errors.is_empty() => {
            format!("FaultInjection {name} cannot be meant, as its status says: its requests are answered 500")
        }
        Some(_) => String::new(),
    };
    match given {
        Some(given) if text.is_empty() => Ok(Filter::Fault(fault::fault(&given.spec))),
        _ => Err(Problem::Unresolved(text)),
    }
}

fn mirror(given: &RequestMirror, follow: &mut impl Follow) -> Result<Option<Mirror>, String> {
    let (numerator, denominator) = match (given.percent, &given.fraction) {
        (None, None) => (1, 1),
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (Some(_), Some(_)) => return Err("RequestMirror: give either percent or fraction".to_owned()),
    };
    if denominator < 1 || !(0..=denominator).contains(&numerator) {
        return Err(format!("RequestMirror {numerator} of {denominator}: write a share from none to all of them"));
    }
    // Rounded, so that a third three times is all but a millionth.
    let per_million = (numerator * MILLION + denominator / 2) / denominator;
    let per_million = u32::try_from(per_million).unwrap_or(0);
    Ok(follow.mirror(&given.backend_ref).map(|cluster| Mirror { cluster, per_million }))
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

/// Shares are counted in millionths.
const MILLION: i64 = 1_000_000;
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
    use crate::model::ServiceName;
    use crate::objects::route::Fraction;

    #[test]
    fn framing_headers_are_not_a_routes_to_change() {
        assert_eq!(name("X-Color"), Ok("x-color".into()));
        assert!(name("Transfer-Encoding").unwrap_err().contains("frames"));
        assert!(name("a b").is_err());
    }

    #[test]
    fn a_mirror_gets_the_share_it_is_given_and_none_is_left_out() {
        let to = |name: &str| BackendRef { name: name.to_owned(), ..BackendRef::default() };
        struct There;
        impl Follow for There {
            fn mirror(&mut self, to: &BackendRef) -> Option<ResourceName> {
                (to.name == "there").then(|| ResourceName::service_port(&ServiceName::new("shop", "there"), 80))
            }
            fn fault(&mut self, _: &str) -> Option<Arc<FaultInjection>> {
                None
            }
        }
        let share = |percent, fraction: Option<(i64, Option<i64>)>| {
            let fraction = fraction.map(|(numerator, denominator)| Fraction { numerator, denominator });
            let given = RequestMirror { backend_ref: to("there"), percent, fraction };
            mirror(&given, &mut There).map(|mirror| mirror.unwrap().per_million)
        };
        assert_eq!(share(None, None), Ok(1_000_000));
        assert_eq!(share(Some(42), None), Ok(420_000));
        assert_eq!(share(None, Some((1, Some(3)))), Ok(333_333));
        assert_eq!(share(None, Some((5, None))), Ok(50_000));
        assert!(share(Some(101), None).is_err());
        assert!(share(None, Some((1, Some(0)))).is_err());
        assert!(share(Some(1), Some((1, None))).is_err());
        let nowhere = RequestMirror { backend_ref: to("nowhere"), ..RequestMirror::default() };
        assert_eq!(mirror(&nowhere, &mut There), Ok(None));
    }

    #[test]
    fn a_value_with_a_line_break_is_refused() {
        let value = NamedValue { name: "x-a".into(), value: "1\r\nx-b: 2".into(), ..NamedValue::default() };
        assert!(header(&value).is_err());
    }
}
