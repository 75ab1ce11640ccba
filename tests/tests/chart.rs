//! The chart without a cluster: what Helm, the schemas of Kubernetes and promtool say of it, and whether it says the same as the
//! code. `kubernetes/chart.rs` installs it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser;
use heddle_control_plane::cluster::access::{RULES, Scope};
use heddle_control_plane::config::Config;
use heddle_control_plane::inject::Settings;
use heddle_tests::chart::{self, object, objects, render};
use heddle_tests::programs::Program;
use heddle_tests::pypi;
use serde_json::Value;

const PROMTOOL: Program = Program { name: "promtool", package: "prometheus" };

/// Everything that is optional, switched on.
const EVERYTHING: &[&str] = &[
    "--set=images.registry=registry.example.com/mesh,images.pullSecrets={registry}",
    "--set=images.proxy.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "--set=mesh.cidrs={10.244.0.0/16,fd00::/8},mesh.egress=deny",
    "--set=controlPlane.autoscaling.enabled=true,controlPlane.antiAffinity=required",
    "--set=controlPlane.extraArgs={--max-connections=4096},controlPlane.podAnnotations.team=mesh,controlPlane.podLabels.team=mesh",
    "--set=controlPlane.tolerations[0].operator=Exists,controlPlane.service.annotations.team=mesh",
    "--set=sidecar.excludeOutboundCidrs={169.254.169.254/32},sidecar.excludeInboundPorts={22,9000-9010},sidecar.resources.limits.memory=256Mi",
    "--set=monitoring.podMonitor.enabled=true,monitoring.podMonitor.labels.release=prometheus,monitoring.podMonitor.interval=30s",
    "--set=monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true",
    "--set=cni.enabled=true",
    "--set=networkPolicy.enabled=true,networkPolicy.scrapers[0].namespaceSelector.matchLabels.team=monitoring",
];

/// Everything that can be left out, left out.
const NOTHING: &[&str] = &[
    "--set=crds.install=false,validator.enabled=false,monitoring.scrapeAnnotations=false",
    "--set=controlPlane.podDisruptionBudget.enabled=false,controlPlane.priorityClass.create=false,controlPlane.priorityClass.name=",
    "--set=controlPlane.antiAffinity=off,controlPlane.spreadOverZones=false,controlPlane.drainSeconds=0",
    "--set=controlPlane.nodeSelector=null,injector.failurePolicy=Ignore",
];

fn ha() -> String {
    format!("--values={}/values-ha.yaml", chart::directory().display())
}

