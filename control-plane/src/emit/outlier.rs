//! Outlier detection, as clusters say it: nothing is left to a default that readers might not share.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::OutlierDetection;

use super::pb;
use crate::model::Outlier;

/// The detectors that `outlier` has; all others are off. Latency is not among those that Envoy knows.
pub fn detection(outlier: Outlier) -> OutlierDetection {
    let enforced = |on: bool| Some(pb::uint32(if on { 100 } else { 0 }));
    let count = |limit: u32| (limit > 0).then(|| pb::uint32(limit));
    let success_rate = outlier.statistics.and_then(|statistics| statistics.success_rate_stdev_factor);
    OutlierDetection {
        consecutive_5xx: count(outlier.consecutive_failures),
        enforcing_consecutive_5xx: enforced(outlier.consecutive_failures > 0),
        consecutive_gateway_failure: count(outlier.consecutive_gateway_errors),
        enforcing_consecutive_gateway_failure: enforced(outlier.consecutive_gateway_errors > 0),
        split_external_local_origin_errors: outlier.consecutive_local_origin_failures > 0,
        consecutive_local_origin_failure: count(outlier.consecutive_local_origin_failures),
        enforcing_consecutive_local_origin_failure: enforced(outlier.consecutive_local_origin_failures > 0),
        enforcing_local_origin_success_rate: enforced(false),
        enforcing_success_rate: enforced(success_rate.is_some()),
        success_rate_stdev_factor: success_rate.map(pb::uint32),
        success_rate_minimum_hosts: outlier.statistics.map(|statistics| pb::uint32(statistics.minimum_hosts)),
        success_rate_request_volume: outlier.statistics.map(|statistics| pb::uint32(statistics.request_volume)),
        enforcing_failure_percentage: enforced(false),
        interval: Some(pb::duration(outlier.statistics.map_or(SWEEP, |statistics| statistics.interval))),
        base_ejection_time: Some(pb::duration(outlier.base_ejection)),
        max_ejection_time: Some(pb::duration(outlier.max_ejection.max(outlier.base_ejection))),
        max_ejection_percent: Some(pb::uint32(outlier.max_ejected_percent.min(100))),
        ..OutlierDetection::default()
    }
}

/// How often Envoy looks whether an ejection is over; chosen: well below the shortest ejection that makes sense.
const SWEEP: Duration = Duration::from_secs(1);
