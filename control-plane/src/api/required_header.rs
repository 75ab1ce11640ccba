//! Headers that a request must have for something to hold.

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FieldError;

/// A header that a request must have.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RequiredHeader {
    /// Its name, whose case does not count; not `host`.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Its whole value.
    #[schemars(length(max = 4096))]
    pub value: String,
}

impl RequiredHeader {
    /// What cannot be meant of the one at `at`; `no_host` says what stands in the place of `host`.
    pub(super) fn check(&self, at: &str, no_host: &str, found: &mut Vec<FieldError>) {
        check_name(&format!("{at}.name"), &self.name, no_host, found);
        if HeaderValue::from_str(&self.value).is_err() {
            found.push(FieldError::new(format!("{at}.value"), &self.value, "give visible ASCII (RFC 9110 §5.5)"));
        }
    }
}

/// What cannot be meant by the name of a header; `no_host` says what stands in the place of `host`.
pub(super) fn check_name(field: &str, name: &str, no_host: &str, found: &mut Vec<FieldError>) {
    if name.eq_ignore_ascii_case("host") {
        found.push(FieldError::new(field, name, no_host));
    }
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        let remedy = "give a header's name: letters, digits and !#$%&'*+-.^_`|~ (RFC 9110 §5.1)";
        found.push(FieldError::new(field, name, remedy));
    }
}
