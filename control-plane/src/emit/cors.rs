//! CORS, as Envoy's filter for it is configured at a route.

use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::Any;

use super::{envoy, pb};
use crate::model::route::{Cors, Origin};

/// The entry of a route's `typed_per_filter_config`.
pub fn entry(cors: &Cors) -> (String, Any) {
    let origins = cors.origins.iter().map(|origin| match origin {
        // Which Envoy's filter takes for all of them.
        Origin::Any => MatchPattern::Exact("*".to_owned()),
        Origin::Exact(text) => MatchPattern::Exact(text.clone()),
        Origin::Wildcard(begin, end) => {
            MatchPattern::SafeRegex(pb::regex(&format!("{}.+{}", envoy::quote(begin), envoy::quote(end))))
        }
    });
    let policy = CorsPolicy {
        allow_origin_string_match: origins.map(pb::text).collect(),
        allow_methods: cors.methods.join(", "),
        allow_headers: cors.headers.join(", "),
        expose_headers: cors.exposed.join(", "),
        max_age: cors.max_age.to_string(),
        allow_credentials: Some(pb::boolean(cors.credentials)),
        // A page that is not allowed is told so by the mesh, not by the application.
        forward_not_matching_preflights: Some(pb::boolean(false)),
        ..CorsPolicy::default()
    };
    (FILTER.to_owned(), pb::any(&policy))
}

/// By this name a route configures the filter.
pub const FILTER: &str = "envoy.filters.http.cors";
