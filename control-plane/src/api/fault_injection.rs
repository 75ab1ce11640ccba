//! `FaultInjection`: what goes wrong on purpose, for rules of routes that name it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::required_header::RequiredHeader;
use super::{Duration, FieldError, ObjectStatus};

/// What goes wrong on purpose with the requests of a rule of an HTTPRoute or GRPCRoute, which names it among its filters:
/// `type: ExtensionRef`, `extensionRef: { group: heddle.dev, kind: FaultInjection, name: … }`, in the same namespace. It happens at the
/// client's sidecar before any other filter and before timeouts begin; a delay comes before an abort.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "FaultInjection",
    plural = "faultinjections",
    namespaced,
    status = "ObjectStatus",
    doc = "What goes wrong on purpose, for rules of routes that name it: delays and aborts.",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.delay) || has(self.abort)").message("give delay, abort, or both"))]
#[x_kube(validation = Rule::new("!has(self.delay) || (duration(self.delay.duration) > duration('0s') && duration(self.delay.duration) <= duration('1h'))").message("delay.duration must be above 0s and at most 1h"))]
#[x_kube(validation = Rule::new("!has(self.abort) || has(self.abort.httpStatus) != has(self.abort.grpcStatus)").message("abort: give either httpStatus or grpcStatus"))]
#[x_kube(validation = Rule::new("!has(self.delay) || !(has(self.delay.percent) && has(self.delay.fraction))").message("delay: give either percent or fraction"))]
#[x_kube(validation = Rule::new("!has(self.abort) || !(has(self.abort.percent) && has(self.abort.fraction))").message("abort: give either percent or fraction"))]
#[x_kube(validation = Rule::new("!has(self.delay) || !has(self.delay.fraction) || self.delay.fraction.numerator <= (has(self.delay.fraction.denominator) ? self.delay.fraction.denominator : 100)").message("delay.fraction: the numerator is at most the denominator"))]
#[x_kube(validation = Rule::new("!has(self.abort) || !has(self.abort.fraction) || self.abort.fraction.numerator <= (has(self.abort.fraction.denominator) ? self.abort.fraction.denominator : 100)").message("abort.fraction: the numerator is at most the denominator"))]
pub struct FaultInjectionSpec {
    /// Requests wait before they are sent. Default: none do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Requests are answered instead of sent. Default: none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Headers that a request must have, each with this value; at most 16. Default: none, every request may be hit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<RequiredHeader>,
}

/// How requests are held up.
#[derive(JsonSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Delay {
    /// For how long; above 0, at most 1h.
    pub duration: Duration,
    /// Of a hundred requests so many. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// The share of requests, instead of `percent`. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// How requests are answered. A gRPC call gets the gRPC status that stands for an HTTP status (gRPC
/// `http-grpc-status-mapping.md`); any other request gets the HTTP status that Google's APIs have for a gRPC status.
#[derive(JsonSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Abort {
    /// With this HTTP status, 200 to 599. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub http_status: Option<u16>,
    /// With this gRPC status, 1 to 16 (gRPC `statuscodes.md`). Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub grpc_status: Option<u16>,
    /// Of a hundred requests so many. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// The share of requests, instead of `percent`. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// A share, as Gateway API writes it.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Fraction {
    /// So many, at most the denominator.
    pub numerator: u32,
    /// Of so many, 1 to 1000000. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub denominator: Option<u32>,
}

impl FaultInjectionSpec {
    /// What cannot be meant.
    pub fn check(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        if self.delay.is_none() && self.abort.is_none() {
            found.push(FieldError::new("spec", "{}", "give delay, abort, or both"));
        }
        if let Some(delay) = &self.delay {
            let length = delay.duration;
            if length.is_zero() || length.get() > LONGEST_DELAY {
                let remedy = "give a length above 0, and at most 1h: each request that waits takes memory";
                found.push(FieldError::new("spec.delay.duration", length, remedy));
            }
            check_share("spec.delay", delay.percent, delay.fraction, &mut found);
        }
        if let Some(abort) = &self.abort {
            abort.check(&mut found);
            check_share("spec.abort", abort.percent, abort.fraction, &mut found);
        }
        for (index, header) in self.headers.iter().enumerate() {
            let field = format!("spec.headers[{index}]");
            header.check(&field, "name another header: a Service is told by its address", &mut found);
        }
        found
    }
}

