//! Header changes of a rule and its backend, folded into one change for each name.
//!
//! Envoy removes before it adds and knows no order between filters, so the order of the model's filters is worked out
//! here. Host is no header to Envoy: setting it is a rewrite, adding and removing it is left out.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue as PbHeaderValue, HeaderValueOption};

use crate::model::Filter;
use crate::model::route::HeaderChanges;

/// What is done to the headers of a request or a response.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Headers to write, in order of first mention.
    pub add: Vec<HeaderValueOption>,
    /// Headers to delete.
    pub remove: Vec<String>,
    /// Host to set.
    pub host: Option<String>,
}

impl Changes {
    /// What `filters` do to a request.
    pub fn request<'m>(filters: impl IntoIterator<Item = &'m Filter>) -> Self {
        Self::fold(filters.into_iter().filter_map(Filter::request_headers))
    }

    /// What `filters` do to a response.
    pub fn response<'m>(filters: impl IntoIterator<Item = &'m Filter>) -> Self {
        Self::fold(filters.into_iter().filter_map(Filter::response_headers))
    }

    fn fold<'m>(all: impl Iterator<Item = &'m HeaderChanges>) -> Self {
        let mut names: Vec<(&str, Effect<'_>)> = Vec::new();
        for changes in all {
            for header in &changes.set {
                *effect(&mut names, &header.name) = Effect { replaces: true, values: vec![&header.value] };
            }
            for header in &changes.add {
                effect(&mut names, &header.name).values.push(&header.value);
            }
            for name in &changes.remove {
                *effect(&mut names, name) = Effect { replaces: true, values: Vec::new() };
            }
        }
        let mut folded = Self::default();
        for (name, effect) in names {
            folded.write(name, &effect);
        }
        folded
    }

    fn write(&mut self, name: &str, effect: &Effect<'_>) {
        if name == "host" {
            self.host = effect.values.first().filter(|_| effect.replaces).map(|value| (*value).to_owned());
            return;
        }
        if effect.replaces && effect.values.is_empty() {
            self.remove.push(name.to_owned());
        }
        for (index, value) in effect.values.iter().enumerate() {
            let replaces = effect.replaces && index == 0;
            let action = if replaces {
                HeaderAppendAction::OverwriteIfExistsOrAdd
            } else {
                HeaderAppendAction::AppendIfExistsOrAdd
            };
            self.add.push(HeaderValueOption {
                header: Some(PbHeaderValue {
                    key: name.to_owned(),
                    // Envoy reads a format string; a percent sign stands for itself when doubled.
                    value: value.replace('%', "%%"),
                    ..PbHeaderValue::default()
                }),
                append_action: action as i32,
                keep_empty_value: true,
                ..HeaderValueOption::default()
            });
        }
    }
}

/// What becomes of one header.
#[derive(Default)]
struct Effect<'m> {
    /// The values that came are gone.
    replaces: bool,
    values: Vec<&'m str>,
}

fn effect<'n, 'm>(names: &'n mut Vec<(&'m str, Effect<'m>)>, name: &'m str) -> &'n mut Effect<'m> {
    let at = names.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
        names.push((name, Effect::default()));
        names.len() - 1
    });
    &mut names[at].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::route::HeaderValue;

    fn value(name: &str, value: &str) -> HeaderValue {
        HeaderValue { name: name.into(), value: value.into() }
    }

    fn written(changes: &Changes) -> Vec<(&str, &str, i32)> {
        let parts = changes.add.iter().map(|option| (option.header.as_ref().unwrap(), option.append_action));
        parts.map(|(header, action)| (header.key.as_str(), header.value.as_str(), action)).collect()
    }

    #[test]
    fn later_filters_work_on_what_earlier_ones_left() {
        let first = Filter::RequestHeaders(HeaderChanges {
            set: vec![value("a", "1")],
            add: vec![value("b", "1"), value("c", "1")],
            remove: vec!["d".into()],
        });
        let second = Filter::RequestHeaders(HeaderChanges {
            set: vec![value("c", "100%")],
            add: vec![value("a", "2"), value("d", "2")],
            remove: vec!["b".into()],
        });

        let changes = Changes::request([&first, &second]);

        // 0 appends, 2 overwrites.
        assert_eq!(written(&changes), [("a", "1", 2), ("a", "2", 0), ("c", "100%%", 2), ("d", "2", 2)]);
        assert_eq!(changes.remove, ["b"]);
    }

    #[test]
    fn a_host_that_is_set_is_a_rewrite() {
        let filter =
            Filter::RequestHeaders(HeaderChanges { set: vec![value("host", "b")], ..HeaderChanges::default() });
        assert_eq!(Changes::request([&filter]), Changes { host: Some("b".into()), ..Changes::default() });
    }

    #[test]
    fn requests_and_responses_are_kept_apart() {
        let filter = Filter::ResponseHeaders(HeaderChanges { remove: vec!["a".into()], ..HeaderChanges::default() });
        assert_eq!(Changes::request([&filter]), Changes::default());
        assert_eq!(Changes::response([&filter]).remove, ["a"]);
    }
}
