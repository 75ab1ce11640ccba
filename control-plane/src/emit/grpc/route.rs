//! Routes for calls, with what gRPC reads of them (gRFC A28, A33): path, headers, weights, timeout, retries, faults.

use envoy_types::pb::envoy::config::route::v3::retry_policy::RetryBackOff;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{FilterState, PolicySpecifier};
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HashPolicy, MaxStreamDuration};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RetryPolicy as PbRetryPolicy, Route as PbRoute, RouteAction, RouteConfiguration,
    RouteMatch as PbRouteMatch, VirtualHost, WeightedCluster,
};
use heddle_xds::resource::Resource;

use crate::emit::{balancing, envoy, pb, per_route};
use crate::model::route::{PathMatch, RetryPolicy};
use crate::model::{Backend, HashOn, ResourceName, Route, RouteTable, Rule};

/// A route table, whose calls are hashed on `hash_on`. Its virtual host is for every authority: the target has chosen the
/// table.
pub fn table(table: &RouteTable, hash_on: &[HashOn]) -> Resource {
    let hash_policy = hash_policy(hash_on);
    let host = VirtualHost {
        name: table.name.to_string(),
        domains: vec!["*".to_owned()],
        routes: table.routes.iter().filter(|route| may_match(route)).map(|one| route(one, &hash_policy)).collect(),
        ..VirtualHost::default()
    };
    let message =
        RouteConfiguration { name: table.name.to_string(), virtual_hosts: vec![host], ..RouteConfiguration::default() };
    Resource::encode(table.name.shared(), &message, pb::sources(&table.sources))
}

/// A call is a POST without query (gRPC `PROTOCOL-HTTP2.md`).
fn may_match(route: &Route) -> bool {
    route.matches.query.is_empty() && route.matches.method.as_ref().is_none_or(|method| method == "POST")
}

fn route(route: &Route, hash_policy: &[HashPolicy]) -> PbRoute {
    let matches = PbRouteMatch {
        path_specifier: Some(path(route.matches.path.as_ref())),
        headers: route.matches.headers.iter().map(envoy::header_match).collect(),
        ..PbRouteMatch::default()
    };
    PbRoute {
        name: route.rule.name.to_string(),
        r#match: Some(matches),
        action: Some(action(&route.rule, hash_policy)),
        typed_per_filter_config: per_route::fault(&route.rule).into_iter().collect(),
        ..PbRoute::default()
    }
}

/// gRPC knows no prefix of whole segments. With one segment it is the service of `/service/method`.
fn path(path: Option<&PathMatch>) -> PathSpecifier {
    match path {
        None => PathSpecifier::Prefix(String::new()),
        Some(PathMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
        Some(PathMatch::Prefix(prefix)) => match prefix.matches('/').count() {
            0 => PathSpecifier::Prefix(prefix.clone()),
            1 => PathSpecifier::Prefix(format!("{prefix}/")),
            _ => PathSpecifier::SafeRegex(pb::regex(&format!("{}(/.*)?", envoy::quote(prefix)))),
        },
        Some(PathMatch::Regex(regex)) => PathSpecifier::SafeRegex(pb::regex(regex)),
    }
}

/// A call cannot be redirected: like an action gRPC does not know, it fails.
fn action(rule: &Rule, hash_policy: &[HashPolicy]) -> Action {
    let shares: Vec<&Backend> = rule.backends.iter().filter(|backend| backend.weight > 0).collect();
    let redirects = rule.filters.iter().any(|filter| filter.redirect().is_some());
    if redirects || shares.iter().all(|backend| backend.cluster.is_none()) {
        return Action::DirectResponse(DirectResponseAction { status: FAILED, ..DirectResponseAction::default() });
    }
    Action::Route(RouteAction {
        cluster_specifier: Some(clusters(&shares)),
        retry_policy: rule.retry.as_ref().and_then(retry),
        max_stream_duration: rule.request_timeout.map(|timeout| MaxStreamDuration {
            max_stream_duration: Some(pb::duration(timeout)),
            ..MaxStreamDuration::default()
        }),
        hash_policy: hash_policy.to_vec(),
        ..RouteAction::default()
    })
}

/// gRPC knows headers and the channel, which has one client's address.
fn hash_policy(hash_on: &[HashOn]) -> Vec<HashPolicy> {
    let known = hash_on.iter().filter_map(|hash_on| match hash_on {
        HashOn::Header(_) => balancing::hash_policies(std::slice::from_ref(hash_on)).pop(),
        HashOn::SourceIp => Some(HashPolicy {
            policy_specifier: Some(PolicySpecifier::FilterState(FilterState { key: CHANNEL.to_owned() })),
            terminal: true,
        }),
        HashOn::Cookie(_) | HashOn::QueryParam(_) | HashOn::Path => None,
    });
    known.collect()
}

fn clusters(shares: &[&Backend]) -> ClusterSpecifier {
    let name = |backend: &Backend| {
        backend.cluster.as_ref().map_or_else(|| envoy::NO_CLUSTER.to_owned(), ResourceName::to_string)
    };
    if let [one] = shares {
        return ClusterSpecifier::Cluster(name(one));
    }
    let weights = shares.iter().map(|backend| ClusterWeight {
        name: name(backend),
        weight: Some(pb::uint32(backend.weight)),
        ..ClusterWeight::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: weights.collect(), ..WeightedCluster::default() })
}

/// gRPC refuses a policy without retries; what was never delivered it tries again by itself.
fn retry(retry: &RetryPolicy) -> Option<PbRetryPolicy> {
    let codes: Vec<_> = retry.grpc_codes.iter().filter_map(|code| envoy::grpc_condition(*code)).collect();
    let back_off: RetryBackOff = envoy::back_off(retry);
    (retry.retries > 0 && !codes.is_empty()).then(|| PbRetryPolicy {
        retry_on: codes.join(","),
        num_retries: Some(pb::uint32(retry.retries)),
        retry_back_off: Some(back_off),
        ..PbRetryPolicy::default()
    })
}

/// The channel of a call (gRFC A42).
const CHANNEL: &str = "io.grpc.channel_id";
/// What a sidecar would answer to an invalid reference; gRPC only reads that it is no cluster.
const FAILED: u32 = 500;
