//! A case: manifests, and requests that are sent with them in force.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Manifests and requests; kept cases are files of this.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Objects of the namespace `shop`, besides those of the world.
    pub manifests: Vec<Value>,
    /// In order.
    pub asks: Vec<Ask>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Who sends it, and how.
    #[serde(default)]
    pub by: By,
    /// One of [`parents`].
    pub service: String,
    /// As it is written.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The Host field.
    pub host: String,
    /// Fields in order.
    pub fields: Vec<(String, String)>,
    /// How often it is sent: once, or as often as shares can be told by.
    pub times: u32,
    /// The field of responses that tells the client's session, which it says again. It is asked then only how often it is told
    /// one, and how many pods it sees from there on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Who sends a request, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// HTTP/1.1 of an application with a sidecar, to the Service's address.
    #[default]
    Http,
    /// A gRPC call of the same.
    Grpc,
    /// HTTP/1.1 of one without, to the address of the Service's first pod.
    Stranger,
}

impl Ask {
    /// The request in HTTP/1.1, known to the application by `id`.
    pub fn bytes(&self, id: &str) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: {}\r\nx-id: {id}\r\n", self.method, self.target, self.host);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// The same, so often; one in a session asks what it asked.
    pub fn again(&self, times: u32) -> Self {
        Self { times: if self.session.is_some() { self.times } else { times }, ..self.clone() }
    }

    /// The request in HTTP/2.
    pub fn call(&self, id: &str) -> http::Request<()> {
        let uri = format!("http://{}{}", self.host, self.target);
        let mut call = http::Request::post(uri).header("x-id", id).header("te", "trailers");
        call = call.header("content-type", "application/grpc");
        for (name, value) in &self.fields {
            call = call.header(name, value);
        }
        call.body(()).unwrap()
    }
}

impl Case {
    /// How often what differed in so many rounds is asked again to tell difference from chance.
    pub fn again(&self, rounds: u32) -> u32 {
        let rules = self.manifests.iter().filter_map(|manifest| manifest["spec"]["rules"].as_array()).flatten();
        let chooses = |rule: &Value| rule["backendRefs"].as_array().is_some_and(|backends| backends.len() > 1);
        if rules.into_iter().any(chooses) { rounds * MANY } else { 1 }
    }

    /// Whether mutual TLS between sidecars is off.
    pub fn disabled(&self) -> bool {
        self.manifests
            .iter()
            .any(|manifest| manifest["kind"] == "MeshTLSPolicy" && manifest["spec"]["mode"] == "DISABLE")
    }
}

/// Services with workloads, each at its place in the list plus one: 10.96.0.1 and so on.
pub const SERVICES: [&str; 3] = ["alpha", "beta", CALLS];
/// The one whose routes are GRPCRoutes.
pub const CALLS: &str = "gamma";
/// A Service of another namespace, after them in the same way. Its routes in `shop` are those of a consumer.
pub const AWAY: &str = "delta";
/// Its namespace.
pub const STORE: &str = "store";
/// A Service that gets copies of requests, and nothing else.
pub const SHADOW: &str = "shadow";
/// A Service that selects nobody.
pub const EMPTY: &str = "empty";
/// A Service that is not there.
pub const MISSING: &str = "missing";
/// How often a request is sent whose backend is chosen by weight. With the least share a generated weight can have, 30 of
/// 210, a backend is never chosen once in 200,000 times, and once in 5·10¹⁰ times when asked twice as often.
pub const MANY: u32 = 80;

/// What tells that a case is in force: each Service leads [`allowed`] to an application and says so in `x-case`, and each
/// workload refuses [`denied`].
pub fn markers(number: u64) -> Vec<Value> {
    let deny = json!({ "action": "DENY", "rules": [{ "to": [{ "paths": [denied(number)] }] }] });
    let deny = object("heddle.dev/v1alpha1", "AuthorizationPolicy", "marker", deny);
    parents().map(|(parent, _)| marker(parent, number)).chain([deny]).collect()
}

