//! `RateLimitPolicy`: how many requests a workload takes.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::authorization_policy::{self, Operation, Source};
use super::required_header::{RequiredHeader, check_name};
use super::{Duration, FieldError, ObjectStatus, Selector, TargetRef, target};

mod concurrency;
mod service;

pub use concurrency::Concurrency;
pub use service::{OnFailure, RateLimitService};

/// How many requests workloads take. A request must be within every limit that counts it, of every policy; the server's sidecar
/// counts it after authorization, for each port of a workload by itself or, with `service`, for all workloads together, and answers
/// 429 (gRPC: `RESOURCE_EXHAUSTED`) to what is too much. Opaque connections have no requests: they are not limited.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "RateLimitPolicy",
    plural = "ratelimitpolicies",
    namespaced,
    status = "ObjectStatus",
    doc = "How many requests workloads take.",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.targetRefs) || self.targetRefs.all(t, (!has(t.group) || t.group == '') && t.kind in ['Namespace', 'ServiceAccount', 'Service'])").message("target a Namespace, ServiceAccount or Service"))]
#[x_kube(validation = Rule::new("has(self.concurrency) || (has(self.limits) && size(self.limits) > 0)").message("give limits, concurrency or both"))]
#[x_kube(validation = Rule::new("!(has(self.selector) && has(self.targetRefs) && size(self.targetRefs) > 0)").message("give either targetRefs or selector"))]
pub struct RateLimitPolicySpec {
    /// The policy's own Namespace, ServiceAccounts, or Services (their workloads, at their target ports); at most 16.
    /// Default: all workloads of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Workloads by their labels, instead of targetRefs. Default: what targetRefs say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What would be refused is counted, never refused; not by an Envoy for `concurrency`. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Counts for all workloads together. Default: each sidecar counts by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<RateLimitService>,
    /// How many at once; found by latency. Default: as many as come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// One after another, each must have room; at most 16, and 1 where there is no `concurrency`. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub limits: Vec<RateLimit>,
}

/// A token bucket: it holds `burst` requests, and `requests` come back within `per`, evenly. A service counts `requests` in each
/// `per` anew instead, as its unit goes by.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RateLimit {
    /// So many requests, 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In so long, 50ms to 1h; with `service` one of 1s, 1m, 1h, 24h. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Duration>,
    /// So many at once after a quiet time, 1 to 1000000; none with `service`. Default: as many as `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// Of what each value has a bucket of its own. Default: one bucket for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<LimitBy>,
    /// Whose requests count; one must match; at most 64. Default: anyone's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub from: Vec<Source>,
    /// Which requests count; one must match; at most 64. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub to: Vec<Operation>,
    /// Headers that a request must have to count, each with this value; at most 16. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<RequiredHeader>,
}

/// Of what each value has a bucket of its own; requests that have no value share one.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct LimitBy {
    /// `Identity`: the caller's SPIFFE ID. `SourceIP`: the caller's address. `Header`: the value of the one called `name`.
    pub r#type: LimitByType,
    /// The header's name; none for the others. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

/// Kinds of things that have buckets.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitByType {
    /// The caller's SPIFFE ID.
    Identity,
    /// The caller's address.
    #[serde(rename = "SourceIP")]
    SourceIp,
    /// A header field.
    Header,
}

impl RateLimitPolicySpec {
    /// What cannot be meant. A policy with an error here is not in force, and its status says so.
    pub fn check(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        target::check(&self.target_refs, self.selector.as_ref(), authorization_policy::TARGETS, &mut found);
        if let Some(concurrency) = &self.concurrency {
            concurrency.check("spec.concurrency", &mut found);
        }
        if (self.limits.is_empty() && self.concurrency.is_none()) || self.limits.len() > MAX_LIMITS {
            let remedy = format!("give 1 to {MAX_LIMITS}: each is counted for every request");
            found.push(FieldError::new("spec.limits", format!("{} entries", self.limits.len()), remedy));
        }
        if let Some(service) = &self.service {
            service.check("spec.service", &mut found);
        }
        for (index, limit) in self.limits.iter().enumerate() {
            let at = format!("spec.limits[{index}]");
            match self.service {
                Some(_) => limit.check_unit(&at, &mut found),
                None => limit.check_length(&at, &mut found),
            }
            limit.check(&at, &mut found);
        }
        found
    }
}

impl RateLimit {
    /// Its length; [`DEFAULT_PER`] if none is given.
    pub fn per(&self) -> std::time::Duration {
        self.per.map_or(DEFAULT_PER, Duration::get)
    }

    fn check_length(&self, at: &str, found: &mut Vec<FieldError>) {
        if let Some(per) = self.per.filter(|per| !(SHORTEST_PER..=LONGEST_PER).contains(&per.get())) {
            found.push(FieldError::new(format!("{at}.per"), per, "give a length from 50ms to 1h"));
        }
    }

    /// A service counts by units and knows no bursts.
    fn check_unit(&self, at: &str, found: &mut Vec<FieldError>) {
        if let Some(per) = self.per.filter(|per| !UNITS.contains(&per.get().as_secs_f64())) {
            found.push(FieldError::new(format!("{at}.per"), per, "give 1s, 1m, 1h or 24h: a service counts by these"));
        }
        if let Some(burst) = self.burst {
            found.push(FieldError::new(format!("{at}.burst"), burst, "leave it out: a service knows none"));
        }
    }

