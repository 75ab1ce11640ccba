//! What routes do to requests, as the caller and the application see it, and what their statuses say.

use std::net::SocketAddr;

use heddle::pods::Netns;
use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::installed::Heddle;
use heddle_tests::talk::{self, Response};
use serde_json::{Value, json};

use crate::seen::{APPLICATIONS, told};

#[test]
fn what_filters_do_is_what_the_caller_and_the_application_see() {
    let cluster = Cluster::running();
    Heddle::installed(&cluster);
    let shop = cluster.namespace_labelled("shop", &[("heddle.dev/inject", "enabled")]);
    shop.apply(APPLICATIONS);
    shop.apply(FILTERS);
    shop.rolled_out("deployment/api");
    shop.wait("pod/client", "condition=Ready");
    let network = shop.network("client");
    let service = shop.get("service/api")["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    let client = Client { network, service: SocketAddr::new(service, 80) };
    eventually("the route is in force", || (client.get("/redirect/scheme").status() == 302).then_some(()));

    // Redirects: what is not named stays as the client wrote it, and a scheme's own port is not written.
    for (path, status, location) in [
        ("/redirect/scheme?a=b", 302, "https://api/redirect/scheme?a=b"),
        ("/redirect/port", 301, "http://api:8443/redirect/port"),
        ("/redirect/host/x", 302, "http://shop.example.com/redirect/host/x"),
        ("/redirect/full/x?a=b", 303, "http://api/elsewhere?a=b"),
        ("/redirect/prefix/x/y?a=b", 307, "http://api/here/x/y?a=b"),
        ("/redirect/prefix", 307, "http://api/here"),
        ("/redirect/all/x", 308, "https://shop.example.com:8443/there/x"),
    ] {
        let response = client.get(path);
        assert_eq!((response.status(), response.field("location")), (status, Some(location)), "{path}");
    }

    // Rewrites: the application is asked for the new path, at the new host; the query stays.
    for (path, host, seen, query) in [
        ("/rewrite/full/x?a=b", "api", "", "a=b"),
        ("/rewrite/prefix/x/y?a=b", "api", "/x/y", "a=b"),
        ("/rewrite/prefix", "api", "", ""),
        ("/rewrite/host/x", "shop.example.com", "/x", ""),
    ] {
        let response = client.get(path);
        assert_eq!(response.status(), 200, "{path}");
        let told = |name| told(&response.body, name);
        let all = (told("HTTP_HOST"), told("SCRIPT_NAME"), told("PATH_INFO"), told("QUERY_STRING"));
        assert_eq!(all, (host, "/cgi-bin/seen", seen, query), "{path}: {}", response.body);
    }

    // Header changes: first a rule's, then its backend's.
    let response = client.get_with("/headers/x", "X-Set: theirs\r\nX-Added: theirs\r\nX-Gone: theirs\r\n");
    let told = |name| told(&response.body, name);
    assert_eq!((told("HTTP_X_SET"), told("HTTP_X_GONE"), told("HTTP_X_BACKEND")), ("ours", "", "yes"));
    assert!(told("HTTP_X_ADDED").contains("ours"), "{}", response.body);
    assert_eq!((response.field("x-answer-set"), response.field("x-answer-gone")), (Some("ours"), None));
    let added: Vec<_> =
        response.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-answer-added")).collect();
    assert_eq!(added.len(), 2, "{:?}", response.fields);

    // Connections: where nothing is, they end.
    let sql = SocketAddr::new(client.service.ip(), 5432);
    let get = || talk::try_from(&client.network, sql, "GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n");
    let tcp = |backend: &str| {
        route("TCPRoute", "sql", 5432, &[json!({ "backendRefs": [{ "name": backend, "port": 5432 }] })])
    };
    shop.apply(&tcp("nobody").to_string());
    eventually("connections lead nowhere", || get().is_empty().then_some(()));
    shop.apply(&tcp("api").to_string());
    eventually("connections arrive", || String::from_utf8_lossy(&get()).ends_with("good\n").then_some(()));
}

#[test]
fn every_condition_of_a_route_says_what_is_wrong_and_goes_when_it_is_right() {
    let cluster = Cluster::running();
    Heddle::installed(&cluster);
    let (shop, other) = (cluster.namespace("shop"), cluster.namespace("other"));
    shop.apply(APPLICATIONS);
    other.apply(APPLICATIONS);
    let api = json!({ "name": "api", "port": 80 });
    let rule = |backend: Value| json!({ "backendRefs": [backend] });
    let mut far = api.clone();
    far["namespace"] = json!(other.name);
    let unsupported = json!({ "filters": [{ "type": "ExtensionRef",
        "extensionRef": { "group": "example.com", "kind": "Magic", "name": "wand" } }], "backendRefs": [api] });
    let cases = [
        ("fine", 80, vec![rule(api.clone())], ("Accepted", "True", "Accepted")),
        ("resolved", 80, vec![rule(api.clone())], ("ResolvedRefs", "True", "ResolvedRefs")),
        (
            "no-backend",
            80,
            vec![rule(json!({ "name": "nobody", "port": 80 }))],
            ("ResolvedRefs", "False", "BackendNotFound"),
        ),
        ("no-port", 80, vec![rule(json!({ "name": "api", "port": 81 }))], ("ResolvedRefs", "False", "BackendNotFound")),
        (
            "kind",
            80,
            vec![rule(json!({ "name": "answers", "kind": "ConfigMap", "port": 80 }))],
            ("ResolvedRefs", "False", "InvalidKind"),
        ),
        (
            "protocol",
            80,
            vec![rule(json!({ "name": "api", "port": 5432 }))],
            ("ResolvedRefs", "False", "UnsupportedProtocol"),
        ),
        ("grant", 80, vec![rule(far)], ("ResolvedRefs", "False", "RefNotPermitted")),
        ("parent", 82, vec![rule(api.clone())], ("Accepted", "False", "NoMatchingParent")),
        ("partly", 80, vec![rule(api.clone()), unsupported.clone()], ("PartiallyInvalid", "True", "UnsupportedValue")),
        ("none", 80, vec![unsupported], ("Accepted", "False", "UnsupportedValue")),
    ];
    for (name, port, rules, _) in &cases {
        shop.apply(&route("HTTPRoute", name, *port, rules).to_string());
    }
    for (name, _, _, expected) in &cases {
        let condition = condition(&shop, &format!("httproute/{name}"), *expected);
        assert!(!condition["message"].as_str().unwrap().is_empty(), "{condition}");
    }
    // What cannot be said of a whole route is not said: neither of one that is fine, nor of one that is not accepted.
    for name in ["fine", "none"] {
        assert!(find(&shop, &format!("httproute/{name}"), "PartiallyInvalid").is_none(), "{name}");
    }

    other.apply(&GRANT.replace("SHOP", &shop.name));
    condition(&shop, "httproute/grant", ("ResolvedRefs", "True", "ResolvedRefs"));
    for (name, _, _, _) in &cases[2..] {
        shop.apply(&route("HTTPRoute", name, 80, &[rule(api.clone())]).to_string());
    }
    for (name, _, _, _) in &cases[2..] {
        condition(&shop, &format!("httproute/{name}"), ("Accepted", "True", "Accepted"));
        condition(&shop, &format!("httproute/{name}"), ("ResolvedRefs", "True", "ResolvedRefs"));
        eventually("no rule is left out", || {
            find(&shop, &format!("httproute/{name}"), "PartiallyInvalid").is_none().then_some(())
        });
    }

    // gRPC's routes have the same; one of them keeps routes of HTTP from its port.
    shop.apply(&route("GRPCRoute", "calls", 80, &[rule(json!({ "name": "nobody", "port": 80 }))]).to_string());
    condition(&shop, "grpcroute/calls", ("Accepted", "True", "Accepted"));
    condition(&shop, "grpcroute/calls", ("ResolvedRefs", "False", "BackendNotFound"));
    condition(&shop, "httproute/fine", ("Accepted", "False", "Conflicted"));
    shop.kubectl(["delete", "grpcroute/calls"]);
    condition(&shop, "httproute/fine", ("Accepted", "True", "Accepted"));

    // So have those of connections; names tell them apart, and so come before what takes all.
    let to = |name: &str| [rule(json!({ "name": name, "port": 5432 }))];
    shop.apply(&route("TCPRoute", "all", 5432, &to("nobody")).to_string());
    condition(&shop, "tcproute/all", ("Accepted", "True", "Accepted"));
    condition(&shop, "tcproute/all", ("ResolvedRefs", "False", "BackendNotFound"));
    let mut named = route("TLSRoute", "named", 5432, &to("api"));
    named["spec"]["hostnames"] = json!(["db.example.com"]);
    shop.apply(&named.to_string());
    condition(&shop, "tlsroute/named", ("Accepted", "True", "Accepted"));
    condition(&shop, "tcproute/all", ("Accepted", "False", "Conflicted"));
}

struct Client {
    network: Netns,
    service: SocketAddr,
}

impl Client {
    fn get(&self, path: &str) -> Response {
        self.get_with(path, "")
    }

    fn get_with(&self, path: &str, fields: &str) -> Response {
        let request = format!("GET {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n{fields}\r\n");
        talk::request_from(&self.network, self.service, &request)
    }
}

/// A route of the Service `api`.
fn route(kind: &str, name: &str, port: u16, rules: &[Value]) -> Value {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    json!({
        "apiVersion": format!("gateway.networking.k8s.io/{version}"),
        "kind": kind,
        "metadata": { "name": name },
        "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "api", "port": port }], "rules": rules },
    })
}

/// The condition (type, status, reason), once our entry has it of the route as it is now.
fn condition(namespace: &Namespace<'_>, route: &str, (kind, status, reason): (&str, &str, &str)) -> Value {
    eventually(&format!("{route} is {kind}: {status}, {reason}"), || {
        let condition = find(namespace, route, kind)?;
        (condition["status"] == status && condition["reason"] == reason).then_some(condition)
    })
}

fn find(namespace: &Namespace<'_>, route: &str, kind: &str) -> Option<Value> {
    let object = namespace.get(route);
    let entries = object["status"]["parents"].as_array()?;
    let ours = entries.iter().find(|entry| entry["controllerName"] == "heddle.dev/control-plane")?;
    let of_now = |condition: &&Value| condition["observedGeneration"] == object["metadata"]["generation"];
    ours["conditions"].as_array()?.iter().filter(of_now).find(|condition| condition["type"] == kind).cloned()
}

const FILTERS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: filters }
spec:
  parentRefs: [{ group: "", kind: Service, name: api, port: 80 }]
  rules:
    - matches: [{ path: { value: /redirect/scheme } }]
      filters: [{ type: RequestRedirect, requestRedirect: { scheme: https } }]
    - matches: [{ path: { value: /redirect/port } }]
      filters: [{ type: RequestRedirect, requestRedirect: { port: 8443, statusCode: 301 } }]
    - matches: [{ path: { value: /redirect/host } }]
      filters: [{ type: RequestRedirect, requestRedirect: { hostname: shop.example.com } }]
    - matches: [{ path: { value: /redirect/full } }]
      filters: [{ type: RequestRedirect, requestRedirect: { path: { type: ReplaceFullPath, replaceFullPath: /elsewhere }, statusCode: 303 } }]
    - matches: [{ path: { value: /redirect/prefix } }]
      filters: [{ type: RequestRedirect, requestRedirect: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /here }, statusCode: 307 } }]
    - matches: [{ path: { value: /redirect/all } }]
      filters:
        - type: RequestRedirect
          requestRedirect:
            scheme: https
            hostname: shop.example.com
            port: 8443
            path: { type: ReplacePrefixMatch, replacePrefixMatch: /there }
            statusCode: 308
    - matches: [{ path: { value: /rewrite/full } }]
      filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: /cgi-bin/seen } } }]
      backendRefs: [{ name: api, port: 80 }]
    - matches: [{ path: { value: /rewrite/prefix } }]
      filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /cgi-bin/seen } } }]
      backendRefs: [{ name: api, port: 80 }]
    - matches: [{ path: { value: /rewrite/host } }]
      filters:
        - type: URLRewrite
          urlRewrite: { hostname: shop.example.com, path: { type: ReplacePrefixMatch, replacePrefixMatch: /cgi-bin/seen } }
      backendRefs: [{ name: api, port: 80 }]
    - matches: [{ path: { value: /headers } }]
      filters:
        - type: URLRewrite
          urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /cgi-bin/seen } }
        - type: RequestHeaderModifier
          requestHeaderModifier:
            set: [{ name: X-Set, value: ours }]
            add: [{ name: X-Added, value: ours }]
            remove: [X-Gone]
        - type: ResponseHeaderModifier
          responseHeaderModifier:
            set: [{ name: X-Answer-Set, value: ours }]
            add: [{ name: X-Answer-Added, value: ours }]
            remove: [X-Answer-Gone]
      backendRefs:
        - name: api
          port: 80
          filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: X-Backend, value: "yes" }] } }]
"#;

const GRANT: &str = "
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: { name: shop }
spec:
  from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: SHOP }]
  to: [{ group: '', kind: Service }]
";
