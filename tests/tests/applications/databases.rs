//! PostgreSQL, whose client speaks first, and MariaDB, whose server does; both speak TLS in their own way if asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use heddle_tests::meshed::Pair;
use heddle_tests::programs::{self, Program, Server};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::WORKERS;

/// Where Debian 12 keeps PostgreSQL's own programs.
const POSTGRES_BIN: [&str; 2] = ["/usr/lib/postgresql/15/bin/initdb", "/usr/lib/postgresql/15/bin/postgres"];

/// A new cluster on port 5432 that lets everybody in; `tls` is `on` or `off`.
fn postgres(pair: &Pair, tls: &str) -> (TempDir, Server) {
    let [initdb, server] = POSTGRES_BIN.map(|name| Program { name, package: "postgresql-15" }.command_as("postgres"));
    let directory = programs::directory_of("postgres");
    let data = directory.path().join("data");
    let mut command = initdb;
    command.args(["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--pgdata"]).arg(&data);
    programs::run(&pair.server, command);
    fs::write(data.join("pg_hba.conf"), "host all all all trust\n").unwrap();
    certificate(&data, "postgres", pair);
    let mut command = server;
    command.arg("-D").arg(&data);
    for setting in ["listen_addresses=*", "port=5432", "unix_socket_directories=", "fsync=off"] {
        command.args(["-c", setting]);
    }
    command.args(["-c", &format!("ssl={tls}")]);
    // Fast shutdown: does not wait for clients, and leaves no shared memory behind.
    let ready = "database system is ready to accept connections";
    let server = Server::start_stopped_by(Signal::SIGINT, &pair.server, command, ready);
    (directory, server)
}

/// `server.crt` and `server.key` in a directory, for `user`.
fn certificate(directory: &Path, user: &str, pair: &Pair) {
    let mut command = Program { name: "openssl", package: "openssl" }.command();
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]);
    command.args(["-subj", "/CN=server", "-keyout"]).arg(directory.join("server.key"));
    command.arg("-out").arg(directory.join("server.crt"));
    programs::run(&pair.server, command);
    let key = directory.join("server.key");
    let owner = programs::user(user);
    chown(&key, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
}

fn psql(pair: &Pair, tls: &str, statement: &str) -> Command {
    let mut command = Program { name: "psql", package: "postgresql-client-15" }.command();
    command.env("PGSSLMODE", tls).args([
        "--no-psqlrc",
        "--quiet",
        "--no-align",
        "--tuples-only",
        "--username=postgres",
    ]);
    command.args(["--set=ON_ERROR_STOP=1", "--host", &pair.vip.ip().to_string(), "--command", statement]);
    command
}

#[test]
fn postgresql_answers_psql() {
    let pair = Pair::new(1, 5432);
    let (_directory, _postgres) = postgres(&pair, "off");
    // Asked for TLS first, it says no.
    let ask = |statement| programs::run(&pair.client, psql(&pair, "prefer", statement)).text();
    assert_eq!(ask("SELECT sum(length(repeat('x', n))) FROM generate_series(1, 2000) n"), "2001000");
    assert_eq!(ask("SELECT repeat('y', 1000000)").len(), 1_000_000);
    pair.assert_connections(2);
}

#[test]
fn postgresql_and_psql_may_use_their_own_tls_inside() {
    let pair = Pair::new(1, 5432);
    let (_directory, _postgres) = postgres(&pair, "on");
    let ask = |tls, statement| programs::run(&pair.client, psql(&pair, tls, statement)).text();
    let is_tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(ask("require", is_tls), "t");
    assert_eq!(ask("require", "SELECT repeat('y', 1000000)").len(), 1_000_000);
    assert_eq!(ask("disable", is_tls), "f");
    // After TLS, psql says good-bye to a server that has closed, which makes the kernel reset the connection.
    pair.assert_connections_began(3);
}

