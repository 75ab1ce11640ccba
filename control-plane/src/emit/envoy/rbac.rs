//! Authorization as Envoy's RBAC filters: one for DENY, one for ALLOW, each with what is in dry run as shadow rules.
//!
//! A rule of a policy is one entry, named `<namespace>/<name>#<index>`, so Envoy's log and statistics name it. Opaque
//! bytes cannot be asked for method, path or host: an ALLOW rule that needs them matches none, a DENY rule all.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::config::rbac::v3::permission::{self, Rule as PermissionRule};
use envoy_types::pb::envoy::config::rbac::v3::principal::{self, Authenticated, Identifier};
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy as PbPolicy, Principal, Rbac};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::r#type::matcher::v3::path_matcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher};
use ipnet::IpNet;

use super::path::quote;
use super::{chain, http};
use crate::emit::pb;
use crate::model::route::HeaderValue;
use crate::model::{InboundPort, Operation, Policy, PolicyRule, PolicySet, Principals, TextMatch};

/// The filters for requests.
pub fn http_filters(policies: &PolicySet) -> Vec<HttpFilter> {
    let filters = Phase::of(policies).into_iter().map(|phase| {
        let config = pb::merged(phase.parts(Traffic::Http).map(|part| match part {
            Part::Enforced(rules) => HttpRbac { rules: Some(rules), ..HttpRbac::default() },
            Part::Shadow(rules) => HttpRbac {
                shadow_rules: Some(rules),
                shadow_rules_stat_prefix: phase.stat_prefix().to_owned(),
                ..HttpRbac::default()
            },
        }));
        http::http_filter("envoy.filters.http.rbac", config)
    });
    filters.collect()
}

/// The filters for opaque connections.
pub fn network_filters(policies: &PolicySet) -> Vec<Filter> {
    let filters = Phase::of(policies).into_iter().map(|phase| {
        let base = || NetworkRbac { stat_prefix: phase.stat_prefix().to_owned(), ..NetworkRbac::default() };
        let config = pb::merged(phase.parts(Traffic::Opaque).map(|part| match part {
            Part::Enforced(rules) => NetworkRbac { rules: Some(rules), ..base() },
            Part::Shadow(rules) => NetworkRbac {
                shadow_rules: Some(rules),
                shadow_rules_stat_prefix: phase.stat_prefix().to_owned(),
                ..base()
            },
        }));
        chain::network_any("envoy.filters.network.rbac", config)
    });
    filters.collect()
}

/// A rule that says which requests are counted, of those that have all of `headers`; `None`: all are.
pub fn counted(rule: &PolicyRule, headers: &[HeaderValue]) -> Option<PbPolicy> {
    if rule.from.is_empty() && rule.to.is_empty() && headers.is_empty() {
        return None;
    }
    let mut all = Vec::new();
    condition(&mut all, &rule.to, &[], |to| operation(to, Traffic::Http));
    all.extend(headers.iter().map(|wanted| header(&wanted.name, pb::text(MatchPattern::Exact(wanted.value.clone())))));
    Some(PbPolicy { permissions: vec![and(all)], principals: principals(rule), ..PbPolicy::default() })
}

fn principals(rule: &PolicyRule) -> Vec<Principal> {
    match rule.from.as_slice() {
        [] => vec![any_id()],
        from => from.iter().map(principal_of).collect(),
    }
}

/// Whether any rule reads the path, so that it must be in normal form.
pub fn reads_paths(port: &InboundPort) -> bool {
    let policies = port.policies.deny.iter().chain(&port.policies.allow).flat_map(|policy| &policy.rules);
    let operations = policies.chain(port.rate_limits.iter().map(|limit| &limit.counts));
    operations.flat_map(|rule| &rule.to).any(|to| !to.paths.is_empty() || !to.not_paths.is_empty())
}

/// One filter.
struct Phase<'m> {
    action: Action,
    /// `None`: nothing is enforced.
    enforced: Option<Vec<&'m Policy>>,
    shadow: Option<Vec<&'m Policy>>,
}

/// What a filter is merged from.
enum Part {
    Enforced(Rbac),
    Shadow(Rbac),
}

/// What a filter sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Traffic {
    Http,
    Opaque,
}

