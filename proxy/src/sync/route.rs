//! `RouteConfiguration` → [`RouteTable`].
//!
//! What is read is what the control plane's dialect writes: one virtual host for every Host, paths exact, by segments
//! or by expression, weighted clusters, redirects, direct responses of status 500. Whatever else Envoy knows is
//! refused rather than ignored, where it would change what happens to a request.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RedirectAction, Route as PbRoute, RouteAction, RouteConfiguration,
    RouteMatch as PbRouteMatch,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, StringMatcher};
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::Any;
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use prost::Name;
use serde::Deserialize;

use super::read::{self, Error, Within, at_most};
use super::retry;
use super::{cors, fault, headers, session};
use crate::tables::cluster::Cluster;
use crate::tables::route::{
    Backend, Filter, Hedge, Mirror, PathChange, PathMatch, Redirect, Rewrite, Route, RouteMatch, RouteTable, Rule,
    StringMatch,
};

/// Attempts beside the first. As TrafficPolicy allows.
const MAX_HEDGES: u32 = 3;
/// The cluster that stands for an invalid backend reference.
pub(super) const INVALID_CLUSTER: &str = "invalid";

/// Reads the resource `name`. `cluster` says which cluster a name stands for; `None` where there is none, so that its
/// share is answered 500.
///
/// # Errors
/// The first field that is wrong.
pub fn parse(
    name: &str,
    bytes: &[u8],
    cluster: &mut dyn FnMut(&str) -> Option<Arc<Cluster>>,
) -> Result<RouteTable, Error> {
    let message: RouteConfiguration = read::message(bytes)?;
    read::name("name", &message.name, name)?;
    let [host] = message.virtual_hosts.as_slice() else {
        let reason = format!("has {} entries, must have one", message.virtual_hosts.len());
        return Err(Error::new("virtual_hosts", reason));
    };
    if host.domains != ["*"] {
        return Err(Error::new("virtual_hosts[0].domains", format!("is {:?}, must be [\"*\"]", host.domains)));
    }
    at_most("routes", &host.routes, MAX_ROUTES).nth("virtual_hosts", 0)?;
    let mut routes = Vec::with_capacity(host.routes.len());
    for (index, route) in host.routes.iter().enumerate() {
        routes.push(self::route(route, cluster).nth("routes", index).nth("virtual_hosts", 0)?);
    }
    Ok(RouteTable { name: name.into(), routes, sources: read::sources(message.metadata.as_ref())? })
}

/// Names of all clusters the resource leads to, after it was read.
///
/// # Errors
/// As [`parse`].
pub fn clusters(name: &str, bytes: &[u8]) -> Result<BTreeSet<Arc<str>>, Error> {
    let mut names = BTreeSet::new();
    parse(name, bytes, &mut |cluster| {
        names.insert(cluster.into());
        None
    })?;
    Ok(names)
}

fn route(route: &PbRoute, cluster: &mut dyn FnMut(&str) -> Option<Arc<Cluster>>) -> Result<Route, Error> {
    let pb_match = route.r#match.as_ref().ok_or_else(|| Error::new("match", "is missing"))?;
    let matches = route_match(pb_match).within("match")?;
    let matched = Matched::of(matches.path.as_ref());
    let mut rule = Rule {
        name: route.name.as_str().into(),
        cors: cors::cors(&route.typed_per_filter_config)?,
        fault: fault::fault(&route.typed_per_filter_config)?,
        filters: Vec::new(),
        mirrors: Vec::new(),
        backends: Vec::new(),
        total_weight: 0,
        request_timeout: None,
        idle_timeout: None,
        try_timeout: None,
        retry: None,
        hedge: hedge(route.metadata.as_ref())?,
        session: session::session(&route.typed_per_filter_config)?,
    };
    let request = headers::changes("request", &route.request_headers_to_add, &route.request_headers_to_remove)?;
    rule.filters.extend(request.map(Filter::RequestHeaders));
    match &route.action {
        Some(Action::Route(action)) => forward(action, matched, &mut rule, cluster).within("route")?,
        Some(Action::Redirect(action)) => {
            rule.filters.push(Filter::Redirect(redirect(action, matched).within("redirect")?));
        }
        Some(Action::DirectResponse(response)) if response.status == 500 && response.body.is_none() => {}
        Some(Action::DirectResponse(_)) => {
            return Err(Error::new("direct_response", "only status 500 without a body is taken"));
        }
        Some(Action::FilterAction(_) | Action::NonForwardingAction(_)) | None => {
            return Err(Error::new("action", "must be route, redirect or direct_response"));
        }
    }
    let response = headers::changes("response", &route.response_headers_to_add, &route.response_headers_to_remove)?;
    rule.filters.extend(response.map(Filter::ResponseHeaders));
    Ok(Route { matches, rule: Arc::new(rule) })
}