    fn check(&self, at: &str, found: &mut Vec<FieldError>) {
        for (name, value) in [("requests", Some(self.requests)), ("burst", self.burst)] {
            if let Some(value) = value.filter(|value| !(1..=MAX_REQUESTS).contains(value)) {
                found.push(FieldError::new(format!("{at}.{name}"), value, format!("give 1 to {MAX_REQUESTS}")));
            }
        }
        if let Some(by) = &self.by {
            by.check(&format!("{at}.by.name"), found);
        }
        authorization_policy::check_rule(at, &self.from, &self.to, found);
        if self.headers.len() > MAX_HEADERS {
            let remedy = format!("give at most {MAX_HEADERS}");
            found.push(FieldError::new(format!("{at}.headers"), format!("{} entries", self.headers.len()), remedy));
        }
        for (index, header) in self.headers.iter().enumerate() {
            header.check(&format!("{at}.headers[{index}]"), NO_HOST, found);
        }
    }
}

impl LimitBy {
    fn check(&self, field: &str, found: &mut Vec<FieldError>) {
        match (self.r#type, &self.name) {
            (LimitByType::Header, Some(name)) => check_name(field, name, NO_HOST, found),
            (LimitByType::Header, None) => found.push(FieldError::new(field, "", "say which header, as x-user")),
            (LimitByType::Identity | LimitByType::SourceIp, Some(name)) => {
                found.push(FieldError::new(field, name, "leave it out: only a Header has a name"));
            }
            (LimitByType::Identity | LimitByType::SourceIp, None) => {}
        }
    }
}

/// Instead of the header `host`.
const NO_HOST: &str = "name another header: hosts stand in `to`";
/// As Istio's users write limits most: so many a second.
pub const DEFAULT_PER: std::time::Duration = std::time::Duration::from_secs(1);
/// Envoy fills no bucket more often.
const SHORTEST_PER: std::time::Duration = std::time::Duration::from_millis(50);
/// Chosen: what is counted over longer should outlive the sidecar.
const LONGEST_PER: std::time::Duration = std::time::Duration::from_secs(3600);
/// Seconds of the units of `envoy.type.v3.RateLimitUnit` that are of one length.
const UNITS: [f64; 4] = [1.0, 60.0, 3_600.0, 86_400.0];
/// Chosen: in the shortest time, still a whole number of nanoseconds for each.
const MAX_REQUESTS: u32 = 1_000_000;
/// Chosen: limits are walked for every request.
const MAX_LIMITS: usize = 16;
/// As for faults.
const MAX_HEADERS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(limit: RateLimit) -> Vec<String> {
        let spec = RateLimitPolicySpec { limits: vec![limit], ..RateLimitPolicySpec::default() };
        spec.check().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_limit_that_cannot_be_meant_is_refused_with_its_field() {
        let good = RateLimit { requests: 10, ..RateLimit::default() };
        assert_eq!(fields(good.clone()), Vec::<String>::new());
        assert_eq!(
            fields(RateLimit { burst: Some(0), ..RateLimit::default() }),
            ["spec.limits[0].requests", "spec.limits[0].burst"]
        );
        let by = |r#type, name: Option<&str>| RateLimit {
            by: Some(LimitBy { r#type, name: name.map(str::to_owned) }),
            ..good.clone()
        };
        assert_eq!(fields(by(LimitByType::Header, None)), ["spec.limits[0].by.name"]);
        assert_eq!(fields(by(LimitByType::Identity, Some("x"))), ["spec.limits[0].by.name"]);
        assert_eq!(fields(by(LimitByType::Header, Some("x-user"))), Vec::<String>::new());
        assert_eq!(fields(RateLimit { from: vec![Source::default()], ..good }), ["spec.limits[0].from[0]"]);
        assert_eq!(RateLimitPolicySpec::default().check()[0].field, "spec.limits");
    }

    #[test]
    fn a_service_counts_by_units_and_knows_no_bursts() {
        let of = |limit: RateLimit, service: RateLimitService| {
            let spec =
                RateLimitPolicySpec { limits: vec![limit], service: Some(service), ..RateLimitPolicySpec::default() };
            spec.check().into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        let service = RateLimitService { name: "ratelimit".into(), port: 8081, ..RateLimitService::default() };
        let per = |length: &str| Some(length.parse::<Duration>().unwrap());
        let day = RateLimit { requests: 10, per: per("24h"), ..RateLimit::default() };
        assert_eq!(of(day.clone(), service.clone()), Vec::<String>::new());
        let odd = RateLimit { per: per("7s"), burst: Some(3), ..day.clone() };
        assert_eq!(of(odd, service.clone()), ["spec.limits[0].per", "spec.limits[0].burst"]);
        let nowhere = RateLimitService { port: 0, timeout: per("1m"), domain: Some(String::new()), ..service };
        assert_eq!(of(day, nowhere), ["spec.service.port", "spec.service.domain", "spec.service.timeout"]);
    }
}
