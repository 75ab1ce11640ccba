//! The HTTP connection manager, as near to a transparent sidecar as Envoy lets itself be set.
//!
//! Header case, reason phrase, trailers and 1xx are kept, there is no `server` of ours, no timeout that nobody asked for,
//! no `x-envoy-` header. Limits are the sidecar's own.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::http1_protocol_options::{HeaderKeyFormat, header_key_format};
use envoy_types::pb::envoy::config::core::v3::scheme_header_transformation::Transformation;
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, SchemeHeaderTransformation, TypedExtensionConfig,
};
use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3::Config as SetFilterState;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSession;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
    SetCurrentClientCertDetails, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, RequestIdExtension, http_filter,
};
use envoy_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use envoy_types::pb::google::protobuf::Any;

use super::{chain, reply};
use crate::emit::{cors, fault, pb, session};

/// What differs between connection managers.
pub struct Manager {
    /// For Envoy's own statistics.
    pub stat_prefix: String,
    /// Which HTTP is read.
    pub codec: CodecType,
    /// Where requests go.
    pub routes: RouteSpecifier,
    /// Before the router, in this order.
    pub filters: Vec<HttpFilter>,
    /// Which side of a connection between sidecars it is.
    pub side: Side,
}

/// Which side of a connection between sidecars a manager is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Requests of the application.
    Outbound,
    /// Requests for the application.
    Inbound {
        /// Paths are rewritten to their normal form before policies read them.
        normalize: bool,
        /// Who sends them.
        caller: Caller,
    },
}

/// Who sends requests for the application.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A sidecar: it is told what was never delivered, so that it may try another endpoint.
    Sidecar,
    /// Anyone, without identity.
    Anyone,
}

impl Manager {
    /// The network filter.
    pub fn filter(self) -> Filter {
        let normalize = matches!(self.side, Side::Inbound { normalize: true, .. });
        let mut http_filters = self.filters;
        let router = Router { suppress_envoy_headers: true, ..Router::default() };
        http_filters.push(http_filter(ROUTER, pb::any(&router)));
        let manager = HttpConnectionManager {
            stat_prefix: self.stat_prefix,
            codec_type: self.codec as i32,
            route_specifier: Some(self.routes),
            http_filters,
            common_http_protocol_options: Some(common(DOWNSTREAM_IDLE)),
            http_protocol_options: Some(http1()),
            http2_protocol_options: Some(http2()),
            max_request_headers_kb: Some(pb::uint32(HEADERS_KB)),
            stream_idle_timeout: Some(pb::duration(Duration::ZERO)),
            server_header_transformation: ServerHeaderTransformation::PassThrough as i32,
            proxy_100_continue: true,
            generate_request_id: Some(pb::boolean(true)),
            preserve_external_request_id: true,
            request_id_extension: Some(untouched_request_id()),
            upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..UpgradeConfig::default() }],
            normalize_path: Some(pb::boolean(normalize)),
            merge_slashes: normalize,
            path_with_escaped_slashes_action: escaped_slashes(normalize) as i32,
            ..HttpConnectionManager::default()
        };
        let manager = match self.side {
            Side::Outbound => HttpConnectionManager { local_reply_config: Some(reply::outbound()), ..manager },
            Side::Inbound { caller: Caller::Anyone, .. } => inbound(manager),
            Side::Inbound { caller: Caller::Sidecar, .. } => {
                HttpConnectionManager { local_reply_config: Some(reply::to_sidecar()), ..inbound(manager) }
            }
        };
        chain::network("envoy.filters.network.http_connection_manager", &manager)
    }
}

/// The caller's identity to the application, always overwritten; a plaintext caller has none, so there is no header. The
/// application speaks plaintext, and so does the scheme it sees.
fn inbound(manager: HttpConnectionManager) -> HttpConnectionManager {
    let details = SetCurrentClientCertDetails { uri: true, ..SetCurrentClientCertDetails::default() };
    HttpConnectionManager {
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet as i32,
        set_current_client_cert_details: Some(details),
        scheme_header_transformation: Some(SchemeHeaderTransformation {
            transformation: Some(Transformation::SchemeToOverwrite("http".to_owned())),
            ..SchemeHeaderTransformation::default()
        }),
        ..manager
    }
}

