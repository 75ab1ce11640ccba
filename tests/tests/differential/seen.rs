//! What client and application see of a request, without what may differ.

use heddle_tests::h2c;
use heddle_tests::wire::Message;
use serde_json::Value;

/// An outcome. Two data planes agree if they give the same ones, each as often as chance allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Of the response; 0 if the connection was closed instead.
    pub status: u16,
    /// Of the response, in order of their names.
    pub fields: Vec<String>,
    /// The Service that answered; none if a sidecar did.
    pub service: Option<String>,
    /// Method and target as the application was asked.
    pub line: String,
    /// Fields of the request as the application saw them, in order of their names.
    pub told: Vec<String>,
    /// How often it came to an application.
    pub attempts: u32,
}

impl Seen {
    /// What a response in HTTP/1.1 says.
    pub fn of_http(response: &Message) -> Self {
        let fields = response.fields.iter().map(|(name, value)| format!("{}: {value}", name.to_lowercase()));
        Self::of(response.status(), fields.collect(), &response.body)
    }

    /// What the response to a gRPC call says, wherever its status stands: a proxy may answer by trailers only.
    pub fn of_grpc(response: &h2c::Response) -> Self {
        let fields = response.head.headers.iter().chain(response.trailers.iter().flatten());
        let fields = fields.map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
        let message = response.body.get(5..).unwrap_or_default();
        Self::of(response.status(), fields.collect(), message)
    }

    fn of(status: u16, mut fields: Vec<String>, body: &[u8]) -> Self {
        fields.iter_mut().for_each(|field| *field = without_endpoint(without_port(field)));
        // Envoy tells a session also of an endpoint that did not answer in time.
        if status == 504 {
            fields.retain(|field| !field.ends_with(SOME_ENDPOINT) && !field.contains(&format!("{SOME_ENDPOINT};")));
        }
        fields.sort();
        let told: Value = serde_json::from_slice(body).unwrap_or_default();
        let list = told["fields"].as_array().into_iter().flatten().filter_map(Value::as_str).map(without_hash);
        let service = told["service"].as_str().map(ToOwned::to_owned);
        // Only a preflight is answered so without an application.
        if status == 200 && service.is_none() {
            fields = of_preflight(fields);
        }
        Self {
            status,
            fields: without(fields, &RESPONSE),
            service,
            line: told["line"].as_str().unwrap_or_default().to_owned(),
            told: without(list.collect(), &REQUEST),
            attempts: 0,
        }
    }
}

/// Each client has a certificate of its own, which `x-forwarded-client-cert` names by its hash.
fn without_hash(field: &str) -> String {
    let parts = field.split(';').filter(|part| !part.starts_with("Hash="));
    parts.collect::<Vec<_>>().join(";")
}

/// Envoy leaves a `:80` in the Host that the client wrote there; Gateway API wants none in the Location
/// (`HTTPRequestRedirectFilter.port`).
fn without_port(field: &str) -> String {
    match field.strip_prefix("location: http://").and_then(|rest| rest.split_once(":80/")) {
        Some((host, path)) if !host.contains('/') => format!("location: http://{host}/{path}"),
        _ => field.to_owned(),
    }
}

/// Envoy exposes fields in the answer to a preflight too, where no browser reads that, and tells pages that may not ask what
/// they could ask otherwise (Fetch, CORS-preflight fetch).
fn of_preflight(mut fields: Vec<String>) -> Vec<String> {
    let let_in = fields.iter().any(|field| field.starts_with("access-control-allow-origin"));
    let kept = |field: &String| let_in && !field.starts_with("access-control-expose-headers");
    fields.retain(|field| !field.starts_with("access-control-") || kept(field));
    fields
}

/// Each data plane writes an endpoint into a session in its own way.
fn without_endpoint(field: String) -> String {
    match field.split_once(": ") {
        Some(("set-cookie", cookie)) => {
            let (pair, attributes) = cookie.split_once(';').unwrap_or((cookie, ""));
            let name = pair.split('=').next().unwrap_or_default();
            format!("set-cookie: {name}={SOME_ENDPOINT};{attributes}")
        }
        Some((name, _)) if SESSIONS.iter().any(|begin| name.starts_with(begin)) => format!("{name}: {SOME_ENDPOINT}"),
        _ => field,
    }
}

fn without(mut fields: Vec<String>, differences: &[(&str, &str)]) -> Vec<String> {
    fields.retain(|field| !differences.iter().any(|(begin, _)| field.starts_with(begin)));
    fields
}

/// Stands for the endpoint of a session.
const SOME_ENDPOINT: &str = "<endpoint>";
/// How names of generated sessions begin.
const SESSIONS: [&str; 3] = ["cart", "x-session", "session-"];

/// How fields of a response begin that differ with Envoy, and why.
const RESPONSE: [(&str, &str); 10] = [
    ("date: ", "Envoy writes one into every response"),
    ("x-heddle-error: ", "the cause by name is the sidecar's own; Envoy has none"),
    ("x-heddle-answer: ", "what made an answer is the sidecar's own word too"),
    ("link: <https://github.com/heddle-mesh/heddle/", "and so is the page that explains it"),
    ("content-type: text/plain", "the words of a sidecar's own answer are its own"),
    ("vary: origin", "Envoy does not say that a response is for one origin"),
    ("grpc-message: ", "so are they in gRPC"),
    ("content-length: ", "so is their length; an application's body is compared itself"),
    ("transfer-encoding: ", "framing is each hop's own"),
    ("connection: ", "so is this"),
];

/// The same for fields of a request.
const REQUEST: [(&str, &str); 7] = [
    ("content-length: ", "Envoy says of more requests without a body that they have none"),
    ("x-id: ", "the test's own"),
    ("x-forwarded-proto: ", "Envoy writes one into every request"),
    ("x-request-id: ", "random"),
    ("x-heddle-attempt: ", "Envoy's count has another name, and stands in first attempts too"),
    ("grpc-timeout: ", "Envoy's field for it is deprecated, and warns in its log for each route"),
    ("traceparent: ", "Envoy begins a trace only where a tracer is configured"),
];
