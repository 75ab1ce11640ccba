//! How many requests at once, as Envoy's adaptive concurrency filter with its gradient controller.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFeatureFlag;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::AdaptiveConcurrency;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::GradientControllerConfig;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::adaptive_concurrency::ConcurrencyControllerConfig;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::gradient_controller_config::{
    ConcurrencyLimitCalculationParams, MinimumRttCalculationParams,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::r#type::v3::Percent;

use crate::emit::envoy::http;
use crate::emit::pb;
use crate::model::rate_limit::Concurrency;

/// `None`: in dry run, of which Envoy knows none.
pub(super) fn filter(concurrency: &Concurrency) -> Option<HttpFilter> {
    if concurrency.dry_run {
        return None;
    }
    let limit = ConcurrencyLimitCalculationParams {
        max_concurrency_limit: Some(pb::uint32(concurrency.maximum)),
        min_concurrency_limit: Some(pb::uint32(concurrency.minimum)),
        concurrency_update_interval: Some(pb::duration(UPDATE)),
    };
    let unloaded = MinimumRttCalculationParams {
        interval: Some(pb::duration(concurrency.interval)),
        request_count: Some(pb::uint32(MEASURED)),
        jitter: Some(pb::percent(JITTER)),
        min_concurrency: Some(pb::uint32(concurrency.minimum)),
        buffer: Some(Percent { value: f64::from(concurrency.buffer_percent) }),
        ..MinimumRttCalculationParams::default()
    };
    let controller = GradientControllerConfig {
        sample_aggregate_percentile: Some(pb::percent(50)),
        concurrency_limit_params: Some(limit),
        min_rtt_calc_params: Some(unloaded),
    };
    let config = AdaptiveConcurrency {
        enabled: Some(RuntimeFeatureFlag { default_value: Some(pb::boolean(true)), runtime_key: String::new() }),
        concurrency_controller_config: Some(ConcurrencyControllerConfig::GradientControllerConfig(controller)),
        ..AdaptiveConcurrency::default()
    };
    Some(http::http_filter("envoy.filters.http.adaptive_concurrency", pb::any(&config)))
}

/// As the sidecar.
const UPDATE: Duration = Duration::from_millis(100);
/// As the sidecar.
const MEASURED: u32 = 50;
/// In percent of the interval: Envoys that began together do not measure together. Envoy's default.
const JITTER: u32 = 15;
