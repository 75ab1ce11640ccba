//! Injection in a cluster with Heddle: pods of a labelled namespace are in the mesh from their first init container to their
//! last packet, and what cannot be is told so.

use std::io::Write;
use std::net::{IpAddr, TcpStream};

use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::installed::Heddle;
use heddle_tests::{PATIENCE, eventually, talk};
use serde_json::Value;

/// The cluster, with Heddle.
fn meshed() -> Cluster {
    let cluster = Cluster::running();
    Heddle::installed(&cluster);
    cluster
}

/// A namespace whose pods get sidecars and take mutual TLS only, with a server `echo` that answers with its pod's name.
fn strict<'c>(cluster: &'c Cluster, purpose: &str) -> Namespace<'c> {
    let namespace = cluster.namespace_labelled(purpose, &[("heddle.dev/inject", "enabled")]);
    namespace.apply(STRICT);
    namespace.apply(ECHO);
    namespace.rolled_out("deployment/echo");
    namespace
}

/// What a container's status says of its end.
fn ended<'p>(pod: &'p Value, list: &str, container: &str) -> &'p Value {
    let statuses = pod["status"][list].as_array().unwrap();
    let status = statuses.iter().find(|status| status["name"] == container).unwrap();
    &status["state"]["terminated"]
}

/// `2026-01-02T03:04:05Z` in seconds since some midnight: tests are shorter than a day.
fn seconds(time: &Value) -> i64 {
    let time = time.as_str().unwrap();
    let part = |from: usize| time[from..from + 2].parse::<i64>().unwrap();
    (part(8) * 24 + part(11)) * 3600 + part(14) * 60 + part(17)
}

#[test]
fn an_application_and_its_init_containers_have_the_mesh_from_their_first_packet() {
    let cluster = meshed();
    let namespace = strict(&cluster, "first-packet");
    namespace.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  initContainers:
    - { name: first, image: "local.test/busybox:1", imagePullPolicy: Never, command: [wget, -q, -O, "-", "http://echo/"] }
  containers:
    - { name: client, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sh, -c, "wget -q -O - http://echo/ && exec sleep 3600"] }
"#,
    );
    namespace.wait("pod/client", "condition=Ready");

    let pod = namespace.get("pod/client");
    let names: Vec<_> = pod["spec"]["initContainers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["heddle-capture", "heddle-proxy", "first"]);
    assert!(pod["metadata"]["annotations"]["heddle.dev/injected"].is_string(), "{pod}");
    assert_eq!(ended(&pod, "initContainerStatuses", "first")["exitCode"], 0);
    let echo = namespace.pods("app=echo");
    for container in ["first", "client"] {
        assert!(echo.contains(&namespace.kubectl(["logs", "client", "--container", container])), "{container}");
    }
}

#[test]
fn probes_and_hooks_reach_an_application_that_takes_mutual_tls_only() {
    let cluster = meshed();
    let namespace = strict(&cluster, "probes");
    // `echo` has an HTTP probe for its readiness, a TCP one for its start and hooks: it would not be here without them.
    let pod = namespace.get(&format!("pod/{}", namespace.pods("app=echo")[0]));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(pod["spec"]["containers"][0][probe]["httpGet"]["port"], 15020, "{probe}");
    }
    let ip: IpAddr = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
    let asked_from_the_node = |port: u16, path: &str| {
        let mut stream = cluster.network().run(|| TcpStream::connect((ip, port)).unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        String::from_utf8_lossy(&talk::read_to_end(&mut stream)).into_owned()
    };
    let probed = asked_from_the_node(15020, "/probe/echo/readiness");
    assert!(probed.starts_with("HTTP/1.1 200 "), "{probed}");
    let direct = asked_from_the_node(8080, "/");
    assert!(direct.is_empty(), "the application answers without mutual TLS: {direct}");

    // An application that fails is still found out.
    namespace.exec("deployment/echo", &["--container=echo", "rm", "/tmp/www/index.html"]);
    eventually("the pod is not ready", || {
        let ready = namespace.kubectl(["get", "deployment/echo", "--output=jsonpath={.status.readyReplicas}"]);
        ready.is_empty().then_some(())
    });
}