/// What Envoy has no field for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    hedge_delay_nanos: u64,
    hedge_attempts: u32,
}

fn hedge(metadata: Option<&Metadata>) -> Result<Option<Hedge>, Error> {
    let Some(metadata) = metadata else { return Ok(None) };
    let facts: Facts = read::facts(Some(metadata))?;
    let (delay, attempts) = (Duration::from_nanos(facts.hedge_delay_nanos), facts.hedge_attempts.min(MAX_HEDGES));
    Ok((attempts > 0).then_some(Hedge { delay, attempts }))
}

fn route_match(pb: &PbRouteMatch) -> Result<RouteMatch, Error> {
    at_most("headers", &pb.headers, MAX_CONDITIONS)?;
    at_most("query_parameters", &pb.query_parameters, MAX_CONDITIONS)?;
    let unknown = [
        ("runtime_fraction", pb.runtime_fraction.is_some()),
        ("cookies", !pb.cookies.is_empty()),
        ("grpc", pb.grpc.is_some()),
        ("tls_context", pb.tls_context.is_some()),
        ("dynamic_metadata", !pb.dynamic_metadata.is_empty()),
        ("filter_state", !pb.filter_state.is_empty()),
        ("case_sensitive", pb.case_sensitive.is_some_and(|sensitive| !sensitive.value)),
    ];
    if let Some((field, _)) = unknown.into_iter().find(|(_, given)| *given) {
        return Err(Error::new(field, "is a condition this sidecar does not know"));
    }
    let mut matches = RouteMatch { path: path_match(pb.path_specifier.as_ref())?, ..RouteMatch::default() };
    for (index, header) in pb.headers.iter().enumerate() {
        match header_match(header).nth("headers", index)? {
            HeaderCondition::Method(method) => matches.method = Some(method),
            HeaderCondition::Header(name, condition) => matches.headers.push((name, condition)),
        }
    }
    for (index, parameter) in pb.query_parameters.iter().enumerate() {
        matches.query.push(query_match(parameter).nth("query_parameters", index)?);
    }
    Ok(matches)
}

fn path_match(specifier: Option<&PathSpecifier>) -> Result<Option<PathMatch>, Error> {
    match specifier {
        Some(PathSpecifier::Prefix(prefix)) if prefix == "/" => Ok(None),
        Some(PathSpecifier::Prefix(prefix)) => {
            Err(Error::new("prefix", format!("is {prefix:?}, must be \"/\"; path_separated_prefix for any other")))
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) if prefix.starts_with('/') && !prefix.ends_with('/') => {
            Ok(Some(PathMatch::Prefix(prefix.clone())))
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Err(Error::new(
            "path_separated_prefix",
            format!("is {prefix:?}, must begin with a slash and not end with one"),
        )),
        Some(PathSpecifier::Path(path)) => Ok(Some(PathMatch::Exact(path.clone()))),
        Some(PathSpecifier::SafeRegex(matcher)) => {
            Ok(Some(PathMatch::Regex(read::regex(matcher).within("safe_regex")?)))
        }
        Some(PathSpecifier::ConnectMatcher(_) | PathSpecifier::PathMatchPolicy(_)) | None => {
            Err(Error::new("path_specifier", "must be prefix, path, path_separated_prefix or safe_regex"))
        }
    }
}

/// A condition on the method or on a header.
pub(super) enum HeaderCondition {
    Method(Method),
    Header(HeaderName, StringMatch),
}

pub(super) fn header_match(matcher: &HeaderMatcher) -> Result<HeaderCondition, Error> {
    if matcher.invert_match || matcher.treat_missing_header_as_empty {
        return Err(Error::new("invert_match", "is a condition this sidecar does not know"));
    }
    let condition = match &matcher.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(text)) => string_match(text).within("string_match")?,
        Some(HeaderMatchSpecifier::PresentMatch(true)) => StringMatch::Present,
        _ => return Err(Error::new("header_match_specifier", "must be string_match, or present_match true")),
    };
    if matcher.name == ":method" {
        let StringMatch::Exact(method) = condition else {
            return Err(Error::new("string_match", "must be exact for :method"));
        };
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| {
            Error::new("string_match.exact", format!("is {method:?}, must be a method (RFC 9110 §9.1)"))
        })?;
        return Ok(HeaderCondition::Method(method));
    }
    Ok(HeaderCondition::Header(read::header_name(&matcher.name).within("name")?, condition))
}

