//! Matches of an HTTPRoute.
//!
//! Host names are left out: a Service parent is told by its address (GEP-1294).

use super::precedence::{self, Key};
use super::problem::Problem;
use crate::model::route::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, StringMatch};
use crate::objects::Route;
use crate::objects::route::{MethodMatch, NamedValue, RouteRule, RuleMatch, TypedValue};

/// The matches of one rule with their precedence. No match: every request.
pub(super) fn matches(route: &Route, index: usize, rule: &RouteRule) -> Result<Vec<(Key, RouteMatch)>, Problem> {
    let everything = [RuleMatch::default()];
    let given = if rule.matches.is_empty() { &everything[..] } else { &rule.matches };
    let matches = given.iter().enumerate().map(|(i, given)| {
        let matched = RouteMatch {
            path: path(given.path.as_ref())?,
            headers: headers(&given.headers)?,
            query: query(&given.query_params)?,
            method: match &given.method {
                Some(MethodMatch::Http(method)) => Some(method.clone()),
                Some(MethodMatch::Grpc(_)) | None => None,
            },
        };
        Ok((precedence::http(route, index, i, &matched), matched))
    });
    matches.collect()
}

/// Whether all matches are prefixes, so that a prefix can be replaced.
pub(super) fn prefix_only(rule: &RouteRule) -> bool {
    let prefix = |path: &TypedValue| matches!(path.r#type.as_deref(), None | Some("PathPrefix"));
    rule.matches.iter().all(|matched| matched.path.as_ref().is_none_or(prefix))
}

fn path(given: Option<&TypedValue>) -> Result<Option<PathMatch>, Problem> {
    let Some(given) = given else { return Ok(None) };
    let value = given.value.as_deref().unwrap_or("/");
    match given.r#type.as_deref().unwrap_or("PathPrefix") {
        "Exact" => Ok(Some(PathMatch::Exact(rooted(value)?.to_owned()))),
        "PathPrefix" => {
            let prefix = rooted(value)?.trim_end_matches('/');
            Ok((!prefix.is_empty()).then(|| PathMatch::Prefix(prefix.to_owned())))
        }
        "RegularExpression" => Ok(Some(PathMatch::Regex(expression(value)?))),
        other => Err(Problem::Unsupported(format!("path match of type `{other}` is not supported"))),
    }
}

fn rooted(value: &str) -> Result<&str, String> {
    if value.starts_with('/') { Ok(value) } else { Err(format!("path `{value}`: begin with `/`")) }
}

/// Of headers with equal names the first counts (Gateway API, `HTTPHeaderMatch.name`).
pub(super) fn headers(given: &[NamedValue]) -> Result<Vec<HeaderMatch>, Problem> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for header in given {
        let name = http::HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|_| format!("`{}` cannot be a header's name (RFC 9110 §5.1)", header.name))?;
        if !headers.iter().any(|other| other.name == name.as_str()) {
            headers.push(HeaderMatch { name: name.as_str().to_owned(), value: value(header)? });
        }
    }
    Ok(headers)
}

fn query(given: &[NamedValue]) -> Result<Vec<QueryMatch>, Problem> {
    let mut query: Vec<QueryMatch> = Vec::new();
    for parameter in given {
        if !query.iter().any(|other| other.name == parameter.name) {
            query.push(QueryMatch { name: parameter.name.clone(), value: value(parameter)? });
        }
    }
    Ok(query)
}

fn value(given: &NamedValue) -> Result<StringMatch, Problem> {
    match given.r#type.as_deref().unwrap_or("Exact") {
        "Exact" => Ok(StringMatch::Exact(given.value.clone())),
        "RegularExpression" => Ok(StringMatch::Regex(expression(&given.value)?)),
        other => Err(Problem::Unsupported(format!("match of type `{other}` on {} is not supported", given.name))),
    }
}

/// An expression that every sidecar can compile.
pub(super) fn expression(text: &str) -> Result<String, String> {
    let built = regex::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(MAX_EXPRESSION_BYTES).build();
    match built {
        Ok(_) => Ok(text.to_owned()),
        Err(regex::Error::CompiledTooBig(_)) => {
            Err(format!("expression `{text}` is too large: shorten its repetitions"))
        }
        Err(_) => {
            Err(format!("`{text}` is no regular expression (RE2 syntax, without look-around and backreferences)"))
        }
    }
}

/// Compiled size, in bytes. Chosen: an expression of a hundred characters stays far below; `(\w{100}){100}` is refused.
const MAX_EXPRESSION_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(kind: &str, value: &str) -> TypedValue {
        TypedValue { r#type: Some(kind.into()), value: Some(value.into()) }
    }

    #[test]
    fn a_prefix_loses_its_trailing_slash_and_the_root_is_no_condition() {
        assert_eq!(path(Some(&typed("PathPrefix", "/a/"))), Ok(Some(PathMatch::Prefix("/a".into()))));
        assert_eq!(path(Some(&typed("PathPrefix", "/"))), Ok(None));
        assert_eq!(path(Some(&TypedValue::default())), Ok(None));
    }

    #[test]
    fn an_expression_no_sidecar_could_compile_is_refused() {
        assert!(expression("(").is_err());
        assert!(expression("(?=x)").is_err());
        assert!(expression(r"(\w{100}){100}").unwrap_err().contains("too large"));
        assert_eq!(expression("/v[0-9]+/.*"), Ok("/v[0-9]+/.*".into()));
    }
}