#[test]
fn a_job_ends_with_its_applications_exit_code_within_five_seconds_of_it() {
    let cluster = meshed();
    let namespace = strict(&cluster, "jobs");
    for (code, condition) in [(0, "Complete"), (3, "Failed")] {
        namespace.apply(&format!(
            r#"
apiVersion: batch/v1
kind: Job
metadata: {{ name: ends-with-{code} }}
spec:
  backoffLimit: 0
  template:
    metadata: {{ labels: {{ job: ends-with-{code} }} }}
    spec:
      restartPolicy: Never
      containers:
        - name: work
          image: local.test/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "wget -q -O - http://echo/ && exit {code}"]
"#
        ));
        namespace.wait(&format!("job/ends-with-{code}"), &format!("condition={condition}"));

        let object = namespace.get(&format!("job/ends-with-{code}"));
        let conditions = object["status"]["conditions"].as_array().unwrap();
        let over = conditions.iter().find(|found| found["type"] == condition).unwrap();
        let pod = namespace.get(&format!("pod/{}", namespace.pods(&format!("job=ends-with-{code}"))[0]));
        let work = ended(&pod, "containerStatuses", "work");
        assert_eq!(work["exitCode"], code);
        let proxy = ended(&pod, "initContainerStatuses", "heddle-proxy");
        assert_eq!(proxy["exitCode"], 0, "{proxy}");
        let sidecar = seconds(&proxy["finishedAt"]) - seconds(&work["finishedAt"]);
        assert!((0..=5).contains(&sidecar), "the sidecar ended {sidecar} s after its application");
        let job = seconds(&over["lastTransitionTime"]) - seconds(&work["finishedAt"]);
        assert!((0..=5).contains(&job), "the job was over {job} s after its application");
    }
}

#[test]
fn a_deleted_pod_ends_at_once_and_in_order() {
    let cluster = meshed();
    let namespace = strict(&cluster, "deletion");
    // The finalizer keeps the pod's last status readable.
    namespace.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: { name: short, finalizers: [heddle.dev/test] }
spec:
  containers:
    - name: short
      image: local.test/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, "trap 'wget -q -O - http://echo/ && exit 0; exit 9' TERM; while :; do sleep 0.1; done"]
"#,
    );
    namespace.wait("pod/short", "condition=Ready");
    namespace.kubectl(["delete", "pod/short", "--wait=false"]);
    let pod = eventually("both containers have ended", || {
        let pod = namespace.get("pod/short");
        let both = [("containerStatuses", "short"), ("initContainerStatuses", "heddle-proxy")];
        both.iter().all(|(list, name)| !ended(&pod, list, name).is_null()).then_some(pod)
    });
    namespace.kubectl(["patch", "pod/short", "--type=merge", r#"--patch={"metadata":{"finalizers":null}}"#]);

    let application = ended(&pod, "containerStatuses", "short");
    let proxy = ended(&pod, "initContainerStatuses", "heddle-proxy");
    assert_eq!(application["exitCode"], 0, "its outbound works after SIGTERM: {application}");
    assert_eq!(proxy["exitCode"], 0, "{proxy}");
    let between = seconds(&proxy["finishedAt"]) - seconds(&application["finishedAt"]);
    assert!((0..=5).contains(&between), "the sidecar ended {between} s after the application");
}

#[test]
fn a_pod_that_cannot_be_meshed_is_refused_with_the_reason() {
    let cluster = meshed();
    let namespace = cluster.namespace_labelled("refused", &[("heddle.dev/inject", "enabled")]);
    let pod = |metadata: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: x, {metadata} }}\nspec: {{ {spec} containers: [{{ name: x, image: \
             local.test/busybox:1 }}] }}\n"
        )
    };
    for (manifest, reason) in [
        (
            pod("", "securityContext: { runAsUser: 1337 },"),
            "spec.securityContext.runAsUser: `1337`: this user is the sidecar's",
        ),
        (
            pod("annotations: { heddle.dev/workers: many }", ""),
            "annotation heddle.dev/workers: `many`: write a whole number",
        ),
        (
            pod("annotations: { heddle.dev/inject: enabled }", "hostNetwork: true,"),
            "spec.hostNetwork: `true`: a pod in its node's network cannot be meshed",
        ),
    ] {
        let output = namespace.try_apply(&manifest);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(reason), "{said}");
    }
}

