//! Whether an object could be meant: what the API server's schema lets through and no sidecar could do. Pure, and of one
//! object alone: what depends on others (a Service that is not there yet) is said in its status, never here.
//!
//! No rule is written here. Our own kinds know theirs ([`crate::api`], which a schema says too as far as it can), and routes
//! are translated as ever: a rule of which nothing would hold is refused; what is not supported yet is allowed, with a
//! warning, for it may be meant for others as well.

use gateway_api::experimental::grpcroutes::GrpcRoute;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::tlsroutes::TlsRoute;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::{
    self, AuthorizationPolicy, FaultInjection, FieldError, MeshTlsPolicy, RateLimitPolicy, TrafficPolicy, Workload,
};
use crate::objects::Route;
use crate::translate;

/// What there is to say about an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why it is impossible; none: it is not.
    pub errors: Vec<FieldError>,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// What there is to say about `object`, of the kind `kind` in the API group `group`. Nothing, if that is none of ours.
pub fn findings(group: &str, kind: &str, object: &Value) -> Findings {
    match (group, kind) {
        (api::GROUP, "AuthorizationPolicy") => own::<AuthorizationPolicy>(object, |policy| policy.spec.check()),
        (api::GROUP, "RateLimitPolicy") => own::<RateLimitPolicy>(object, |policy| policy.spec.check()),
        (api::GROUP, "FaultInjection") => own::<FaultInjection>(object, |fault| fault.spec.check()),
        (api::GROUP, "MeshTLSPolicy") => own::<MeshTlsPolicy>(object, |policy| policy.spec.check()),
        (api::GROUP, "TrafficPolicy") => own::<TrafficPolicy>(object, |policy| policy.spec.check()),
        (api::GROUP, "Workload") => own::<Workload>(object, |workload| workload.spec.check()),
        (api::GATEWAY_GROUP, "HTTPRoute") => route::<HttpRoute>(object, Route::from_http),
        (api::GATEWAY_GROUP, "GRPCRoute") => route::<GrpcRoute>(object, Route::from_grpc),
        (api::GATEWAY_GROUP, "TLSRoute") => route::<TlsRoute>(object, Route::from_tls),
        (api::GATEWAY_GROUP, "TCPRoute") => route::<TcpRoute>(object, Route::from_tcp),
        _ => Findings::default(),
    }
}

fn own<T: DeserializeOwned>(object: &Value, check: impl FnOnce(&T) -> Vec<FieldError>) -> Findings {
    let errors = match FieldError::read::<T>(object) {
        Ok(read) => check(&read),
        Err(error) => vec![error],
    };
    Findings { errors, warnings: Vec::new() }
}