impl<'m> Phase<'m> {
    /// DENY before ALLOW; a phase without policies needs no filter.
    fn of(policies: &'m PolicySet) -> Vec<Self> {
        let some = |list: Vec<&'m Policy>| (!list.is_empty()).then_some(list);
        let pick = |list: &'m [Arc<Policy>], dry_run: bool| {
            list.iter().map(|policy| &**policy).filter(|policy| policy.dry_run == dry_run).collect::<Vec<_>>()
        };
        let deny = Self {
            action: Action::Deny,
            enforced: some(pick(&policies.deny, false)),
            shadow: some(pick(&policies.deny, true)),
        };
        // In dry run as if enforced: together with the enforced ones, one must match.
        let dry_run = policies.allow.iter().any(|policy| policy.dry_run);
        let allow = Self {
            action: Action::Allow,
            enforced: some(pick(&policies.allow, false)),
            shadow: dry_run.then(|| policies.allow.iter().map(|policy| &**policy).collect()),
        };
        [deny, allow].into_iter().filter(|phase| phase.enforced.is_some() || phase.shadow.is_some()).collect()
    }

    fn stat_prefix(&self) -> &'static str {
        match self.action {
            Action::Deny => "deny_",
            Action::Allow | Action::Log => "allow_",
        }
    }

    /// One part for each entry, because a map with several has no order. The first part of each kind has none: a policy
    /// without rules is in force all the same.
    fn parts(&self, traffic: Traffic) -> impl Iterator<Item = Part> {
        let rules = |policies: &Option<Vec<&'m Policy>>| {
            let entries = policies.iter().flatten().flat_map(|policy| self.entries(policy, traffic));
            let parts = entries.map(|entry| self.rbac(Some(entry))).collect::<Vec<_>>();
            policies.is_some().then(|| self.rbac(None)).into_iter().chain(parts)
        };
        rules(&self.enforced).map(Part::Enforced).chain(rules(&self.shadow).map(Part::Shadow))
    }

    fn rbac(&self, entry: Option<(String, PbPolicy)>) -> Rbac {
        let policies: HashMap<_, _> = entry.into_iter().collect();
        Rbac { action: self.action as i32, policies, ..Rbac::default() }
    }

    fn entries(&self, policy: &'m Policy, traffic: Traffic) -> Vec<(String, PbPolicy)> {
        let entries = policy.rules.iter().enumerate().filter_map(|(index, rule)| {
            let permissions = self.permissions(rule, traffic)?;
            let entry = PbPolicy { permissions, principals: principals(rule), ..PbPolicy::default() };
            Some((format!("{}#{index}", policy.name), entry))
        });
        entries.collect()
    }

    /// `None`: the rule can match nothing.
    fn permissions(&self, rule: &PolicyRule, traffic: Traffic) -> Option<Vec<Permission>> {
        if rule.to.is_empty() {
            return Some(vec![permission(PermissionRule::Any(true))]);
        }
        let opaque_allow = traffic == Traffic::Opaque && self.action == Action::Allow;
        let operations = rule.to.iter().filter(|to| !(opaque_allow && needs_http(to)));
        let permissions: Vec<_> = operations.map(|to| operation(to, traffic)).collect();
        (!permissions.is_empty()).then_some(permissions)
    }
}

fn needs_http(to: &Operation) -> bool {
    let fields = [&to.methods, &to.not_methods, &to.paths, &to.not_paths, &to.hosts, &to.not_hosts];
    fields.into_iter().any(|field| !field.is_empty())
}

fn operation(to: &Operation, traffic: Traffic) -> Permission {
    let mut all = Vec::new();
    let port = |port: &u16| permission(PermissionRule::DestinationPort(u32::from(*port)));
    condition(&mut all, &to.ports, &to.not_ports, port);
    if traffic == Traffic::Http {
        condition(&mut all, &to.methods, &to.not_methods, |text| header(":method", string(text)));
        condition(&mut all, &to.paths, &to.not_paths, path);
        condition(&mut all, &to.hosts, &to.not_hosts, host);
    }
    and(all)
}

/// One of `want` must match if there are any, none of `not` may.
fn condition<T>(all: &mut Vec<Permission>, want: &[T], not: &[T], of: impl Fn(&T) -> Permission) {
    if !want.is_empty() {
        let rules = want.iter().map(&of).collect();
        all.push(permission(PermissionRule::OrRules(permission::Set { rules })));
    }
    all.extend(not.iter().map(|value| permission(PermissionRule::NotRule(Box::new(of(value))))));
}

/// An empty list is refused by Envoy: without conditions, anything.
fn and(rules: Vec<Permission>) -> Permission {
    if rules.is_empty() {
        return permission(PermissionRule::Any(true));
    }
    permission(PermissionRule::AndRules(permission::Set { rules }))
}

