//! A path as policies see it.

use percent_encoding::percent_decode_str;

/// The readings of one request path: `%2f` (and `%5c`) as a slash, and as part of a segment. One entry where they
/// are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readings {
    slash: String,
    literal: Option<String>,
}

impl Readings {
    /// Reads `path`, without query. Escapes are decoded once (RFC 3986 §6.2.2.2), backslashes are slashes, repeated
    /// slashes are one, dot segments are resolved (§5.2.4), and so is a dot segment followed by `;parameters`.
    pub fn of(path: &str) -> Self {
        let escaped_slash = has_escaped_slash(path);
        let literal = escaped_slash.then(|| normalise(path, decode));
        let slash = normalise(&decode(path), str::to_owned);
        Self { literal: literal.filter(|literal| *literal != slash), slash }
    }

    /// Every reading, once.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.slash.as_str()).chain(self.literal.as_deref())
    }
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(|escape| escape.eq_ignore_ascii_case(b"%2f") || escape.eq_ignore_ascii_case(b"%5c"))
}

/// What is no UTF-8 stands as U+FFFD: it matches no rule that was written as text.
fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn normalise(path: &str, read: impl Fn(&str) -> String) -> String {
    let mut segments: Vec<String> = Vec::new();
    let mut directory = true;
    for raw in path.split(['/', '\\']) {
        let segment = read(raw);
        directory = true;
        match segment.split(';').next().unwrap_or_default() {
            ".." => drop(segments.pop()),
            "." => {}
            _ if segment.is_empty() => {}
            _ => {
                segments.push(segment);
                directory = false;
            }
        }
    }
    let mut normal = String::with_capacity(path.len() + 1);
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if directory {
        normal.push('/');
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(path: &str) -> Vec<String> {
        Readings::of(path).iter().map(str::to_owned).collect()
    }

    #[test]
    fn dots_slashes_and_escapes_are_normalised() {
        assert_eq!(readings("/a/./b//c"), ["/a/b/c"]);
        assert_eq!(readings("/a/../b"), ["/b"]);
        assert_eq!(readings("/../../etc"), ["/etc"]);
        assert_eq!(readings("/a/%2e%2E/b"), ["/b"]);
        assert_eq!(readings("/a/..;x=1/b"), ["/b"]);
        assert_eq!(readings("\\a\\b"), ["/a/b"]);
        assert_eq!(readings("/%61dmin"), ["/admin"]);
        assert_eq!(readings("/a/"), ["/a/"]);
        assert_eq!(readings("/a/.."), ["/"]);
        assert_eq!(readings(""), ["/"]);
        assert_eq!(readings("/%252e%252e/a"), ["/%2e%2e/a"], "decoded once");
    }

    #[test]
    fn an_escaped_slash_has_two_readings() {
        assert_eq!(readings("/public/..%2fadmin"), ["/admin", "/public/../admin"]);
        assert_eq!(readings("/admin/..%2Fpublic"), ["/public", "/admin/../public"]);
    }
}
