//! Paths: how a request's is matched, how it is changed.

use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

use crate::emit::pb;
use crate::model::route::{PathChange, PathMatch};

/// What Envoy matches a path by. A prefix is of whole segments; the empty one is every path, `*` of OPTIONS included.
pub fn specifier(path: Option<&PathMatch>) -> PathSpecifier {
    match path {
        None => PathSpecifier::Prefix(String::new()),
        Some(PathMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
        Some(PathMatch::Prefix(prefix)) if prefix.is_empty() => PathSpecifier::Prefix(String::new()),
        Some(PathMatch::Prefix(prefix)) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
        Some(PathMatch::Regex(regex)) => PathSpecifier::SafeRegex(pb::regex(regex)),
    }
}

/// The change as a substitution on the path without query. A prefix is what `path` matched; the rest keeps its slash, and
/// a path that would be empty is `/` (Gateway API, `ReplacePrefixMatch`).
pub fn substitution(change: &PathChange, path: Option<&PathMatch>) -> RegexMatchAndSubstitute {
    let (pattern, substitution) = match change {
        PathChange::Full(full) => ("^.*$".to_owned(), literal(full)),
        PathChange::Prefix(replacement) => {
            let matched = match path {
                Some(PathMatch::Prefix(prefix)) => prefix.as_str(),
                Some(PathMatch::Exact(_) | PathMatch::Regex(_)) | None => "",
            };
            let replacement = replacement.trim_end_matches('/');
            if replacement.is_empty() {
                (format!("^{}/?(.*)$", quote(matched)), r"/\1".to_owned())
            } else {
                (format!("^{}(.*)$", quote(matched)), format!(r"{}\1", literal(replacement)))
            }
        }
    };
    RegexMatchAndSubstitute { pattern: Some(pb::regex(&pattern)), substitution }
}

/// Text as an RE2 expression for itself (RE2 syntax: a backslash before punctuation is that character).
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation() && character != '_' {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

/// Text as a substitution for itself: only the backslash means something there.
fn literal(text: &str) -> String {
    text.replace('\\', r"\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: &PathChange, matched: &str, path: &str) -> String {
        let substitution = substitution(change, Some(&PathMatch::Prefix(matched.into())));
        let expression = regex_syntax(&substitution.pattern.unwrap().regex);
        let replacement = substitution.substitution.replace(r"\1", "${1}");
        expression.replace_all(path, replacement.as_str()).into_owned()
    }

    /// The same subset of syntax in another engine.
    fn regex_syntax(expression: &str) -> regex::Regex {
        regex::Regex::new(expression).unwrap()
    }

    #[test]
    fn a_prefix_is_replaced_as_the_gateway_api_table_says() {
        let prefix = |replacement: &str, matched: &str, path: &str| {
            changed(&PathChange::Prefix(replacement.into()), matched, path)
        };
        assert_eq!(prefix("/xyz", "/foo", "/foo/bar"), "/xyz/bar");
        assert_eq!(prefix("/xyz/", "/foo", "/foo/bar"), "/xyz/bar");
        assert_eq!(prefix("/xyz", "/foo", "/foo"), "/xyz");
        assert_eq!(prefix("/xyz", "/foo", "/foo/"), "/xyz/");
        assert_eq!(prefix("", "/foo", "/foo/bar"), "/bar");
        assert_eq!(prefix("/", "/foo", "/foo"), "/");
        assert_eq!(prefix("/", "/foo", "/foo/"), "/");
        assert_eq!(prefix("/xyz", "", "/bar"), "/xyz/bar");
        assert_eq!(prefix("/", "", "/bar"), "/bar");
    }

    #[test]
    fn a_full_path_replaces_everything() {
        assert_eq!(changed(&PathChange::Full("/new".into()), "", "/a/b"), "/new");
    }

    #[test]
    fn quoting_leaves_no_operator() {
        assert_eq!(quote("/a.b*c_d"), r"\/a\.b\*c_d");
        assert!(regex_syntax(&format!("^{}$", quote("/a.(b)+[c]{1}|^$\\"))).is_match("/a.(b)+[c]{1}|^$\\"));
    }
}
