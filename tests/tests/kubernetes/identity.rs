//! Identity in the cluster: the root in a Secret, its public part in every namespace, certificates for service account tokens.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use heddle::pods::{Child, Netns};
use heddle_certs::ca::{Authority, ROOT_LIFETIME};
use heddle_certs::identity::TrustDomain;
use heddle_tests::cluster::{Cluster, Namespace};
use heddle_tests::eventually;
use heddle_tests::replica::{Account, Replica};
use serde_json::{Value, json};

use crate::source::ECHO;

const BINARY: &str = env!("CARGO_BIN_EXE_heddle-under-test");

#[test]
fn the_root_is_made_once_by_whichever_replica_comes_first() {
    let cluster = Cluster::running();
    let home = cluster.namespace("heddle");
    let account = Account::in_namespace(&cluster, &home, BINARY);

    let replicas = ["a", "b", "c"].map(|name| account.launch(name, &[]));
    replicas.iter().for_each(Replica::ready);

    let bundle = piece(&home.get("secret/heddle-root"), "bundle.pem");
    let expiry = |replica: &Replica<'_>| replica.metric("heddle_root_expiry_timestamp_seconds");
    assert!(replicas.iter().all(|replica| expiry(replica) == expiry(&replicas[0])), "all read the same root");
    account.start("d");
    assert_eq!(piece(&home.get("secret/heddle-root"), "bundle.pem"), bundle, "a restart takes it over");
}

#[test]
fn an_authority_the_user_laid_into_the_secret_is_taken_over() {
    let cluster = Cluster::running();
    let home = cluster.namespace("heddle");
    let theirs =
        Authority::generate(&TrustDomain::parse("cluster.local").unwrap(), ROOT_LIFETIME, SystemTime::now()).unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "heddle-root" },
        "stringData": { "ca.crt": theirs.chain_pem(), "ca.key": theirs.key_pem() },
    });
    home.apply(&secret.to_string());
    let account = Account::in_namespace(&cluster, &home, BINARY);

    account.start("a");

    let secret = home.get("secret/heddle-root");
    assert_eq!(piece(&secret, "bundle.pem"), theirs.chain_pem());
    assert!(!piece(&secret, "token.key").is_empty() && !piece(&secret, "brought").is_empty());
}

