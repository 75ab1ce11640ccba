//! `RouteConfiguration`: one virtual host for every Host, its routes in order of precedence.
//!
//! - A route is named after the rule it came from.
//! - A share whose backend reference is invalid goes to the cluster [`INVALID_CLUSTER`], which never exists, and a
//!   cluster that does not exist is answered 500. A rule without any backend is a direct response 500.
//! - Filters are written in the order in which Envoy applies them: request headers, then redirect or rewrite, then
//!   response headers. With a redirect nothing is sent upstream, so rewrites and backends are left out beside it.
//! - A path that is replaced whole, or whose prefix is cut off, is a `regex_rewrite` in one of two forms
//!   ([`PathForm`]); Envoy has no other way to say so.
//! - Redirects, rewrites and mirrors of a single backend, for which `ClusterWeight` has no field, are a `RouteAction` or
//!   `RedirectAction` in its `typed_per_filter_config["heddle"]`.
//! - CORS is the configuration of Envoy's own filter for it.
//!
//! Facts: service, sources.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::retry_policy::RetryBackOff;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RedirectAction, RetryPolicy as PbRetryPolicy,
    Route as PbRoute, RouteAction, RouteConfiguration, RouteMatch as PbRouteMatch, VirtualHost, WeightedCluster,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, StringMatcher};
use heddle_xds::resource::Resource;
use serde::Serialize;

use super::headers::Changes;
use crate::emit::{mirrors, pb, per_route};
use crate::model::route::{Hedge, PathChange, PathMatch, Redirect, RetryPolicy, RouteMatch, Scheme, StringMatch};
use crate::model::{Backend, Filter, Route, RouteTable, Rule, ServiceName, SourceRef};

/// The cluster of a backend reference that is invalid. Every cluster's name has a slash, so none is called this.
pub const INVALID_CLUSTER: &str = "invalid";

/// One route table.
pub fn route_table(table: &RouteTable) -> Resource {
    let host = VirtualHost {
        name: table.name.to_string(),
        domains: vec!["*".to_owned()],
        routes: table.routes.iter().map(route).collect(),
        ..VirtualHost::default()
    };
    let message = RouteConfiguration {
        name: table.name.to_string(),
        virtual_hosts: vec![host],
        metadata: Some(pb::facts(&Facts { service: table.service.as_ref(), sources: &table.sources })),
        ..RouteConfiguration::default()
    };
    Resource::encode(table.name.shared(), &message, pb::sources(&table.sources))
}

/// What Envoy has no field for.
#[derive(Serialize)]
struct Facts<'m> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'m ServiceName>,
    sources: &'m [SourceRef],
}

/// What Envoy's hedging does not say: it comes with its own timeouts, and of any method.
fn hedge(hedge: &Hedge) -> Metadata {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Facts {
        hedge_delay_nanos: u64,
        hedge_attempts: u32,
    }
    let hedge_delay_nanos = u64::try_from(hedge.delay.as_nanos()).unwrap_or(u64::MAX);
    pb::facts(&Facts { hedge_delay_nanos, hedge_attempts: hedge.attempts })
}

fn route(route: &Route) -> PbRoute {
    let rule = &*route.rule;
    let request = Changes::of(rule.filters.iter().filter_map(Filter::request_headers));
    let response = Changes::of(rule.filters.iter().filter_map(Filter::response_headers));
    PbRoute {
        name: rule.name.to_string(),
        r#match: Some(route_match(&route.matches)),
        action: Some(action(rule, &route.matches)),
        request_headers_to_add: request.write,
        request_headers_to_remove: request.remove,
        response_headers_to_add: response.write,
        response_headers_to_remove: response.remove,
        typed_per_filter_config: per_route::in_order(per_route::entries(rule)),
        metadata: rule.hedge.as_ref().map(hedge),
        ..PbRoute::default()
    }
}

fn route_match(matches: &RouteMatch) -> PbRouteMatch {
    let method = matches.method.as_ref().map(|method| HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(pb::text(MatchPattern::Exact(method.clone())))),
        ..HeaderMatcher::default()
    });
    let headers = matches.headers.iter().map(|header| HeaderMatcher {
        name: header.name.clone(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string_match(&header.value))),
        ..HeaderMatcher::default()
    });
    let query = matches.query.iter().map(|parameter| QueryParameterMatcher {
        name: parameter.name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(string_match(
            &parameter.value,
        ))),
    });
    PbRouteMatch {
        path_specifier: Some(match &matches.path {
            None => PathSpecifier::Prefix("/".to_owned()),
            Some(PathMatch::Prefix(prefix)) if prefix.is_empty() => PathSpecifier::Prefix("/".to_owned()),
            Some(PathMatch::Prefix(prefix)) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
            Some(PathMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
            Some(PathMatch::Regex(expression)) => PathSpecifier::SafeRegex(pb::regex(expression)),
        }),
        headers: method.into_iter().chain(headers).collect(),
        query_parameters: query.collect(),
        ..PbRouteMatch::default()
    }
}

