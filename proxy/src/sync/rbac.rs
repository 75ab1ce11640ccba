//! Envoy's RBAC, as the control plane's dialect writes it → [`PolicySet`].
//!
//! Each policy of the RBAC is one rule of ours; what stands before `#` in its name says of which policy. Inside, `and`
//! holds the fields, `or` a field's values, `not` makes it a `not…` field; the kind of the values says which field.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy as PbPolicy, Principal, Rbac, permission, rbac};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as RbacFilter;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, path_matcher};

use super::read::{self, Error, Within, at_most};
use super::route::unescape;
use crate::tables::policy::{Operation, Policy, PolicySet, Rule, Source, TextMatch};

/// The policies of a filter chain.
pub(super) fn policies(filters: &[Filter]) -> Result<PolicySet, Error> {
    let mut set = PolicySet::default();
    at_most("filters", filters, MAX_FILTERS)?;
    for (index, filter) in filters.iter().enumerate() {
        take(filter, &mut set).nth("filters", index)?;
    }
    Ok(set)
}

fn take(filter: &Filter, set: &mut PolicySet) -> Result<(), Error> {
    let any = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => Some(any),
        Some(ConfigType::ConfigDiscovery(_)) | None => None,
    };
    let config: RbacFilter = read::unpack(any)?;
    if config.matcher.is_some() || config.shadow_matcher.is_some() {
        return Err(Error::new("typed_config.matcher", "is not taken; use rules"));
    }
    for (field, dry_run, rules) in [("rules", false, &config.rules), ("shadow_rules", true, &config.shadow_rules)] {
        let Some(rules) = rules else { continue };
        let list = match rbac::Action::try_from(rules.action) {
            Ok(rbac::Action::Deny) => &mut set.deny,
            Ok(rbac::Action::Allow) => &mut set.allow,
            Ok(rbac::Action::Log) | Err(_) => {
                let reason = format!("is {}, must be ALLOW or DENY", rules.action);
                return Err(Error::new("action", reason)).within(field).within("typed_config");
            }
        };
        list.extend(named(rules, dry_run).within(field).within("typed_config")?);
    }
    Ok(())
}

/// Policies by name, with their rules in order.
fn named(rules: &Rbac, dry_run: bool) -> Result<Vec<Policy>, Error> {
    if rules.policies.len() > MAX_POLICIES {
        let reason = format!("has {} entries, at most {MAX_POLICIES} are taken", rules.policies.len());
        return Err(Error::new("policies", reason));
    }
    let mut by_name: BTreeMap<&str, BTreeMap<usize, Rule>> = BTreeMap::new();
    for (key, policy) in &rules.policies {
        let field = format!("policies[{key:?}]");
        match key.rsplit_once('#') {
            Some((name, index)) => {
                let index = index.parse().map_err(|_| {
                    Error::new(&field, "must be named <namespace>/<name>#<index>, or <namespace>/<name>")
                })?;
                by_name.entry(name).or_default().insert(index, rule(policy).within(&field)?);
            }
            None if matches_nothing(policy) => {
                by_name.entry(key).or_default();
            }
            None => {
                by_name.entry(key).or_default().insert(0, rule(policy).within(&field)?);
            }
        }
    }
    let policy = |(name, rules): (&str, BTreeMap<usize, Rule>)| Policy {
        name: Arc::from(name),
        dry_run,
        rules: rules.into_values().collect(),
    };
    Ok(by_name.into_iter().map(policy).collect())
}

/// The form of a policy without rules: it permits what is not anything.
fn matches_nothing(policy: &PbPolicy) -> bool {
    let [only] = policy.permissions.as_slice() else { return false };
    match &only.rule {
        Some(permission::Rule::NotRule(inner)) => inner.rule == Some(permission::Rule::Any(true)),
        _ => false,
    }
}