fn query_match(matcher: &QueryParameterMatcher) -> Result<(String, StringMatch), Error> {
    let condition = match &matcher.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(text)) => string_match(text).within("string_match")?,
        Some(QueryParameterMatchSpecifier::PresentMatch(true)) => StringMatch::Present,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) | None => {
            return Err(Error::new("query_parameter_match_specifier", "must be string_match, or present_match true"));
        }
    };
    Ok((matcher.name.clone(), condition))
}

pub(super) fn string_match(matcher: &StringMatcher) -> Result<StringMatch, Error> {
    if matcher.ignore_case {
        return Err(Error::new("ignore_case", "must be false"));
    }
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => Ok(StringMatch::Exact(text.clone())),
        Some(MatchPattern::SafeRegex(matcher)) => Ok(StringMatch::Regex(read::regex(matcher).within("safe_regex")?)),
        _ => Err(Error::new("match_pattern", "must be exact or safe_regex")),
    }
}

fn forward(
    action: &RouteAction,
    matched: Matched<'_>,
    rule: &mut Rule,
    cluster: &mut dyn FnMut(&str) -> Option<Arc<Cluster>>,
) -> Result<(), Error> {
    rule.filters.extend(rewrite(action, matched)?.map(Filter::Rewrite));
    rule.mirrors = mirrors(&action.request_mirror_policies, cluster)?;
    rule.request_timeout = match action.timeout.as_ref().map(read::duration).transpose().within("timeout")? {
        None => Some(ENVOY_TIMEOUT),
        Some(Duration::ZERO) => None,
        Some(timeout) => Some(timeout),
    };
    let idle = action.idle_timeout.as_ref().map(read::duration).transpose().within("idle_timeout")?;
    rule.idle_timeout = idle.filter(|idle| !idle.is_zero());
    (rule.try_timeout, rule.retry) = retry::policy(action.retry_policy.as_ref()).within("retry_policy")?;
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            rule.total_weight = 1;
            let (cluster, filters, mirrors) = (resolve(name, cluster), Vec::new(), Vec::new());
            rule.backends.push(Backend { weight: 1, cluster, filters, mirrors });
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            at_most("clusters", &weighted.clusters, MAX_BACKENDS).within("weighted_clusters")?;
            for (index, weight) in weighted.clusters.iter().enumerate() {
                let backend = backend(weight, matched, cluster).nth("clusters", index).within("weighted_clusters")?;
                rule.total_weight = rule.total_weight.checked_add(backend.weight).ok_or_else(|| {
                    Error::new("weighted_clusters", "the sum of the weights must be at most 4294967295")
                })?;
                rule.backends.push(backend);
            }
        }
        _ => return Err(Error::new("cluster_specifier", "must be cluster or weighted_clusters")),
    }
    Ok(())
}