impl Abort {
    fn check(&self, found: &mut Vec<FieldError>) {
        match (self.http_status, self.grpc_status) {
            (None, None) => found.push(FieldError::new("spec.abort", "{}", "give httpStatus or grpcStatus")),
            (Some(_), Some(_)) => {
                let remedy = "give one of httpStatus and grpcStatus: each stands for one of the other kind";
                found.push(FieldError::new("spec.abort", "httpStatus, grpcStatus", remedy));
            }
            (Some(status), None) if !(200..=599).contains(&status) => {
                found.push(FieldError::new("spec.abort.httpStatus", status, "give a status from 200 to 599"));
            }
            (None, Some(status)) if !(1..=16).contains(&status) => {
                let remedy = "give a gRPC status from 1 (CANCELLED) to 16 (UNAUTHENTICATED)";
                found.push(FieldError::new("spec.abort.grpcStatus", status, remedy));
            }
            _ => {}
        }
    }
}

fn check_share(field: &str, percent: Option<u32>, fraction: Option<Fraction>, found: &mut Vec<FieldError>) {
    match (percent, fraction) {
        (Some(_), Some(_)) => {
            found.push(FieldError::new(field, "percent, fraction", "give one of percent and fraction"))
        }
        (Some(percent), None) if percent > 100 => {
            found.push(FieldError::new(format!("{field}.percent"), percent, "give a percentage from 0 to 100"));
        }
        (None, Some(Fraction { numerator, denominator })) => {
            let denominator = denominator.unwrap_or(DEFAULT_DENOMINATOR);
            if numerator > denominator || !(1..=MILLION).contains(&denominator) {
                let remedy = "give a numerator up to the denominator, and that from 1 to 1000000";
                found.push(FieldError::new(format!("{field}.fraction"), format!("{numerator}/{denominator}"), remedy));
            }
        }
        _ => {}
    }
}

/// A share in millionths.
pub fn per_million(percent: Option<u32>, fraction: Option<Fraction>) -> u32 {
    let (numerator, denominator) = match (percent, fraction) {
        (Some(percent), _) => (percent, 100),
        (None, Some(Fraction { numerator, denominator })) => (numerator, denominator.unwrap_or(DEFAULT_DENOMINATOR)),
        (None, None) => (1, 1),
    };
    let denominator = u64::from(denominator.max(1));
    // Rounded, so that a third three times is all but a millionth.
    let share = (u64::from(numerator) * u64::from(MILLION) + denominator / 2) / denominator;
    u32::try_from(share).unwrap_or(MILLION).min(MILLION)
}

/// Chosen: longer than any client waits.
const LONGEST_DELAY: std::time::Duration = std::time::Duration::from_secs(3600);
/// Gateway API's, `Fraction.denominator`.
const DEFAULT_DENOMINATOR: u32 = 100;
const MILLION: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(spec: &str) -> Vec<String> {
        let spec: FaultInjectionSpec = serde_json::from_str(spec).unwrap();
        spec.check().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn each_value_that_cannot_be_meant_is_named_by_its_field() {
        assert_eq!(fields("{}"), ["spec"]);
        assert_eq!(
            fields(r#"{"delay":{"duration":"0s","percent":101}}"#),
            ["spec.delay.duration", "spec.delay.percent"]
        );
        assert_eq!(fields(r#"{"delay":{"duration":"61m","percent":1,"fraction":{"numerator":1}}}"#).len(), 2);
        assert_eq!(fields(r#"{"abort":{}}"#), ["spec.abort"]);
        assert_eq!(fields(r#"{"abort":{"httpStatus":503,"grpcStatus":14}}"#), ["spec.abort"]);
        assert_eq!(fields(r#"{"abort":{"httpStatus":199}}"#), ["spec.abort.httpStatus"]);
        assert_eq!(fields(r#"{"abort":{"grpcStatus":17}}"#), ["spec.abort.grpcStatus"]);
        assert_eq!(
            fields(r#"{"abort":{"grpcStatus":1,"fraction":{"numerator":2,"denominator":1}}}"#),
            ["spec.abort.fraction"]
        );
        let headers = r#"{"abort":{"grpcStatus":1},"headers":[{"name":"a b","value":"1"},{"name":"a","value":"\n"}]}"#;
        assert_eq!(fields(headers), ["spec.headers[0].name", "spec.headers[1].value"]);
    }

    #[test]
    fn shares_are_counted_in_millionths() {
        let share = |numerator, denominator| Some(Fraction { numerator, denominator });
        assert_eq!(per_million(None, None), 1_000_000);
        assert_eq!(per_million(Some(5), None), 50_000);
        assert_eq!(per_million(None, share(1, Some(1_000_000))), 1);
        assert_eq!(per_million(None, share(3, None)), 30_000);
    }
}
