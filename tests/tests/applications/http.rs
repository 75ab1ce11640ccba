//! curl against nginx (HTTP/1.1), curl and h2load against nghttpd (HTTP/2 without TLS).

use std::fs;
use std::path::Path;
use std::process::Stdio;

use heddle_tests::meshed::Pair;
use heddle_tests::programs::{self, Program, Server};
use tempfile::TempDir;

use super::{WORKERS, curl, noise};

const MIB: usize = 1 << 20;

/// nginx serving `files/` of a directory on port 8080, both families; PUT and DELETE below `/files/`.
fn nginx(pair: &Pair) -> (TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().display();
    fs::create_dir(directory.path().join("files")).unwrap();
    // One process, so that nothing outlives it if it is killed.
    let config = format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr notice;
        events {{ worker_connections 256; }}
        http {{
            access_log off; client_max_body_size 0; if_modified_since before;
            client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
            uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
            server {{
                listen 8080; listen [::]:8080; root {root};
                location /files/ {{ dav_methods PUT DELETE; add_header X-Nth-On-Connection $connection_requests; }}
                location = /caller {{ return 200 $http_x_forwarded_client_cert; }}
                location = /moved {{ return 302 /files/there; }}
            }}
        }}"
    );
    fs::write(directory.path().join("nginx.conf"), config).unwrap();
    let mut command = Program { name: "nginx", package: "nginx" }.command();
    command.args(["-e", "stderr", "-c"]).arg(directory.path().join("nginx.conf"));
    let server = Server::start(&pair.server, command, "using the \"epoll\" event method");
    (directory, server)
}

fn file(directory: &Path, name: &str, content: &[u8]) -> String {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path.display().to_string()
}

#[test]
fn nginx_answers_curl_byte_for_byte_on_one_kept_connection() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 8080);
        let (directory, _nginx) = nginx(&pair);
        let content = noise(MIB);
        fs::write(directory.path().join("files/big"), &content).unwrap();
        let got = |number: usize| directory.path().join(format!("got-{number}"));
        let url = format!("http://{}/files/big", pair.vip);
        let mut command =
            curl(["--write-out", "%{http_code} %{http_version} %{num_connects} %header{x-nth-on-connection}\n"]);
        for number in 1..=3 {
            command.arg("--output").arg(got(number)).arg(&url);
        }

        let said = programs::run(&pair.client, command).text();

        assert_eq!(said, "200 1.1 1 1\n200 1.1 0 2\n200 1.1 0 3", "one connection, kept on every hop");
        for number in 1..=3 {
            assert!(fs::read(got(number)).unwrap() == content, "download {number} differs");
        }
        pair.assert_requests("http", 3, &["response_code=\"200\""]);
    }
}

#[test]
fn nginx_stores_what_curl_uploads_with_length_chunked_and_after_100_continue() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 8080);
        let (directory, _nginx) = nginx(&pair);
        let content = noise(MIB + 1);
        let upload = file(directory.path(), "upload", &content);
        let base = format!("http://{}/files", pair.vip);
        // Without the answer 100 curl would wait beyond its deadline.
        let expect = ["--header", "Expect: 100-continue", "--expect100-timeout", "1000"];
        for (name, how, stdin) in [
            ("length", &["--header", "Expect:", "--upload-file", &upload][..], false),
            ("chunked", &["--header", "Expect:", "--upload-file", "-"], true),
            ("expect", &[&expect[..], &["--upload-file", &upload]].concat(), false),
            ("expect-chunked", &[&expect[..], &["--upload-file", "-"]].concat(), true),
        ] {
            let mut command = curl(["--verbose", "--write-out", "%{http_code}"]);
            command.args(how).arg(format!("{base}/{name}"));
            let input = stdin.then(|| fs::File::open(&upload).unwrap());

            let outcome = programs::run_with(&pair.client, command, input.map_or_else(Stdio::null, Stdio::from));

            assert_eq!(outcome.text(), "201", "{name}: {}", outcome.stderr);
            let continued = outcome.stderr.contains("< HTTP/1.1 100 Continue");
            assert_eq!(continued, name.starts_with("expect"), "{name}: {}", outcome.stderr);
            assert_eq!(outcome.stderr.contains("> Transfer-Encoding: chunked"), stdin, "{name}: {}", outcome.stderr);
            assert!(fs::read(directory.path().join("files").join(name)).unwrap() == content, "{name} differs");
        }
        pair.assert_requests("http", 4, &["response_code=\"201\""]);
    }
}