fn backend(
    weight: &ClusterWeight,
    matched: Matched<'_>,
    cluster: &mut dyn FnMut(&str) -> Option<Arc<Cluster>>,
) -> Result<Backend, Error> {
    let (mut filters, mut mirrors) = (Vec::new(), Vec::new());
    let request = headers::changes("request", &weight.request_headers_to_add, &weight.request_headers_to_remove)?;
    filters.extend(request.map(Filter::RequestHeaders));
    if let Some(any) = weight.typed_per_filter_config.get("heddle") {
        let extra = extra(any, matched, cluster).within("typed_per_filter_config[\"heddle\"]")?;
        filters.extend(extra.filter);
        mirrors = extra.mirrors;
    }
    let response = headers::changes("response", &weight.response_headers_to_add, &weight.response_headers_to_remove)?;
    filters.extend(response.map(Filter::ResponseHeaders));
    let (weight, cluster) = (read::uint32(weight.weight.as_ref(), 0), resolve(&weight.name, cluster));
    Ok(Backend { weight, cluster, filters, mirrors })
}

/// What Envoy has no field for at one backend among several.
struct Extra {
    filter: Option<Filter>,
    mirrors: Vec<Mirror>,
}

/// A redirect of one backend, or a rewrite and mirrors.
fn extra(
    any: &Any,
    matched: Matched<'_>,
    cluster: &mut dyn FnMut(&str) -> Option<Arc<Cluster>>,
) -> Result<Extra, Error> {
    if any.type_url == RedirectAction::type_url() {
        let filter = Some(Filter::Redirect(redirect(&read::message(&any.value)?, matched)?));
        return Ok(Extra { filter, mirrors: Vec::new() });
    }
    if any.type_url == RouteAction::type_url() {
        let action: RouteAction = read::message(&any.value)?;
        let filter = rewrite(&action, matched)?.map(Filter::Rewrite);
        return Ok(Extra { filter, mirrors: mirrors(&action.request_mirror_policies, cluster)? });
    }
    Err(Error::new("type_url", format!("is {:?}, must be a RedirectAction or RouteAction", any.type_url)))
}

/// A mirror to a cluster that does not exist mirrors nothing.
fn mirrors(
    policies: &[RequestMirrorPolicy],
    cluster: &mut dyn FnMut(&str) -> Option<Arc<Cluster>>,
) -> Result<Vec<Mirror>, Error> {
    at_most("request_mirror_policies", policies, MAX_MIRRORS)?;
    let mut mirrors = Vec::new();
    for (index, policy) in policies.iter().enumerate() {
        let share = policy.runtime_fraction.as_ref().and_then(|fraction| fraction.default_value);
        let per_million = match share.map(|share| (share.numerator, DenominatorType::try_from(share.denominator))) {
            None => 1_000_000,
            Some((numerator, Ok(DenominatorType::Million))) => numerator,
            Some(_) => {
                let error = Error::new("runtime_fraction.default_value.denominator", "must be MILLION");
                return Err(error).nth("request_mirror_policies", index);
            }
        };
        mirrors.extend(resolve(&policy.cluster, cluster).map(|cluster| Mirror { cluster, per_million }));
    }
    Ok(mirrors)
}

fn resolve(name: &str, cluster: &mut dyn FnMut(&str) -> Option<Arc<Cluster>>) -> Option<Arc<Cluster>> {
    if name == INVALID_CLUSTER { None } else { cluster(name) }
}

fn redirect(action: &RedirectAction, matched: Matched<'_>) -> Result<Redirect, Error> {
    let scheme = match &action.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some(Scheme::HTTPS),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => match scheme.as_str() {
            "http" => Some(Scheme::HTTP),
            "https" => Some(Scheme::HTTPS),
            _ => return Err(Error::new("scheme_redirect", format!("is {scheme:?}, must be http or https"))),
        },
    };
    let path = match &action.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(path)) => Some(PathChange::Full(path.clone())),
        Some(PathRewriteSpecifier::PrefixRewrite(replacement)) => {
            Some(matched.replaced(replacement).within("prefix_rewrite")?)
        }
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => Some(substituted(rewrite).within("regex_rewrite")?),
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(Error::new("path_rewrite", "must be path_redirect, prefix_rewrite or regex_rewrite"));
        }
        None => None,
    };
    let status = match RedirectResponseCode::try_from(action.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(Error::new("response_code", format!("is {}, which is none", action.response_code))),
    };
    let port = u16::try_from(action.port_redirect)
        .map_err(|_| Error::new("port_redirect", format!("is {}, must be a port", action.port_redirect)))?;
    Ok(Redirect {
        scheme,
        hostname: (!action.host_redirect.is_empty()).then(|| action.host_redirect.clone()),
        path,
        port: (port != 0).then_some(port),
        status,
    })
}

