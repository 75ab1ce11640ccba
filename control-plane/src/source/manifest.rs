//! The text of a manifest, YAML or JSON, one document or many, to objects.
//!
//! Errors name the line, the field, the value and what would be right. Fields nobody knows are errors, as for
//! `kubectl --validate=strict`, except below `status` and `metadata.managedFields`, which nobody writes by hand.
//! Kinds of other groups are left alone and named.

mod located;

use std::fmt;
use std::sync::Arc;

use gateway_api::experimental::grpcroutes::GrpcRoute;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::tlsroutes::TlsRoute;
use k8s_openapi::api::core::v1::{self as core, Service};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::{self, FieldError};
use crate::objects::{Kind, Object, Route};
use located::Located;

/// What a manifest holds.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    /// In the order they stand there.
    pub objects: Vec<Parsed>,
    /// Documents that are none of our business, as `apps/v1 Deployment api`.
    pub ignored: Vec<String>,
}

/// An object with where it stands and what it says, to tell whether it changed.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// Line of its first field, from 1.
    pub line: u64,
    /// As it was written.
    pub value: Arc<Value>,
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// From 1; 0 if unknown.
    pub line: u64,
    /// The object, as `Service shop/api`, if it got that far.
    pub object: Option<String>,
    /// The field's path, as `spec.ports[0].port`; empty where the text itself is broken.
    pub field: String,
    /// What stands there.
    pub value: String,
    /// What is wrong, and what would be right.
    pub remedy: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        if !self.value.is_empty() {
            write!(f, "`{}`: ", self.value)?;
        }
        f.write_str(&self.remedy)
    }
}

/// Reads `text`. The first error ends it: half a file is never used.
pub fn parse(text: &str) -> Result<Manifest, Error> {
    let mut manifest = Manifest::default();
    for document in located::documents(text)? {
        if document.is_null() {
            continue;
        }
        // `kubectl get -o yaml` wraps what it prints.
        if document.text("kind") == Some("List") && document.text("apiVersion") == Some("v1") {
            let Some(items) = document.items("items") else {
                return Err(document.error("items", "a List holds its objects in the list `items`"));
            };
            for item in items {
                one(item, &mut manifest)?;
            }
        } else {
            one(&document, &mut manifest)?;
        }
        if manifest.objects.len() > MAX_OBJECTS {
            return Err(document.error("", &format!("more than {MAX_OBJECTS} objects in one file: split it")));
        }
    }
    Ok(manifest)
}

/// The documents of `text` as they are, whatever they hold; an empty one is null.
///
/// # Errors
/// If the text is no YAML, with the line.
pub fn documents(text: &str) -> Result<Vec<Value>, Error> {
    Ok(located::documents(text)?.iter().map(Located::value).collect())
}

/// The line of `entry`, by place or by name, in the list of rules or limits of the object that begins in `line`; `None`: there is
/// no such.
pub fn line_of_entry(text: &str, line: u64, entry: &str) -> Option<u64> {
    let documents = located::documents(text).ok()?;
    let items = documents.iter().flat_map(|document| document.items("items").unwrap_or_default());
    let object = documents.iter().chain(items).find(|object| object.line() == line && object.text("kind").is_some())?;
    let spec = object.value();
    let (list, entries) =
        ["rules", "limits"].into_iter().find_map(|list| Some((list, spec["spec"][list].as_array()?)))?;
    let named = entries.iter().position(|one| one["name"].as_str() == Some(entry));
    let index = named.or_else(|| entry.parse().ok().filter(|index| *index < entries.len()))?;
    Some(object.line_of(&format!("spec.{list}[{index}]")))
}

fn one(document: &Located, manifest: &mut Manifest) -> Result<(), Error> {
    let Some(kind) = document.text("kind") else {
        return Err(document.error("kind", "every object names its kind, as `kind: Service`"));
    };
    let Some(version) = document.text("apiVersion") else {
        return Err(document.error("apiVersion", "every object names its API version, as `apiVersion: v1`"));
    };
    let name = document.path_text(&["metadata", "name"]).unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let Some(known) = known(version, kind) else {
        if group == api::GROUP {
            let remedy = "heddle.dev/v1alpha1 has AuthorizationPolicy, FaultInjection, MeshTLSPolicy, RateLimitPolicy, TrafficPolicy and Workload";
            let known_version = version == format!("{}/{}", api::GROUP, api::VERSION);
            return Err(document.error(if known_version { "kind" } else { "apiVersion" }, remedy));
        }
        manifest.ignored.push(format!("{version} {kind} {name}"));
        return Ok(());
    };
    if name.is_empty() {
        return Err(document.error("metadata.name", "every object has a name"));
    }
    if !is_name(name) {
        let remedy =
            "write lower-case letters, digits, `-` and `.`, at most 253, beginning and ending with a letter or digit";
        return Err(document.error("metadata.name", remedy));
    }
    if document.path_text(&["metadata", "namespace"]).is_some_and(|namespace| !is_name(namespace)) {
        return Err(document.error("metadata.namespace", "write lower-case letters, digits and `-`"));
    }
    let value = document.value();
    let object = read(known, document, &value)?;
    let problems = check(&object);
    if let Some(problem) = problems.into_iter().next() {
        return Err(Error {
            line: document.line_of(&problem.field),
            object: Some(document.name()),
            field: problem.field,
            value: problem.value,
            remedy: problem.remedy,
        });
    }
    manifest.objects.push(Parsed { object, line: document.line(), value: Arc::new(value) });
    Ok(())
}