fn rule(policy: &PbPolicy) -> Result<Rule, Error> {
    if policy.condition.is_some() || policy.checked_condition.is_some() {
        return Err(Error::new("condition", "is not taken"));
    }
    at_most("principals", &policy.principals, MAX_ALTERNATIVES)?;
    at_most("permissions", &policy.permissions, MAX_ALTERNATIVES)?;
    let mut rule = Rule::default();
    if !is_anyone(&policy.principals) {
        for (index, principal) in policy.principals.iter().enumerate() {
            rule.from.push(source(principal).nth("principals", index)?);
        }
        none_is_nobody("principals", &rule.from)?;
    }
    if !is_anything(&policy.permissions) {
        for (index, permission) in policy.permissions.iter().enumerate() {
            rule.to.push(operation(permission).nth("permissions", index)?);
        }
        none_is_nobody("permissions", &rule.to)?;
    }
    Ok(rule)
}

/// An empty list would mean "any" to us and "none" to Envoy.
fn none_is_nobody<T>(field: &str, list: &[T]) -> Result<(), Error> {
    if list.is_empty() { Err(Error::new(field, "must have at least one entry")) } else { Ok(()) }
}

fn is_anyone(principals: &[Principal]) -> bool {
    matches!(principals, [Principal { identifier: Some(Identifier::Any(true)) }])
}

fn is_anything(permissions: &[Permission]) -> bool {
    matches!(permissions, [Permission { rule: Some(permission::Rule::Any(true)) }])
}

fn source(principal: &Principal) -> Result<Source, Error> {
    let mut source = Source::default();
    match &principal.identifier {
        Some(Identifier::Any(true)) => {}
        Some(Identifier::AndIds(fields)) => {
            at_most("and_ids.ids", &fields.ids, MAX_FIELDS)?;
            for (index, field) in fields.ids.iter().enumerate() {
                source_field(field, &mut source).nth("and_ids.ids", index)?;
            }
        }
        _ => return Err(Error::new("identifier", "must be any or and_ids")),
    }
    Ok(source)
}

fn source_field(field: &Principal, source: &mut Source) -> Result<(), Error> {
    let (not, values) = match &field.identifier {
        Some(Identifier::OrIds(values)) => (false, values),
        Some(Identifier::NotId(inner)) => match &inner.identifier {
            Some(Identifier::OrIds(values)) => (true, values),
            _ => return Err(Error::new("not_id", "must be or_ids")),
        },
        _ => return Err(Error::new("identifier", "must be or_ids, or not_id of or_ids")),
    };
    at_most("or_ids.ids", &values.ids, MAX_VALUES)?;
    for (index, value) in values.ids.iter().enumerate() {
        source_value(value, not, source).nth("or_ids.ids", index)?;
    }
    none_is_nobody("or_ids.ids", &values.ids)
}

fn source_value(value: &Principal, not: bool, source: &mut Source) -> Result<(), Error> {
    match &value.identifier {
        Some(Identifier::Authenticated(authenticated)) => {
            let Some(name) = &authenticated.principal_name else {
                let list = if not { &mut source.not_principals } else { &mut source.principals };
                list.push(TextMatch::Present);
                return Ok(());
            };
            if let Some(namespace) = namespace(name) {
                (if not { &mut source.not_namespaces } else { &mut source.namespaces }).push(namespace);
            } else {
                let text = text(name).within("authenticated.principal_name")?;
                (if not { &mut source.not_principals } else { &mut source.principals }).push(text);
            }
        }
        Some(Identifier::DirectRemoteIp(range)) => {
            let network = read::network(range).within("direct_remote_ip")?;
            (if not { &mut source.not_ip_blocks } else { &mut source.ip_blocks }).push(network);
        }
        _ => return Err(Error::new("identifier", "must be authenticated or direct_remote_ip")),
    }
    Ok(())
}

fn operation(permission: &Permission) -> Result<Operation, Error> {
    let mut operation = Operation::default();
    match &permission.rule {
        Some(permission::Rule::Any(true)) => {}
        Some(permission::Rule::AndRules(fields)) => {
            at_most("and_rules.rules", &fields.rules, MAX_FIELDS)?;
            for (index, field) in fields.rules.iter().enumerate() {
                operation_field(field, &mut operation).nth("and_rules.rules", index)?;
            }
        }
        _ => return Err(Error::new("rule", "must be any or and_rules")),
    }
    Ok(operation)
}