fn rewrite(action: &RouteAction, matched: Matched<'_>) -> Result<Option<Rewrite>, Error> {
    let hostname = match &action.host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => Some(
            HeaderValue::from_str(host)
                .map_err(|_| Error::new("host_rewrite_literal", format!("is {host:?}, must be visible ASCII")))?,
        ),
        Some(_) => return Err(Error::new("host_rewrite_specifier", "must be host_rewrite_literal")),
    };
    let path = match (&action.regex_rewrite, action.prefix_rewrite.as_str()) {
        (Some(rewrite), _) => Some(substituted(rewrite).within("regex_rewrite")?),
        (None, "") => None,
        (None, replacement) => Some(matched.replaced(replacement).within("prefix_rewrite")?),
    };
    Ok((hostname.is_some() || path.is_some()).then_some(Rewrite { hostname, path }))
}

/// What the route's path condition matches at the beginning of a path.
#[derive(Clone, Copy)]
enum Matched<'r> {
    /// This, without trailing slash.
    Prefix(&'r str),
    /// The path is matched by an expression.
    Unknown,
}

impl<'r> Matched<'r> {
    fn of(path: Option<&'r PathMatch>) -> Self {
        match path {
            None => Self::Prefix(""),
            Some(PathMatch::Prefix(prefix) | PathMatch::Exact(prefix)) => Self::Prefix(prefix.trim_end_matches('/')),
            Some(PathMatch::Regex(_)) => Self::Unknown,
        }
    }

    fn replaced(self, replacement: &str) -> Result<PathChange, Error> {
        match self {
            Self::Prefix(matched) => Ok(PathChange::Prefix {
                matched: matched.to_owned(),
                replacement: replacement.trim_end_matches('/').to_owned(),
            }),
            Self::Unknown => Err(Error::new("", "needs a route with a prefix to replace, not with safe_regex")),
        }
    }
}

/// The two substitutions of the dialect: the whole path, and a prefix that is cut off.
fn substituted(rewrite: &RegexMatchAndSubstitute) -> Result<PathChange, Error> {
    let pattern = rewrite.pattern.as_ref().map(|pattern| pattern.regex.as_str()).unwrap_or_default();
    if pattern == WHOLE_PATH {
        return Ok(PathChange::Full(rewrite.substitution.replace(r"\\", r"\")));
    }
    let prefix = pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix("/?")).and_then(unescape);
    match (prefix, rewrite.substitution.as_str()) {
        (Some(matched), "/") => Ok(PathChange::Prefix { matched, replacement: String::new() }),
        _ => {
            let reason = format!("is {pattern:?}, must be {WHOLE_PATH:?}, or ^<prefix>/? with substitution /");
            Err(Error::new("pattern.regex", reason))
        }
    }
}

/// The one text an expression matches, if it is a text with escaped punctuation.
pub(super) fn unescape(expression: &str) -> Option<String> {
    let mut text = String::with_capacity(expression.len());
    let mut characters = expression.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => text.push(characters.next().filter(|c| META.contains(*c))?),
            c if META.contains(c) => return None,
            c => text.push(c),
        }
    }
    Some(text)
}

/// Characters with a meaning in an expression (RE2's syntax).
const META: &str = r"\.+*?()|[]{}^$";
/// The expression that stands for the whole path.
const WHOLE_PATH: &str = "^.*$";
/// Envoy's default (`RouteAction.timeout`).
const ENVOY_TIMEOUT: Duration = Duration::from_secs(15);
/// Routes in a table. Chosen: 32 route objects with the 128 matches the Gateway API allows each.
const MAX_ROUTES: usize = 4_096;
/// Conditions on headers, and on query parameters, of one route. Chosen: the Gateway API allows 16.
const MAX_CONDITIONS: usize = 64;
/// Mirrors of one rule or backend. Chosen: the Gateway API allows 16 filters.
const MAX_MIRRORS: usize = 64;
/// Backends of one rule. Chosen: the Gateway API allows 16.
const MAX_BACKENDS: usize = 128;
