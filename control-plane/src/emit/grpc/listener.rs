//! A listener nobody listens on: the HTTP connection manager with its router that gRPC insists on (gRFC A27, A39), the
//! filter for faults, which does nothing unless a route says so (A33), and where its routes are.

use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::google::protobuf::Any;
use heddle_xds::resource::Resource;

use crate::emit::{envoy, fault, pb};
use crate::model::{ResourceName, SourceRef};

/// The listener named as the target was written.
pub fn listener(name: &str, table: &ResourceName, sources: &[SourceRef]) -> Resource {
    let filters = [filter(fault::FILTER, fault::none()), filter(envoy::ROUTER, pb::any(&Router::default()))];
    let rds = Rds { config_source: Some(pb::ads()), route_config_name: table.to_string() };
    let manager = HttpConnectionManager {
        http_filters: filters.into(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        ..HttpConnectionManager::default()
    };
    let message = Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(pb::any(&manager)) }),
        ..Listener::default()
    };
    Resource::encode(Arc::from(name), &message, pb::sources(sources))
}

/// A filter of a connection manager.
pub fn filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}
