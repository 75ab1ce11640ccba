//! Header changes as Envoy writes them: one list of values to write, one of names to remove.
//!
//! The Gateway API sets, then adds, then removes; Envoy removes first and then writes. So a name that is removed is not
//! written at all, and both orders give the same headers. Several filters of one kind are folded into one.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue as PbHeaderValue, HeaderValueOption};

use crate::model::route::{HeaderChanges, HeaderValue};

/// Changes in Envoy's form; no name is in both lists.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) write: Vec<HeaderValueOption>,
    pub(super) remove: Vec<String>,
}

impl Changes {
    /// All `changes`, one after another.
    pub(super) fn of<'m>(changes: impl Iterator<Item = &'m HeaderChanges>) -> Self {
        let mut folded = HeaderChanges::default();
        for change in changes {
            change.set.iter().for_each(|header| set(&mut folded, header));
            change.add.iter().for_each(|header| add(&mut folded, header));
            change.remove.iter().for_each(|name| remove(&mut folded, name));
        }
        let set = folded.set.iter().map(|header| option(header, HeaderAppendAction::OverwriteIfExistsOrAdd));
        let add = folded.add.iter().map(|header| option(header, HeaderAppendAction::AppendIfExistsOrAdd));
        Self { write: set.chain(add).collect(), remove: folded.remove }
    }
}

fn set(folded: &mut HeaderChanges, header: &HeaderValue) {
    forget(folded, &header.name);
    folded.set.push(header.clone());
}

fn add(folded: &mut HeaderChanges, header: &HeaderValue) {
    if folded.remove.contains(&header.name) {
        set(folded, header);
    } else {
        folded.add.push(header.clone());
    }
}

fn remove(folded: &mut HeaderChanges, name: &str) {
    forget(folded, name);
    folded.remove.push(name.to_owned());
}

/// What was to happen to a header that is now overwritten or removed.
fn forget(folded: &mut HeaderChanges, name: &str) {
    folded.set.retain(|header| header.name != name);
    folded.add.retain(|header| header.name != name);
    folded.remove.retain(|removed| removed != name);
}

fn option(header: &HeaderValue, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(PbHeaderValue {
            key: header.name.clone(),
            value: header.value.clone(),
            ..PbHeaderValue::default()
        }),
        append_action: action as i32,
        // Without it Envoy drops a header whose value is empty.
        keep_empty_value: true,
        ..HeaderValueOption::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> HeaderValue {
        let (name, value) = text.split_once('=').unwrap();
        HeaderValue { name: name.to_owned(), value: value.to_owned() }
    }

    fn changes(set: &[&str], add: &[&str], remove: &[&str]) -> HeaderChanges {
        HeaderChanges {
            set: set.iter().map(|text| header(text)).collect(),
            add: add.iter().map(|text| header(text)).collect(),
            remove: remove.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn folded(all: &[HeaderChanges]) -> (Vec<String>, Vec<String>) {
        let changes = Changes::of(all.iter());
        let write = changes.write.into_iter().map(|option| {
            let header = option.header.unwrap();
            let sign = if option.append_action == HeaderAppendAction::AppendIfExistsOrAdd as i32 { "+=" } else { "=" };
            format!("{}{sign}{}", header.key, header.value)
        });
        (write.collect(), changes.remove)
    }

    #[test]
    fn what_is_removed_in_the_end_is_not_written() {
        let (write, remove) = folded(&[changes(&["a=1", "b=1"], &["c=1", "a=2"], &["a", "d"])]);

        assert_eq!(write, ["b=1", "c+=1"]);
        assert_eq!(remove, ["a", "d"]);
    }

    #[test]
    fn two_filters_become_one() {
        let (write, remove) = folded(&[changes(&["a=1"], &["b=1"], &["c"]), changes(&["b=2"], &["a=2", "c=2"], &[])]);

        assert_eq!(write, ["a=1", "b=2", "c=2", "a+=2"]);
        assert_eq!(remove, [""; 0]);
    }
}
