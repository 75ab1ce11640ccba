//! How many requests at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{Duration, FieldError};

/// How many requests a port takes at once: as many as leave its latency what it is without load. The limit grows while the median
/// latency stays within `bufferPercent` of that, and shrinks by as much as it is above; a request for which there is no room is
/// answered 503 (gRPC: `UNAVAILABLE`). The latency without load is measured while few requests are open, or else by letting in no
/// more than `minimum` for as few requests as that takes.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Concurrency {
    /// Fewest requests at once, 1 to 1000000. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub minimum: Option<u32>,
    /// Most requests at once, 1 to 1000000, and where the limit begins. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub maximum: Option<u32>,
    /// By so much latencies may be above the one without load, in percent of it; 0 to 1000. Default: 25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub buffer_percent: Option<u32>,
    /// After so long the latency without load is measured anew, 1s to 24h. Default: 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
}

impl Concurrency {
    /// Fewest and most requests; Envoy's own where none is given.
    pub fn bounds(&self) -> (u32, u32) {
        (self.minimum.unwrap_or(DEFAULT_MINIMUM), self.maximum.unwrap_or(DEFAULT_MAXIMUM))
    }

    /// The buffer in percent; [`DEFAULT_BUFFER`] if none is given.
    pub fn buffer_percent(&self) -> u32 {
        self.buffer_percent.unwrap_or(DEFAULT_BUFFER)
    }

    /// The interval; [`DEFAULT_INTERVAL`] if none is given.
    pub fn interval(&self) -> std::time::Duration {
        self.interval.map_or(DEFAULT_INTERVAL, Duration::get)
    }

    pub(super) fn check(&self, at: &str, found: &mut Vec<FieldError>) {
        for (field, value) in [("minimum", self.minimum), ("maximum", self.maximum)] {
            if let Some(value) = value.filter(|value| !(1..=MAX).contains(value)) {
                found.push(FieldError::new(format!("{at}.{field}"), value, format!("give 1 to {MAX}")));
            }
        }
        let (minimum, maximum) = self.bounds();
        if minimum > maximum {
            let remedy = format!("give at least the minimum, which is {minimum}");
            found.push(FieldError::new(format!("{at}.maximum"), maximum, remedy));
        }
        if let Some(percent) = self.buffer_percent.filter(|percent| *percent > MAX_BUFFER) {
            found.push(FieldError::new(format!("{at}.bufferPercent"), percent, format!("give 0 to {MAX_BUFFER}")));
        }
        if let Some(interval) = self.interval.filter(|interval| !(SHORTEST..=LONGEST).contains(&interval.get())) {
            found.push(FieldError::new(format!("{at}.interval"), interval, "give a length from 1s to 24h"));
        }
    }
}

/// Envoy's `min_concurrency`.
const DEFAULT_MINIMUM: u32 = 3;
/// Envoy's `max_concurrency_limit`.
const DEFAULT_MAXIMUM: u32 = 1_000;
/// Envoy's `buffer`.
const DEFAULT_BUFFER: u32 = 25;
/// As in Envoy's examples of `min_rtt_calc_params.interval`.
const DEFAULT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(60);
/// Chosen: more than any process serves.
const MAX: u32 = 1_000_000;
/// Chosen: above it the limit never shrinks.
const MAX_BUFFER: u32 = 1_000;
/// Chosen: below it nearly every request would be a measurement.
const SHORTEST: std::time::Duration = std::time::Duration::from_secs(1);
/// Chosen: an application's latency changes within a day.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_field() {
        let fields = |concurrency: Concurrency| {
            let mut found = Vec::new();
            concurrency.check("spec.concurrency", &mut found);
            found.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(Concurrency::default()), Vec::<String>::new());
        let crossed = Concurrency { minimum: Some(2_000), ..Concurrency::default() };
        assert_eq!(fields(crossed), ["spec.concurrency.maximum"]);
        let odd = Concurrency {
            minimum: Some(0),
            buffer_percent: Some(1_001),
            interval: Some("10ms".parse().unwrap()),
            ..Concurrency::default()
        };
        assert_eq!(
            fields(odd),
            ["spec.concurrency.minimum", "spec.concurrency.bufferPercent", "spec.concurrency.interval"]
        );
    }
}
