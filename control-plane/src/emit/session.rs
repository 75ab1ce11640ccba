//! Sessions, as Envoy's filter for them is configured at a route.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route::Override;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute,
};
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use envoy_types::pb::envoy::r#type::http::v3::Cookie;
use envoy_types::pb::google::protobuf::Any;

use super::pb;
use crate::model::route::Session;

/// The entry of a route's `typed_per_filter_config`.
pub fn entry(session: &Session) -> (String, Any) {
    let (name, state) = match session {
        Session::Cookie { name, lifetime } => ("envoy.http.stateful_session.cookie", pb::any(&cookie(name, *lifetime))),
        Session::Header { name } => {
            ("envoy.http.stateful_session.header", pb::any(&HeaderBasedSessionState { name: name.clone() }))
        }
    };
    let state = TypedExtensionConfig { name: name.to_owned(), typed_config: Some(state) };
    let session = StatefulSession { session_state: Some(state), ..StatefulSession::default() };
    (FILTER.to_owned(), pb::any(&StatefulSessionPerRoute { r#override: Some(Override::StatefulSession(session)) }))
}

fn cookie(name: &str, lifetime: Option<Duration>) -> CookieBasedSessionState {
    let ttl = Some(pb::duration(lifetime.unwrap_or_default()));
    let cookie = Cookie { name: name.to_owned(), ttl, path: EVERYWHERE.to_owned(), ..Cookie::default() };
    CookieBasedSessionState { cookie: Some(cookie) }
}

/// By this name a route configures the filter.
pub const FILTER: &str = "envoy.filters.http.stateful_session";
/// A rule's matches need not have a path in common.
const EVERYWHERE: &str = "/";
