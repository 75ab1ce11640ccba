//! The order of route matches (Gateway API, `HTTPRouteRule.matches` and `GRPCRouteRule.matches`).
//!
//! Gateway API leaves the place of regular expressions open: they stand between exact paths and prefixes, longer
//! expressions first.

use std::cmp::Reverse;

use k8s_openapi::jiff::Timestamp;

use super::age;
use crate::model::route::{PathMatch, RouteMatch};
use crate::objects::Route;

/// Sorts ascending: what stands first matches first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    specificity: Reverse<[usize; 5]>,
    age: (Option<Timestamp>, String),
    rule: usize,
    r#match: usize,
}

/// Exact path; longest prefix; method; most headers; most query parameters; then the older route, the name, the order
/// within the route.
pub(super) fn http(route: &Route, rule: usize, index: usize, matched: &RouteMatch) -> Key {
    let (kind, length) = match &matched.path {
        Some(PathMatch::Exact(path)) => (2, path.chars().count()),
        Some(PathMatch::Regex(path)) => (1, path.chars().count()),
        Some(PathMatch::Prefix(path)) => (0, path.chars().count()),
        None => (0, 0),
    };
    let method = usize::from(matched.method.is_some());
    let specificity = Reverse([kind, length, method, matched.headers.len(), matched.query.len()]);
    Key { specificity, age: age(&route.metadata), rule, r#match: index }
}

/// Longest service; longest method; most headers; then the older route, the name, the order within the route.
pub(super) fn grpc(route: &Route, rule: usize, index: usize, service: &str, method: &str, headers: usize) -> Key {
    let specificity = Reverse([service.chars().count(), method.chars().count(), headers, 0, 0]);
    Key { specificity, age: age(&route.metadata), rule, r#match: index }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::route::{HeaderMatch, QueryMatch, StringMatch};
    use crate::objects::Kind;
    use crate::objects::route::RouteSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    fn route(name: &str, second: i64) -> Route {
        let created = Timestamp::from_second(second).unwrap();
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some("shop".into()),
            creation_timestamp: Some(Time(created)),
            ..ObjectMeta::default()
        };
        Route { kind: Kind::HttpRoute, metadata, spec: RouteSpec::default() }
    }

    fn path(path: PathMatch) -> RouteMatch {
        RouteMatch { path: Some(path), ..RouteMatch::default() }
    }

    fn wins(a: &RouteMatch, b: &RouteMatch) -> bool {
        let route = route("r", 1);
        http(&route, 1, 1, a) < http(&route, 0, 0, b)
    }

    #[test]
    fn each_criterion_outweighs_all_that_follow_it() {
        let header = |name: &str| HeaderMatch { name: name.into(), value: StringMatch::Exact("1".into()) };
        let query = QueryMatch { name: "q".into(), value: StringMatch::Exact("1".into()) };
        let many = RouteMatch {
            method: Some("GET".into()),
            headers: vec![header("a"), header("b")],
            query: vec![query.clone()],
            ..path(PathMatch::Prefix("/long".into()))
        };
        assert!(wins(&path(PathMatch::Exact("/a".into())), &many));
        assert!(wins(&path(PathMatch::Prefix("/longer".into())), &many));
        let short = |conditions: RouteMatch| RouteMatch { path: Some(PathMatch::Prefix("/x".into())), ..conditions };
        let method = short(RouteMatch { method: Some("GET".into()), ..RouteMatch::default() });
        let headers = short(RouteMatch { headers: vec![header("a"), header("b")], ..RouteMatch::default() });
        let queries = short(RouteMatch { headers: vec![header("a")], query: vec![query], ..RouteMatch::default() });
        assert!(wins(&method, &headers));
        assert!(wins(&headers, &queries));
        assert!(wins(&queries, &short(RouteMatch { headers: vec![header("a")], ..RouteMatch::default() })));
    }

    #[test]
    fn equal_matches_go_by_age_then_name_then_order() {
        let all = RouteMatch::default();
        assert!(http(&route("z", 1), 5, 5, &all) < http(&route("a", 2), 0, 0, &all));
        assert!(http(&route("a", 1), 5, 5, &all) < http(&route("b", 1), 0, 0, &all));
        assert!(http(&route("a", 1), 0, 5, &all) < http(&route("a", 1), 1, 0, &all));
        assert!(http(&route("a", 1), 0, 0, &all) < http(&route("a", 1), 0, 1, &all));
    }
}
