//! A real Prometheus in the cluster finds sidecars and control plane by the scrape jobs that ship with the chart, and what it says
//! of an edge is what was sent over it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use heddle_tests::chart;
use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::installed::Heddle;
use serde_json::Value;

#[test]
fn success_rate_and_p99_of_an_edge_are_those_of_what_was_sent() {
    let cluster = Cluster::running();
    Heddle::installed(&cluster);
    let monitoring = cluster.namespace("monitoring");
    let prometheus = Prometheus::start(&cluster, &monitoring);
    let shop = cluster.namespace_labelled("shop", &[("heddle.dev/inject", "enabled")]);
    shop.apply(APPLICATIONS);
    shop.rolled_out("deployment/api");
    shop.wait("pod/web", "condition=Ready");
    eventually("the control plane and all three sidecars are scraped", || {
        let up = |job: &str| {
            prometheus.value(&format!("sum(up{{job=\"{job}\",namespace=~\"{}|heddle-system\"}})", shop.name))
        };
        (up("heddle-control-plane") == Some(1.0) && up("heddle-sidecars") == Some(3.0)).then_some(())
    });
    // A counter is seen to grow only from its second sample on.
    shop.exec("web", &["wget", "-q", "-O", "-", "http://api/"]);
    let edge = format!(
        "direction=\"outbound\",source_namespace=\"{0}\",source_workload=\"web\",destination_namespace=\"{0}\",\
         destination_service=\"api\",destination_workload=\"api\"",
        shop.name
    );
    eventually("the edge is seen", || {
        (prometheus.value(&format!("sum(heddle_requests_total{{{edge}}})")) == Some(1.0)).then_some(())
    });

    shop.exec("web", &["sh", "-c", SEND]);

    let counted = |what: &str| format!("sum(heddle_requests_total{{{edge}{what}}})");
    let all = f64::from(GOOD + BAD + SLOW) + 1.0;
    // The other end sees the same, and who it was. Each target is scraped in its own time.
    let caller = format!("source_principal=\"spiffe://cluster.local/ns/{}/sa/web\"", shop.name);
    let inbound = format!("sum(heddle_requests_total{{direction=\"inbound\",{caller}}})");
    eventually("every request is counted", || {
        let all = Some(all);
        (prometheus.value(&counted("")) == all && prometheus.value(&inbound) == all).then_some(())
    });
    assert_eq!(prometheus.value(&counted(",response_code=\"503\"")), Some(f64::from(BAD)));
    assert_eq!(prometheus.value(&counted(",connection_security_policy=\"mutual_tls\"")), Some(all));

    // Over a time in which all of it happened. Prometheus adds what may have come since its last sample, which is the less of
    // it all the longer there were samples.
    let sent = f64::from(GOOD + BAD + SLOW) / WINDOW;
    eventually(&format!("the rate over {WINDOW} s is {sent}/s"), || {
        let rate = prometheus.value(&format!("sum(rate(heddle_requests_total{{{edge}}}[{WINDOW}s]))"));
        rate.is_some_and(|rate| (rate / sent - 1.0).abs() < 0.05).then_some(())
    });
    let success = format!("1 - {} / {}", counted(",response_code=~\"5..\""), counted(""));
    assert!((prometheus.value(&success).unwrap() - (1.0 - f64::from(BAD) / all)).abs() < 1e-9);
    // Three in a hundred take 0.3 s: the 99th percentile is in their bucket, the median is not.
    let quantile = |q: f64| {
        let buckets = format!("sum by (le) (heddle_request_duration_seconds_bucket{{{edge}}})");
        prometheus.value(&format!("histogram_quantile({q}, {buckets})")).unwrap()
    };
    let (median, p99) = (quantile(0.5), quantile(0.99));
    assert!(median < 0.25 && (0.25..=0.5).contains(&p99), "median {median} s, 99th percentile {p99} s");

    eventually("the recording rules say the same", || {
        let recorded = prometheus.value(&format!("sum(heddle:requests:rate5m{{source_namespace=\"{}\"}})", shop.name));
        recorded.is_some_and(|rate| rate > 0.0).then_some(())
    });
    let broken = prometheus.rules_with_errors();
    assert!(broken.is_empty(), "{broken:?}");
}

/// Requests that are sent: answered well, with 503, and well after 0.3 s.
const GOOD: u32 = 285;
const BAD: u32 = 6;
const SLOW: u32 = 9;

/// Seconds.
const WINDOW: f64 = 60.0;

/// Every hundredth is answered badly twice and slowly three times.
const SEND: &str = r#"
i=0
while [ $i -lt 300 ]; do
    case $((i % 100)) in
        0|50) path=cgi-bin/bad ;;
        10|40|80) path=cgi-bin/slow ;;
        *) path= ;;
    esac
    wget -q -O /dev/null "http://api/$path" 2>/dev/null
    i=$((i + 1))
