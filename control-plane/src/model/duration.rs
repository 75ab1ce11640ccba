//! Durations in golden files: `2s`, `250ms`, never a struct of seconds and nanoseconds; and in facts, as nanoseconds.

use std::time::Duration;

use serde::Serializer;

/// Writes milliseconds, or whole seconds where there are no milliseconds.
pub fn text<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let millis = value.as_millis();
    if millis.is_multiple_of(1000) {
        serializer.collect_str(&format_args!("{}s", millis / 1000))
    } else {
        serializer.collect_str(&format_args!("{millis}ms"))
    }
}

/// Saturates after 584 years.
pub fn nanos(value: Duration) -> u64 {
    u64::try_from(value.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes nanoseconds, as a number.
pub fn as_nanos<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(nanos(*value))
}

/// As [`text`], for a field that is skipped when absent.
pub fn optional<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => text(value, serializer),
        None => serializer.serialize_none(),
    }
}
