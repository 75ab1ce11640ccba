//! HTTPRoute, GRPCRoute, TLSRoute and TCPRoute in one shape.
//!
//! Gateway API's bindings repeat the same filter, header and reference types once per place they stand in (rule or
//! backend, HTTP or gRPC). They are read through their own JSON into the one shape below, so that each rule of
//! translation is written once. Made when a route arrives; validation beyond types is `translate`'s.

use std::sync::Arc;

use gateway_api::experimental::grpcroutes::GrpcRoute;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::tlsroutes::TlsRoute;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{Kind, ObjectKey, namespace_of};

/// An HTTPRoute, a GRPCRoute, a TLSRoute or a TCPRoute.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Which of these.
    pub kind: Kind,
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its spec.
    pub spec: RouteSpec,
}

/// What all kinds say.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteSpec {
    /// What it attaches to.
    pub parent_refs: Vec<ParentRef>,
    /// Host names; a Service parent ignores them (GEP-1294), but for those a TLSRoute's clients ask for.
    pub hostnames: Vec<String>,
    /// The rules; absent in an HTTPRoute: one that matches everything.
    pub rules: Option<Vec<RouteRule>>,
}

/// What a route attaches to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    /// Absent: Gateway API's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Absent: Gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Absent: the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// A Service's port name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// A Service's port number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteRule {
    /// Unique in the route, if given.
    pub name: Option<String>,
    /// One must match; none: everything does.
    pub matches: Vec<RuleMatch>,
    /// Applied in order.
    pub filters: Vec<RouteFilter>,
    /// Where requests go.
    pub backend_refs: Vec<BackendRef>,
    /// GEP-1731.
    pub retry: Option<RuleRetry>,
    /// GEP-1742.
    pub timeouts: Option<RuleTimeouts>,
    /// GEP-1619.
    pub session_persistence: Option<SessionPersistence>,
}

/// Requests of one client go to one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionPersistence {
    /// Name of the cookie or header; none: one of the rule's own.
    pub session_name: Option<String>,
    /// `Cookie` or `Header`; none: a cookie.
    pub r#type: Option<String>,
    /// From its beginning to its end, as a Gateway API duration.
    pub absolute_timeout: Option<String>,
    /// From its last use to its end, likewise.
    pub idle_timeout: Option<String>,
    /// Only for a cookie.
    pub cookie_config: Option<CookieConfig>,
}

/// How clients keep a session's cookie.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieConfig {
    /// `Session` or `Permanent`; none: `Session`.
    pub lifetime_type: Option<String>,
}

/// One match; all parts must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleMatch {
    /// HTTP path.
    pub path: Option<TypedValue>,
    /// Headers.
    pub headers: Vec<NamedValue>,
    /// Query parameters.
    pub query_params: Vec<NamedValue>,
    /// HTTP method, or gRPC service and method.
    pub method: Option<MethodMatch>,
}

/// A method, as the two kinds mean it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum MethodMatch {
    /// HTTP method.
    Http(String),
    /// gRPC service and method.
    Grpc(GrpcMethod),
}

/// gRPC service and method.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMethod {
    /// `Exact` (default) or `RegularExpression`.
    pub r#type: Option<String>,
    /// Absent: any.
    pub service: Option<String>,
    /// Absent: any.
    pub method: Option<String>,
}

/// A value and how it is compared.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TypedValue {
    /// `Exact`, `PathPrefix` (default for paths) or `RegularExpression`.
    pub r#type: Option<String>,
    /// Absent: `/`.
    pub value: Option<String>,
}

/// A named value and how it is compared.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamedValue {
    /// `Exact` (default) or `RegularExpression`.
    pub r#type: Option<String>,
    /// Name.
    pub name: String,
    /// Value or expression.
    pub value: String,
}

/// One filter: its type, and the part that belongs to it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteFilter {
    /// As Gateway API names it.
    pub r#type: String,
    /// For `RequestHeaderModifier`.
    pub request_header_modifier: Option<HeaderModifier>,
    /// For `ResponseHeaderModifier`.
    pub response_header_modifier: Option<HeaderModifier>,
    /// For `RequestRedirect`.
    pub request_redirect: Option<RequestRedirect>,
    /// For `URLRewrite`.
    pub url_rewrite: Option<UrlRewrite>,
    /// For `RequestMirror`.
    pub request_mirror: Option<RequestMirror>,
    /// For `CORS`.
    pub cors: Option<Cors>,
    /// For `ExtensionRef`.
    pub extension_ref: Option<ExtensionRef>,
}

/// An object of the route's namespace that says what the filter does.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionRef {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}

impl RouteFilter {
    /// The name of the FaultInjection it stands for.
    pub fn fault(&self) -> Option<&str> {
        let named = self.extension_ref.as_ref().filter(|_| self.r#type == "ExtensionRef")?;
        (named.group == crate::api::GROUP && named.kind == "FaultInjection").then_some(&named.name)
    }
}

/// A copy of requests to somewhere else.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestMirror {
    /// Where copies go; it has no weight and no filters.
    pub backend_ref: BackendRef,
    /// Share of the requests, instead of a fraction.
    pub percent: Option<i64>,
    /// Share of the requests.
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fraction {
    /// At most the denominator.
    pub numerator: i64,
    /// Absent: 100.
    pub denominator: Option<i64>,
}

/// What pages of other origins may do (GEP-1767).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// `<scheme>://<host>(:<port>)`, where the host may begin with `*`; or `*`.
    pub allow_origins: Vec<String>,
    /// Whether credentials may be sent along.
    pub allow_credentials: Option<bool>,
    /// Methods, or `*`.
    pub allow_methods: Vec<String>,
    /// Request headers, or `*`.
    pub allow_headers: Vec<String>,
    /// Response headers, or `*`.
    pub expose_headers: Vec<String>,
    /// Seconds for which a preflight's answer may be kept; absent: 5.
    pub max_age: Option<i64>,
}

