//! Certificates and requests against OpenSSL, which shares no code with the writer: it must verify what is made here,
//! see every field of the profile, and make requests that are accepted here. Needs the `openssl` command; a machine
//! without it fails these tests.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_certs::bundle::Bundle;
use heddle_certs::ca::{Authority, MAX_LEAF_LIFETIME, ROOT_LIFETIME, Signed};
use heddle_certs::credential::Identity;
use heddle_certs::csr::{self, Csr, KeyRequest};
use heddle_certs::identity::{SpiffeId, TrustDomain};
use heddle_certs::slots::{Schedule, Slots};
use heddle_certs::{store, verify};
use tempfile::TempDir;

const NOW_SECONDS: u64 = 2_000_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_SECONDS)
}

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn cart() -> SpiffeId {
    SpiffeId::new(&domain(), "shop", "cart").unwrap()
}

fn authority() -> Authority {
    Authority::generate(&domain(), ROOT_LIFETIME, now()).unwrap()
}

fn sign(authority: &Authority, csr: &Csr) -> Signed {
    authority.sign(csr, &cart(), MAX_LEAF_LIFETIME, now()).unwrap()
}

fn workload(authority: &Authority) -> Identity {
    let request = KeyRequest::generate(&cart()).unwrap();
    Identity::new(sign(authority, &Csr::from_der(&request.csr).unwrap()).chain, request.key).unwrap()
}

fn openssl(directory: &Path, arguments: &[&str]) -> Output {
    let output = Command::new("openssl").args(arguments).current_dir(directory).output();
    output.expect("the `openssl` command must be installed (Debian: apt-get install openssl)")
}

fn succeeds(directory: &Path, arguments: &[&str]) -> String {
    let output = openssl(directory, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "openssl {arguments:?}: {out}{err}");
    out.into_owned()
}

