//! Mirrors, as `RouteAction` has them.

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;

use crate::model::Filter;

/// A policy for each mirror among `filters`. A copy has the Host of what it is a copy of.
pub fn policies<'m>(filters: impl IntoIterator<Item = &'m Filter>) -> Vec<RequestMirrorPolicy> {
    let mirrors = filters.into_iter().filter_map(Filter::mirror);
    let policies = mirrors.map(|mirror| RequestMirrorPolicy {
        cluster: mirror.cluster.to_string(),
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: Some(FractionalPercent {
                numerator: mirror.per_million,
                denominator: DenominatorType::Million as i32,
            }),
            ..RuntimeFractionalPercent::default()
        }),
        disable_shadow_host_suffix_append: true,
        ..RequestMirrorPolicy::default()
    });
    policies.collect()
}
