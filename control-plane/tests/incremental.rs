//! An update gives what a full rebuild gives, whatever changes, and touches nothing it need not.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic here is a failed test")]

use heddle_control_plane::model::{Egress, Mesh};
use heddle_control_plane::objects::{Object, Objects};
use heddle_control_plane::source::manifest;
use heddle_control_plane::translate::{self, DEFAULT_ROOT_NAMESPACE, Settings};
use proptest::prelude::*;

fn settings() -> Settings {
    Settings {
        trust_domain: "mesh.example".into(),
        root_namespace: DEFAULT_ROOT_NAMESPACE.into(),
        mesh: Mesh { cidrs: vec!["10.0.0.0/8".parse().unwrap()], egress: Egress::Allow },
    }
}

fn objects(text: &str) -> Vec<Object> {
    manifest::parse(text).unwrap().objects.into_iter().map(|parsed| parsed.object).collect()
}

/// Every object of every golden case: the same names in many shapes, so that changes reach each other.
fn pool() -> Vec<Object> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases.iter().flat_map(|case| objects(&std::fs::read_to_string(case.join("objects.yaml")).unwrap())).collect()
}

/// Which object of the pool, and whether it is set or taken out.
fn steps(pool: usize) -> impl Strategy<Value = Vec<Vec<(usize, bool)>>> {
    let change = (0..pool, prop::bool::weighted(0.75));
    prop::collection::vec(prop::collection::vec(change, 1..4), 1..40)
}

#[test]
fn an_update_equals_a_full_rebuild_whatever_changes() {
    let (pool, settings) = (pool(), settings());
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps(pool.len()))| {
        let mut before = Objects::default();
        let mut translation = translate::all(&before, &settings);
        for changes in steps {
            let mut after = before.clone();
            for (index, set) in changes {
                if set {
                    after.set(pool[index].clone());
                } else {
                    after.remove(&pool[index].key());
                }
            }
            (translation, _) = translate::update(&translation, &before, &after, &settings);
            let full = translate::all(&after, &settings);
            prop_assert_eq!(&translation.model, &full.model);
            prop_assert_eq!(&translation.statuses, &full.statuses);
            before = after;
        }
    });
}

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: api}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api-1, namespace: shop, labels: {app: api}}
spec: {containers: [{name: app}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app}]}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}
";

#[test]
fn a_pod_touches_the_services_that_select_it_and_no_others() {
    let settings = settings();
    let before = Objects::of(objects(SHOP));
    let mut after = before.clone();
    let moved = SHOP.replace("10.1.0.1", "10.1.0.9");
    after.set(objects(&moved).into_iter().find(|object| object.key().to_string() == "Pod shop/api-1").unwrap());
    let full = translate::all(&before, &settings);
    let (_, touched) = translate::update(&full, &before, &after, &settings);
    let services: Vec<_> = touched.services.iter().map(ToString::to_string).collect();
    let workloads: Vec<_> = touched.workloads.iter().map(ToString::to_string).collect();
    assert_eq!((services, workloads), (vec!["shop/api".into()], vec!["shop/api-1".into()]));
}

#[test]
fn a_route_touches_its_parents_and_no_others() {
    let settings = settings();
    let before = Objects::of(objects(SHOP));
    let mut after = before.clone();
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: main, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules: [{backendRefs: [{name: api, port: 80}]}]
";
    objects(route).into_iter().for_each(|object| after.set(object));
    let full = translate::all(&before, &settings);
    let (_, touched) = translate::update(&full, &before, &after, &settings);
    let services: Vec<_> = touched.services.iter().map(ToString::to_string).collect();
    assert_eq!(services, ["shop/web"]);
    assert!(touched.workloads.is_empty());
}

#[test]
fn a_policy_of_a_guest_s_route_touches_the_policies_it_comes_before() {
    let settings = settings();
    let policy = |name: &str, namespace: &str, target: &str| {
        format!(
            "---\napiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{targetRefs: [{{{target}}}], timeouts: {{request: 1s}}}}\n"
        )
    };
    let shop = policy("all", "shop", "kind: Namespace, name: shop");
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: guest, namespace: other}
spec:
  parentRefs: [{group: '', kind: Service, name: web, namespace: shop}]
  rules: [{backendRefs: [{name: web, namespace: shop, port: 80}]}]
";
    let before = Objects::of(objects(&format!("{SHOP}{shop}{route}")));
    let mut after = before.clone();
    let guest = policy("guest", "other", "group: gateway.networking.k8s.io, kind: HTTPRoute, name: guest");
    objects(&guest).into_iter().for_each(|object| after.set(object));
    let (translation, _) = translate::update(&translate::all(&before, &settings), &before, &after, &settings);
    let full = translate::all(&after, &settings);
    assert_eq!(translation.statuses, full.statuses);
    let shown = format!("{:?}", translation.statuses);
    assert!(shown.contains("timeouts.request by TrafficPolicy other/guest for HTTPRoute guest"), "{shown}");
}

#[test]
fn a_workload_whose_name_a_pod_gives_up_touches_the_services_that_select_it() {
    let settings = settings();
    let hidden = "---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v1}}
spec: {addresses: [10.77.0.1], serviceAccountName: web}
---
apiVersion: v1
kind: Service
metadata: {name: web-v1, namespace: shop}
spec: {clusterIP: 10.96.0.9, selector: {app: web, version: v1}, ports: [{port: 80}]}
";
    let before = Objects::of(objects(&format!("{SHOP}{hidden}")));
    let mut after = before.clone();
    after.remove(&objects(SHOP).into_iter().find(|object| object.key().to_string() == "Pod shop/web-1").unwrap().key());
    let (updated, touched) = translate::update(&translate::all(&before, &settings), &before, &after, &settings);
    assert_eq!(updated.model, translate::all(&after, &settings).model);
    assert!(touched.services.iter().any(|service| service.to_string() == "shop/web-v1"), "{touched:?}");
}