/// A route for gateways only is theirs to judge.
fn route<T: DeserializeOwned>(object: &Value, unite: impl FnOnce(T) -> Result<Route, serde_json::Error>) -> Findings {
    let for_services = object.pointer("/spec/parentRefs").and_then(Value::as_array).is_some_and(|parents| {
        parents.iter().any(|parent| parent["kind"] == "Service" && parent["group"].as_str().unwrap_or("-").is_empty())
    });
    if !for_services {
        return Findings::default();
    }
    let united = FieldError::read::<T>(object)
        .and_then(|route| unite(route).map_err(|error| FieldError::new("spec", "", error.to_string())));
    match united {
        Ok(route) => {
            let problems = translate::problems(&route);
            let (impossible, unsupported): (Vec<_>, Vec<_>) =
                problems.into_iter().partition(|problem| problem.impossible);
            Findings {
                errors: impossible.into_iter().map(|p| FieldError::new(p.field, "", p.text)).collect(),
                warnings: unsupported.into_iter().map(|p| format!("{}: {}", p.field, p.text)).collect(),
            }
        }
        // A version of the API that this build does not know may allow more: its status will say.
        Err(error) => Findings { errors: Vec::new(), warnings: vec![error.to_string()] },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(kind: &str, parent: &Value, rule: &Value) -> Findings {
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": kind,
            "metadata": { "name": "r", "namespace": "shop" },
            "spec": { "parentRefs": [parent], "rules": [{}, rule] },
        });
        findings("gateway.networking.k8s.io", kind, &object)
    }

    fn service() -> Value {
        json!({ "group": "", "kind": "Service", "name": "api" })
    }

    #[test]
    fn a_rule_that_can_never_hold_is_an_error_with_its_place_value_and_remedy() {
        for (kind, rule, named) in [
            ("HTTPRoute", json!({ "matches": [{ "path": { "type": "RegularExpression", "value": "(" } }] }), "`(`"),
            ("HTTPRoute", json!({ "matches": [{ "path": { "type": "Exact", "value": "a" } }] }), "`a`: begin with `/`"),
            (
                "HTTPRoute",
                json!({ "filters": [{
                    "type": "RequestHeaderModifier",
                    "requestHeaderModifier": { "set": [{ "name": "Connection", "value": "x" }] },
                }] }),
                "connection",
            ),
            (
                "HTTPRoute",
                json!({ "backendRefs": [{ "name": "b", "port": 80, "filters": [{ "type": "RequestRedirect" }] }] }),
                "RequestRedirect",
            ),
            ("GRPCRoute", json!({ "matches": [{ "method": { "type": "RegularExpression", "service": "(" } }] }), "("),
        ] {
            let found = route(kind, &service(), &rule);
            assert_eq!(found.errors.len(), 1, "{found:?}");
            assert_eq!(found.errors[0].field, "spec.rules[1]");
            assert!(found.errors[0].to_string().contains(named), "{found:?}");
        }
    }

    #[test]
    fn names_no_client_can_ask_for_and_second_rules_of_connections_are_errors() {
        let object = |kind: &str, spec: Value| {
            let mut spec = spec;
            spec["parentRefs"] = json!([service()]);
            let found =
                findings("gateway.networking.k8s.io", kind, &json!({ "metadata": { "name": "r" }, "spec": spec }));
            found.errors.into_iter().map(|error| error.to_string()).collect::<Vec<_>>()
        };
        let rules = json!([{ "backendRefs": [{ "name": "b", "port": 443 }] }]);
        let wrong = object("TLSRoute", json!({ "hostnames": ["a.example", "*", "10.0.0.1"], "rules": rules }));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].starts_with("spec.hostnames: `*` is no name a TLS client can ask for"), "{wrong:?}");
        assert!(object("TLSRoute", json!({ "hostnames": ["*.example"], "rules": rules })).is_empty());
        let second = object("TCPRoute", json!({ "rules": [rules[0], rules[0]] }));
        assert!(second.len() == 1 && second[0].starts_with("spec.rules[1]: a TCPRoute has one rule"), "{second:?}");
    }

    #[test]
    fn what_sidecars_do_not_support_yet_is_a_warning() {
        let asks_first = json!({ "filters": [{
            "type": "ExternalAuth",
            "externalAuth": { "protocol": "HTTP", "backendRef": { "name": "b", "port": 80 } },
        }] });
        for rule in [asks_first, json!({ "sessionPersistence": { "idleTimeout": "1h" } })] {
            let found = route("HTTPRoute", &service(), &rule);
            assert_eq!(found.errors, []);
            assert!(found.warnings.len() == 1 && found.warnings[0].contains("not supported"), "{found:?}");
        }
    }

    #[test]
    fn a_service_that_is_not_there_yet_is_no_fault_of_the_route() {
        let rule = json!({ "backendRefs": [{ "name": "later", "port": 80 }] });
        assert_eq!(route("HTTPRoute", &service(), &rule), Findings::default());
    }

    #[test]
    fn routes_for_gateways_alone_and_foreign_kinds_are_not_looked_at() {
        let broken = json!({ "matches": [{ "path": { "type": "RegularExpression", "value": "(" } }] });
        assert_eq!(route("HTTPRoute", &json!({ "name": "gateway" }), &broken), Findings::default());
        assert_eq!(findings("apps", "Deployment", &json!({ "spec": 7 })), Findings::default());
    }

    #[test]
    fn our_own_kinds_are_checked_by_their_own_rules() {
        let policy = |spec: Value| {
            let metadata = json!({ "name": "p", "namespace": "shop" });
            let object = json!({ "apiVersion": "heddle.dev/v1alpha1", "kind": "MeshTLSPolicy", "metadata": metadata, "spec": spec });
            findings("heddle.dev", "MeshTLSPolicy", &object)
        };
        assert_eq!(policy(json!({ "mode": "STRICT" })), Findings::default());
        let found = policy(json!({ "portLevel": { "080": "STRICT" }, "targetRefs": [{ "kind": "Pod", "name": "x" }] }));
        let shown: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].starts_with("spec.targetRefs[0].kind: `Pod`: target one of"), "{shown:?}");
        let found = policy(json!({ "mode": "STRONG" }));
        assert!(found.errors[0].to_string().starts_with("spec.mode: `STRONG`: "), "{found:?}");
    }
}
