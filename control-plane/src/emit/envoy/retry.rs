//! Which failed attempts Envoy makes again.
//!
//! What was never delivered is tried again with or without a policy, at most twice. An attempt after a failure goes to
//! another endpoint where there is one.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, RetryPolicy as PbRetryPolicy};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;

use super::http;
use crate::emit::pb;
use crate::model::Rule;
use crate::model::route::RetryPolicy;

/// The policy of a rule for attempts at endpoints.
pub fn policy(rule: &Rule) -> PbRetryPolicy {
    let local = to_application(rule);
    PbRetryPolicy {
        retry_on: format!("{},retriable-headers", local.retry_on),
        retriable_headers: vec![undelivered()],
        ..local
    }
}

/// The policy of a rule for attempts at the application of the sidecar's own pod, which is believed nothing.
pub fn to_application(rule: &Rule) -> PbRetryPolicy {
    let conditions = conditions(rule.retry.as_ref());
    let policy = PbRetryPolicy {
        retry_on: conditions.join(","),
        num_retries: Some(pb::uint32(UNDELIVERED_RETRIES)),
        per_try_timeout: rule.try_timeout.map(pb::duration),
        retry_host_predicate: vec![another_host()],
        host_selection_retry_max_attempts: HOST_SELECTION_ATTEMPTS,
        ..PbRetryPolicy::default()
    };
    match &rule.retry {
        None => policy,
        Some(retry) => PbRetryPolicy {
            num_retries: Some(pb::uint32(retry.retries)),
            retriable_status_codes: retry.codes.iter().map(|code| u32::from(*code)).collect(),
            retry_back_off: Some(back_off(retry)),
            ..policy
        },
    }
}

/// Back-off of a policy; Envoy takes no base below 1 ms and no maximum below the base.
pub(in crate::emit) fn back_off(retry: &RetryPolicy) -> RetryBackOff {
    let base = retry.backoff_base.max(SHORTEST_BACKOFF);
    RetryBackOff {
        base_interval: Some(pb::duration(base)),
        max_interval: Some(pb::duration(retry.backoff_max.max(base))),
    }
}

/// The name by which a gRPC status is retried, for the codes Envoy and gRPC know (gRFC A44).
pub(in crate::emit) fn grpc_condition(code: u16) -> Option<&'static str> {
    match code {
        1 => Some("cancelled"),
        4 => Some("deadline-exceeded"),
        8 => Some("resource-exhausted"),
        13 => Some("internal"),
        14 => Some("unavailable"),
        _ => None,
    }
}

fn conditions(retry: Option<&RetryPolicy>) -> Vec<&'static str> {
    let mut conditions = UNDELIVERED.to_vec();
    if let Some(retry) = retry {
        conditions.extend(retry.connection_failures.then_some("reset"));
        conditions.extend((!retry.codes.is_empty()).then_some("retriable-status-codes"));
        conditions.extend(retry.grpc_codes.iter().filter_map(|code| grpc_condition(*code)));
    }
    conditions
}

/// The sidecar there says that it could not reach its application.
fn undelivered() -> HeaderMatcher {
    HeaderMatcher {
        name: http::UNDELIVERED.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..HeaderMatcher::default()
    }
}

fn another_host() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pb::any(&PreviousHostsPredicate {}))),
    }
}

/// What was certainly not delivered (Envoy, `x-envoy-retry-on`).
const UNDELIVERED: [&str; 3] = ["connect-failure", "refused-stream", "reset-before-request"];
/// The sidecar's own: what was never delivered is tried twice more.
const UNDELIVERED_RETRIES: u32 = 2;
/// Picks before an endpoint that failed already is taken again. Envoy picks anew and does not leave it out: of two
/// endpoints, with n picks, one retry in 2^(n+1) would go where it failed before (n = 3: one request in some hundred
/// failed with a healthy endpoint beside, tried). Chosen: never in practice; a pick costs well below a microsecond.
const HOST_SELECTION_ATTEMPTS: i64 = 20;
/// Envoy refuses less.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ResourceName, Route, ServiceName};

    fn rule(retry: Option<RetryPolicy>) -> Rule {
        let route = Route::default_to(ResourceName::service_port(&ServiceName::new("a", "b"), 80));
        Rule { retry, ..(*route.rule).clone() }
    }

    #[test]
    fn without_a_policy_only_the_undelivered_is_tried_again() {
        let policy = policy(&rule(None));
        assert_eq!(policy.retry_on, "connect-failure,refused-stream,reset-before-request,retriable-headers");
        assert_eq!(policy.num_retries, Some(pb::uint32(2)));
    }

    #[test]
    fn a_policy_adds_its_conditions_and_brings_its_own_count() {
        let retry = RetryPolicy {
            retries: 4,
            codes: vec![503],
            grpc_codes: vec![2, 14],
            connection_failures: true,
            backoff_base: Duration::ZERO,
            backoff_max: Duration::ZERO,
        };

        let policy = policy(&rule(Some(retry)));

        let expected = "connect-failure,refused-stream,reset-before-request,reset,retriable-status-codes,unavailable,\
                        retriable-headers";
        assert_eq!(policy.retry_on, expected);
        assert_eq!(policy.num_retries, Some(pb::uint32(4)));
        assert_eq!(policy.retriable_status_codes, [503]);
        assert_eq!(policy.retry_back_off.unwrap().max_interval, Some(pb::duration(Duration::from_millis(1))));
    }
}