#[test]
fn what_else_curl_can_ask_nginx_for_is_answered_as_without_a_mesh() {
    let pair = Pair::new(1, 8080);
    let (directory, _nginx) = nginx(&pair);
    fs::write(directory.path().join("files/text"), "0123456789").unwrap();
    fs::write(directory.path().join("files/gone"), "x").unwrap();
    let tomorrow = "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT";
    let cases: &[(&str, &[&str], &str)] = &[
        ("/files/text", &[], "0123456789|200 1.1 10"),
        ("/files/text", &["--http2"], "0123456789|200 1.1 10"),
        ("/files/text", &["--head", "--output", "/dev/null"], "|200 1.1 0"),
        ("/files/text", &["--range", "2-4"], "234|206 1.1 3"),
        ("/files/text", &["--header", tomorrow], "|304 1.1 0"),
        ("/files/gone", &["--request", "DELETE"], "|204 1.1 0"),
        ("/moved", &["--location"], ""),
        ("/files/%C3%A4?q=a%20b&r=%2F", &["--output", "/dev/null"], "|404 1.1 "),
        ("/files/text", &["--request", "OPTIONS", "--output", "/dev/null"], "|405 1.1 "),
    ];
    for (path, how, expected) in cases {
        let ask = |of, address: &str| {
            let mut command = curl(["--write-out", "|%{http_code} %{http_version} %{size_download}"]);
            command.args(*how).arg(format!("http://{address}{path}"));
            programs::run(of, command).text()
        };
        // The second file to delete would be missing.
        fs::write(directory.path().join("files/gone"), "x").unwrap();
        let meshed = ask(&pair.client, &pair.vip.to_string());
        fs::write(directory.path().join("files/gone"), "x").unwrap();
        let direct = ask(&pair.server, "127.0.0.1:8080");
        assert_eq!(meshed, direct, "{path} {how:?}");
        assert!(meshed.starts_with(expected), "{path} {how:?}: {meshed}");
    }
    // One more for the redirect that is followed.
    pair.assert_requests("http", cases.len() + 1, &[]);
}

#[test]
fn nginx_is_told_who_calls_over_either_family() {
    let pair = Pair::new(1, 8080);
    let (_directory, _nginx) = nginx(&pair);
    for address in [pair.vip, pair.vip6] {
        let said = programs::run(&pair.client, curl([format!("http://{address}/caller")])).text();
        assert!(said.contains(&format!("URI={}", pair.client.spiffe_id())), "{address}: {said}");
    }
    pair.assert_requests("http", 2, &["response_code=\"200\""]);
}

/// nghttpd serving a directory over HTTP/2 alone, and answering POST with what was sent.
fn nghttpd(pair: &Pair) -> (TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Program { name: "nghttpd", package: "nghttp2-server" }.command();
    // Only if verbose does it say that it listens.
    command.args(["--no-tls", "--verbose", "--echo-upload", "--htdocs"]).arg(directory.path()).arg("8080");
    let server = Server::start(&pair.server, command, "IPv6: listen :::8080");
    (directory, server)
}

#[test]
fn nghttpd_answers_curl_with_prior_knowledge_byte_for_byte() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 8080);
        let (directory, _nghttpd) = nghttpd(&pair);
        let content = noise(MIB);
        let upload = file(directory.path(), "big", &content);
        let got = |name: &str| directory.path().join(format!("got-{name}"));
        // One request a run: this curl cannot send a second one on a connection with prior knowledge.
        let ask = |name: &str, how: &[&str]| {
            let mut command = curl(["--http2-prior-knowledge", "--write-out", "%{http_code} %{http_version}"]);
            command.args(how).arg("--output").arg(got(name)).arg(format!("http://{}/big", pair.vip));
            programs::run(&pair.client, command).text()
        };

        assert_eq!(ask("file", &[]), "200 2");
        assert_eq!(ask("echo", &["--data-binary", &format!("@{upload}")]), "200 2");

        for name in ["file", "echo"] {
            assert!(fs::read(got(name)).unwrap() == content, "{name} differs");
        }
        pair.assert_requests("http", 2, &["response_code=\"200\""]);
    }
}

#[test]
fn h2load_gets_every_answer_whole_on_connections_of_many_streams() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 8080);
        let (directory, _nghttpd) = nghttpd(&pair);
        fs::write(directory.path().join("big"), noise(MIB / 8)).unwrap();
        let mut command = Program { name: "h2load", package: "nghttp2-client" }.command();
        command.args(["--requests=200", "--clients=4", "--max-concurrent-streams=20"]);
        command.arg(format!("http://{}/big", pair.vip));

        let said = programs::run(&pair.client, command).text();

        let all = "requests: 200 total, 200 started, 200 done, 200 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(said.contains(all), "{said}");
        // Of bodies: 200 times 128 KiB.
        assert!(said.contains(" 25.00MB (26214400) data"), "{said}");
        pair.assert_requests("http", 200, &["response_code=\"200\""]);
    }
}
