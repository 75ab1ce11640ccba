//! Matches of a GRPCRoute, as the paths gRPC sends: `/<service>/<method>` (gRPC `PROTOCOL-HTTP2.md`).

use super::http_route::{expression, headers};
use super::precedence::{self, Key};
use super::problem::Problem;
use crate::model::route::{PathMatch, RouteMatch};
use crate::objects::Route;
use crate::objects::route::{GrpcMethod, MethodMatch, RouteRule, RuleMatch};

/// The matches of one rule with their precedence. No match: every request.
pub(super) fn matches(route: &Route, index: usize, rule: &RouteRule) -> Result<Vec<(Key, RouteMatch)>, Problem> {
    let everything = [RuleMatch::default()];
    let given = if rule.matches.is_empty() { &everything[..] } else { &rule.matches };
    let matches = given.iter().enumerate().map(|(i, given)| {
        let method = match &given.method {
            Some(MethodMatch::Grpc(method)) => method.clone(),
            Some(MethodMatch::Http(_)) | None => GrpcMethod::default(),
        };
        let headers = headers(&given.headers)?;
        let service = method.service.as_deref().unwrap_or_default();
        let name = method.method.as_deref().unwrap_or_default();
        let key = precedence::grpc(route, index, i, service, name, headers.len());
        Ok((key, RouteMatch { path: path(&method)?, headers, ..RouteMatch::default() }))
    });
    matches.collect()
}

fn path(given: &GrpcMethod) -> Result<Option<PathMatch>, Problem> {
    let service = given.service.as_deref().filter(|text| !text.is_empty());
    let method = given.method.as_deref().filter(|text| !text.is_empty());
    match (given.r#type.as_deref().unwrap_or("Exact"), service, method) {
        (_, None, None) => Ok(None),
        ("Exact", Some(service), Some(method)) => Ok(Some(PathMatch::Exact(format!("/{service}/{method}")))),
        ("Exact", Some(service), None) => Ok(Some(PathMatch::Prefix(format!("/{service}")))),
        ("Exact", None, Some(method)) => {
            Ok(Some(PathMatch::Regex(expression(&format!("/{ANY}/{}", regex::escape(method)))?)))
        }
        ("RegularExpression", service, method) => {
            let part = |text: Option<&str>| text.map_or(ANY.to_owned(), |text| format!("(?:{text})"));
            Ok(Some(PathMatch::Regex(expression(&format!("/{}/{}", part(service), part(method)))?)))
        }
        (other, _, _) => Err(Problem::Unsupported(format!("method match of type `{other}` is not supported"))),
    }
}

/// Any one segment.
const ANY: &str = "[^/]+";

#[cfg(test)]
mod tests {
    use super::*;

    fn method(kind: Option<&str>, service: Option<&str>, method: Option<&str>) -> GrpcMethod {
        GrpcMethod { r#type: kind.map(Into::into), service: service.map(Into::into), method: method.map(Into::into) }
    }

    #[test]
    fn service_and_method_become_the_path_grpc_sends() {
        assert_eq!(
            path(&method(None, Some("shop.Cart"), Some("Add"))),
            Ok(Some(PathMatch::Exact("/shop.Cart/Add".into())))
        );
        assert_eq!(path(&method(None, Some("shop.Cart"), None)), Ok(Some(PathMatch::Prefix("/shop.Cart".into()))));
        assert_eq!(path(&method(None, None, Some("Add"))), Ok(Some(PathMatch::Regex("/[^/]+/Add".into()))));
        assert_eq!(
            path(&method(Some("RegularExpression"), Some("shop\\..*"), None)),
            Ok(Some(PathMatch::Regex("/(?:shop\\..*)/[^/]+".into())))
        );
    }
}