/// Header changes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderModifier {
    /// Replaced.
    pub set: Vec<NamedValue>,
    /// Appended.
    pub add: Vec<NamedValue>,
    /// Deleted.
    pub remove: Vec<String>,
}

/// A redirect.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
    /// Port.
    pub port: Option<i32>,
    /// Default 302.
    pub status_code: Option<i64>,
}

/// A rewrite.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UrlRewrite {
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
}

/// A change of path.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathModifier {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    pub r#type: String,
    /// For `ReplaceFullPath`.
    pub replace_full_path: Option<String>,
    /// For `ReplacePrefixMatch`.
    pub replace_prefix_match: Option<String>,
}

/// Where requests go.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendRef {
    /// Absent: Kubernetes' own.
    pub group: Option<String>,
    /// Absent: Service.
    pub kind: Option<String>,
    /// Absent: the route's own.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// A Service's port.
    pub port: Option<i32>,
    /// Default 1.
    pub weight: Option<i32>,
    /// Applied after the rule's own.
    pub filters: Vec<RouteFilter>,
}

/// GEP-1731.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleRetry {
    /// Retries after the first attempt.
    pub attempts: Option<i64>,
    /// Base of the back-off, a duration.
    pub backoff: Option<String>,
    /// Response codes.
    pub codes: Vec<i64>,
}

/// GEP-1742.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleTimeouts {
    /// Whole request, a duration.
    pub request: Option<String>,
    /// One attempt, a duration.
    pub backend_request: Option<String>,
}

impl Route {
    /// Names of the FaultInjections its rules name.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        self.spec.rules.iter().flatten().flat_map(|rule| &rule.filters).filter_map(RouteFilter::fault)
    }

    /// An HTTPRoute.
    pub fn from_http(route: HttpRoute) -> Result<Self, serde_json::Error> {
        let spec = serde_json::from_value(serde_json::to_value(&route.spec)?)?;
        Ok(Self { kind: Kind::HttpRoute, metadata: route.metadata, spec })
    }

    /// A GRPCRoute.
    pub fn from_grpc(route: GrpcRoute) -> Result<Self, serde_json::Error> {
        let spec = serde_json::from_value(serde_json::to_value(&route.spec)?)?;
        Ok(Self { kind: Kind::GrpcRoute, metadata: route.metadata, spec })
    }

    /// A TLSRoute.
    pub fn from_tls(route: TlsRoute) -> Result<Self, serde_json::Error> {
        let spec = serde_json::from_value(serde_json::to_value(&route.spec)?)?;
        Ok(Self { kind: Kind::TlsRoute, metadata: route.metadata, spec })
    }

    /// A TCPRoute.
    pub fn from_tcp(route: TcpRoute) -> Result<Self, serde_json::Error> {
        let spec = serde_json::from_value(serde_json::to_value(&route.spec)?)?;
        Ok(Self { kind: Kind::TcpRoute, metadata: route.metadata, spec })
    }

    /// Its key.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(self.kind, &self.metadata)
    }

    /// Namespace and name of the Services it names as parents.
    pub fn parent_services(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = namespace_of(&self.metadata);
        let services = self.spec.parent_refs.iter().filter(|parent| parent.is_service());
        services.map(move |parent| (parent.namespace.as_deref().unwrap_or(own), parent.name.as_str()))
    }

    /// Namespace and name of the Services it sends requests to, or copies of them.
    pub fn backend_services(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = namespace_of(&self.metadata);
        let backends = self.spec.rules.iter().flatten().flat_map(RouteRule::targets);
        let services = backends.filter(|backend| backend.is_service());
        services.map(move |backend| (backend.namespace.as_deref().unwrap_or(own), backend.name.as_str()))
    }
}

impl RouteRule {
    /// Its backends, and where it mirrors to.
    fn targets(&self) -> impl Iterator<Item = &BackendRef> {
        let filters = self.filters.iter().chain(self.backend_refs.iter().flat_map(|backend| &backend.filters));
        let mirrors = filters.filter_map(|filter| Some(&filter.request_mirror.as_ref()?.backend_ref));
        self.backend_refs.iter().chain(mirrors)
    }
}

impl ParentRef {
    /// Whether it names a Service; anything else is another controller's.
    pub fn is_service(&self) -> bool {
        matches!(self.group.as_deref(), Some("" | "core")) && self.kind.as_deref() == Some("Service")
    }
}

impl BackendRef {
    /// Whether it names a Service.
    pub fn is_service(&self) -> bool {
        matches!(self.group.as_deref(), None | Some("" | "core"))
            && matches!(self.kind.as_deref(), None | Some("Service"))
    }
}

/// Shared, as [`super::Objects`] keeps it.
impl From<Route> for super::Object {
    fn from(route: Route) -> Self {
        match route.kind {
            Kind::GrpcRoute => Self::GrpcRoute(Arc::new(route)),
            Kind::TlsRoute => Self::TlsRoute(Arc::new(route)),
            Kind::TcpRoute => Self::TcpRoute(Arc::new(route)),
            _ => Self::HttpRoute(Arc::new(route)),
        }
    }
}
