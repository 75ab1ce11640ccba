//! Envoy's stateful session of a route → [`Session`].

use std::collections::HashMap;

use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSessionPerRoute;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route::Override;
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use envoy_types::pb::google::protobuf::Any;
use http::HeaderName;
use prost::Name;

use super::read::{self, Error, Within};
use crate::tables::route::Session;

/// The session among a route's `typed_per_filter_config`, if there is one.
pub(super) fn session(configs: &HashMap<String, Any>) -> Result<Option<Session>, Error> {
    let Some(any) = configs.get(FILTER) else { return Ok(None) };
    let field = format!("typed_per_filter_config[{FILTER:?}]");
    let config: StatefulSessionPerRoute = read::unpack(Some(any)).within(&field)?;
    let Some(Override::StatefulSession(session)) = config.r#override else { return Ok(None) };
    let state = session.session_state.and_then(|state| state.typed_config);
    self::state(state.as_ref()).within("stateful_session.session_state.typed_config").within(&field).map(Some)
}

fn state(any: Option<&Any>) -> Result<Session, Error> {
    if any.is_some_and(|any| any.type_url == HeaderBasedSessionState::type_url()) {
        let header: HeaderBasedSessionState = read::unpack(any)?;
        return Ok(Session::Header(name(&header.name)?));
    }
    let cookie = read::unpack::<CookieBasedSessionState>(any)?.cookie.unwrap_or_default();
    // A cookie's name is such a token too (RFC 6265 §4.1.1), whose case counts.
    name(&cookie.name).within("cookie")?;
    let lifetime = cookie.ttl.as_ref().map(read::duration).transpose().within("cookie.ttl")?;
    let lifetime = lifetime.filter(|length| !length.is_zero());
    Ok(Session::Cookie { name: cookie.name, lifetime })
}

fn name(text: &str) -> Result<HeaderName, Error> {
    HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| Error::new("name", format!("is {text:?}, must be a token (RFC 9110 §5.6.2)")))
}

/// Envoy's name for its filter.
const FILTER: &str = "envoy.filters.http.stateful_session";
