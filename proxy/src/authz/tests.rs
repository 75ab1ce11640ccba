use super::*;

/// A [`Decision`] with the name of the policy alone.
#[derive(Debug, PartialEq)]
enum Told {
    Allow,
    Deny(Option<String>),
    WouldDeny(Option<String>),
}

fn decide(policies: &PolicySet, facts: &Facts<'_>) -> Told {
    let name = |by: Option<By<'_>>| by.map(|by| by.policy.name.to_string());
    match super::decide(policies, facts) {
        Decision::Allow(_) => Told::Allow,
        Decision::Deny(by) => Told::Deny(name(by)),
        Decision::WouldDeny(by) => Told::WouldDeny(name(by)),
    }
}

fn policy(name: &str, dry_run: bool, from: Vec<Source>, to: Vec<Operation>) -> Policy {
    Policy { name: name.into(), dry_run, rules: vec![Rule { from, to }] }
}

fn exact(text: &str) -> Vec<TextMatch> {
    vec![TextMatch::Exact(text.to_owned())]
}

fn prefix(text: &str) -> Vec<TextMatch> {
    vec![TextMatch::Prefix(text.to_owned())]
}

fn request<'f>(principal: Option<&'f str>, method: &'f str, path: &str) -> Facts<'f> {
    Facts {
        principal,
        namespace: principal.map(|_| "shop"),
        ip: [10, 0, 0, 7].into(),
        port: 8080,
        http: Some(HttpFacts { method, path: Readings::of(path), host: host("API.shop.:80") }),
    }
}

fn opaque() -> Facts<'static> {
    Facts { http: None, ..request(Some(WEB), "", "/") }
}

const WEB: &str = "spiffe://mesh/ns/shop/sa/web";

#[test]
fn without_policies_all_is_allowed_and_a_deny_wins_over_an_allow() {
    let mut policies = PolicySet::default();
    assert_eq!(decide(&policies, &request(None, "GET", "/")), Told::Allow);
    policies.allow.push(policy("allow", false, vec![], vec![]));
    let writes = Operation { methods: exact("DELETE"), ..Operation::default() };
    policies.deny.push(policy("no-delete", false, vec![], vec![writes]));
    assert_eq!(decide(&policies, &request(None, "GET", "/")), Told::Allow);
    assert_eq!(decide(&policies, &request(None, "DELETE", "/")), Told::Deny(Some("no-delete".into())));
}

#[test]
fn an_allow_policy_denies_whoever_it_does_not_name() {
    let web = Source { principals: exact(WEB), ..Source::default() };
    let policies = PolicySet { deny: vec![], allow: vec![policy("web", false, vec![web], vec![])] };
    assert_eq!(decide(&policies, &request(Some(WEB), "GET", "/")), Told::Allow);
    assert_eq!(decide(&policies, &request(Some("spiffe://mesh/ns/shop/sa/b"), "GET", "/")), Told::Deny(None));
    assert_eq!(decide(&policies, &request(None, "GET", "/")), Told::Deny(None));
}

#[test]
fn a_negative_condition_alone_matches_a_caller_without_identity() {
    let others = Source { not_namespaces: exact("shop"), ..Source::default() };
    let policies = PolicySet { deny: vec![policy("only-shop", false, vec![others], vec![])], allow: vec![] };
    assert_eq!(decide(&policies, &request(Some(WEB), "GET", "/")), Told::Allow);
    assert!(matches!(decide(&policies, &request(None, "GET", "/")), Told::Deny(_)));
}

#[test]
fn no_spelling_of_a_denied_path_gets_through() {
    let admin = Operation { paths: prefix("/admin"), ..Operation::default() };
    let policies = PolicySet { deny: vec![policy("admin", false, vec![], vec![admin])], allow: vec![] };
    for path in ["/admin", "//admin/x", "/a/../admin", "/%61dmin", "/a/..%2fadmin", "/admin/..%2fa", "/./admin"] {
        assert!(matches!(decide(&policies, &request(None, "GET", path)), Told::Deny(_)), "{path}");
    }
    assert_eq!(decide(&policies, &request(None, "GET", "/a")), Told::Allow);
}