/// The value sets that everything is tried with.
fn value_sets() -> [(&'static str, Vec<String>); 4] {
    let own = |set: &[&str]| set.iter().map(|text| (*text).to_owned()).collect();
    [("default", Vec::new()), ("ha", vec![ha()]), ("everything", own(EVERYTHING)), ("nothing", own(NOTHING))]
}

fn rendered(set: &[String]) -> String {
    render(&set.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn helm_lint_warns_of_nothing() {
    let directory = chart::directory();
    for (name, set) in value_sets() {
        let mut arguments = vec!["lint", "--strict", "--namespace=heddle-system", directory.to_str().unwrap()];
        arguments.extend(set.iter().map(String::as_str));
        let output = chart::helm(&arguments);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn every_object_is_as_the_oldest_and_the_newest_kubernetes_want_it() {
    let directory = tempfile::tempdir().unwrap();
    for (name, set) in value_sets() {
        let file = directory.path().join(format!("{name}.yaml"));
        // The schemas of the Prometheus operator's kinds are not Kubernetes' own.
        let known = objects(&rendered(&set)).into_iter().filter(|object| {
            object["apiVersion"] != "monitoring.coreos.com/v1" && object["kind"] != "CustomResourceDefinition"
        });
        let documents: Vec<_> = known.map(|object| format!("---\n{object}\n")).collect();
        assert!(documents.len() >= 10, "{documents:?}");
        fs::write(&file, documents.concat()).unwrap();
        let mut command = pypi::kubernetes_validate();
        command.args(["--strict", "--quiet", "--kubernetes-version=1.30", "--kubernetes-version=1.37"]).arg(&file);
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.is_empty(), "{name}: {said}");
    }
}

#[test]
fn a_value_that_cannot_be_meant_is_refused_by_its_name() {
    for (set, named) in [
        ("controlPlane.replicaz=2", "controlPlane': additional properties 'replicaz'"),
        ("replicas=2", "'replicas'"),
        ("controlPlane.replicas=0", "/controlPlane/replicas"),
        ("controlPlane.drainSeconds=40", "/controlPlane/drainSeconds"),
        ("controlPlane.antiAffinity=always", "/controlPlane/antiAffinity"),
        ("controlPlane.resources.limits.memory=much", "/controlPlane/resources/limits/memory"),
        ("controlPlane.priorityClass.value=2000000000", "/controlPlane/priorityClass/value"),
        ("controlPlane.extraArgs={verbose}", "/controlPlane/extraArgs/0"),
        ("images.pullPolicy=Sometimes", "/images/pullPolicy"),
        ("images.proxy.digest=latest", "/images/proxy/digest"),
        ("mesh.egress=maybe", "/mesh/egress"),
        ("mesh.cidrs={10.0.0.0}", "/mesh/cidrs/0"),
        ("mesh.leafLifetime=1d", "/mesh/leafLifetime"),
        ("mesh.trustDomain=Mesh.Example", "/mesh/trustDomain"),
        ("sidecar.accessLog=xml", "/sidecar/accessLog"),
        ("sidecar.excludeInboundPorts={0}", "/sidecar/excludeInboundPorts/0"),
        ("sidecar.resources.requests.cpu=-1", "/sidecar/resources/requests/cpu"),
        ("injector.failurePolicy=Panic", "/injector/failurePolicy"),
        ("injector.timeoutSeconds=31", "/injector/timeoutSeconds"),
        ("monitoring.prometheusRule.successObjective=99.9", "/monitoring/prometheusRule/successObjective"),
        ("crds.install=perhaps", "/crds/install"),
    ] {
        let output = chart::try_render(&["--set", set]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{set}: {said}");
    }
}

/// Paths of all values, or of all that the schema knows.
fn paths(node: &Value, path: &str, found: &mut BTreeSet<String>) {
    let Some(fields) = node.as_object().filter(|fields| !fields.is_empty()) else {
        found.insert(path.to_owned());
        return;
    };
    for (name, inner) in fields {
        paths(inner, &format!("{path}.{name}"), found);
    }
}

/// Under these the user's own names stand.
const OPEN: &[&str] =
    &[".controlPlane.nodeSelector", ".controlPlane.resources", ".sidecar.resources", ".cni.resources", ".global"];

fn schema_as_values(schema: &Value, node: &Value) -> Value {
    let name = node["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/definitions/"));
    let node = name.map_or(node, |name| &schema["definitions"][name]);
    match node["properties"].as_object() {
        Some(fields) => {
            fields.iter().map(|(name, inner)| (name.clone(), schema_as_values(schema, inner))).collect::<Value>()
        }
        None => Value::Null,
    }
}

#[test]
fn every_value_has_a_schema_and_a_comment_and_every_schema_a_value() {
    let directory = chart::directory();
    let text = fs::read_to_string(directory.join("values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(directory.join("values.schema.json")).unwrap()).unwrap();
    let (mut written, mut known) = (BTreeSet::new(), BTreeSet::new());
    paths(&values, "", &mut written);
    paths(&schema_as_values(&schema, &schema), "", &mut known);
    for all in [&mut written, &mut known] {
        all.retain(|path| !OPEN.iter().any(|open| path.starts_with(open)));
    }
    assert_eq!(written, known);

    // What lies deeper is told of above its group where its name does not say enough.
    let mut comment = false;
    for line in text.lines() {
        let bare = line.trim_start();
        let value = line.len() - bare.len() <= 2 && !bare.is_empty() && !bare.starts_with('#');
        assert!(!value || comment, "values.yaml: no comment above `{line}`");
        comment = bare.starts_with('#');
    }
}

#[test]
fn chart_and_images_have_the_version_of_the_code() {
    let text = fs::read_to_string(chart::directory().join("Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!((&chart["version"], &chart["appVersion"]), (&Value::from(VERSION), &Value::from(VERSION)));

    let objects = objects(&render(&[]));
    let deployment = object(&objects, "Deployment", "heddle-control-plane");
    let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, &Value::from(format!("heddle.dev/heddle-control-plane:{VERSION}")));
    let injection: Value = injection(&objects);
    assert_eq!(injection["image"], format!("heddle.dev/heddle-proxy:{VERSION}"));
}

#[test]
fn registry_tag_and_digest_make_one_reference() {
    let objects = objects(&render(&[
        "--set=images.registry=registry.example.com/mesh/,images.proxy.tag=1.2.3",
        "--set=images.proxy.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ]));
    let reference = "registry.example.com/mesh/heddle-proxy:1.2.3@sha256:\
                     0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    assert_eq!(injection(&objects)["image"], reference);
}

fn injection(objects: &[Value]) -> Value {
    let map = object(objects, "ConfigMap", "heddle-injection");
    serde_saphyr::from_str(map["data"]["injection.yaml"].as_str().unwrap()).unwrap()
}

#[test]
fn the_chart_makes_no_key_and_no_certificate() {
    for (name, set) in value_sets() {
        let text = rendered(&set);
        for object in objects(&text) {
            assert_ne!(object["kind"], "Secret", "{name}: {object}");
        }
        for word in ["caBundle", "PRIVATE KEY", "BEGIN CERTIFICATE"] {
            assert!(!text.contains(word), "{name}: {word}");
        }
    }
    let templates = chart::directory().join("templates");
    for file in fs::read_dir(templates).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = fs::read_to_string(&file).unwrap();
        for function in ["genCA", "genSelfSignedCert", "genSignedCert", "genPrivateKey", "randAlphaNum", "randBytes"] {
            assert!(!text.contains(function), "{}: {function}", file.display());
        }
    }
}

#[test]
fn definitions_are_kept_on_uninstall_and_can_be_left_out() {
    let with = objects(&render(&[]));
    let definitions: Vec<_> = with.iter().filter(|object| object["kind"] == "CustomResourceDefinition").collect();
    let names: BTreeSet<_> = definitions.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect();
    let expected: Vec<_> = heddle_control_plane::api::definitions();
    assert_eq!(names, expected.iter().filter_map(|definition| definition.metadata.name.as_deref()).collect());
    for definition in &definitions {
        assert_eq!(definition["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
    // What Helm did to them on the way changed nothing.
    for (definition, expected) in definitions.iter().zip(&expected) {
        assert_eq!(by_value(&definition["spec"]), by_value(&serde_json::to_value(&expected.spec).unwrap()));
    }
    let without = render(&["--set=crds.install=false"]);
    assert!(!without.contains("CustomResourceDefinition"));
}

/// The same with every number as a float: YAML writes 64 for 64.0.
fn by_value(value: &Value) -> Value {
    match value {
        Value::Number(number) => Value::from(number.as_f64()),
        Value::Array(items) => items.iter().map(by_value).collect(),
        Value::Object(fields) => fields.iter().map(|(name, inner)| (name.clone(), by_value(inner))).collect(),
        other => other.clone(),
    }
}

#[test]
fn only_pods_that_want_a_sidecar_can_be_held_up() {
    let objects = objects(&render(&["--set=injector.excludedNamespaces={legacy}"]));
    let webhooks = object(&objects, "MutatingWebhookConfiguration", "heddle-injector")["webhooks"].as_array().unwrap();
    for webhook in webhooks {
        let rules = webhook["namespaceSelector"]["matchExpressions"].as_array().unwrap();
        let excluded = rules.iter().find(|rule| rule["key"] == "kubernetes.io/metadata.name").unwrap();
        assert_eq!(excluded["operator"], "NotIn");
        let excluded: Vec<_> = excluded["values"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(excluded, ["kube-system", "kube-public", "kube-node-lease", "heddle-system", "legacy"]);
        // Either the namespace has the label, or the pod itself.
        let switch = rules.iter().find(|rule| rule["key"] == "heddle.dev/inject").unwrap();
        let opted_in = switch["operator"] == "In" && switch["values"] == serde_json::json!(["enabled"]);
        let condition = webhook["matchConditions"][0]["expression"].as_str();
        assert!(opted_in || condition.is_some_and(|text| text.contains("heddle.dev/inject")), "{webhook}");
        assert_eq!((&webhook["failurePolicy"], &webhook["reinvocationPolicy"]), (&"Fail".into(), &"IfNeeded".into()));
    }
}

#[test]
fn the_control_plane_has_no_more_than_it_needs() {
    let objects = objects(&render(&[]));
    let deployment = object(&objects, "Deployment", "heddle-control-plane");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["capabilities"], serde_json::json!({ "drop": ["ALL"] }));
}

/// A rule as text, to compare: group, resources, names, verbs.
fn rule<'t>(group: &str, lists: [impl Iterator<Item = &'t str>; 3]) -> String {
    let [resources, names, verbs] = lists.map(|list| list.collect::<Vec<_>>().join(" "));
    format!("{group}: {resources}: {names}: {verbs}")
}

#[test]
fn the_control_plane_may_do_what_it_does_and_nothing_else() {
    let objects = objects(&render(&[]));
    for (kind, scope) in [("ClusterRole", Scope::Cluster), ("Role", Scope::OwnNamespace)] {
        let granted =
            object(&objects, kind, "heddle-control-plane")["rules"].as_array().unwrap().iter().map(|granted| {
                let list = |field: &str| granted[field].as_array().into_iter().flatten().filter_map(Value::as_str);
                rule(list("apiGroups").next().unwrap(), ["resources", "resourceNames", "verbs"].map(list))
            });
        let needed = RULES.iter().filter(|needed| needed.scope == scope).map(|needed| {
            rule(needed.group, [needed.resources, needed.names, needed.verbs].map(|list| list.iter().copied()))
        });
        assert_eq!(granted.collect::<BTreeSet<_>>(), needed.collect());
    }
}

/// The control plane's command line, as its own binary reads it.
#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    config: Config,
}

#[test]
fn the_control_plane_takes_its_arguments_and_settings_and_they_mean_what_the_values_say() {
    for (name, set) in value_sets() {
        let objects = objects(&rendered(&set));
        let deployment = object(&objects, "Deployment", "heddle-control-plane");
        let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
        let words = std::iter::once("heddle-control-plane").chain(arguments.iter().filter_map(Value::as_str));
        let CommandLine { config } =
            CommandLine::try_parse_from(words).unwrap_or_else(|error| panic!("{name}: {error}"));
        config.check().unwrap();
        assert!(config.kubernetes);
        assert_eq!(config.server_names, ["heddle-control-plane.heddle-system.svc"]);

        let settings = Settings::parse(
            object(&objects, "ConfigMap", "heddle-injection")["data"]["injection.yaml"].as_str().unwrap(),
        );
        let settings = settings.unwrap_or_else(|error| panic!("{name}: {error}"));
        if name == "default" {
            // What the code does without a file is what the chart does without values.
            assert_eq!(settings, Settings::default());
            let mut bare = Config::of_cluster(config.trust_domain.clone());
            bare.owner.clone_from(&config.owner);
            bare.injection.clone_from(&config.injection);
            bare.server_names.clone_from(&config.server_names);
            assert_eq!(serde_json::to_value(&config).unwrap(), serde_json::to_value(&bare).unwrap());
        }
    }
}

#[test]
fn promtool_takes_the_rules_and_every_alert_fires_when_it_should() {
    let rules = chart::directory().join("files/rules.yaml");
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules/alerts.yaml");
    for arguments in [["check", "rules"], ["test", "rules"]] {
        let file = if arguments[0] == "check" { &rules } else { &cases };
        let output = PROMTOOL.command().args(arguments).arg(file).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
    let cases = fs::read_to_string(cases).unwrap();
    for alert in alerts() {
        let fires = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"");
        assert!(cases.contains(&fires), "tests/rules/alerts.yaml: no case in which {alert} fires");
    }
}

fn rules() -> Value {
    serde_saphyr::from_str(&fs::read_to_string(chart::directory().join("files/rules.yaml")).unwrap()).unwrap()
}

fn every_rule(rules: &Value) -> impl Iterator<Item = &Value> {
    rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
}

fn alerts() -> Vec<String> {
    every_rule(&rules()).filter_map(|rule| rule["alert"].as_str().map(ToOwned::to_owned)).collect()
}

/// All of a directory's Rust code.
fn code(directory: &Path) -> String {
    let mut text = String::new();
    for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            text += &code(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path).unwrap();
        }
    }
    text
}

#[test]
fn rules_speak_of_metrics_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let code = code(&root.join("proxy/src")) + &code(&root.join("control-plane/src"));
    let rules = rules();
    let mut seen = 0;
    for expression in every_rule(&rules).map(|rule| rule["expr"].as_str().unwrap()) {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        for metric in words.filter(|word| word.starts_with("heddle_")) {
            let family = metric.trim_end_matches("_bucket");
            assert!(code.contains(&format!("\"{family}\"")), "{metric}: nothing is exposed under this name");
            seen += 1;
        }
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        for recorded in words.filter(|word| word.starts_with("heddle:")) {
            assert!(every_rule(&rules).any(|rule| rule["record"] == recorded), "{recorded}: no rule records it");
        }
    }
    assert!(seen > 10);
}

#[test]
fn the_operators_rules_are_those_of_the_file_measured_by_the_values() {
    let objects = objects(&render(&[
        "--set=monitoring.prometheusRule.enabled=true,monitoring.prometheusRule.successObjective=0.99",
        "--set=monitoring.prometheusRule.labels.release=prometheus",
    ]));
    let made = object(&objects, "PrometheusRule", "heddle");
    let (made, file) = (made["spec"]["groups"].as_array().unwrap(), rules());
    let file = file["groups"].as_array().unwrap();
    assert_eq!(made[1..], file[1..]);
    let names = |group: &Value| {
        group["rules"].as_array().unwrap().iter().map(|rule| rule["record"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&made[0]), names(&file[0]));
    assert_eq!(made[0]["rules"][0]["expr"], "vector(0.99)");
    // With the chart's own values, nothing differs.
    let same = render(&["--set=monitoring.prometheusRule.enabled=true"]);
    assert_eq!(object(&self::objects(&same), "PrometheusRule", "heddle")["spec"]["groups"].as_array().unwrap(), file);
}

#[test]
fn what_is_not_asked_for_is_not_there() {
    let kinds = |more: &[&str]| {
        objects(&render(more)).iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let optional =
        ["NetworkPolicy", "DaemonSet", "PodMonitor", "ServiceMonitor", "PrometheusRule", "HorizontalPodAutoscaler"];
    let default = kinds(&[]);
    let everything = kinds(EVERYTHING);
    for kind in optional {
        assert!(!default.contains(kind) && everything.contains(kind), "{kind}");
    }
    for kind in ["PodDisruptionBudget", "PriorityClass", "ValidatingWebhookConfiguration", "CustomResourceDefinition"] {
        assert!(default.contains(kind) && !kinds(NOTHING).contains(kind), "{kind}");
    }
}

#[test]
fn several_replicas_are_spread_and_drained_one_at_a_time() {
    let objects = objects(&render(&[&ha()]));
    let deployment = object(&objects, "Deployment", "heddle-control-plane");
    assert_eq!(deployment["spec"]["replicas"], 3);
    let pod = &deployment["spec"]["template"]["spec"];
    let rule = &pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(rule["podAffinityTerm"]["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(pod["topologySpreadConstraints"][0]["topologyKey"], "topology.kubernetes.io/zone");
    let budget = object(&objects, "PodDisruptionBudget", "heddle-control-plane");
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    // All of them name the same pods.
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in
        [&deployment["spec"]["selector"], &budget["spec"]["selector"], &rule["podAffinityTerm"]["labelSelector"]]
    {
        for (label, value) in selector["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[label], value);
        }
    }
}

#[test]
fn other_injection_settings_make_new_control_plane_pods() {
    let annotations = |more: &[&str]| {
        let objects = objects(&render(more));
        object(&objects, "Deployment", "heddle-control-plane")["spec"]["template"]["metadata"]["annotations"].clone()
    };
    assert_eq!(annotations(&[]), annotations(&["--set=injector.timeoutSeconds=3"]));
    assert_ne!(annotations(&[]), annotations(&["--set=sidecar.log=debug"]));
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