#[test]
fn pgbench_fills_a_data_base_and_finishes_every_transaction() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 5432);
        let (_directory, _postgres) = postgres(&pair, "off");
        let pgbench = || {
            let mut command = Program { name: "pgbench", package: "postgresql-15" }.command();
            command.args(["--host", &pair.vip.ip().to_string(), "--username=postgres"]);
            command
        };
        // 100,000 rows by COPY.
        let mut command = pgbench();
        command.args(["--initialize", "--scale=1", "--quiet", "postgres"]);
        programs::run(&pair.client, command);

        let mut command = pgbench();
        command.args(["--client=4", "--jobs=2", "--transactions=50", "--no-vacuum", "postgres"]);
        let said = programs::run(&pair.client, command).text();

        assert!(said.contains("number of transactions actually processed: 200/200"), "{said}");
        assert!(said.contains("number of failed transactions: 0 "), "{said}");
        let answer = programs::run(&pair.client, psql(&pair, "prefer", "SELECT count(*) FROM pgbench_history"));
        assert_eq!(answer.text(), "200");
        // One to fill, one to look at the scale, four clients, and psql.
        pair.assert_connections(7);
    }
}

/// A new MariaDB on port 3306 with the account `app`, password `secret`.
fn mariadb(pair: &Pair) -> (TempDir, Server) {
    let mut command = Program { name: "mariadb-install-db", package: "mariadb-server" }.command_as("mysql");
    let directory = programs::directory_of("mysql");
    let data = directory.path().join("data");
    command.args(["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"]);
    command.arg(format!("--datadir={}", data.display()));
    programs::run(&pair.server, command);
    let accounts = directory.path().join("accounts.sql");
    fs::write(&accounts, "CREATE USER app@'%' IDENTIFIED BY 'secret';\nGRANT ALL ON *.* TO app@'%';\n").unwrap();
    let mut command = Program { name: "mariadbd", package: "mariadb-server" }.command_as("mysql");
    command.args(["--no-defaults", "--port=3306", "--bind-address=0.0.0.0", "--skip-name-resolve"]);
    command.arg(format!("--datadir={}", data.display())).arg(format!("--init-file={}", accounts.display()));
    command.arg(format!("--socket={}", directory.path().join("socket").display()));
    let server = Server::start(&pair.server, command, "ready for connections");
    (directory, server)
}

fn mariadb_tool(name: &'static str, pair: &Pair) -> Command {
    let mut command = Program { name, package: "mariadb-client" }.command();
    command.args(["--no-defaults", "--protocol=tcp", "--user=app", "--password=secret", "--port=3306", "--host"]);
    command.arg(pair.vip.ip().to_string());
    command
}

#[test]
fn mariadb_greets_its_clients_first_and_answers_them() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 3306);
        let (_directory, _mariadb) = mariadb(&pair);
        let ask = |statement: &str| {
            let mut command = mariadb_tool("mariadb", &pair);
            command.args(["--skip-column-names", "--batch", "--execute", statement]);
            programs::run(&pair.client, command).text()
        };
        ask("CREATE DATABASE shop; CREATE TABLE shop.items (id INT PRIMARY KEY, name TEXT)");
        ask("INSERT INTO shop.items VALUES (1, 'loom'), (2, 'yarn')");
        assert_eq!(ask("SELECT id, name FROM shop.items ORDER BY id"), "1\tloom\n2\tyarn");
        assert_eq!(ask("SELECT REPEAT('y', 1000000)").len(), 1_000_000);
        pair.assert_connections(4);

        let mut command = mariadb_tool("mariadb-slap", &pair);
        command.args(["--concurrency=8", "--number-of-queries=200", "--auto-generate-sql", "--create-schema=load"]);
        programs::run(&pair.client, command);
        pair.assert_connections(pair.connections_begun());
        assert!(pair.connections_begun() >= 4 + 8, "{}", pair.connections_begun());
    }
}
