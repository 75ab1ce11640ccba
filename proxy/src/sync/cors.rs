//! Envoy's CORS policy of a route → [`Cors`].

use std::collections::HashMap;

use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::google::protobuf::Any;
use http::HeaderValue;

use super::read::{self, Error, Within, at_most};
use super::route::string_match;
use crate::tables::route::{Cors, Names};

/// The policy among a route's `typed_per_filter_config`, if there is one.
pub(super) fn cors(configs: &HashMap<String, Any>) -> Result<Option<Cors>, Error> {
    let Some(any) = configs.get(FILTER) else { return Ok(None) };
    let field = format!("typed_per_filter_config[{FILTER:?}]");
    policy(&read::unpack(Some(any)).within(&field)?).within(&field).map(Some)
}

fn policy(policy: &CorsPolicy) -> Result<Cors, Error> {
    at_most("allow_origin_string_match", &policy.allow_origin_string_match, MAX_ORIGINS)?;
    let origins = policy.allow_origin_string_match.iter().enumerate();
    let origins = origins.map(|(index, text)| string_match(text).nth("allow_origin_string_match", index));
    Ok(Cors {
        origins: origins.collect::<Result<_, _>>()?,
        credentials: policy.allow_credentials.is_some_and(|credentials| credentials.value),
        methods: names("allow_methods", &policy.allow_methods)?,
        headers: names("allow_headers", &policy.allow_headers)?,
        exposed: names("expose_headers", &policy.expose_headers)?,
        max_age: value("max_age", &policy.max_age)?,
    })
}

/// A list as it stands in a header.
fn names(field: &str, list: &str) -> Result<Names, Error> {
    if list.split(',').any(|name| name.trim() == "*") {
        return Ok(Names::Any);
    }
    Ok(Names::These(if list.is_empty() { None } else { Some(value(field, list)?) }))
}

fn value(field: &str, text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text)
        .map_err(|_| Error::new(field, format!("is {text:?}, must be visible ASCII (RFC 9110 §5.5)")))
}

/// Envoy's name for its filter.
const FILTER: &str = "envoy.filters.http.cors";
/// Origins of one policy. Gateway API allows 64.
const MAX_ORIGINS: usize = 128;
