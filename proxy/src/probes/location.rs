//! Where a redirect leads, as far as a probe follows it: to the same host (RFC 3986 §5.2, and Kubernetes'
//! `RedirectChecker`). Pure.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::spec::Scheme;

/// Something to ask on the host that is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    pub(super) port: u16,
    /// With query, without fragment; begins with `/`.
    pub(super) path: String,
    /// What a `Host` header of the probe's own was for stays so only for relative redirects (Go's `net/http`).
    pub(super) own_host: bool,
}

impl Target {
    /// A probe's own target. A path that cannot stand in a request as it is gets escaped, as the kubelet does.
    pub(super) fn new(scheme: Scheme, port: u16, path: &str) -> Self {
        Self { scheme, port, path: rooted(path), own_host: true }
    }

    /// Where `location` leads from here, on the host known as `host`; `None`: to another host, or nowhere.
    pub(super) fn follow(&self, location: &str, host: &str) -> Option<Self> {
        let absolute = |scheme: Scheme, rest: &str| {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let (name, port) = split_authority(authority, scheme)?;
            (name == host).then(|| Self { scheme, port, path: rooted(path), own_host: false })
        };
        if let Some((scheme, rest)) = location.split_once("://")
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return match scheme.to_ascii_lowercase().as_str() {
                "http" => absolute(Scheme::Http, rest),
                "https" => absolute(Scheme::Https, rest),
                _ => None,
            };
        }
        if let Some(rest) = location.strip_prefix("//") {
            return absolute(self.scheme, rest);
        }
        let without_query = self.path.split('?').next().unwrap_or("/");
        let path = match location.bytes().next() {
            None | Some(b'#') => self.path.clone(),
            Some(b'/') => location.to_owned(),
            Some(b'?') => format!("{without_query}{location}"),
            // Beside the last segment. Dots are the server's to resolve: the path is sent as it is.
            Some(_) => format!("{}{location}", &without_query[..=without_query.rfind('/').unwrap_or(0)]),
        };
        Some(Self { path: rooted(&path), ..self.clone() })
    }
}

/// Host without brackets, and port.
fn split_authority(authority: &str, scheme: Scheme) -> Option<(&str, u16)> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let default = match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    let (host, rest) = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match rest.strip_prefix(':') {
        None | Some("") => default,
        Some(port) => port.parse().ok()?,
    };
    Some((host, port))
}

fn rooted(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let escaped = utf8_percent_encode(path, UNSAFE);
    if path.starts_with('/') { escaped.to_string() } else { format!("/{escaped}") }
}

/// What a request target cannot hold (RFC 3986 §2); `%` stays, because what is escaped already must.
const UNSAFE: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

#[cfg(test)]
mod tests {
    use super::*;

    fn from(path: &str) -> Target {
        Target::new(Scheme::Http, 8080, path)
    }

    #[test]
    fn a_path_is_sent_as_it_is_as_far_as_it_can_be() {
        for (written, sent) in [
            ("/up", "/up"),
            ("up?x=1", "/up?x=1"),
            ("", "/"),
            ("/a b", "/a%20b"),
            ("/a%20b#c", "/a%20b"),
            ("/ä", "/%C3%A4"),
        ] {
            assert_eq!(from(written).path, sent);
        }
    }

    #[test]
    fn a_redirect_on_the_same_host_is_followed() {
        for (location, scheme, port, path) in [
            ("/new?a=b", Scheme::Http, 8080, "/new?a=b"),
            ("new", Scheme::Http, 8080, "/old/new"),
            ("?b", Scheme::Http, 8080, "/old/x?b"),
            ("https://10.0.0.1/", Scheme::Https, 443, "/"),
            ("https://10.0.0.1:8443", Scheme::Https, 8443, "/"),
            ("HTTP://user@10.0.0.1:81/a", Scheme::Http, 81, "/a"),
            ("//10.0.0.1/b", Scheme::Http, 80, "/b"),
        ] {
            let target = from("/old/x?a").follow(location, "10.0.0.1").unwrap();
            assert_eq!((target.scheme, target.port, target.path.as_str()), (scheme, port, path), "{location}");
        }
        assert!(from("/").follow("http://[fd77::1]:80/", "fd77::1").is_some());
    }

    #[test]
    fn a_redirect_to_another_host_is_not() {
        for location in
            ["http://10.0.0.2/", "https://example.com/", "//other/", "ftp://10.0.0.1/", "http://10.0.0.1:x/"]
        {
            assert_eq!(from("/").follow(location, "10.0.0.1"), None, "{location}");
        }
    }

    #[test]
    fn the_probes_own_host_header_is_for_relative_redirects_only() {
        assert!(from("/").follow("/a", "10.0.0.1").unwrap().own_host);
        assert!(!from("/").follow("http://10.0.0.1/a", "10.0.0.1").unwrap().own_host);
    }
}