#[test]
fn the_roots_are_in_every_namespace_and_come_back() {
    let cluster = Cluster::running();
    let (home, before) = (cluster.namespace("heddle"), cluster.namespace("before"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let _replica = account.start("a");
    let bundle = piece(&home.get("secret/heddle-root"), "bundle.pem");
    let there = |namespace: &Namespace<'_>| {
        eventually("the roots are there", || (roots(namespace)? == bundle).then_some(()));
    };
    there(&before);
    there(&cluster.namespace("after"));

    before.kubectl(["delete", "configmap/heddle-roots"]);
    there(&before);
    before.kubectl(["patch", "configmap/heddle-roots", "--patch", r#"{"data":{"bundle.pem":"something else"}}"#]);
    there(&before);
}

#[test]
fn the_secret_that_was_taken_away_comes_back_as_it_was() {
    let cluster = Cluster::running();
    let home = cluster.namespace("heddle");
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let replica = account.start("a");
    let key = piece(&home.get("secret/heddle-root"), "ca.key");
    replica.metric_becomes("heddle_leading", 1.0);

    home.kubectl(["delete", "secret/heddle-root"]);

    home.wait("secret/heddle-root", "create");
    assert_eq!(piece(&home.get("secret/heddle-root"), "ca.key"), key);
}

#[test]
fn roots_are_exchanged_by_the_holder_of_the_lease_and_taken_over_by_the_others() {
    let cluster = Cluster::running();
    let (home, before) = (cluster.namespace("heddle"), cluster.namespace("before"));
    let account = Account::in_namespace(&cluster, &home, BINARY);
    let hasty = ["--leaf-lifetime", "30s", "--root-lifetime", "60s", "--root-lead", "3s"];
    let holder = account.launch("a", &hasty);
    holder.metric_becomes("heddle_leading", 1.0);
    let other = account.launch("b", &hasty);
    other.ready();
    let first = piece(&home.get("secret/heddle-root"), "ca.crt");

    // At half of its life the next is made, and three seconds later that signs.
    home.wait("secret/heddle-root", "jsonpath={.data.next\\.crt}");
    eventually("both roots are in the namespaces", || {
        (roots(&before)?.matches("BEGIN CERTIFICATE").count() == 2).then_some(())
    });
    eventually("the next root signs", || (piece(&home.get("secret/heddle-root"), "ca.crt") != first).then_some(()));
    let taken = "took over what the root's Secret holds now";
    eventually("the other replica has taken over both steps", || {
        (other.said().matches(taken).count() == 2).then_some(())
    });

    assert!(holder.said().contains("Promoted") && !other.said().contains("Promoted"));
    assert_eq!(holder.metric("heddle_rotation_failures_total"), 0.0);
    assert_eq!(other.metric("heddle_rotation_failures_total"), 0.0);
}

#[test]
fn a_pods_token_brings_a_certificate_of_its_service_account() {
    let cluster = Cluster::running();
    let test = Shop::start(&cluster);
    let replica = test.account.start("a");

    // What runs in a network ends with the handle to it.
    let client = test.network("client");
    let agent = test.agent(&replica, "client", &test.token("client", "heddle"), &client);

    let chain = eventually("a certificate", || std::fs::read_to_string(agent.directory.join("chain.pem")).ok());
    assert!(
        san(&chain).contains(&format!("spiffe://cluster.local/ns/{}/sa/default", test.namespace.name)),
        "{}",
        san(&chain)
    );
    assert_eq!(replica.metric("heddle_token_reviews_total{outcome=\"accepted\"}"), 1.0);
    assert_eq!(replica.metric("heddle_certificates_requests_total{outcome=\"signed_for_service_account\"}"), 1.0);
}

#[test]
fn tokens_that_prove_nothing_are_refused_counted_and_logged() {
    let cluster = Cluster::running();
    let test = Shop::start(&cluster);
    let replica = test.account.start("a");
    let client = test.network("client");
    let (client_token, other_token) = (test.token("client", "heddle"), test.token("other", "heddle"));
    let gone_token = {
        let token = test.token("gone", "heddle");
        test.namespace.kubectl(["delete", "pod/gone", "--wait=true"]);
        token
    };
    let over = with_claim(&client_token, "exp", json!(1_000_000_000));
    let unbound = test.namespace.kubectl(["create", "token", "default", "--audience=heddle"]);
    let cases: [(&str, String, &Netns); 7] = [
        ("audience", test.token("client", "https://kubernetes.default.svc.cluster.local"), &client),
        ("expired", over, &client),
        ("unbelieved", with_claim(&client_token, "sub", json!("system:serviceaccount:kube-system:default")), &client),
        ("unbelieved", gone_token, &client),
        ("no_pod", unbound, &client),
        ("malformed", "nonsense".to_owned(), &client),
        ("other_pod", other_token, &client),
    ];
    let mut counted = std::collections::BTreeMap::new();
    for (outcome, token, network) in cases {
        let agent = test.agent(&replica, "client", &token, network);
        let series = format!("heddle_token_reviews_total{{outcome=\"{outcome}\"}}");
        let before: f64 = *counted.get(outcome).unwrap_or(&0.0);
        eventually(&format!("a token is refused as {outcome}"), || (replica.metric(&series) > before).then_some(()));
        assert!(!agent.directory.join("chain.pem").exists(), "{outcome}");
        drop(agent);
        counted.insert(outcome, replica.metric(&series));
    }
    assert_eq!(replica.metric("heddle_certificates_requests_total{outcome=\"signed_for_service_account\"}"), 0.0);
    let said = replica.said();
    for reason in [
        "it is for the audience",
        "it expired",
        "does not believe it",
        "not made for a pod",
        "is not that pod's address",
        "says=\"system:serviceaccount:",
    ] {
        assert!(said.contains(reason), "{reason}");
    }
}

/// Two pods, and one that is to go.
struct Shop<'a> {
    cluster: &'a Cluster,
    account: Account,
    home: Namespace<'a>,
    namespace: Namespace<'a>,
}

/// An agent that asks for a certificate until it has one.
struct Agent {
    directory: PathBuf,
    _child: Child,
}

impl<'a> Shop<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let (home, namespace) = (cluster.namespace("heddle"), cluster.namespace("shop"));
        let account = Account::in_namespace(cluster, &home, BINARY);
        namespace.apply(ECHO);
        for name in ["other", "gone"] {
            namespace.apply(&POD.replace("NAME", name));
        }
        for name in ["client", "other", "gone"] {
            namespace.wait(&format!("pod/{name}"), "condition=Ready");
        }
        Self { cluster, account, home, namespace }
    }

    fn token(&self, pod: &str, audience: &str) -> String {
        let uid = self.namespace.get(&format!("pod/{pod}"))["metadata"]["uid"].as_str().unwrap().to_owned();
        let (name, uid) = (format!("--bound-object-name={pod}"), format!("--bound-object-uid={uid}"));
        let audience = format!("--audience={audience}");
        self.namespace.kubectl(["create", "token", "default", &audience, "--bound-object-kind=Pod", &name, &uid])
    }

    /// The network of a pod.
    fn network(&self, pod: &str) -> Netns {
        let ip = self.namespace.get(&format!("pod/{pod}"))["status"]["podIP"].as_str().unwrap().to_owned();
        self.cluster.pod_network(ip.parse().unwrap())
    }

    fn agent(&self, replica: &Replica<'_>, pod: &str, token: &str, network: &Netns) -> Agent {
        let folder = tempfile::tempdir_in(self.account.directory()).unwrap().keep();
        let (token_file, bundle) = (folder.join("token"), folder.join("roots.pem"));
        std::fs::write(&token_file, token).unwrap();
        std::fs::write(&bundle, piece(&self.home.get("secret/heddle-root"), "bundle.pem")).unwrap();
        let directory = folder.join("identity");
        let mut command = Command::new("setpriv");
        command.env_clear().args(["--pdeathsig", "KILL", "--", BINARY, "proxy", "agent"]);
        command.args(["--namespace", &self.namespace.name, "--service-account", "default", "--workload", pod]);
        command.args(["--control-plane", &format!("https://{}:{}", self.cluster.address(), replica.tls.port())]);
        command.arg("--token").arg(token_file).arg("--bundle").arg(bundle).arg("--directory").arg(&directory);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        Agent { directory, _child: network.spawn(command).unwrap() }
    }
}

/// A piece of a Secret.
fn piece(secret: &Value, name: &str) -> String {
    let data = secret["data"][name].as_str().unwrap_or_else(|| panic!("the Secret has no {name}"));
    String::from_utf8(STANDARD.decode(data).unwrap()).unwrap()
}

fn roots(namespace: &Namespace<'_>) -> Option<String> {
    let output = namespace.try_kubectl(["get", "configmap/heddle-roots", "--output=json"]);
    let found: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(found["data"]["bundle.pem"].as_str()?.to_owned())
}

/// The token with another claim, its signature left as it was.
fn with_claim(token: &str, name: &str, value: Value) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    claims[name] = value;
    format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()), parts[2])
}

/// The names in a certificate, as openssl writes them.
fn san(chain: &str) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(chain.as_bytes()).unwrap();
    let mut openssl = Command::new("openssl");
    let output = openssl.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: NAME }
spec:
  terminationGracePeriodSeconds: 0
  containers: [{ name: app, image: "local.test/busybox:1", imagePullPolicy: Never, command: [sleep, "3600"] }]
"#;