#[test]
fn a_pod_in_its_nodes_network_is_left_alone_and_an_event_says_so() {
    let cluster = meshed();
    let namespace = cluster.namespace_labelled("host", &[("heddle.dev/inject", "enabled")]);
    namespace.apply(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: agent }
spec:
  selector: { matchLabels: { app: agent } }
  template:
    metadata: { labels: { app: agent } }
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 0
      containers: [{ name: agent, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"] }]
"#,
    );
    namespace.rolled_out("deployment/agent");
    let pod = namespace.get(&format!("pod/{}", namespace.pods("app=agent")[0]));
    assert!(pod["spec"].get("initContainers").is_none(), "{pod}");
    let event = eventually("the event is there", || {
        let events = namespace.get("events.events.k8s.io");
        let all = events["items"].as_array().unwrap().clone();
        all.into_iter().find(|event| event["reason"] == "HostNetwork")
    });
    assert_eq!(event["regarding"]["kind"], "ReplicaSet");
    assert!(event["note"].as_str().unwrap().contains("reached in plaintext"), "{event}");
}

#[test]
fn a_namespace_that_was_not_labelled_has_no_sidecars_unless_a_pod_asks() {
    let cluster = meshed();
    let namespace = cluster.namespace("unlabelled");
    let pod = |name: &str, annotations: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, annotations: {{ {annotations} }} }}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n  containers: [{{ name: x, image: \"local.test/busybox:1\", \
             imagePullPolicy: Never, command: [sleep, \"3600\"] }}]\n"
        )
    };
    namespace.apply(&pod("plain", ""));
    namespace.apply(&pod("meshed", "heddle.dev/inject: enabled"));
    namespace.wait("pod/plain", "condition=Ready");
    namespace.wait("pod/meshed", "condition=Ready");
    assert!(namespace.get("pod/plain")["spec"].get("initContainers").is_none());
    assert_eq!(namespace.get("pod/meshed")["spec"]["initContainers"][1]["name"], "heddle-proxy");
}

#[test]
fn impossible_policies_and_routes_are_refused_and_can_always_be_deleted() {
    let cluster = meshed();
    let namespace = cluster.namespace("validation");
    let policy = |kind: &str, spec: &str| {
        format!("apiVersion: heddle.dev/v1alpha1\nkind: {kind}\nmetadata: {{ name: x }}\nspec: {spec}\n")
    };
    let route = |rule: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: x }}\nspec:\n  parentRefs: \
             [{{ group: \"\", kind: Service, name: echo }}]\n  rules: [{rule}]\n"
        )
    };
    for (manifest, reasons) in [
        // By the schema alone.
        (policy("MeshTLSPolicy", "{ portLevel: { \"080\": STRICT } }"), ["write ports in portLevel as numbers"]),
        (policy("MeshTLSPolicy", "{}"), ["give mode, portLevel, or both"]),
        (
            policy("TrafficPolicy", "{ targetRefs: [{ kind: Service, name: a }], connectTimeout: 0s }"),
            ["connectTimeout must be above 0s"],
        ),
        (policy("Workload", "{ addresses: [127.0.0.1] }"), ["addresses other hosts can reach"]),
        (policy("AuthorizationPolicy", "{ rules: [{ from: [{}] }] }"), ["should have at least 1 properties"]),
        // By the control plane.
        (
            policy("AuthorizationPolicy", "{ rules: [{ from: [{ ipBlocks: [10.0.0.0/33] }] }] }"),
            ["spec.rules[0].from[0].ipBlocks[0]: `10.0.0.0/33`: write a network"],
        ),
        (
            route("{ matches: [{ path: { type: RegularExpression, value: \"(\" } }] }"),
            ["spec.rules[0]: `(` is no regular expression"],
        ),
    ] {
        let output = namespace.try_apply(&manifest);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && reasons.iter().all(|reason| said.contains(reason)), "{manifest}\n{said}");
    }
    // The Service it is for need not be there yet.
    namespace.apply(&route("{ matches: [{ path: { type: PathPrefix, value: /a } }] }"));
    namespace.kubectl(["delete", "httproute/x"]);
}

const STRICT: &str =
    "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLSPolicy\nmetadata: { name: strict }\nspec: { mode: STRICT }\n";

const ECHO: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: echo }
spec:
  selector: { matchLabels: { app: echo } }
  template:
    metadata: { labels: { app: echo } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: echo
          image: local.test/busybox:1
          imagePullPolicy: Never
          command: [sh, -c, "mkdir /tmp/www && hostname > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www"]
          ports: [{ name: http, containerPort: 8080 }]
          startupProbe: { tcpSocket: { port: http }, periodSeconds: 1 }
          livenessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 5 }
          readinessProbe: { httpGet: { path: /, port: http }, periodSeconds: 1 }
          lifecycle: { preStop: { httpGet: { path: /, port: http } } }
---
apiVersion: v1
kind: Service
metadata: { name: echo }
spec:
  selector: { app: echo }
  ports: [{ name: http, port: 80, targetPort: http }]
"#;