/// The path without query.
fn path(text: &TextMatch) -> Permission {
    let matcher = PathMatcher { rule: Some(path_matcher::Rule::Path(string(text))) };
    permission(PermissionRule::UrlPath(matcher))
}

/// Hosts are compared without case, port and trailing dot; Envoy's `:authority` may have all three.
fn host(text: &TextMatch) -> Permission {
    let rest = r"\.?(:[0-9]+)?";
    let expression = match text {
        TextMatch::Exact(host) => format!("(?i){}{rest}", quote(host)),
        TextMatch::Prefix(start) => format!("(?i){}.*", quote(start)),
        TextMatch::Suffix(end) => format!("(?i).*{}{rest}", quote(end)),
        TextMatch::Present => ".+".to_owned(),
    };
    header(":authority", pb::text(MatchPattern::SafeRegex(pb::regex(&expression))))
}

fn header(name: &str, value: StringMatcher) -> Permission {
    permission(PermissionRule::Header(HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(value)),
        ..HeaderMatcher::default()
    }))
}

fn principal_of(from: &Principals) -> Principal {
    let mut all = Vec::new();
    who(&mut all, &from.principals, &from.not_principals, |text| authenticated(Some(string(text))));
    who(&mut all, &from.namespaces, &from.not_namespaces, |text| authenticated(Some(namespace(text))));
    who(&mut all, &from.ip_blocks, &from.not_ip_blocks, ip_block);
    if all.is_empty() {
        return any_id();
    }
    id(Identifier::AndIds(principal::Set { ids: all }))
}

/// As [`condition`], of a caller.
fn who<T>(all: &mut Vec<Principal>, want: &[T], not: &[T], of: impl Fn(&T) -> Principal) {
    if !want.is_empty() {
        all.push(id(Identifier::OrIds(principal::Set { ids: want.iter().map(&of).collect() })));
    }
    all.extend(not.iter().map(|value| id(Identifier::NotId(Box::new(of(value))))));
}

/// The URI of the peer's certificate; a caller without one never matches.
fn authenticated(principal_name: Option<StringMatcher>) -> Principal {
    id(Identifier::Authenticated(Authenticated { principal_name }))
}

/// A namespace inside a SPIFFE ID.
fn namespace(text: &TextMatch) -> StringMatcher {
    let namespace = match text {
        TextMatch::Exact(name) => quote(name),
        TextMatch::Prefix(start) => format!("{}[^/]*", quote(start)),
        TextMatch::Suffix(end) => format!("[^/]*{}", quote(end)),
        TextMatch::Present => "[^/]+".to_owned(),
    };
    pb::text(MatchPattern::SafeRegex(pb::regex(&format!("spiffe://[^/]+/ns/{namespace}/sa/.+"))))
}

/// The peer's own address, whatever headers say.
fn ip_block(network: &IpNet) -> Principal {
    id(Identifier::DirectRemoteIp(pb::cidr(network)))
}

/// Envoy refuses an empty prefix or suffix: every text has one.
fn string(text: &TextMatch) -> StringMatcher {
    let pattern = match text {
        TextMatch::Exact(value) => MatchPattern::Exact(value.clone()),
        TextMatch::Prefix(start) if !start.is_empty() => MatchPattern::Prefix(start.clone()),
        TextMatch::Suffix(end) if !end.is_empty() => MatchPattern::Suffix(end.clone()),
        TextMatch::Prefix(_) | TextMatch::Suffix(_) => MatchPattern::SafeRegex(pb::regex(".*")),
        TextMatch::Present => MatchPattern::SafeRegex(pb::regex(".+")),
    };
    pb::text(pattern)
}

fn permission(rule: PermissionRule) -> Permission {
    Permission { rule: Some(rule) }
}