fn operation_field(field: &Permission, operation: &mut Operation) -> Result<(), Error> {
    let (not, values) = match &field.rule {
        Some(permission::Rule::OrRules(values)) => (false, values),
        Some(permission::Rule::NotRule(inner)) => match &inner.rule {
            Some(permission::Rule::OrRules(values)) => (true, values),
            _ => return Err(Error::new("not_rule", "must be or_rules")),
        },
        _ => return Err(Error::new("rule", "must be or_rules, or not_rule of or_rules")),
    };
    at_most("or_rules.rules", &values.rules, MAX_VALUES)?;
    for (index, value) in values.rules.iter().enumerate() {
        operation_value(value, not, operation).nth("or_rules.rules", index)?;
    }
    none_is_nobody("or_rules.rules", &values.rules)
}

fn operation_value(value: &Permission, not: bool, operation: &mut Operation) -> Result<(), Error> {
    match &value.rule {
        Some(permission::Rule::DestinationPort(port)) => {
            let port = u16::try_from(*port)
                .map_err(|_| Error::new("destination_port", format!("is {port}, must be at most 65535")))?;
            (if not { &mut operation.not_ports } else { &mut operation.ports }).push(port);
        }
        Some(permission::Rule::UrlPath(matcher)) => {
            let Some(path_matcher::Rule::Path(path)) = &matcher.rule else {
                return Err(Error::new("url_path.path", "is missing"));
            };
            let path = text(path).within("url_path.path")?;
            (if not { &mut operation.not_paths } else { &mut operation.paths }).push(path);
        }
        Some(permission::Rule::Header(matcher)) => header(matcher, not, operation).within("header")?,
        _ => return Err(Error::new("rule", "must be destination_port, url_path or header")),
    }
    Ok(())
}

fn header(matcher: &HeaderMatcher, not: bool, operation: &mut Operation) -> Result<(), Error> {
    let Some(HeaderMatchSpecifier::StringMatch(value)) = &matcher.header_match_specifier else {
        return Err(Error::new("header_match_specifier", "must be string_match"));
    };
    if matcher.invert_match {
        return Err(Error::new("invert_match", "is not taken; use not_rule"));
    }
    let value = text(value).within("string_match")?;
    let list = match (matcher.name.as_str(), not) {
        (":method", false) => &mut operation.methods,
        (":method", true) => &mut operation.not_methods,
        (":authority", false) => &mut operation.hosts,
        (":authority", true) => &mut operation.not_hosts,
        (name, _) => return Err(Error::new("name", format!("is {name:?}, must be :method or :authority"))),
    };
    list.push(value);
    Ok(())
}

fn text(matcher: &StringMatcher) -> Result<TextMatch, Error> {
    if matcher.ignore_case {
        return Err(Error::new("ignore_case", "must be false"));
    }
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => Ok(TextMatch::Exact(text.clone())),
        Some(MatchPattern::Prefix(begin)) => Ok(TextMatch::Prefix(begin.clone())),
        Some(MatchPattern::Suffix(end)) => Ok(TextMatch::Suffix(end.clone())),
        Some(MatchPattern::SafeRegex(matcher)) if matcher.regex == ANY_TEXT => Ok(TextMatch::Present),
        _ => Err(Error::new("match_pattern", format!("must be exact, prefix, suffix, or safe_regex {ANY_TEXT:?}"))),
    }
}

/// A condition on the namespace within a SPIFFE ID.
fn namespace(matcher: &StringMatcher) -> Option<TextMatch> {
    let Some(MatchPattern::SafeRegex(matcher)) = &matcher.match_pattern else { return None };
    let segment = matcher.regex.strip_prefix(NAMESPACE_BEGIN)?.strip_suffix(NAMESPACE_END)?;
    if segment == "[^/]+" {
        return Some(TextMatch::Present);
    }
    if let Some(begin) = segment.strip_suffix(REST_OF_SEGMENT) {
        return Some(TextMatch::Prefix(unescape(begin)?));
    }
    if let Some(end) = segment.strip_prefix(REST_OF_SEGMENT) {
        return Some(TextMatch::Suffix(unescape(end)?));
    }
    Some(TextMatch::Exact(unescape(segment)?))
}

