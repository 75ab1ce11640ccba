//! Every address by which a pod can be reached in a cluster is known to the mesh: its callers have an identity at each.

use heddle_tests::cluster::Cluster;
use heddle_tests::installed::Heddle;

use crate::seen::{APPLICATIONS, told};

#[test]
fn a_caller_has_its_identity_at_every_address_of_a_pod() {
    let cluster = Cluster::running();
    Heddle::installed(&cluster);
    let shop = cluster.namespace_labelled("shop", &[("heddle.dev/inject", "enabled")]);
    shop.apply(APPLICATIONS);
    let pod_address = |selector: &str| {
        let pod = shop.pods(selector).remove(0);
        shop.get(&format!("pod/{pod}"))["status"]["podIP"].as_str().unwrap().to_owned()
    };
    shop.rolled_out("deployment/api");
    let address = pod_address("app=api");
    shop.apply(&ADDRESSES.replace("NAMESPACE", &shop.name).replace("ADDRESS", &address));
    shop.rolled_out("statefulset/db");
    shop.rolled_out("deployment/on-node");
    shop.wait("pod/client", "condition=Ready");
    let seen = |authority: &str| {
        let url = format!("http://{authority}/cgi-bin/seen");
        shop.exec("client", &["--container=client", "wget", "-q", "-O", "-", &url])
    };

    let caller = format!("URI=spiffe://cluster.local/ns/{}/sa/default", shop.name);
    for (authority, what) in [
        ("api".to_owned(), "a Service"),
        (format!("{address}:8080"), "a pod's own address"),
        ("db-0.db:8080".to_owned(), "a pod of a StatefulSet, by its name"),
        ("db:8080".to_owned(), "a headless Service"),
        ("elsewhere".to_owned(), "an ExternalName that names a Service"),
        ("by-hand".to_owned(), "a Service without selector, whose slice names a pod"),
        ("named".to_owned(), "a Service whose target port is a name"),
    ] {
        let body = seen(&authority);
        assert!(told(&body, "HTTP_X_FORWARDED_CLIENT_CERT").contains(&caller), "{what}: {body}");
    }

    // Its pods are in the node's network and have no sidecar.
    let body = seen("on-node:9080");
    assert_eq!((told(&body, "SCRIPT_NAME"), told(&body, "HTTP_X_FORWARDED_CLIENT_CERT")), ("/cgi-bin/seen", ""));
}

const ADDRESSES: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: db }
spec:
  serviceName: db
  selector: { matchLabels: { app: db } }
  template:
    metadata: { labels: { app: db } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: db
          image: local.test/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "mkdir /tmp/www && echo good > /tmp/www/index.html && ln -s /answers /tmp/www/cgi-bin && exec httpd -f -p 8080 -h /tmp/www"]
          readinessProbe: { httpGet: { path: /, port: 8080 }, periodSeconds: 1 }
          volumeMounts: [{ name: answers, mountPath: /answers }]
      volumes: [{ name: answers, configMap: { name: answers, defaultMode: 0555 } }]
---
apiVersion: v1
kind: Service
metadata: { name: db }
spec: { clusterIP: None, selector: { app: db }, ports: [{ name: http, port: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: elsewhere }
spec: { type: ExternalName, externalName: api.NAMESPACE.svc.cluster.local }
---
apiVersion: v1
kind: Service
metadata: { name: by-hand }
spec: { ports: [{ name: http, port: 80, targetPort: 8080 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: by-hand-1, labels: { kubernetes.io/service-name: by-hand } }
addressType: IPv4
ports: [{ name: http, port: 8080 }]
endpoints: [{ addresses: [ADDRESS] }]
---
apiVersion: v1
kind: Service
metadata: { name: named }
spec: { selector: { app: api }, ports: [{ name: http, port: 80, targetPort: web }] }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: on-node }
spec:
  selector: { matchLabels: { app: on-node } }
  strategy: { type: Recreate }
  template:
    metadata: { labels: { app: on-node } }
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: local.test/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "mkdir /tmp/www && echo good > /tmp/www/index.html && ln -s /answers /tmp/www/cgi-bin && exec httpd -f -p 9080 -h /tmp/www"]
          readinessProbe: { httpGet: { path: /, port: 9080 }, periodSeconds: 1 }
          volumeMounts: [{ name: answers, mountPath: /answers }]
      volumes: [{ name: answers, configMap: { name: answers, defaultMode: 0555 } }]
---
apiVersion: v1
kind: Service
metadata: { name: on-node }
spec: { selector: { app: on-node }, ports: [{ name: http, port: 9080 }] }
"#;
