//! Header changes as Envoy writes them → [`HeaderChanges`].

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use http::{HeaderName, HeaderValue};

use super::read::{Error, Within, at_most, header_name};
use crate::tables::route::HeaderChanges;

/// Changes of the fields `<prefix>_headers_to_add` and `<prefix>_headers_to_remove`; `None`: there are none.
///
/// Envoy removes first and then writes, tables set, add and then remove: a name that is both removed and written here
/// is therefore set, and not removed.
pub(super) fn changes(
    prefix: &str,
    write: &[HeaderValueOption],
    remove: &[String],
) -> Result<Option<HeaderChanges>, Error> {
    let (to_add, to_remove) = (format!("{prefix}_headers_to_add"), format!("{prefix}_headers_to_remove"));
    at_most(&to_add, write, MAX_CHANGES)?;
    at_most(&to_remove, remove, MAX_CHANGES)?;
    if write.is_empty() && remove.is_empty() {
        return Ok(None);
    }
    let mut changes = HeaderChanges::default();
    for (index, name) in remove.iter().enumerate() {
        changes.remove.push(header_name(name).nth(&to_remove, index)?);
    }
    for (index, option) in write.iter().enumerate() {
        let (append, name, value) = header(option).nth(&to_add, index)?;
        if append && !changes.remove.contains(&name) {
            changes.add.push((name, value));
        } else {
            changes.remove.retain(|removed| *removed != name);
            changes.set.retain(|(known, _)| *known != name);
            changes.add.retain(|(known, _)| *known != name);
            changes.set.push((name, value));
        }
    }
    Ok(Some(changes))
}

/// Whether it is appended, its name, its value.
fn header(option: &HeaderValueOption) -> Result<(bool, HeaderName, HeaderValue), Error> {
    let append = match HeaderAppendAction::try_from(option.append_action) {
        Ok(HeaderAppendAction::AppendIfExistsOrAdd) => true,
        Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => false,
        Ok(HeaderAppendAction::AddIfAbsent | HeaderAppendAction::OverwriteIfExists) | Err(_) => {
            let reason = "must be APPEND_IF_EXISTS_OR_ADD or OVERWRITE_IF_EXISTS_OR_ADD";
            return Err(Error::new("append_action", format!("is {}, {reason}", option.append_action)));
        }
    };
    let header = option.header.as_ref().ok_or_else(|| Error::new("header", "is missing"))?;
    let name = header_name(&header.key).within("header.key")?;
    let value = HeaderValue::from_str(&header.value).map_err(|_| {
        Error::new("header.value", format!("is {:?}, must be visible ASCII (RFC 9110 §5.5)", header.value))
    })?;
    Ok((append, name, value))
}

/// Headers one filter may write, and remove. Chosen: the Gateway API allows 16 of each kind.
const MAX_CHANGES: usize = 128;

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HeaderValue as PbHeaderValue;

    use super::*;

    fn option(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(PbHeaderValue { key: name.into(), value: value.into(), ..PbHeaderValue::default() }),
            append_action: action as i32,
            ..HeaderValueOption::default()
        }
    }

    fn shown(list: &[(HeaderName, HeaderValue)]) -> Vec<String> {
        list.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn envoy_s_order_of_removal_and_writing_is_kept_in_meaning() {
        use HeaderAppendAction::{AppendIfExistsOrAdd as Append, OverwriteIfExistsOrAdd as Overwrite};
        let write =
            [option("a", "1", Append), option("a", "2", Append), option("b", "1", Append), option("b", "2", Overwrite)];

        let changes = changes("request", &write, &["a".into(), "c".into()]).unwrap().unwrap();

        assert_eq!(shown(&changes.set), ["a=1", "b=2"]);
        assert_eq!(shown(&changes.add), ["a=2"]);
        assert_eq!(changes.remove, ["c"]);
    }

    #[test]
    fn a_header_that_cannot_be_written_is_refused_with_its_place() {
        let write = [
            option("a", "1", HeaderAppendAction::AppendIfExistsOrAdd),
            option("b c", "1", HeaderAppendAction::AppendIfExistsOrAdd),
        ];
        assert_eq!(changes("request", &write, &[]).unwrap_err().field, "request_headers_to_add[1].header.key");
        let write = [option("a", "x\ny", HeaderAppendAction::AppendIfExistsOrAdd)];
        assert_eq!(changes("response", &write, &[]).unwrap_err().field, "response_headers_to_add[0].header.value");
        let write = [option("a", "1", HeaderAppendAction::AddIfAbsent)];
        assert_eq!(changes("request", &write, &[]).unwrap_err().field, "request_headers_to_add[0].append_action");
        assert_eq!(changes("request", &[], &[":path".into()]).unwrap_err().field, "request_headers_to_remove[0]");
    }
}