/// Any text, but there must be one.
const ANY_TEXT: &str = ".+";
/// What stands before and after the namespace in a pattern for SPIFFE IDs.
const NAMESPACE_BEGIN: &str = "spiffe://[^/]+/ns/";
const NAMESPACE_END: &str = "/sa/.+";
/// The part of a namespace that is left open.
const REST_OF_SEGMENT: &str = "[^/]*";
/// Filters of one chain: one for DENY, one for ALLOW.
const MAX_FILTERS: usize = 2;
/// Rules of all policies of one action on one port. Chosen: far more than anybody reads.
const MAX_POLICIES: usize = 4_096;
/// Alternatives in `from`, and in `to`, of one rule. Chosen as above.
const MAX_ALTERNATIVES: usize = 1_024;
/// Fields of one alternative: there are no more than eight.
const MAX_FIELDS: usize = 8;
/// Values of one field. Chosen as above.
const MAX_VALUES: usize = 4_096;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::rbac::v3::principal;
    use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
    use envoy_types::pb::google::protobuf::Any;
    use prost::{Message, Name};

    use super::*;

    fn filter(rules: Rbac) -> Filter {
        let config = RbacFilter { rules: Some(rules), ..RbacFilter::default() };
        let any = Any { type_url: RbacFilter::type_url(), value: config.encode_to_vec() };
        Filter { config_type: Some(ConfigType::TypedConfig(any)), ..Filter::default() }
    }

    fn one(policy: PbPolicy) -> Rbac {
        Rbac { policies: HashMap::from([("a/b#0".to_owned(), policy)]), ..Rbac::default() }
    }

    fn anything() -> PbPolicy {
        PbPolicy {
            permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
            principals: vec![Principal { identifier: Some(Identifier::Any(true)) }],
            ..PbPolicy::default()
        }
    }

    fn refused(change: impl FnOnce(&mut PbPolicy)) -> String {
        let mut policy = anything();
        change(&mut policy);
        policies(&[filter(one(policy))]).unwrap_err().to_string()
    }

    #[test]
    fn a_policy_this_sidecar_would_read_too_widely_is_refused() {
        let inside = "filters[0].typed_config.rules.policies[\"a/b#0\"]";
        assert_eq!(
            refused(|policy| policy.principals.clear()),
            format!("{inside}.principals: must have at least one entry")
        );
        assert_eq!(
            refused(|policy| policy.permissions.clear()),
            format!("{inside}.permissions: must have at least one entry")
        );
        let nobody = Identifier::OrIds(principal::Set { ids: Vec::new() });
        let nobody = principal::Set { ids: vec![Principal { identifier: Some(nobody) }] };
        assert_eq!(
            refused(|policy| policy.principals = vec![Principal { identifier: Some(Identifier::AndIds(nobody)) }]),
            format!("{inside}.principals[0].and_ids.ids[0].or_ids.ids: must have at least one entry")
        );
        assert_eq!(
            refused(|policy| policy.permissions.push(Permission { rule: Some(permission::Rule::DestinationPort(1)) })),
            format!("{inside}.permissions[1].rule: must be any or and_rules")
        );
    }

    #[test]
    fn an_action_or_filter_that_is_not_known_is_refused() {
        let log = Rbac { action: rbac::Action::Log as i32, ..one(anything()) };
        let error = policies(&[filter(log)]).unwrap_err().to_string();
        assert_eq!(error, "filters[0].typed_config.rules.action: is 2, must be ALLOW or DENY");
        assert_eq!(policies(&[Filter::default()]).unwrap_err().field, "filters[0].typed_config");
    }

    #[test]
    fn a_namespace_is_only_what_is_written_as_one() {
        let matcher = |regex: &str| StringMatcher {
            match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
                regex: regex.into(),
                ..RegexMatcher::default()
            })),
            ignore_case: false,
        };
        assert_eq!(namespace(&matcher("spiffe://[^/]+/ns/a\\.b/sa/.+")), Some(TextMatch::Exact("a.b".into())));
        assert_eq!(namespace(&matcher("spiffe://[^/]+/ns/a|b/sa/.+")), None);
        assert_eq!(namespace(&matcher(".+")), None);
    }
}
