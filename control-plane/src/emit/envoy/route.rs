//! `RouteConfiguration`: one virtual host for every name, because the original destination has chosen the table.
//!
//! A backend whose reference is invalid stays among the weights under a name no cluster has, which Envoy answers with
//! 500; so is a rule without backends. A direct response would know neither a backend's filters nor CORS.

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{ClusterWeight, cluster_weight};
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, Route as PbRoute, RouteAction, RouteConfiguration,
    RouteMatch as PbRouteMatch, VirtualHost, WeightedCluster,
};
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::Any;
use heddle_xds::resource::Resource;

use super::headers::Changes;
use super::{cluster, http, path, redirect, retry};
use crate::emit::{mirrors, pb, per_route};
use crate::model::route::{HeaderMatch, PathChange, QueryMatch, StringMatch};
use crate::model::{Backend, Cluster, Filter, ResourceName, Route, RouteTable, Rule};

/// The clusters routes may name.
pub type Clusters<'m> = BTreeMap<&'m ResourceName, &'m Cluster>;

/// A route table, for clients that dial `port`.
pub fn table(table: &RouteTable, port: u16, clusters: &Clusters<'_>) -> Resource {
    let routes = table.routes.iter().map(|route| self::route(route, port, clusters)).collect();
    // What a sidecar says to a sidecar is not the client's to see.
    let message = configuration(table.name.as_str(), routes, &[http::UNDELIVERED, http::DRAINING]);
    Resource::encode(table.name.shared(), &message, pb::sources(&table.sources))
}

/// Routes for every host; the response headers `removed` end here.
pub fn configuration(name: &str, routes: Vec<PbRoute>, removed: &[&str]) -> RouteConfiguration {
    let host = VirtualHost { name: name.to_owned(), domains: vec!["*".to_owned()], routes, ..VirtualHost::default() };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        response_headers_to_remove: removed.iter().map(|name| (*name).to_owned()).collect(),
        validate_clusters: Some(pb::boolean(false)),
        ..RouteConfiguration::default()
    }
}

/// Everything to the application behind `cluster`, with no time limit.
pub fn all_to(cluster: &str, rule: &Rule) -> PbRoute {
    PbRoute {
        name: rule.name.to_string(),
        r#match: Some(PbRouteMatch { path_specifier: Some(path::specifier(None)), ..PbRouteMatch::default() }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            retry_policy: Some(retry::to_application(rule)),
            ..forward(rule)
        })),
        ..PbRoute::default()
    }
}

fn route(route: &Route, port: u16, clusters: &Clusters<'_>) -> PbRoute {
    let rule = &*route.rule;
    let base = PbRoute { name: rule.name.to_string(), r#match: Some(matches(route)), ..PbRoute::default() };
    if let Some(redirect) = rule.filters.iter().find_map(Filter::redirect) {
        let action = redirect::action(redirect, route.matches.path.as_ref(), port);
        return with_response_changes(PbRoute { action: Some(Action::Redirect(action)), ..base }, &rule.filters);
    }
    let nowhere = Backend { weight: 1, cluster: None, filters: Vec::new() };
    let mut shares: Vec<&Backend> = rule.backends.iter().filter(|backend| backend.weight > 0).collect();
    if shares.is_empty() {
        shares.push(&nowhere);
    }
    let action = RouteAction {
        regex_rewrite: path_rewrite(rule).map(|change| path::substitution(change, route.matches.path.as_ref())),
        request_mirror_policies: mirrors::policies(mirroring(rule, &shares)),
        ..forward(rule)
    };
    match shares.as_slice() {
        [one] => single(base, action, rule, one, clusters),
        shares => PbRoute {
            action: Some(Action::Route(weighted(action, rule, shares, clusters))),
            typed_per_filter_config: per_route::in_order(per_route::entries(rule)),
            ..base
        },
    }
}

/// A route with one target carries the header changes itself.
fn single(base: PbRoute, action: RouteAction, rule: &Rule, backend: &Backend, clusters: &Clusters<'_>) -> PbRoute {
    let share = share(rule, backend, clusters);
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(share.cluster)),
        host_rewrite_specifier: share.host.map(HostRewriteSpecifier::HostRewriteLiteral),
        ..action
    };
    PbRoute {
        action: Some(Action::Route(action)),
        request_headers_to_add: share.request.add,
        request_headers_to_remove: share.request.remove,
        response_headers_to_add: share.response.add,
        response_headers_to_remove: share.response.remove,
        typed_per_filter_config: per_route::in_order(per_route::entries(rule).chain(share.offer)),
        ..base
    }
}