fn id(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn any_id() -> Principal {
    id(Identifier::Any(true))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
    use prost::Message;

    use super::*;

    fn policy(name: &str, dry_run: bool, rules: Vec<PolicyRule>) -> Arc<Policy> {
        Arc::new(Policy { name: name.into(), dry_run, rules })
    }

    fn to(operation: Operation) -> PolicyRule {
        PolicyRule { to: vec![operation], ..PolicyRule::default() }
    }

    fn get() -> Operation {
        Operation { methods: vec![TextMatch::Exact("GET".into())], ..Operation::default() }
    }

    fn http(policies: &PolicySet) -> Vec<HttpRbac> {
        let configs = http_filters(policies).into_iter().map(|filter| match filter.config_type {
            Some(ConfigType::TypedConfig(any)) => HttpRbac::decode(&*any.value).unwrap(),
            other => panic!("{other:?}"),
        });
        configs.collect()
    }

    fn network(policies: &PolicySet) -> Vec<NetworkRbac> {
        use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
        let configs = network_filters(policies).into_iter().map(|filter| match filter.config_type {
            Some(ConfigType::TypedConfig(any)) => NetworkRbac::decode(&*any.value).unwrap(),
            other => panic!("{other:?}"),
        });
        configs.collect()
    }

    fn names(rules: Option<&Rbac>) -> Vec<&str> {
        let mut names: Vec<_> = rules.unwrap().policies.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn nothing_in_force_needs_no_filter() {
        assert!(http_filters(&PolicySet::default()).is_empty());
        assert!(network_filters(&PolicySet::default()).is_empty());
    }

    #[test]
    fn an_allow_policy_without_rules_is_in_force() {
        let set = PolicySet { allow: vec![policy("a/none", false, vec![])], ..PolicySet::default() };

        let [filter] = http(&set).try_into().unwrap();

        let rules = filter.rules.unwrap();
        assert_eq!(rules.action, Action::Allow as i32);
        assert!(rules.policies.is_empty());
        assert!(filter.shadow_rules.is_none());
    }

    #[test]
    fn dry_run_stands_in_the_shadow_as_if_it_were_enforced() {
        let set = PolicySet {
            deny: vec![policy("a/d", true, vec![to(get())])],
            allow: vec![policy("a/x", false, vec![to(get())]), policy("a/y", true, vec![to(get()), to(get())])],
        };

        let [deny, allow] = http(&set).try_into().unwrap();

        assert!(deny.rules.is_none());
        assert_eq!(names(deny.shadow_rules.as_ref()), ["a/d#0"]);
        assert_eq!(names(allow.rules.as_ref()), ["a/x#0"]);
        assert_eq!(names(allow.shadow_rules.as_ref()), ["a/x#0", "a/y#0", "a/y#1"]);
    }

    #[test]
    fn opaque_bytes_match_no_allow_rule_and_every_deny_rule_that_reads_http() {
        let ports = Operation { ports: vec![80], ..get() };
        let set = PolicySet {
            deny: vec![policy("a/d", false, vec![to(ports)])],
            allow: vec![policy("a/x", false, vec![to(get()), PolicyRule::default()])],
        };

        let [deny, allow] = network(&set).try_into().unwrap();

        let expected = vec![permission(PermissionRule::OrRules(permission::Set {
            rules: vec![permission(PermissionRule::DestinationPort(80))],
        }))];
        let denied = &deny.rules.unwrap().policies["a/d#0"].permissions;
        assert_eq!(*denied, [permission(PermissionRule::AndRules(permission::Set { rules: expected }))]);
        assert_eq!(names(allow.rules.as_ref()), ["a/x#1"]);
    }

    #[test]
    fn a_caller_is_matched_by_what_its_certificate_says() {
        let from = Principals {
            namespaces: vec![TextMatch::Prefix("team-".into())],
            not_principals: vec![TextMatch::Present],
            ..Principals::default()
        };

        let Some(Identifier::AndIds(all)) = principal_of(&from).identifier else { panic!("and") };

        let expression = "spiffe://[^/]+/ns/team\\-[^/]*/sa/.+";
        let wanted = authenticated(Some(pb::text(MatchPattern::SafeRegex(pb::regex(expression)))));
        assert_eq!(all.ids[1], id(Identifier::OrIds(principal::Set { ids: vec![wanted] })));
        assert!(matches!(all.ids[0].identifier, Some(Identifier::NotId(_))));
    }

    #[test]
    fn a_host_is_found_with_port_trailing_dot_and_any_case() {
        let Some(PermissionRule::Header(matcher)) = host(&TextMatch::Exact("a.b".into())).rule else {
            panic!("header")
        };
        let Some(HeaderMatchSpecifier::StringMatch(value)) = matcher.header_match_specifier else { panic!("string") };
        let Some(MatchPattern::SafeRegex(regex)) = value.match_pattern else { panic!("regex") };
        let regex = regex::Regex::new(&format!("^(?:{})$", regex.regex)).unwrap();
        for matching in ["a.b", "A.B", "a.b:80", "a.b.", "a.b.:80"] {
            assert!(regex.is_match(matching), "{matching}");
        }
        for other in ["axb", "a.b.c", "a.bc"] {
            assert!(!regex.is_match(other), "{other}");
        }
    }
}
