//! What is applied: a Service for each case, over the same three servers.

use super::world::{CLIENTS, PORT, SERVERS};

/// Everything but the routes of [`moved`].
pub fn world() -> String {
    let mut text = FIXED.to_owned();
    for (client, number) in CLIENTS.iter().chain(&[("stranger", 5)]) {
        text.push_str(&workload(&format!("client-{client}"), *number, "client", "zone-a", "meshed: false"));
    }
    for (name, number, zone) in [("a", 10, "zone-a"), ("b", 11, "zone-b"), ("c", 12, "zone-b")] {
        text.push_str(&workload(name, number, "talk", zone, "meshed: false"));
    }
    text.push_str(&workload("sided", 6, "client", "zone-a", "meshed: true"));
    for (name, number) in [(SERVERS[0], 20), (SERVERS[1], 21), ("impostor", 22)] {
        text.push_str(&workload(name, number, name, "zone-b", "proxyless: true"));
    }
    for (number, (name, selector, port, more)) in (1..).zip(services()) {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
             clusterIP: 10.96.0.{number}\n  selector: {{ {selector} }}\n  \
             ports: [{{ port: 7070, targetPort: {port}, appProtocol: kubernetes.io/h2c }}]\n{more}"
        ));
    }
    text
}

/// Name, selector, the servers' port, and what else is said.
fn services() -> Vec<(String, String, u16, &'static str)> {
    let all = ["any", "split", "paths", "headers", "hasty", "again", "faulty", "judged", "sticky"];
    let one = [SERVERS[0], SERVERS[1], "impostor", "a", "b", "c"];
    let mut services: Vec<_> = one.map(|name| (name.to_owned(), format!("server: {name}"), PORT, "")).into();
    services.extend(all.map(|name| (name.to_owned(), "app: talk".to_owned(), PORT, "")));
    services.push(("narrow".to_owned(), "server: a".to_owned(), PORT, ""));
    for (port, (client, _)) in (PORT + 1..).zip(CLIENTS) {
        services.push((format!("moved-{client}"), "app: talk".to_owned(), PORT, ""));
        let near = "  trafficDistribution: PreferSameZone\n";
        services.push((format!("zoned-{client}"), "app: talk".to_owned(), port, near));
    }
    services
}

/// The Services of [`SERVERS`].
pub const SERVER_ADDRESSES: [&str; 2] = ["10.96.0.1", "10.96.0.2"];

/// All of a Service's calls go to one server.
pub fn moved(service: &str, server: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {service}, namespace: shop }}\n\
         spec:\n  parentRefs: [{{ group: \"\", kind: Service, name: {service} }}]\n  \
         rules: [{{ backendRefs: [{{ name: {server}, port: 7070 }}] }}]\n"
    )
}

fn workload(name: &str, number: u8, app: &str, zone: &str, kind: &str) -> String {
    format!(
        "---\napiVersion: heddle.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {name}\n  namespace: shop\n  \
         labels: {{ app: {app}, server: {name}, topology.kubernetes.io/zone: {zone} }}\n\
         spec: {{ addresses: [\"10.77.0.{number}\"], serviceAccountName: {name}, {kind} }}\n"
    )
}

const FIXED: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: any, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: any }], loadBalancing: { policy: RoundRobin } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: split, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: split }]
  rules: [{ backendRefs: [{ name: a, port: 7070, weight: 80 }, { name: b, port: 7070, weight: 20 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: paths, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: paths }]
  rules:
  - { matches: [{ method: { service: heddle.test.Talk, method: Ask } }], backendRefs: [{ name: b, port: 7070 }] }
  - { matches: [{ method: { service: heddle.test.Talk } }], backendRefs: [{ name: a, port: 7070 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: headers, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: headers }]
  rules:
  - { matches: [{ headers: [{ name: x-version, value: "2" }] }], backendRefs: [{ name: b, port: 7070 }] }
  - matches: [{ headers: [{ type: RegularExpression, name: x-user, value: "tester-[0-9]+" }] }]
    backendRefs: [{ name: c, port: 7070 }]
  - { backendRefs: [{ name: a, port: 7070 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: hasty, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: hasty }]
  rules: [{ timeouts: { request: 3s }, backendRefs: [{ name: a, port: 7070 }] }]
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: again, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: again }], retry: { attempts: 2, grpcCodes: [14] } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: faulty, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: faulty }]
  rules:
  - matches: [{ method: { service: heddle.test.Talk, method: Ask } }]
    filters: [{ type: ExtensionRef, extensionRef: { group: heddle.dev, kind: FaultInjection, name: lost } }]
    backendRefs: [{ name: a, port: 7070 }]
  - { backendRefs: [{ name: a, port: 7070 }] }
---
apiVersion: heddle.dev/v1alpha1
kind: FaultInjection
metadata: { name: lost, namespace: shop }
spec: { abort: { grpcStatus: 15 } }
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: narrow, namespace: shop }
spec: { targetRefs: [{ kind: Service, name: narrow }], circuitBreaker: { maxRequests: 3 } }
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: judged, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: judged }]
  loadBalancing: { policy: RoundRobin }
  # Success rates of three servers are too few to compare; what is compared has an interval.
  outlierDetection: { consecutiveFailures: 3, successRateStdevFactor: 1900, interval: 1s, baseEjection: 60s }
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: sticky, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: sticky }]
  loadBalancing: { policy: RingHash, hashOn: [{ type: Header, name: x-user }] }
---
apiVersion: heddle.dev/v1alpha1
kind: MeshTLSPolicy
metadata: { name: strict, namespace: shop }
spec: { selector: { matchLabels: { server: guarded-go } }, mode: STRICT }
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: clients, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: guarded-go }, { kind: Service, name: guarded-java }]
  rules:
  - from: [{ principals: [shop/client-go, shop/client-java, shop/client-grpcio], namespaces: [shop] }]
    to: [{ methods: [POST], paths: [/heddle.test.Talk/*], hosts: [guarded-go.shop, guarded-java.shop] }]
  - from: [{ principals: [shop/sided] }]
    to: [{ ports: [50051], hosts: [10.96.0.*] }]
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: not-ask, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: guarded-go }, { kind: Service, name: guarded-java }]
  action: DENY
  rules: [{ to: [{ paths: [/heddle.test.Talk/Ask] }] }]
"#;
