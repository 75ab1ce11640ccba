//! The text of a NACK: one line for each refused resource, `<name>: <field path>: <reason>`; written by our client, read by
//! our servers, which also read what other clients write.
//!
//! Pure text; who refused what and what follows from it is decided by the callers in [`crate::delta`] and [`crate::sotw`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One resource the application refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The resource's name, as it was delivered.
    pub name: Arc<str>,
    /// Where in the resource, for example `filter_chains[0].filters[1].name`.
    pub field: String,
    /// What is wrong there: the value and what would be right.
    pub reason: String,
}

impl fmt::Display for Reject {
    /// One line, whatever the parts contain, at most the name and [`MAX_REASON_BYTES`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        let detail = format!("{}: {}", self.field, self.reason).replace(['\n', '\r'], " ");
        f.write_str(clip(&detail))
    }
}

/// The text for several refused resources.
pub fn text(rejects: &[Reject]) -> String {
    rejects.iter().map(Reject::to_string).collect::<Vec<_>>().join("\n")
}

/// Which of the resources of a response a NACK refuses, and why. Lines in our own form count alone if there are any;
/// otherwise every resource whose name stands in the text as a word; otherwise, the text naming none, all of them.
pub fn refused<'a>(text: &str, names: impl IntoIterator<Item = &'a Arc<str>>) -> BTreeMap<Arc<str>, String> {
    let names: Vec<&Arc<str>> = names.into_iter().collect();
    let by_line = refused_by_line(text, &names);
    if !by_line.is_empty() {
        return by_line;
    }
    let whole = clip(text);
    let named: BTreeMap<_, _> =
        names.iter().filter(|name| stands_in(name, text)).map(|name| (Arc::clone(name), whole.to_owned())).collect();
    if named.is_empty() { names.into_iter().map(|name| (name.clone(), whole.to_owned())).collect() } else { named }
}

fn refused_by_line(text: &str, names: &[&Arc<str>]) -> BTreeMap<Arc<str>, String> {
    let by_text: BTreeMap<&str, &Arc<str>> = names.iter().map(|name| (&***name, *name)).collect();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        // A name may itself contain ": ", so every place where it could end is tried.
        let named = line
            .match_indices(": ")
            .find_map(|(at, separator)| Some((by_text.get(&line[..at])?, &line[at + separator.len()..])));
        if let Some((name, reason)) = named {
            found.insert(Arc::clone(name), clip(reason).to_owned());
        }
    }
    found
}

/// Whether the name is in the text and not merely part of a longer name there.
fn stands_in(name: &str, text: &str) -> bool {
    let part_of_name =
        |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | '.' | ':' | '[' | '|' | '%' | '*');
    !name.is_empty()
        && text.match_indices(name).any(|(at, _)| {
            let begins = !text[..at].chars().next_back().is_some_and(part_of_name);
            // Punctuation at a name's end is part of a sentence unless a name goes on behind it.
            let rest = text[at + name.len()..].trim_start_matches(['.', ':']);
            let ends = if rest.len() == text.len() - at - name.len() {
                !rest.chars().next().is_some_and(part_of_name)
            } else {
                !rest.chars().next().is_some_and(|c| c.is_alphanumeric())
            };
            begins && ends
        })
}

fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_REASON_BYTES)]
}

/// Bytes kept of one reason. Chosen: a field path and a sentence; refusals of a whole response stay below the size of a
/// request.
pub const MAX_REASON_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn refused_names(text: &str, among: &[&str]) -> Vec<String> {
        refused(text, &names(among)).keys().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_line_names_the_resource_the_field_and_the_reason() {
        let reject = Reject {
            name: "outbound/10.0.0.1:80".into(),
            field: "filter_chains[0].name".into(),
            reason: "is empty\nmust be set".into(),
        };

        assert_eq!(reject.to_string(), "outbound/10.0.0.1:80: filter_chains[0].name: is empty must be set");
    }

    #[test]
    fn only_the_resources_of_own_lines_are_refused() {
        let text = "outbound/[::1]:80: name: inbound is not allowed here\nb: x: y";

        let found = refused(text, &names(&["outbound/[::1]:80", "inbound", "b", "c"]));

        assert_eq!(found.len(), 2);
        assert_eq!(found["outbound/[::1]:80"], "name: inbound is not allowed here");
        assert_eq!(found["b"], "x: y");
    }

    #[test]
    fn a_foreign_text_refuses_the_resources_it_names() {
        let text = "Error adding/updating cluster(s) shop.cart.80: unknown field, other";

        assert_eq!(refused_names(text, &["shop.cart.80", "shop.cart", "cart", "shop.cart.8080"]), ["shop.cart.80"]);
    }

    #[test]
    fn a_foreign_text_that_names_none_refuses_all() {
        assert_eq!(refused_names("bad config", &["a", "b"]), ["a", "b"]);
        assert_eq!(refused_names("", &["a", "b"]), ["a", "b"]);
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let text = format!("{}é", "a".repeat(MAX_REASON_BYTES - 1));

        let found = refused(&text, &names(&["x"]));

        assert_eq!(found["x"].len(), MAX_REASON_BYTES - 1);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            all in prop::collection::btree_set("[a-z/.:\\[\\] ]{1,12}[a-z]", 1..6),
            reason in "\\PC{0,40}",
        ) {
            let all: Vec<Arc<str>> = all.into_iter().map(Arc::from).collect();
            let rejects: Vec<Reject> = all
                .iter()
                .step_by(2)
                .map(|name| Reject { name: name.clone(), field: "f".into(), reason: reason.clone() })
                .collect();
            // A name that begins as another one does, up to ": ", cannot be told apart from it.
            prop_assume!(!all.iter().any(|a| all.iter().any(|b| a != b && b.starts_with(&format!("{a}: ")))));

            let found = refused(&text(&rejects), &all);

            prop_assert_eq!(
                found.keys().cloned().collect::<Vec<_>>(),
                rejects.iter().map(|reject| reject.name.clone()).collect::<Vec<_>>()
            );
        }
    }
}
