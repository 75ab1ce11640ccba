//! Header changes of RequestHeaderModifier and ResponseHeaderModifier.

use http::HeaderMap;

use crate::tables::route::HeaderChanges;

/// Sets, adds and removes, in this order (Gateway API `HTTPHeaderFilter`).
pub fn apply(changes: &HeaderChanges, headers: &mut HeaderMap) {
    for (name, value) in &changes.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &changes.add {
        headers.append(name, value.clone());
    }
    for name in &changes.remove {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn set_replaces_add_appends_remove_deletes() {
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let mut headers =
            HeaderMap::from_iter([(name("a"), value("1")), (name("b"), value("1")), (name("c"), value("1"))]);
        let changes = HeaderChanges {
            set: vec![(name("a"), value("2"))],
            add: vec![(name("b"), value("2"))],
            remove: vec![name("c")],
        };
        apply(&changes, &mut headers);
        assert_eq!(headers["a"], "2");
        assert_eq!(headers.get_all("b").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(!headers.contains_key("c"));
    }
}
