//! `TrafficPolicy.loadBalancing`: how an endpoint is chosen.

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, FieldError};

/// How an endpoint is chosen.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct LoadBalancing {
    /// `P2CEWMA`: the better of two random endpoints by peak latency average and requests in flight. `LeastRequest`: of two
    /// by requests in flight alone. `RoundRobin`: one after another. `Random`: any. `RingHash` and `Maglev`: the same
    /// for the same hash, which `hashOn` says what is taken from.
    pub policy: LoadBalancingPolicy,
    /// For `RingHash` and `Maglev`, 1 to 8: what of a request is hashed; the first that it has counts, and one that has none
    /// goes to any endpoint. Connections that are not looked into are hashed by the client's address. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub hash_on: Vec<HashOn>,
    /// For `P2CEWMA`, `LeastRequest` and `RoundRobin`: over how long the share of a new endpoint grows from a tenth to its whole;
    /// above 0. Default: none, a new endpoint has its whole share at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Duration>,
}

/// Names of the balancing policies.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadBalancingPolicy {
    /// The better of two random endpoints.
    #[serde(rename = "P2CEWMA")]
    P2cEwma,
    /// The one of two random endpoints with fewer requests in flight.
    LeastRequest,
    /// One after another.
    RoundRobin,
    /// Any, by weight.
    Random,
    /// By a hash, on a ring (ketama).
    RingHash,
    /// By a hash, from a table (Maglev, Eisenbud et al. 2016).
    Maglev,
}

/// What of a request is hashed.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct HashOn {
    /// `Header`, `Cookie`, `QueryParam`: the value of the one called `name`. `SourceIP`: the client's address. `Path`:
    /// without its query. All as the client sent them.
    pub r#type: HashOnType,
    /// Of the header, cookie or query parameter; none for the others. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

/// Kinds of things that are hashed.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HashOnType {
    /// A header field.
    Header,
    /// A cookie.
    Cookie,
    /// A query parameter.
    QueryParam,
    /// The client's address.
    #[serde(rename = "SourceIP")]
    SourceIp,
    /// The path.
    Path,
}

impl LoadBalancing {
    /// What cannot be meant.
    pub(super) fn check(&self, found: &mut Vec<FieldError>) {
        let hashing = matches!(self.policy, LoadBalancingPolicy::RingHash | LoadBalancingPolicy::Maglev);
        let field = "spec.loadBalancing.hashOn";
        if hashing && self.hash_on.is_empty() {
            let remedy =
                "say what is hashed: `- { type: Header, name: x-user }`, a Cookie, a QueryParam, SourceIP or Path";
            found.push(FieldError::new(field, "[]", remedy));
        }
        if !hashing && !self.hash_on.is_empty() {
            let remedy = format!("leave it out: policy {:?} hashes nothing; RingHash and Maglev do", self.policy);
            found.push(FieldError::new(field, format!("{} entries", self.hash_on.len()), remedy));
        }
        if self.hash_on.len() > MAX_HASH_ON {
            let remedy = format!("give at most {MAX_HASH_ON}");
            found.push(FieldError::new(field, format!("{} entries", self.hash_on.len()), remedy));
        }
        if self.slow_start.is_some_and(Duration::is_zero) {
            found.push(FieldError::new("spec.loadBalancing.slowStart", "0s", "give a length above 0, or leave it out"));
        }
        if hashing || self.policy == LoadBalancingPolicy::Random {
            let remedy = format!("leave it out: with {:?} every endpoint has its whole share at once", self.policy);
            let given = self.slow_start.map(|length| FieldError::new("spec.loadBalancing.slowStart", length, remedy));
            found.extend(given);
        }
        for (at, hash_on) in self.hash_on.iter().enumerate() {
            hash_on.check(&format!("{field}[{at}].name"), found);
        }
    }
}

impl HashOn {
    fn check(&self, field: &str, found: &mut Vec<FieldError>) {
        let name = self.name.as_deref();
        match self.r#type {
            HashOnType::Header | HashOnType::Cookie
                if name.is_none_or(|name| HeaderName::from_bytes(name.as_bytes()).is_err()) =>
            {
                let remedy =
                    format!("name the {:?}: letters, digits and !#$%&'*+-.^_`|~ (RFC 9110 §5.6.2)", self.r#type);
                found.push(FieldError::new(field, name.unwrap_or_default(), remedy));
            }
            HashOnType::QueryParam if name.is_none_or(str::is_empty) => {
                found.push(FieldError::new(field, "", "name the query parameter"));
            }
            HashOnType::SourceIp | HashOnType::Path if name.is_some() => {
                let remedy = "leave it out: there is only one of the kind";
                found.push(FieldError::new(field, name.unwrap_or_default(), remedy));
            }
            _ => {}
        }
    }
}

/// Chosen: more places to look for one value than any request has.
const MAX_HASH_ON: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hashed_fits_the_policy_and_has_a_name_where_there_are_several() {
        let errors = |policy, hash_on: &[(HashOnType, Option<&str>)]| {
            let hash_on = hash_on.iter().map(|(kind, name)| HashOn { r#type: *kind, name: name.map(str::to_owned) });
            let mut found = Vec::new();
            LoadBalancing { policy, hash_on: hash_on.collect(), slow_start: None }.check(&mut found);
            found.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        let maglev = LoadBalancingPolicy::Maglev;
        assert_eq!(errors(maglev, &[]), ["spec.loadBalancing.hashOn"]);
        assert_eq!(errors(LoadBalancingPolicy::Random, &[(HashOnType::Path, None)]), ["spec.loadBalancing.hashOn"]);
        let wrong = [
            (HashOnType::Header, None),
            (HashOnType::Cookie, Some("a b")),
            (HashOnType::QueryParam, None),
            (HashOnType::SourceIp, Some("x")),
            (HashOnType::Path, Some("x")),
        ];
        let at = |index: usize| format!("spec.loadBalancing.hashOn[{index}].name");
        assert_eq!(errors(maglev, &wrong), (0..5).map(at).collect::<Vec<_>>());
        let slow = |policy, length: &str| {
            let mut found = Vec::new();
            let slow_start = Some(length.parse().unwrap());
            LoadBalancing { policy, hash_on: Vec::new(), slow_start }.check(&mut found);
            found.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        assert!(slow(LoadBalancingPolicy::RoundRobin, "30s").is_empty());
        assert_eq!(slow(LoadBalancingPolicy::RoundRobin, "0s"), ["spec.loadBalancing.slowStart"]);
        assert_eq!(slow(LoadBalancingPolicy::Random, "30s"), ["spec.loadBalancing.slowStart"]);
        let right =
            [(HashOnType::Header, Some("X-User")), (HashOnType::QueryParam, Some("a b")), (HashOnType::Path, None)];
        assert!(errors(maglev, &right).is_empty());
    }
}
