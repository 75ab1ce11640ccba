//! `OutlierDetection` → when an endpoint is ejected. What is not said is off but for failures in a row, as Envoy has it;
//! latency is a fact beside it.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::OutlierDetection;
use envoy_types::pb::google::protobuf::UInt32Value;

use super::read::{self, Error, Within};
use crate::balance::outlier::{Settings, Statistics};

/// Reads what a cluster says.
pub(super) fn read(pb: &OutlierDetection, latency_percent: Option<u32>) -> Result<Settings, Error> {
    let consecutive_failures = in_a_row(
        "consecutive_5xx",
        read::uint32(pb.enforcing_consecutive_5xx.as_ref(), 100) > 0,
        pb.consecutive_5xx.as_ref(),
    )?;
    let consecutive_gateway_errors = in_a_row(
        "consecutive_gateway_failure",
        read::uint32(pb.enforcing_consecutive_gateway_failure.as_ref(), 0) > 0,
        pb.consecutive_gateway_failure.as_ref(),
    )?;
    let consecutive_local_origin_failures = in_a_row(
        "consecutive_local_origin_failure",
        pb.split_external_local_origin_errors
            && read::uint32(pb.enforcing_consecutive_local_origin_failure.as_ref(), 100) > 0,
        pb.consecutive_local_origin_failure.as_ref(),
    )?;
    let base_ejection =
        read::positive(pb.base_ejection_time.as_ref(), ENVOY_BASE_EJECTION).within("base_ejection_time")?;
    let longest = read::positive(pb.max_ejection_time.as_ref(), ENVOY_MAX_EJECTION).within("max_ejection_time")?;
    let most = read::uint32(pb.max_ejection_percent.as_ref(), ENVOY_MAX_EJECTION_PERCENT);
    Ok(Settings {
        consecutive_failures,
        consecutive_gateway_errors,
        consecutive_local_origin_failures,
        statistics: statistics(pb, latency_percent)?,
        base_ejection,
        max_ejection: longest.max(base_ejection),
        max_ejected_percent: read::percent_uint32(most).within("max_ejection_percent")?,
    })
}

fn in_a_row(field: &str, enforced: bool, count: Option<&UInt32Value>) -> Result<u32, Error> {
    match read::uint32(count, ENVOY_CONSECUTIVE) {
        _ if !enforced => Ok(0),
        0 => Err(Error::new(field, "is 0, must be at least 1")),
        count => Ok(count),
    }
}

fn statistics(pb: &OutlierDetection, latency_percent: Option<u32>) -> Result<Option<Statistics>, Error> {
    let enforced = read::uint32(pb.enforcing_success_rate.as_ref(), 0) > 0;
    let success_rate_stdev_factor =
        enforced.then(|| read::uint32(pb.success_rate_stdev_factor.as_ref(), ENVOY_STDEV_FACTOR));
    if success_rate_stdev_factor.is_none() && latency_percent.is_none() {
        return Ok(None);
    }
    Ok(Some(Statistics {
        interval: read::positive(pb.interval.as_ref(), ENVOY_INTERVAL).within("interval")?,
        minimum_hosts: read::uint32(pb.success_rate_minimum_hosts.as_ref(), ENVOY_MINIMUM_HOSTS),
        request_volume: read::uint32(pb.success_rate_request_volume.as_ref(), ENVOY_REQUEST_VOLUME),
        success_rate_stdev_factor,
        latency_percent,
    }))
}

// Envoy's defaults (`OutlierDetection`).
const ENVOY_CONSECUTIVE: u32 = 5;
const ENVOY_BASE_EJECTION: Duration = Duration::from_secs(30);
const ENVOY_MAX_EJECTION: Duration = Duration::from_secs(300);
const ENVOY_MAX_EJECTION_PERCENT: u32 = 10;
const ENVOY_INTERVAL: Duration = Duration::from_secs(10);
const ENVOY_MINIMUM_HOSTS: u32 = 5;
const ENVOY_REQUEST_VOLUME: u32 = 100;
const ENVOY_STDEV_FACTOR: u32 = 1900;