/// An HTTP filter.
pub fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// Makes upstream TLS offer `alpn` for every request that no route says otherwise of.
pub fn offer_filter(alpn: &[&str]) -> HttpFilter {
    http_filter(OFFER, offer(alpn))
}

/// Answers preflights, where a route has a policy for them.
pub fn cors_filter() -> HttpFilter {
    http_filter(cors::FILTER, pb::any(&Cors {}))
}

/// Goes wrong on purpose, where a route says so.
pub fn fault_filter() -> HttpFilter {
    http_filter(fault::FILTER, fault::none())
}

/// Brings clients back to their endpoints, where a route says so.
pub fn session_filter() -> HttpFilter {
    http_filter(session::FILTER, pb::any(&StatefulSession::default()))
}

/// The configuration of [`offer_filter`], as a route may override it.
pub fn offer(alpn: &[&str]) -> Any {
    pb::any(&SetFilterState { on_request_headers: vec![chain::offer(alpn)], ..SetFilterState::default() })
}

/// Limits of both HTTP versions; a connection without requests is closed after `idle`.
pub fn common(idle: Duration) -> HttpProtocolOptions {
    HttpProtocolOptions {
        idle_timeout: Some(pb::duration(idle)),
        max_headers_count: Some(pb::uint32(HEADERS)),
        ..HttpProtocolOptions::default()
    }
}

/// HTTP/1.1 as it came: case of names, reason phrase, trailers.
pub fn http1() -> Http1ProtocolOptions {
    let preserve =
        PreserveCaseFormatterConfig { forward_reason_phrase: true, ..PreserveCaseFormatterConfig::default() };
    let formatter = TypedExtensionConfig {
        name: "envoy.http.stateful_header_formatters.preserve_case".to_owned(),
        typed_config: Some(pb::any(&preserve)),
    };
    Http1ProtocolOptions {
        accept_http_10: true,
        enable_trailers: true,
        header_key_format: Some(HeaderKeyFormat {
            header_format: Some(header_key_format::HeaderFormat::StatefulFormatter(formatter)),
        }),
        ..Http1ProtocolOptions::default()
    }
}

/// HTTP/2 with the sidecar's windows, so that a slow reader holds little.
pub fn http2() -> Http2ProtocolOptions {
    Http2ProtocolOptions {
        initial_stream_window_size: Some(pb::uint32(STREAM_WINDOW)),
        initial_connection_window_size: Some(pb::uint32(CONNECTION_WINDOW)),
        ..Http2ProtocolOptions::default()
    }
}

/// A request id passes as it came.
fn untouched_request_id() -> RequestIdExtension {
    let uuid = UuidRequestIdConfig { pack_trace_reason: Some(pb::boolean(false)), ..UuidRequestIdConfig::default() };
    RequestIdExtension { typed_config: Some(pb::any(&uuid)) }
}

/// Policies and the application must read the same path, so an escaped slash becomes one where paths are normalised.
fn escaped_slashes(normalize: bool) -> PathWithEscapedSlashesAction {
    if normalize {
        PathWithEscapedSlashesAction::UnescapeAndForward
    } else {
        PathWithEscapedSlashesAction::KeepUnchanged
    }
}

/// The name a route overrides [`offer_filter`] by.
pub const OFFER: &str = "envoy.filters.http.set_filter_state";
/// The last filter of every connection manager, gRPC's included.
pub(in crate::emit) const ROUTER: &str = "envoy.filters.http.router";

/// By this header a sidecar says that a request never reached its application; believed between sidecars only.
pub const UNDELIVERED: &str = "x-heddle-undelivered";
/// By this header a sidecar says that its workload is on its way out.
pub const DRAINING: &str = "x-heddle-draining";
/// By this header a sidecar names the cause of its own answer.
pub const ERROR: &str = "x-heddle-error";

/// KiB of headers in a request: the sidecar's own limit.
const HEADERS_KB: u32 = 64;
/// Header fields in a message: the sidecar's own limit.
const HEADERS: u32 = 200;
/// Bytes: the sidecar's own HTTP/2 stream window (64 KiB).
const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes: the sidecar's own HTTP/2 connection window (256 KiB).
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Idle downstream connections; longer than sidecars keep theirs, so that the client closes first.
const DOWNSTREAM_IDLE: Duration = Duration::from_secs(600);