fn weighted(action: RouteAction, rule: &Rule, backends: &[&Backend], clusters: &Clusters<'_>) -> RouteAction {
    let weights = backends.iter().map(|backend| {
        let share = share(rule, backend, clusters);
        ClusterWeight {
            name: share.cluster,
            weight: Some(pb::uint32(backend.weight)),
            host_rewrite_specifier: share.host.map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
            request_headers_to_add: share.request.add,
            request_headers_to_remove: share.request.remove,
            response_headers_to_add: share.response.add,
            response_headers_to_remove: share.response.remove,
            typed_per_filter_config: share.offer.into_iter().collect(),
            ..ClusterWeight::default()
        }
    });
    let clusters = WeightedCluster { clusters: weights.collect(), ..WeightedCluster::default() };
    RouteAction { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(clusters)), ..action }
}

/// What happens to the requests that go to one backend.
struct Share {
    cluster: String,
    /// New Host: the last one that rule or backend names.
    host: Option<String>,
    request: Changes,
    response: Changes,
    /// The ALPN to offer where the cluster fixes the HTTP version.
    offer: Option<(String, Any)>,
}

fn share(rule: &Rule, backend: &Backend, clusters: &Clusters<'_>) -> Share {
    let filters = || rule.filters.iter().chain(&backend.filters);
    let rewritten = filters().filter_map(Filter::rewrite).filter_map(|rewrite| rewrite.hostname.clone()).next_back();
    let request = Changes::request(filters());
    let upstream = backend.cluster.as_ref().and_then(|name| clusters.get(name));
    let alpn = upstream.and_then(|cluster| cluster::fixed_alpn(cluster.settings.upstream_http));
    Share {
        cluster: backend.cluster.as_ref().map_or_else(|| NO_CLUSTER.to_owned(), ResourceName::to_string),
        host: rewritten.or_else(|| request.host.clone()),
        request,
        response: Changes::response(filters()),
        offer: alpn.map(|alpn| (http::OFFER.to_owned(), http::offer(alpn))),
    }
}

/// Timeouts and retries; without a timeout Envoy would take 15 s. A gRPC client's own timeout is left to the client: of the two
/// fields that make Envoy keep it, `max_grpc_timeout` is deprecated and warns for each route, and `max_stream_duration` takes
/// the place of `timeout`.
fn forward(rule: &Rule) -> RouteAction {
    RouteAction {
        timeout: Some(pb::duration(rule.request_timeout.unwrap_or(Duration::ZERO))),
        idle_timeout: rule.idle_timeout.map(pb::duration),
        retry_policy: Some(retry::policy(rule)),
        cluster_not_found_response_code: ClusterNotFoundResponseCode::InternalServerError as i32,
        ..RouteAction::default()
    }
}

fn with_response_changes(route: PbRoute, filters: &[Filter]) -> PbRoute {
    let changes = Changes::response(filters);
    PbRoute { response_headers_to_add: changes.add, response_headers_to_remove: changes.remove, ..route }
}

/// The filters a route may mirror by: Envoy has no mirrors of one backend among several.
fn mirroring<'r>(rule: &'r Rule, shares: &[&'r Backend]) -> impl Iterator<Item = &'r Filter> {
    let only = if let [only] = shares { only.filters.as_slice() } else { &[] };
    rule.filters.iter().chain(only)
}

/// The last rewrite of the path among the rule's own filters; Envoy has none for a backend.
fn path_rewrite(rule: &Rule) -> Option<&PathChange> {
    rule.filters.iter().filter_map(Filter::rewrite).filter_map(|rewrite| rewrite.path.as_ref()).next_back()
}

fn matches(route: &Route) -> PbRouteMatch {
    let conditions = &route.matches;
    let method = conditions.method.as_ref().map(|method| header(":method", exact(method)));
    PbRouteMatch {
        path_specifier: Some(path::specifier(conditions.path.as_ref())),
        headers: method.into_iter().chain(conditions.headers.iter().map(header_match)).collect(),
        query_parameters: conditions.query.iter().map(query_match).collect(),
        ..PbRouteMatch::default()
    }
}

/// Envoy keeps Host as `:authority`.
pub(in crate::emit) fn header_match(condition: &HeaderMatch) -> HeaderMatcher {
    let name = if condition.name == "host" { ":authority" } else { &condition.name };
    header(name, string(&condition.value))
}

/// A field whose values, joined, are like `value`.
pub(super) fn header(name: &str, value: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(value)),
        ..HeaderMatcher::default()
    }
}

fn query_match(condition: &QueryMatch) -> QueryParameterMatcher {
    QueryParameterMatcher {
        name: condition.name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(string(&condition.value))),
    }
}

fn string(condition: &StringMatch) -> StringMatcher {
    match condition {
        StringMatch::Exact(value) => exact(value),
        StringMatch::Regex(expression) => pb::text(MatchPattern::SafeRegex(pb::regex(expression))),
    }
}

fn exact(value: &str) -> StringMatcher {
    pb::text(MatchPattern::Exact(value.to_owned()))
}

/// Named where a backend's reference is invalid; no Service's cluster can be called so, because they have slashes.
pub(in crate::emit) const NO_CLUSTER: &str = "invalid-backend";
/// Gateway API, `BackendRefs`: an invalid reference is answered 500.
pub(super) const INVALID_BACKEND: u32 = 500;
