//! Envoy's fault of a route → [`Fault`].

use std::collections::HashMap;

use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::Any;
use http::{HeaderName, StatusCode};

use super::read::{self, Error, Within, at_most};
use super::route::{HeaderCondition, header_match};
use crate::tables::route::{Abort, AbortStatus, Delay, Fault, StringMatch};

/// The fault among a route's `typed_per_filter_config`, if there is one.
pub(super) fn fault(configs: &HashMap<String, Any>) -> Result<Option<Box<Fault>>, Error> {
    let Some(any) = configs.get(FILTER) else { return Ok(None) };
    let field = format!("typed_per_filter_config[{FILTER:?}]");
    let fault = parsed(&read::unpack(Some(any)).within(&field)?).within(&field)?;
    Ok(Some(Box::new(fault)))
}

fn parsed(pb: &HttpFault) -> Result<Fault, Error> {
    at_most("headers", &pb.headers, MAX_HEADERS)?;
    let headers = pb.headers.iter().enumerate().map(|(index, matcher)| header(matcher).nth("headers", index));
    Ok(Fault {
        delay: pb.delay.as_ref().map(delay).transpose().within("delay")?,
        abort: pb.abort.as_ref().map(abort).transpose().within("abort")?,
        headers: headers.collect::<Result<_, _>>()?,
    })
}

fn delay(pb: &FaultDelay) -> Result<Delay, Error> {
    let Some(FaultDelaySecifier::FixedDelay(length)) = &pb.fault_delay_secifier else {
        return Err(Error::new("fixed_delay", "is missing"));
    };
    let length = read::duration(length).within("fixed_delay")?;
    Ok(Delay { length, per_million: share(pb.percentage.as_ref())? })
}

fn abort(pb: &FaultAbort) -> Result<Abort, Error> {
    let status = match pb.error_type {
        Some(ErrorType::HttpStatus(status)) => {
            let known = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
            let status = known.and_then(|status| StatusCode::from_u16(status).ok());
            AbortStatus::Http(status.ok_or_else(|| Error::new("http_status", "must be from 200 to 599"))?)
        }
        Some(ErrorType::GrpcStatus(status @ 0..=16)) => AbortStatus::Grpc(status as u16),
        Some(ErrorType::GrpcStatus(status)) => {
            return Err(Error::new("grpc_status", format!("is {status}, must be from 0 to 16")));
        }
        Some(ErrorType::HeaderAbort(_)) | None => {
            return Err(Error::new("error_type", "must be http_status or grpc_status"));
        }
    };
    Ok(Abort { status, per_million: share(pb.percentage.as_ref())? })
}

fn share(pb: Option<&FractionalPercent>) -> Result<u32, Error> {
    match pb.map(|share| (share.numerator, DenominatorType::try_from(share.denominator))) {
        Some((numerator, Ok(DenominatorType::Million))) => Ok(numerator),
        _ => Err(Error::new("percentage.denominator", "must be MILLION")),
    }
}

fn header(matcher: &HeaderMatcher) -> Result<(HeaderName, StringMatch), Error> {
    match header_match(matcher)? {
        HeaderCondition::Header(name, condition) => Ok((name, condition)),
        HeaderCondition::Method(_) => Err(Error::new("name", "is :method, must be a header's")),
    }
}

/// Envoy's name for its filter.
const FILTER: &str = "envoy.filters.http.fault";
/// As FaultInjection allows.
const MAX_HEADERS: usize = 16;