fn string_match(condition: &StringMatch) -> StringMatcher {
    pb::text(match condition {
        StringMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        StringMatch::Regex(expression) => MatchPattern::SafeRegex(pb::regex(expression)),
    })
}

fn action(rule: &Rule, matches: &RouteMatch) -> Action {
    if let Some(redirect) = rule.filters.iter().find_map(Filter::redirect) {
        return Action::Redirect(redirect_action(redirect, matches));
    }
    if rule.backends.is_empty() {
        return Action::DirectResponse(DirectResponseAction { status: 500, ..DirectResponseAction::default() });
    }
    let clusters = WeightedCluster {
        clusters: rule.backends.iter().map(|backend| cluster_weight(backend, matches)).collect(),
        ..WeightedCluster::default()
    };
    Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(clusters)),
        cluster_not_found_response_code: ClusterNotFoundResponseCode::InternalServerError as i32,
        // Zero is no limit; absent would be Envoy's 15 s.
        timeout: Some(pb::duration(rule.request_timeout.unwrap_or_default())),
        idle_timeout: rule.idle_timeout.map(pb::duration),
        retry_policy: retry_policy(rule),
        ..request_action(&rule.filters, matches)
    })
}

fn cluster_weight(backend: &Backend, matches: &RouteMatch) -> ClusterWeight {
    let request = Changes::of(backend.filters.iter().filter_map(Filter::request_headers));
    let response = Changes::of(backend.filters.iter().filter_map(Filter::response_headers));
    let changes = backend.filters.iter().any(|filter| filter.rewrite().is_some() || filter.mirror().is_some());
    let extra = match backend.filters.iter().find_map(Filter::redirect) {
        Some(redirect) => Some(pb::any(&redirect_action(redirect, matches))),
        None => changes.then(|| pb::any(&request_action(&backend.filters, matches))),
    };
    let cluster = backend.cluster.as_ref().map_or(INVALID_CLUSTER, |cluster| cluster.as_str());
    ClusterWeight {
        name: cluster.to_owned(),
        weight: Some(pb::uint32(backend.weight)),
        request_headers_to_add: request.write,
        request_headers_to_remove: request.remove,
        response_headers_to_add: response.write,
        response_headers_to_remove: response.remove,
        typed_per_filter_config: extra.map(|any| HashMap::from([(pb::FACTS_KEY.to_owned(), any)])).unwrap_or_default(),
        ..ClusterWeight::default()
    }
}

fn redirect_action(redirect: &Redirect, matches: &RouteMatch) -> RedirectAction {
    let path = redirect.path.as_ref().and_then(|change| PathForm::of(change, matches)).map(|form| match form {
        PathForm::Prefix(replacement) => PathRewriteSpecifier::PrefixRewrite(replacement),
        PathForm::Regex(rewrite) => PathRewriteSpecifier::RegexRewrite(rewrite),
        PathForm::Full(path) => PathRewriteSpecifier::PathRedirect(path),
    });
    let scheme = redirect.scheme.map(|scheme| match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    });
    let code = match redirect.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        // The Gateway API's default, and the only one left.
        _ => RedirectResponseCode::Found,
    };
    RedirectAction {
        host_redirect: redirect.hostname.clone().unwrap_or_default(),
        port_redirect: redirect.port.map_or(0, u32::from),
        response_code: code as i32,
        scheme_rewrite_specifier: scheme.map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_owned())),
        path_rewrite_specifier: path,
        ..RedirectAction::default()
    }
}

/// A `RouteAction` that holds what rewrites and mirrors say and nothing else.
fn request_action(filters: &[Filter], matches: &RouteMatch) -> RouteAction {
    let mut action = RouteAction { request_mirror_policies: mirrors::policies(filters), ..RouteAction::default() };
    for rewrite in filters.iter().filter_map(Filter::rewrite) {
        if let Some(hostname) = &rewrite.hostname {
            action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(hostname.clone()));
        }
        match rewrite.path.as_ref().and_then(|change| PathForm::of(change, matches)) {
            Some(PathForm::Prefix(replacement)) => action.prefix_rewrite = replacement,
            Some(PathForm::Regex(rewrite)) => action.regex_rewrite = Some(rewrite),
            Some(PathForm::Full(path)) => action.regex_rewrite = Some(substitution("^.*$".to_owned(), &path)),
            None => {}
        }
    }
    action
}

