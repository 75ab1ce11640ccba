//! What routes configure of HTTP filters (`typed_per_filter_config`).

use std::collections::HashMap;

use envoy_types::pb::google::protobuf::Any;

use super::{cors, fault, session};
use crate::model::{Filter, Rule};

/// What the rule itself configures.
pub fn entries(rule: &Rule) -> impl Iterator<Item = (String, Any)> {
    let cors = rule.filters.iter().find_map(Filter::cors).map(cors::entry);
    cors.into_iter().chain(fault(rule)).chain(rule.session.as_ref().map(session::entry))
}

/// What goes wrong on purpose.
pub fn fault(rule: &Rule) -> Option<(String, Any)> {
    rule.filters.iter().find_map(Filter::fault).map(fault::entry)
}

/// A map that is walked in the order of its keys, so that equal maps are encoded to equal bytes. prost takes nothing but a
/// `HashMap`, each of which has a random order of its own: of a few entries, one of the next maps has the right one.
pub fn in_order(entries: impl IntoIterator<Item = (String, Any)>) -> HashMap<String, Any> {
    let mut map: HashMap<_, _> = entries.into_iter().collect();
    while !map.keys().is_sorted() {
        map = map.into_iter().collect();
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_of_the_same_entries_has_the_same_order() {
        for _ in 0..100 {
            let map = in_order(["c", "a", "b"].map(|key| (key.to_owned(), Any::default())));
            assert_eq!(map.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        }
    }
}