done
"#;

/// An application of two pods that answers by path, and one that asks it.
const APPLICATIONS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: answers }
data:
  bad: |
    #!/bin/sh
    printf 'Status: 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n'
  slow: |
    #!/bin/sh
    sleep 0.3
    printf 'Content-Length: 0\r\n\r\n'
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: api }
spec:
  replicas: 2
  selector: { matchLabels: { app: api } }
  template:
    metadata: { labels: { app: api } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: api
          image: local.test/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "mkdir /tmp/www && echo good > /tmp/www/index.html && ln -s /answers /tmp/www/cgi-bin && exec httpd -f -p 8080 -h /tmp/www"]
          ports: [{ containerPort: 8080 }]
          readinessProbe: { httpGet: { path: /, port: 8080 }, periodSeconds: 1 }
          volumeMounts: [{ name: answers, mountPath: /answers }]
      volumes: [{ name: answers, configMap: { name: answers, defaultMode: 0555 } }]
---
apiVersion: v1
kind: Service
metadata: { name: api }
spec:
  selector: { app: api }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: web }
---
apiVersion: v1
kind: Pod
metadata: { name: web }
spec:
  serviceAccountName: web
  terminationGracePeriodSeconds: 1
  containers: [{ name: web, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"] }]
"#;

/// A Prometheus in a namespace of its own, with the rights that its scrape jobs ask for and no others.
struct Prometheus<'a> {
    cluster: &'a Cluster,
    address: SocketAddr,
}

impl<'a> Prometheus<'a> {
    /// Its image is there already: tests/cluster/prometheus/load.
    fn start(cluster: &'a Cluster, namespace: &Namespace<'a>) -> Self {
        let file = |name: &str| std::fs::read_to_string(chart::directory().join("files").join(name)).unwrap();
        let files = serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "prometheus" },
            "data": {
                "prometheus.yml": "global: { scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }\n\
                                   scrape_config_files: [scrape.yaml]\nrule_files: [rules.yaml]\n",
                "scrape.yaml": file("scrape.yaml"),
                "rules.yaml": file("rules.yaml"),
            },
        });
        namespace.apply(&files.to_string());
        namespace.apply(&PROMETHEUS.replace("NAMESPACE", &namespace.name));
        namespace.rolled_out("deployment/prometheus");
        let pod = namespace.pods("app=prometheus").remove(0);
        let address: IpAddr =
            namespace.get(&format!("pod/{pod}"))["status"]["podIP"].as_str().unwrap().parse().unwrap();
        Self { cluster, address: SocketAddr::new(address, 9090) }
    }

    /// What a query says, if it says one thing.
    fn value(&self, promql: &str) -> Option<f64> {
        let encoded: String = promql.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.ask(&format!("/api/v1/query?query={encoded}"));
        let result = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{promql}: {answer}"));
        assert!(result.len() <= 1, "{promql}: {answer}");
        result.first()?["value"][1].as_str()?.parse().ok()
    }

    /// Rules that could not be evaluated, with the reason.
    fn rules_with_errors(&self) -> Vec<Value> {
        let answer = self.ask("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array().unwrap().iter();
        let rules: Vec<_> = groups.flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect();
        assert!(rules.len() > 20, "{answer}");
        rules.into_iter().filter(|rule| rule["health"] != "ok").collect()
    }

    fn ask(&self, path: &str) -> Value {
        let exchange = || {
            let mut socket = TcpStream::connect_timeout(&self.address, TIMEOUT).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            write!(socket, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            answer
        };
        let answer = self.cluster.network().run(exchange).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
    }
}

/// For one exchange.
const TIMEOUT: Duration = Duration::from_secs(10);

const PROMETHEUS: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: prometheus }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: NAMESPACE-prometheus }
rules: [{ apiGroups: [""], resources: [pods], verbs: [list, watch] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: NAMESPACE-prometheus }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: NAMESPACE-prometheus }
subjects: [{ kind: ServiceAccount, name: prometheus, namespace: NAMESPACE }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: prometheus }
spec:
  selector: { matchLabels: { app: prometheus } }
  template:
    metadata: { labels: { app: prometheus } }
    spec:
      serviceAccountName: prometheus
      terminationGracePeriodSeconds: 1
      containers:
        - name: prometheus
          image: local.test/prometheus:1
          imagePullPolicy: Never
          args: [--config.file=/etc/prometheus/prometheus.yml, --storage.tsdb.path=/data]
          readinessProbe: { httpGet: { path: /-/ready, port: 9090 }, periodSeconds: 1 }
          volumeMounts: [{ name: files, mountPath: /etc/prometheus }, { name: data, mountPath: /data }]
      volumes: [{ name: files, configMap: { name: prometheus } }, { name: data, emptyDir: {} }]
"#;