/// A request that [`markers`] answer.
pub fn marker_ask(service: &str, number: u64) -> Ask {
    let (by, target) = (by(service), allowed(number));
    let method = if by == By::Grpc { "POST" } else { "GET" }.to_owned();
    Ask {
        by,
        service: service.to_owned(),
        method,
        target,
        host: service.to_owned(),
        fields: Vec::new(),
        times: 1,
        session: None,
    }
}

/// How a Service's routes want to be spoken to.
pub fn by(service: &str) -> By {
    if service == CALLS { By::Grpc } else { By::Http }
}

fn marker(parent: &str, number: u64) -> Value {
    let (kind, matched) = match parent {
        CALLS => ("GRPCRoute", json!({ "method": { "service": "case", "method": number.to_string() } })),
        _ => ("HTTPRoute", json!({ "path": { "type": "Exact", "value": allowed(number) } })),
    };
    let says = json!({ "set": [{ "name": "x-case", "value": number.to_string() }] });
    let backend = if parent == AWAY { SERVICES[0] } else { parent };
    let rule = json!({
        "matches": [matched],
        "filters": [{ "type": "ResponseHeaderModifier", "responseHeaderModifier": says }],
        "backendRefs": [{ "name": backend, "port": 80 }],
    });
    let spec = json!({ "parentRefs": [parent_ref(parent)], "rules": [rule] });
    object("gateway.networking.k8s.io/v1", kind, &format!("marker-{parent}"), spec)
}

/// Everything a route of a case may have as its parent, and the last octet of its address.
pub fn parents() -> impl Iterator<Item = (&'static str, u8)> {
    SERVICES.into_iter().chain([AWAY]).zip(1..)
}

/// As a route of `shop` names it.
pub fn parent_ref(service: &str) -> Value {
    let namespace = if service == AWAY { STORE } else { "shop" };
    json!({ "group": "", "kind": "Service", "name": service, "namespace": namespace, "port": 80 })
}

/// An object of `shop`.
pub fn object(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name, "namespace": "shop" }, "spec": spec })
}

/// The path that every policy of a case lets in.
pub fn allowed(number: u64) -> String {
    format!("/case/{number}")
}

/// The path that a case's own policy keeps out.
pub fn denied(number: u64) -> String {
    format!("/denied/{number}")
}

/// The manifests of a case with its markers.
pub fn in_force(case: &Case, number: u64) -> String {
    let mut all = case.manifests.clone();
    for policy in all.iter_mut().filter(|manifest| manifest["kind"] == "AuthorizationPolicy") {
        let_in(policy, &allowed(number));
    }
    all.extend(markers(number));
    let documents: Vec<String> = all.iter().map(Value::to_string).collect();
    documents.join("\n---\n")
}

/// Keeps a policy from keeping out what asks for `path`.
fn let_in(policy: &mut Value, path: &str) {
    let denies = policy["spec"]["action"] == "DENY";
    let Some(rules) = policy["spec"]["rules"].as_array_mut() else { return };
    if !denies {
        rules.push(json!({ "to": [{ "paths": [path] }] }));
        return;
    }
    for rule in rules {
        if rule["to"].is_null() {
            rule["to"] = json!([{}]);
        }
        for operation in rule["to"].as_array_mut().into_iter().flatten() {
            match operation["notPaths"].as_array_mut() {
                Some(paths) => paths.push(json!(path)),
                None => operation["notPaths"] = json!([path]),
            }
        }
    }
}

/// A namespace with a Service that selects nobody.
pub fn store(number: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{ name: {STORE} }}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {AWAY}, namespace: {STORE} }}\n\
         spec:\n  clusterIP: 10.96.0.{number}\n  selector: {{ app: nobody }}\n  ports: [{{ port: 80, targetPort: 8080 }}]\n"
    )
}