fn refuses(directory: &Path, arguments: &[&str]) -> String {
    let output = openssl(directory, arguments);
    assert!(!output.status.success(), "openssl {arguments:?} accepted");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn directory(files: &[(&str, String)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn verify_at(seconds: u64) -> Vec<String> {
    let line = format!("verify -x509_strict -attime {seconds} -CAfile root.pem -untrusted chain.pem chain.pem");
    line.split(' ').map(str::to_owned).collect()
}

fn refs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn openssl_verifies_a_workload_strictly_for_both_purposes_and_only_in_its_time() {
    let ca = authority();
    let dir = directory(&[("root.pem", ca.chain_pem()), ("chain.pem", workload(&ca).chain_pem())]);
    succeeds(dir.path(), &refs(&verify_at(NOW_SECONDS)));
    for purpose in ["sslserver", "sslclient"] {
        let mut arguments = verify_at(NOW_SECONDS);
        arguments.splice(1..1, ["-purpose".to_owned(), purpose.to_owned()]);
        succeeds(dir.path(), &refs(&arguments));
    }
    succeeds(dir.path(), &refs(&verify_at(NOW_SECONDS - 60)));
    assert!(refuses(dir.path(), &refs(&verify_at(NOW_SECONDS - 61))).contains("not yet valid"));
    assert!(refuses(dir.path(), &refs(&verify_at(NOW_SECONDS + 86_401))).contains("expired"));
}

#[test]
fn openssl_refuses_a_workload_of_another_root() {
    let files = [("root.pem", authority().chain_pem()), ("chain.pem", workload(&authority()).chain_pem())];
    refuses(directory(&files).path(), &refs(&verify_at(NOW_SECONDS)));
}

#[test]
fn openssl_reads_every_field_of_a_leaf_as_the_profile_says() {
    let ca = authority();
    let dir = directory(&[("chain.pem", workload(&ca).chain_pem())]);
    let text = succeeds(dir.path(), &["x509", "-in", "chain.pem", "-noout", "-text"]);
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "Version: 3 (0x2)",
        "Signature Algorithm: ecdsa-with-SHA256",
        "Not Before: May 18 03:32:20 2033 GMT Not After : May 19 03:33:20 2033 GMT",
        "Subject: Subject Public Key Info",
        "ASN1 OID: prime256v1",
        "X509v3 Subject Alternative Name: critical URI:spiffe://cluster.local/ns/shop/sa/cart X509v3",
        "X509v3 Key Usage: critical Digital Signature X509v3",
        "X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication X509v3",
        "X509v3 Basic Constraints: critical CA:FALSE",
        "X509v3 Subject Key Identifier:",
        "X509v3 Authority Key Identifier:",
    ] {
        assert!(squeezed.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn openssl_reads_every_field_of_a_root_as_the_profile_says() {
    let dir = directory(&[("root.pem", authority().chain_pem())]);
    let text = succeeds(dir.path(), &["x509", "-in", "root.pem", "-noout", "-text"]);
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "Subject: O = Heddle, CN = Heddle root ",
        "X509v3 Subject Alternative Name: URI:spiffe://cluster.local X509v3",
        "X509v3 Key Usage: critical Certificate Sign, CRL Sign",
        "X509v3 Basic Constraints: critical CA:TRUE, pathlen:0",
    ] {
        assert!(squeezed.contains(expected), "{expected}\n{text}");
    }
    assert!(!text.contains("Extended Key Usage"));
}

#[test]
fn openssl_finds_the_control_planes_names() {
    let ca = authority();
    let names = ["heddle-control-plane.heddle-system.svc".to_owned()];
    let made = ca.issue_control_plane(&names, &["10.1.2.3".parse().unwrap()], MAX_LEAF_LIFETIME, now()).unwrap();
    let dir = directory(&[("root.pem", ca.chain_pem()), ("chain.pem", made.chain_pem())]);
    for check in [["-verify_hostname", names[0].as_str()], ["-verify_ip", "10.1.2.3"]] {
        let mut arguments = verify_at(NOW_SECONDS);
        arguments.splice(1..1, check.map(str::to_owned));
        succeeds(dir.path(), &refs(&arguments));
    }
    let text = succeeds(dir.path(), &["x509", "-in", "chain.pem", "-noout", "-ext", "subjectAltName"]);
    assert!(text.contains("URI:spiffe://cluster.local/ns/heddle-system/sa/heddle-control-plane"), "{text}");
}

#[test]
fn openssl_verifies_leaves_of_both_roots_against_the_bundle_of_a_rotation() {
    let schedule = Schedule { publish_lead: Duration::from_secs(10), ..Schedule::default() };
    let mut slots = Slots::new(authority(), schedule);
    let before = workload(slots.current());
    slots.prepare(now()).unwrap();
    slots.advance(now() + Duration::from_secs(10)).unwrap();
    let after = workload(slots.current());
    let bundle = slots.bundle().unwrap();
    assert_eq!(bundle.roots().len(), 2);
    for leaf in [before, after] {
        let dir = directory(&[("root.pem", bundle.to_pem()), ("chain.pem", leaf.chain_pem())]);
        succeeds(dir.path(), &refs(&verify_at(NOW_SECONDS + 10)));
    }
}

#[test]
fn the_agents_files_are_a_key_and_a_chain_that_belong_together() {
    let ca = authority();
    let bundle = Bundle::new(domain(), [ca.root().clone()]).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    store::Directory::new(temporary.path()).replace(&store::identity_files(&workload(&ca), &bundle)).unwrap();
    let key = succeeds(temporary.path(), &["pkey", "-in", "key.pem", "-pubout"]);
    assert_eq!(key, succeeds(temporary.path(), &["x509", "-in", "chain.pem", "-noout", "-pubkey"]));
    let arguments = ["verify", "-attime", &NOW_SECONDS.to_string(), "-CAfile", "bundle.pem", "chain.pem"];
    succeeds(temporary.path(), &arguments);
}

#[test]
fn a_request_made_here_verifies_in_openssl() {
    let dir = directory(&[("req.pem", KeyRequest::generate(&cart()).unwrap().csr_pem())]);
    let text = succeeds(dir.path(), &["req", "-in", "req.pem", "-verify", "-noout", "-text"]);
    assert!(text.contains("URI:spiffe://cluster.local/ns/shop/sa/cart"), "{text}");
}

/// A request made by OpenSSL with a key of `kind`, asking for more than it will get.
fn foreign_request(kind: &[&str]) -> Result<Csr, csr::Error> {
    let dir = directory(&[]);
    let mut arguments = vec!["req", "-new", "-nodes", "-keyout", "key.pem", "-out", "req.pem"];
    arguments.extend(["-subj", "/CN=admin", "-addext", "basicConstraints=critical,CA:TRUE"]);
    arguments.extend([
        "-addext",
        "keyUsage=keyCertSign",
        "-addext",
        "subjectAltName=URI:spiffe://cluster.local/ns/shop/sa/cart",
    ]);
    arguments.extend(kind);
    succeeds(dir.path(), &arguments);
    Csr::from_pem(&fs::read(dir.path().join("req.pem")).unwrap())
}

#[test]
fn of_a_foreign_request_only_the_key_is_taken() {
    let ca = authority();
    for curve in ["P-256", "P-384"] {
        let option = format!("ec_paramgen_curve:{curve}");
        let csr = foreign_request(&["-newkey", "ec", "-pkeyopt", &option]).unwrap();
        // Authority::sign compares every field with the profile; here the chain once more, as a peer does.
        let signed = sign(&ca, &csr);
        let roots = Bundle::new(domain(), [ca.root().clone()]).unwrap();
        assert_eq!(verify::recheck(&signed.chain, &roots, now()).unwrap().id, cart());
    }
}

#[test]
fn other_keys_are_refused() {
    assert_eq!(foreign_request(&["-newkey", "rsa:2048"]), Err(csr::Error::Key));
    assert_eq!(foreign_request(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"]), Err(csr::Error::Key));
    assert_eq!(foreign_request(&["-newkey", "ed25519"]), Err(csr::Error::Key));
}

/// A user's own hierarchy by OpenSSL, valid from the machine's clock on: root (with `kind`) and intermediate.
fn users_hierarchy(kind: &[&str]) -> TempDir {
    let dir = directory(&[(
        "ext.cnf",
        "[ca]\nbasicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
         subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
            .into(),
    )]);
    let mut root = vec!["req", "-x509", "-nodes", "-keyout", "root.key", "-out", "root.pem", "-days", "3650"];
    root.extend(["-subj", "/O=Example/CN=Root", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
    root.extend(kind);
    succeeds(dir.path(), &root);
    let request = ["req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let files = ["-keyout", "ca.key", "-out", "ca.csr", "-subj", "/O=Example/CN=Mesh"];
    succeeds(dir.path(), &[&request[..], &files[..]].concat());
    let sign = ["x509", "-req", "-in", "ca.csr", "-CA", "root.pem", "-CAkey", "root.key", "-out", "ca.pem"];
    let profile = ["-days", "365", "-extfile", "ext.cnf", "-extensions", "ca"];
    succeeds(dir.path(), &[&sign[..], &profile[..]].concat());
    dir
}

#[test]
fn an_intermediate_the_user_brought_signs_chains_that_openssl_and_webpki_accept() {
    for kind in [&["-newkey", "rsa:2048"][..], &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"][..]] {
        let dir = users_hierarchy(kind);
        let real_now = SystemTime::now();
        let read = |name| fs::read(dir.path().join(name)).unwrap();
        let chain = [read("ca.pem"), read("root.pem")].concat();
        let ca = Authority::from_pem(&domain(), &chain, &read("ca.key"), real_now).unwrap();
        let csr = Csr::from_der(&KeyRequest::generate(&cart()).unwrap().csr).unwrap();
        let signed = ca.sign(&csr, &cart(), MAX_LEAF_LIFETIME, real_now).unwrap();
        assert_eq!(signed.chain.len(), 2);
        let roots = Bundle::from_pem(domain(), &read("root.pem")).unwrap();
        verify::recheck(&signed.chain, &roots, real_now).unwrap();
        let pem: String =
            signed.chain.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec()))).collect();
        fs::write(dir.path().join("chain.pem"), pem).unwrap();
        succeeds(dir.path(), &["verify", "-CAfile", "root.pem", "-untrusted", "chain.pem", "chain.pem"]);
        let again = Authority::from_pem(&domain(), ca.chain_pem().as_bytes(), ca.key_pem().as_bytes(), real_now);
        assert_eq!(again.unwrap().chain_pem(), ca.chain_pem());
    }
}

#[test]
fn a_users_chain_that_does_not_lead_to_its_root_is_refused_at_loading() {
    let (mine, other) = (users_hierarchy(&["-newkey", "rsa:2048"]), users_hierarchy(&["-newkey", "rsa:2048"]));
    let read = |dir: &TempDir, name| fs::read(dir.path().join(name)).unwrap();
    let chain = [read(&mine, "ca.pem"), read(&other, "root.pem")].concat();
    let error = Authority::from_pem(&domain(), &chain, &read(&mine, "ca.key"), SystemTime::now()).unwrap_err();
    assert!(error.to_string().contains("does not verify against its last certificate, the root"), "{error}");
    let lonely = Authority::from_pem(&domain(), &read(&mine, "ca.pem"), &read(&other, "ca.key"), SystemTime::now());
    assert!(lonely.unwrap_err().to_string().contains("not the key of the first certificate"));
}