/// The three ways in which a change of path is written.
enum PathForm {
    /// Replaces the bytes the route's prefix matched.
    Prefix(String),
    /// Cuts the prefix off, without leaving two slashes: `^<prefix>/?` becomes `/`.
    Regex(RegexMatchAndSubstitute),
    /// Replaces the whole path.
    Full(String),
}

impl PathForm {
    /// `None` where a prefix is to be replaced and the route's path is a regular expression: there is no prefix.
    fn of(change: &PathChange, matches: &RouteMatch) -> Option<Self> {
        let replacement = match change {
            PathChange::Full(path) => return Some(Self::Full(path.clone())),
            PathChange::Prefix(replacement) => replacement.trim_end_matches('/'),
        };
        let matched = match &matches.path {
            Some(PathMatch::Prefix(prefix) | PathMatch::Exact(prefix)) => prefix.trim_end_matches('/'),
            None => "",
            Some(PathMatch::Regex(_)) => return None,
        };
        Some(if matched.is_empty() {
            // Envoy's prefix is then the first slash, so the replacement brings its own.
            Self::Prefix(format!("{replacement}/"))
        } else if replacement.is_empty() {
            Self::Regex(substitution(format!("^{}/?", escape(matched)), "/"))
        } else {
            Self::Prefix(replacement.to_owned())
        })
    }
}

fn substitution(pattern: String, text: &str) -> RegexMatchAndSubstitute {
    // A backslash would refer to a capture.
    RegexMatchAndSubstitute { pattern: Some(pb::regex(&pattern)), substitution: text.replace('\\', r"\\") }
}

/// The text as a regular expression that matches it alone.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if META.contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn retry_policy(rule: &Rule) -> Option<PbRetryPolicy> {
    let per_try_timeout = rule.try_timeout.map(pb::duration);
    let Some(retry) = &rule.retry else {
        return per_try_timeout.map(|timeout| PbRetryPolicy {
            per_try_timeout: Some(timeout),
            num_retries: Some(pb::uint32(0)),
            ..PbRetryPolicy::default()
        });
    };
    Some(PbRetryPolicy {
        retry_on: retry_on(retry).join(","),
        num_retries: Some(pb::uint32(retry.retries)),
        per_try_timeout,
        retriable_status_codes: retry.codes.iter().copied().map(u32::from).collect(),
        retriable_headers: retry
            .grpc_codes
            .iter()
            .filter(|code| grpc_word(**code).is_none())
            .map(grpc_header)
            .collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(pb::duration(retry.backoff_base)),
            // Envoy refuses a maximum below the base.
            max_interval: Some(pb::duration(retry.backoff_max.max(retry.backoff_base))),
        }),
        ..PbRetryPolicy::default()
    })
}

fn retry_on(retry: &RetryPolicy) -> Vec<&'static str> {
    let mut words = Vec::new();
    if retry.connection_failures {
        words.extend(["connect-failure", "reset"]);
    }
    if !retry.codes.is_empty() {
        words.push("retriable-status-codes");
    }
    words.extend(retry.grpc_codes.iter().filter_map(|code| grpc_word(*code)));
    if retry.grpc_codes.iter().any(|code| grpc_word(*code).is_none()) {
        words.push("retriable-headers");
    }
    words
}

/// Envoy's word in `retry_on` for a gRPC status code (`x-envoy-retry-grpc-on`), where it has one.
fn grpc_word(code: u16) -> Option<&'static str> {
    match code {
        1 => Some("cancelled"),
        4 => Some("deadline-exceeded"),
        8 => Some("resource-exhausted"),
        13 => Some("internal"),
        14 => Some("unavailable"),
        _ => None,
    }
}

fn grpc_header(code: &u16) -> HeaderMatcher {
    HeaderMatcher {
        name: "grpc-status".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(pb::text(MatchPattern::Exact(
            code.to_string(),
        )))),
        ..HeaderMatcher::default()
    }
}

/// Characters with a meaning in RE2 (its syntax page), all of which it lets be escaped.
const META: &str = r"\.+*?()|[]{}^$";