/// The kind, if it is one of those that are read in a version that is understood.
fn known(version: &str, kind: &str) -> Option<Kind> {
    Some(match (version, kind) {
        ("v1", "Namespace") => Kind::Namespace,
        ("v1", "ServiceAccount") => Kind::ServiceAccount,
        ("v1", "Service") => Kind::Service,
        ("v1", "Pod") => Kind::Pod,
        ("discovery.k8s.io/v1", "EndpointSlice") => Kind::EndpointSlice,
        ("gateway.networking.k8s.io/v1", "HTTPRoute") => Kind::HttpRoute,
        ("gateway.networking.k8s.io/v1", "GRPCRoute") => Kind::GrpcRoute,
        ("gateway.networking.k8s.io/v1", "TLSRoute") => Kind::TlsRoute,
        ("gateway.networking.k8s.io/v1alpha2", "TCPRoute") => Kind::TcpRoute,
        ("gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", "ReferenceGrant") => {
            Kind::ReferenceGrant
        }
        ("heddle.dev/v1alpha1", "Workload") => Kind::Workload,
        ("heddle.dev/v1alpha1", "TrafficPolicy") => Kind::TrafficPolicy,
        ("heddle.dev/v1alpha1", "FaultInjection") => Kind::FaultInjection,
        ("heddle.dev/v1alpha1", "AuthorizationPolicy") => Kind::AuthorizationPolicy,
        ("heddle.dev/v1alpha1", "RateLimitPolicy") => Kind::RateLimitPolicy,
        ("heddle.dev/v1alpha1", "MeshTLSPolicy") => Kind::MeshTlsPolicy,
        _ => return None,
    })
}

fn read(kind: Kind, document: &Located, value: &Value) -> Result<Object, Error> {
    Ok(match kind {
        Kind::Namespace => Object::Namespace(Arc::new(typed(document, value)?)),
        Kind::ServiceAccount => Object::ServiceAccount(Arc::new(typed(document, value)?)),
        Kind::Service => Object::Service(Arc::new(typed(document, value)?)),
        Kind::Pod => {
            // What is kept of a pod is a part of it; what is written must still be a pod.
            typed::<core::Pod>(document, value)?;
            Object::Pod(Arc::new(deserialized(document, value)?))
        }
        Kind::EndpointSlice => Object::EndpointSlice(Arc::new(typed(document, value)?)),
        Kind::HttpRoute => {
            let route: HttpRoute = typed(document, value)?;
            Route::from_http(route).map_err(|e| document.error("spec", &e.to_string()))?.into()
        }
        Kind::GrpcRoute => {
            let route: GrpcRoute = typed(document, value)?;
            Route::from_grpc(route).map_err(|e| document.error("spec", &e.to_string()))?.into()
        }
        Kind::TlsRoute => {
            let route: TlsRoute = typed(document, value)?;
            Route::from_tls(route).map_err(|e| document.error("spec", &e.to_string()))?.into()
        }
        Kind::TcpRoute => {
            let route: TcpRoute = typed(document, value)?;
            Route::from_tcp(route).map_err(|e| document.error("spec", &e.to_string()))?.into()
        }
        Kind::ReferenceGrant => {
            // v1beta1 differs from v1 in its name only.
            let mut value = value.clone();
            if let Some(version) = value.get_mut("apiVersion") {
                *version = "gateway.networking.k8s.io/v1".into();
            }
            Object::ReferenceGrant(Arc::new(typed(document, &value)?))
        }
        Kind::Workload => Object::Workload(Arc::new(typed(document, value)?)),
        Kind::TrafficPolicy => Object::TrafficPolicy(Arc::new(typed(document, value)?)),
        Kind::FaultInjection => Object::FaultInjection(Arc::new(typed(document, value)?)),
        Kind::AuthorizationPolicy => Object::AuthorizationPolicy(Arc::new(typed(document, value)?)),
        Kind::RateLimitPolicy => Object::RateLimitPolicy(Arc::new(typed(document, value)?)),
        Kind::MeshTlsPolicy => Object::MeshTlsPolicy(Arc::new(typed(document, value)?)),
    })
}