#[test]
fn an_allowed_path_is_allowed_in_every_reading_only() {
    let public = Operation { paths: prefix("/public/"), ..Operation::default() };
    let policies = PolicySet { deny: vec![], allow: vec![policy("public", false, vec![], vec![public])] };
    assert_eq!(decide(&policies, &request(None, "GET", "/public/a")), Told::Allow);
    for path in ["/public/../admin", "/public/..%2fadmin", "/admin/..%2fpublic/x"] {
        assert_eq!(decide(&policies, &request(None, "GET", path)), Told::Deny(None), "{path}");
    }
}

#[test]
fn opaque_bytes_match_no_allow_with_http_fields_and_every_deny_with_them() {
    let reads = || Operation { methods: exact("GET"), ..Operation::default() };
    let allow = PolicySet { deny: vec![], allow: vec![policy("reads", false, vec![], vec![reads()])] };
    assert_eq!(decide(&allow, &opaque()), Told::Deny(None));
    let deny = PolicySet { deny: vec![policy("reads", false, vec![], vec![reads()])], allow: vec![] };
    assert!(matches!(decide(&deny, &opaque()), Told::Deny(_)));
    let port = Operation { ports: vec![8080], ..Operation::default() };
    let by_port = PolicySet { deny: vec![], allow: vec![policy("port", false, vec![], vec![port])] };
    assert_eq!(decide(&by_port, &opaque()), Told::Allow);
}

#[test]
fn networks_and_hosts_are_matched() {
    let inside = Source { ip_blocks: vec!["10.0.0.0/24".parse().unwrap()], ..Source::default() };
    let api = Operation { hosts: exact("api.shop"), ..Operation::default() };
    let policies = PolicySet { deny: vec![], allow: vec![policy("a", false, vec![inside], vec![api])] };
    assert_eq!(decide(&policies, &request(None, "GET", "/")), Told::Allow);
    let outside = Facts { ip: [10, 0, 1, 7].into(), ..request(None, "GET", "/") };
    assert_eq!(decide(&policies, &outside), Told::Deny(None));
}

#[test]
fn dry_run_decides_nothing_and_tells_what_it_would() {
    let policies = PolicySet { deny: vec![policy("try", true, vec![], vec![])], allow: vec![] };
    assert_eq!(decide(&policies, &request(None, "GET", "/")), Told::WouldDeny(Some("try".into())));
    let nobody = Source { principals: exact("x"), ..Source::default() };
    let policies = PolicySet { deny: vec![], allow: vec![policy("try", true, vec![nobody], vec![])] };
    assert_eq!(decide(&policies, &request(None, "GET", "/")), Told::WouldDeny(None));
}

#[test]
fn a_host_is_compared_without_port_case_and_trailing_dot() {
    assert_eq!(host("Api.Shop.:8080"), "api.shop");
    assert_eq!(host("[::1]:80"), "[::1]");
    assert_eq!(host("[::1]"), "[::1]");
}

#[test]
fn the_rule_that_decided_is_told() {
    let only = |method| Operation { methods: exact(method), ..Operation::default() };
    let rules = ["GET", "PUT"].map(|method| Rule { from: vec![], to: vec![only(method)] });
    let by = |action: &str| Policy { name: action.into(), dry_run: false, rules: rules.into_iter().collect() };
    let allow = PolicySet { deny: vec![], allow: vec![by("allow")] };
    let facts = request(None, "PUT", "/");
    let decision = super::decide(&allow, &facts);
    assert_eq!((decision.name(), decision.by().map(|by| by.rule)), ("allow", Some(1)));
    assert_eq!(miss(&allow.allow[0].rules[0], &facts, Effect::Allow), Some(Part::To));
}
