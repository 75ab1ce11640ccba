//! Authorization policies as Envoy's RBAC.
//!
//! All policies of one action stand in one RBAC, those on dry run in its shadow rules, so that Envoy's meaning holds:
//! any DENY denies, and of the ALLOW policies, if there are any that are enforced, one must match. A policy is written
//! once per rule, as `<namespace>/<name>#<index>`, because Envoy's policy is one product of principals and permissions;
//! one without rules is `<namespace>/<name>` and matches nothing.
//!
//! Inside one `and`: values of a field are an `or`, `not…` fields a `not` around it. A namespace is a pattern for the
//! SPIFFE ID; "any text, but there must be one" is `.+`. Two meanings are the sidecar's own: paths are normalised and
//! hosts stripped of port and trailing dot before they are compared, and network filters see requests too.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::listener::v3::{Filter, filter};
use envoy_types::pb::envoy::config::rbac::v3::principal::{Authenticated, Identifier};
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy as PbPolicy, Principal, Rbac, permission, principal, rbac,
};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as RbacFilter;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher};

use super::route::escape;
use crate::emit::pb;
use crate::model::{Operation, Policy, PolicyRule, PolicySet, Principals, TextMatch};

/// One filter for each action that has a policy, DENY first.
pub(super) fn filters(policies: &PolicySet) -> Vec<Filter> {
    let lists = [(rbac::Action::Deny, &policies.deny), (rbac::Action::Allow, &policies.allow)];
    let with_policies = lists.into_iter().filter(|(_, list)| !list.is_empty());
    with_policies.map(|(action, list)| filter(action, list.iter().map(|policy| &**policy))).collect()
}

fn filter<'m>(action: rbac::Action, policies: impl Iterator<Item = &'m Policy>) -> Filter {
    let prefix = RbacFilter { stat_prefix: "authorization".to_owned(), ..RbacFilter::default() };
    let parts = policies.flat_map(|policy| {
        rules(policy).into_iter().map(move |(name, rule)| {
            let rbac = Rbac { action: action as i32, policies: HashMap::from([(name, rule)]), ..Rbac::default() };
            if policy.dry_run {
                RbacFilter { shadow_rules: Some(rbac), ..RbacFilter::default() }
            } else {
                RbacFilter { rules: Some(rbac), ..RbacFilter::default() }
            }
        })
    });
    Filter {
        name: "envoy.filters.network.rbac".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pb::merged(std::iter::once(prefix).chain(parts)))),
    }
}

fn rules(policy: &Policy) -> Vec<(String, PbPolicy)> {
    if policy.rules.is_empty() {
        let nothing = permission::Rule::NotRule(Box::new(permission(permission::Rule::Any(true))));
        let never = PbPolicy {
            permissions: vec![permission(nothing)],
            principals: vec![principal(Identifier::Any(true))],
            ..PbPolicy::default()
        };
        return vec![(policy.name.to_string(), never)];
    }
    let rules = policy.rules.iter().enumerate();
    rules.map(|(index, rule)| (format!("{}#{index}", policy.name), pb_policy(rule))).collect()
}

fn pb_policy(rule: &PolicyRule) -> PbPolicy {
    let mut principals: Vec<Principal> = rule.from.iter().map(from).collect();
    let mut permissions: Vec<Permission> = rule.to.iter().map(to).collect();
    if principals.is_empty() {
        principals.push(principal(Identifier::Any(true)));
    }
    if permissions.is_empty() {
        permissions.push(permission(permission::Rule::Any(true)));
    }
    PbPolicy { permissions, principals, ..PbPolicy::default() }
}

fn from(who: &Principals) -> Principal {
    let networks = |blocks: &[ipnet::IpNet]| -> Vec<Identifier> {
        blocks.iter().map(|block| Identifier::DirectRemoteIp(pb::cidr(block))).collect()
    };
    let all: Vec<Principal> = [
        (false, who.principals.iter().map(|text| named(string(text))).collect()),
        (true, who.not_principals.iter().map(|text| named(string(text))).collect()),
        (false, who.namespaces.iter().map(|text| named(namespace(text))).collect()),
        (true, who.not_namespaces.iter().map(|text| named(namespace(text))).collect()),
        (false, networks(&who.ip_blocks)),
        (true, networks(&who.not_ip_blocks)),
    ]
    .into_iter()
    .filter_map(|(not, ids): (bool, Vec<Identifier>)| {
        let any_of = (!ids.is_empty())
            .then(|| principal(Identifier::OrIds(principal::Set { ids: ids.into_iter().map(principal).collect() })))?;
        Some(if not { principal(Identifier::NotId(Box::new(any_of))) } else { any_of })
    })
    .collect();
    principal(if all.is_empty() { Identifier::Any(true) } else { Identifier::AndIds(principal::Set { ids: all }) })
}

fn to(what: &Operation) -> Permission {
    let ports = |ports: &[u16]| -> Vec<permission::Rule> {
        ports.iter().map(|port| permission::Rule::DestinationPort(u32::from(*port))).collect()
    };
    let headers = |name: &str, texts: &[TextMatch]| -> Vec<permission::Rule> {
        texts.iter().map(|text| permission::Rule::Header(header(name, text))).collect()
    };
    let paths = |texts: &[TextMatch]| -> Vec<permission::Rule> { texts.iter().map(path).collect() };
    let all: Vec<Permission> = [
        (false, ports(&what.ports)),
        (true, ports(&what.not_ports)),
        (false, headers(":method", &what.methods)),
        (true, headers(":method", &what.not_methods)),
        (false, paths(&what.paths)),
        (true, paths(&what.not_paths)),
        (false, headers(":authority", &what.hosts)),
        (true, headers(":authority", &what.not_hosts)),
    ]
    .into_iter()
    .filter_map(|(not, rules)| {
        let any_of = (!rules.is_empty()).then(|| {
            let rules = rules.into_iter().map(permission).collect();
            permission(permission::Rule::OrRules(permission::Set { rules }))
        })?;
        Some(if not { permission(permission::Rule::NotRule(Box::new(any_of))) } else { any_of })
    })
    .collect();
    permission(if all.is_empty() {
        permission::Rule::Any(true)
    } else {
        permission::Rule::AndRules(permission::Set { rules: all })
    })
}

fn named(name: StringMatcher) -> Identifier {
    Identifier::Authenticated(Authenticated { principal_name: Some(name) })
}

/// A namespace within `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
fn namespace(text: &TextMatch) -> StringMatcher {
    let segment = match text {
        TextMatch::Exact(name) => escape(name),
        TextMatch::Prefix(begin) => format!("{}[^/]*", escape(begin)),
        TextMatch::Suffix(end) => format!("[^/]*{}", escape(end)),
        TextMatch::Present => "[^/]+".to_owned(),
    };
    pb::text(MatchPattern::SafeRegex(pb::regex(&format!("spiffe://[^/]+/ns/{segment}/sa/.+"))))
}

fn string(text: &TextMatch) -> StringMatcher {
    pb::text(match text {
        TextMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        TextMatch::Prefix(begin) => MatchPattern::Prefix(begin.clone()),
        TextMatch::Suffix(end) => MatchPattern::Suffix(end.clone()),
        TextMatch::Present => MatchPattern::SafeRegex(pb::regex(".+")),
    })
}

fn header(name: &str, text: &TextMatch) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string(text))),
        ..HeaderMatcher::default()
    }
}

fn path(text: &TextMatch) -> permission::Rule {
    permission::Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(string(text))) })
}

fn principal(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn permission(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}
