//! The CORS filter (GEP-1767), in the words of the Fetch Standard's "HTTP CORS protocol".

use http::{HeaderName, Method};

use crate::model::route::{Cors, Origin};
use crate::objects::route;

/// The policy, or what is wrong with it.
pub(super) fn cors(given: &route::Cors) -> Result<Cors, String> {
    let origins = given.allow_origins.iter().map(|text| origin(text)).collect::<Result<Vec<_>, _>>()?;
    for text in given.allow_methods.iter().filter(|text| *text != ANY) {
        Method::from_bytes(text.as_bytes())
            .map_err(|_| format!("CORS allowMethods: `{text}` cannot be a method (RFC 9110 §9.1); write one, or *"))?;
    }
    for (field, names) in [("allowHeaders", &given.allow_headers), ("exposeHeaders", &given.expose_headers)] {
        for text in names.iter().filter(|text| *text != ANY) {
            HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
                format!("CORS {field}: `{text}` cannot be a header's name (RFC 9110 §5.1); write one, or *")
            })?;
        }
    }
    let max_age = given.max_age.unwrap_or(DEFAULT_MAX_AGE);
    let max_age = u32::try_from(max_age).ok().filter(|seconds| *seconds > 0);
    Ok(Cors {
        origins,
        credentials: given.allow_credentials == Some(true),
        methods: given.allow_methods.clone(),
        headers: given.allow_headers.clone(),
        exposed: given.expose_headers.clone(),
        max_age: max_age.ok_or_else(|| format!("CORS maxAge {:?}: write seconds, at least 1", given.max_age))?,
    })
}

/// An origin as browsers write it: in lower case, without the scheme's own port.
fn origin(text: &str) -> Result<Origin, String> {
    if text == ANY {
        return Ok(Origin::Any);
    }
    let wrong = || format!("CORS allowOrigins: `{text}`: write *, or a scheme and a host, as https://*.example.com");
    let lower = text.to_ascii_lowercase();
    let (scheme, authority) = lower.split_once("://").ok_or_else(wrong)?;
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return Err(wrong()),
    };
    let authority = authority.strip_suffix(port).unwrap_or(authority);
    let host = authority.strip_prefix(ANY);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'[' | b']' | b'_');
    if authority.is_empty() || !host.unwrap_or(authority).bytes().all(plain) {
        return Err(wrong());
    }
    Ok(match host {
        Some(end) => Origin::Wildcard(format!("{scheme}://"), end.to_owned()),
        None => Origin::Exact(format!("{scheme}://{authority}")),
    })
}

/// All of them.
const ANY: &str = "*";
/// Gateway API's.
const DEFAULT_MAX_AGE: i64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_kept_as_browsers_write_them() {
        assert_eq!(origin("*"), Ok(Origin::Any));
        assert_eq!(origin("HTTPS://Shop.example:443"), Ok(Origin::Exact("https://shop.example".into())));
        assert_eq!(origin("http://shop.example:8080"), Ok(Origin::Exact("http://shop.example:8080".into())));
        assert_eq!(origin("https://*.example:8443"), Ok(Origin::Wildcard("https://".into(), ".example:8443".into())));
        assert_eq!(origin("http://*"), Ok(Origin::Wildcard("http://".into(), String::new())));
        for wrong in ["shop.example", "ftp://shop.example", "https://", "https://a.*.example", "https://a/b", ""] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_no_header_could_carry_are_refused() {
        let given = |methods: &[&str], headers: &[&str], max_age| route::Cors {
            allow_methods: methods.iter().map(|text| (*text).to_owned()).collect(),
            allow_headers: headers.iter().map(|text| (*text).to_owned()).collect(),
            max_age,
            ..route::Cors::default()
        };
        assert_eq!(cors(&given(&["GET", "*"], &["x-a", "*"], None)).unwrap().max_age, 5);
        assert!(cors(&given(&["GET POST"], &[], None)).unwrap_err().contains("`GET POST`"));
        assert!(cors(&given(&[], &["a\nb"], None)).unwrap_err().contains("allowHeaders"));
        assert!(cors(&given(&[], &[], Some(0))).unwrap_err().contains("maxAge"));
    }
}
