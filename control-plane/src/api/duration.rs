//! A length of time in our objects, written as Gateway API writes it (GEP-2257): `1h30m`, `10s`, `250ms`.

use std::borrow::Cow;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time in whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(std::time::Duration);

impl Duration {
    /// As the standard library has it.
    pub fn get(self) -> std::time::Duration {
        self.0
    }

    /// Whether it is `0s`, by which Gateway API means "no limit" in timeouts (GEP-1742).
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = gateway_api::Duration::from_str(text)
            .map_err(|_| format!("`{text}` is no duration: write up to four of h, m, s, ms, as `1m30s` or `250ms`"))?;
        Ok(Self(std::time::Duration::new(duration.as_secs(), duration.subsec_nanos())))
    }
}

impl std::fmt::Display for Duration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(1000) { write!(f, "{}s", millis / 1000) } else { write!(f, "{millis}ms") }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // GEP-2257's own pattern.
        json_schema!({ "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_gateway_api_does() {
        for (text, millis, written) in [("1m30s", 90_000, "90s"), ("250ms", 250, "250ms"), ("0s", 0, "0s")] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.get().as_millis(), millis);
            assert_eq!(duration.to_string(), written);
        }
    }

    #[test]
    fn what_gateway_api_refuses_is_refused_with_a_remedy() {
        for text in ["", "10", "-1s", "1.5s", "1us", "1d"] {
            assert!(text.parse::<Duration>().unwrap_err().contains("h, m, s, ms"), "{text}");
        }
    }
}