/// The typed object, with everything that was written in it.
fn typed<T: DeserializeOwned + Serialize>(document: &Located, value: &Value) -> Result<T, Error> {
    let object: T = deserialized(document, value)?;
    let read = serde_json::to_value(&object).map_err(|error| document.error("", &error.to_string()))?;
    if let Some(field) = unknown_field(value, &read, "") {
        return Err(document.error(&field, "there is no such field: check its spelling and where it stands"));
    }
    Ok(object)
}

fn deserialized<T: DeserializeOwned>(document: &Located, value: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        document.error(if field == "." { "" } else { &field }, &error.inner().to_string())
    })
}

/// A field that was written and not read.
fn unknown_field(written: &Value, read: &Value, at: &str) -> Option<String> {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => written.iter().find_map(|(key, value)| {
            let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            if at == "status" || at == "metadata.managedFields" || is_empty(value) {
                return None;
            }
            match read.get(key) {
                Some(read) => unknown_field(value, read, &at),
                None if is_default(value) => None,
                None => Some(at),
            }
        }),
        (Value::Array(written), Value::Array(read)) => {
            let pairs = written.iter().zip(read).enumerate();
            pairs.into_iter().find_map(|(i, (written, read))| unknown_field(written, read, &format!("{at}[{i}]")))
        }
        _ => None,
    }
}

/// What may be left out when written again.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// `false` and `""` are left out by our own kinds where they are the default. A misspelt field with them changes nothing.
fn is_default(value: &Value) -> bool {
    *value == Value::Bool(false) || value == ""
}

/// What makes an object of a readable type unusable all the same.
fn check(object: &Object) -> Vec<FieldError> {
    match object {
        Object::Service(service) => service_errors(service),
        Object::Workload(workload) => workload.spec.check(),
        Object::TrafficPolicy(policy) => policy.spec.check(),
        Object::FaultInjection(fault) => fault.spec.check(),
        Object::AuthorizationPolicy(policy) => policy.spec.check(),
        Object::RateLimitPolicy(policy) => policy.spec.check(),
        Object::MeshTlsPolicy(policy) => policy.spec.check(),
        Object::Namespace(_)
        | Object::ServiceAccount(_)
        | Object::Pod(_)
        | Object::EndpointSlice(_)
        | Object::HttpRoute(_)
        | Object::GrpcRoute(_)
        | Object::TlsRoute(_)
        | Object::TcpRoute(_)
        | Object::ReferenceGrant(_) => Vec::new(),
    }
}

/// Nobody hands out cluster IPs here, as an API server would: the manifest says them.
fn service_errors(service: &Service) -> Vec<FieldError> {
    let mut found = Vec::new();
    let spec = service.spec.clone().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        return found;
    }
    let ips: Vec<_> =
        spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).filter(|ip| !ip.is_empty()).collect();
    if ips.is_empty() {
        let remedy = "give the address clients dial, from your own Service network, as `clusterIP: 10.96.0.10`; for a \
                      headless Service write `clusterIP: None`";
        found.push(FieldError::new("spec.clusterIP", "absent", remedy));
    }
    for ip in ips {
        if ip != "None" && ip.parse::<std::net::IpAddr>().is_err() {
            found.push(FieldError::new("spec.clusterIP", ip, "write an IPv4 or IPv6 address, or None"));
        }
    }
    let ports = spec.ports.unwrap_or_default();
    for (i, port) in ports.iter().enumerate() {
        if !(1..=65535).contains(&port.port) {
            found.push(FieldError::new(format!("spec.ports[{i}].port"), port.port, "give a port from 1 to 65535"));
        }
        if ports.len() > 1 && port.name.as_deref().unwrap_or_default().is_empty() {
            let remedy = "name each port where there are several, as `name: http`";
            found.push(FieldError::new(format!("spec.ports[{i}].name"), "absent", remedy));
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let twice = ports.iter().take(i).any(|other| {
            (other.port == port.port && other.protocol.as_deref().unwrap_or("TCP") == protocol)
                || (other.name == port.name && port.name.is_some())
        });
        if twice {
            found.push(FieldError::new(format!("spec.ports[{i}]"), port.port, "give each port and each name once"));
        }
    }
    found
}

/// DNS subdomain (RFC 1123), as Kubernetes asks of names.
fn is_name(name: &str) -> bool {
    let plain =
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'));
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    plain && name.len() <= 253 && ends(name.bytes().next()) && ends(name.bytes().next_back())
}

/// Objects in one file. Chosen: far above what people write by hand.
const MAX_OBJECTS: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> Error {
        parse(text).unwrap_err()
    }

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\n";

    #[test]
    fn documents_and_lists_are_read_in_order_and_foreign_kinds_are_named() {
        let text = format!(
            "{SERVICE}spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\n# nothing\n---\n\
             apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: api}}\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {{name: shop}}\n"
        );
        let manifest = parse(&text).unwrap();
        let keys: Vec<_> = manifest.objects.iter().map(|parsed| parsed.object.key().to_string()).collect();
        assert_eq!(keys, ["Service shop/api", "Namespace shop"]);
        assert_eq!(manifest.ignored, ["apps/v1 Deployment api"]);
    }

    #[test]
    fn json_is_read_with_tabs_and_all() {
        let text =
            "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"shop\"}\n}\n";
        assert_eq!(parse(text).unwrap().objects.len(), 1);
    }

    #[test]
    fn an_empty_group_is_a_group() {
        let text = "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: api, namespace: shop}\n\
                    spec: {targetRefs: [{group: \"\", kind: Service, name: api}], connectTimeout: 1s}\n";
        assert_eq!(parse(text).unwrap().objects.len(), 1);
    }

    #[test]
    fn a_wrong_type_is_named_by_line_and_field() {
        let error =
            error(&format!("{SERVICE}spec:\n  clusterIP: 10.96.0.1\n  ports:\n  - name: http\n    port: eighty\n"));
        assert_eq!((error.line, error.field.as_str(), error.value.as_str()), (8, "spec.ports[0].port", "eighty"));
        assert_eq!(error.object.as_deref(), Some("Service shop/api"));
        assert!(error.remedy.contains("i32"), "{}", error.remedy);
    }

    #[test]
    fn an_unknown_field_is_named_by_line() {
        let error = error(&format!("{SERVICE}spec:\n  clusterIP: 10.96.0.1\n  ports:\n  - prot: 80\n    port: 80\n"));
        assert_eq!((error.line, error.field.as_str()), (7, "spec.ports[0].prot"));
    }

    #[test]
    fn a_status_from_a_newer_cluster_is_no_error() {
        let text = format!("{SERVICE}spec: {{clusterIP: None}}\nstatus: {{somethingNew: 1}}\n");
        assert_eq!(parse(&text).unwrap().objects.len(), 1);
    }

    #[test]
    fn a_service_without_cluster_ip_is_told_what_to_write() {
        let error = error(&format!("{SERVICE}spec:\n  ports: [{{port: 80}}]\n"));
        assert_eq!(error.field, "spec.clusterIP");
        assert!(error.remedy.contains("clusterIP: None"));
        assert_eq!(error.line, 4);
    }

    #[test]
    fn broken_text_is_named_by_line() {
        let error = error("apiVersion: v1\nkind: [Service\nmetadata:\n");
        assert!(error.line >= 2, "{error}");
    }

    #[test]
    fn an_unknown_kind_of_ours_is_an_error_and_its_version_too() {
        let kind = error("apiVersion: heddle.dev/v1alpha1\nkind: TraficPolicy\nmetadata: {name: a}\n");
        assert_eq!((kind.line, kind.field.as_str(), kind.value.as_str()), (2, "kind", "TraficPolicy"));
        let version = error("apiVersion: heddle.dev/v1\nkind: TrafficPolicy\nmetadata: {name: a}\n");
        assert_eq!((version.line, version.field.as_str()), (1, "apiVersion"));
    }

    #[test]
    fn a_value_our_kinds_refuse_is_named_with_its_line_and_remedy() {
        let error = error(
            "apiVersion: heddle.dev/v1alpha1\nkind: Workload\nmetadata: {name: vm, namespace: shop}\nspec:\n  addresses:\n  - 10.0.0.1\n  - 127.0.0.1\n",
        );
        assert_eq!((error.line, error.field.as_str(), error.value.as_str()), (7, "spec.addresses[1]", "127.0.0.1"));
    }

    #[test]
    fn a_key_given_twice_is_an_error() {
        assert!(error("apiVersion: v1\nkind: Namespace\nkind: Service\nmetadata: {name: a}\n").line >= 2);
    }
}
