//! What the terminal shows.

#![allow(clippy::print_stdout, reason = "this is the command's output")]

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::Interrupted;
use super::mesh::Mesh;
use super::observe::{Edge, Reading};

/// How often the live table is drawn.
const REDRAW: Duration = Duration::from_secs(1);
/// How long the mesh is watched before the story, and after it when nobody asked to keep it.
pub const INTERLUDE: Duration = Duration::from_secs(5);

/// A step of the story begins.
pub fn step(number: usize, title: &str) {
    println!("\n{number}. {title}");
}

/// Something was changed.
pub fn changed(what: &str, file: Option<&std::path::Path>) {
    println!("   changed   {what}");
    if let Some(file) = file {
        println!("   file      {}", file.display());
    }
}

/// Something was seen.
pub fn observed(what: &str) {
    println!("   observed  {what}");
}

/// A plain line.
pub fn say(line: &str) {
    println!("{line}");
}

/// The table of edges between two readings.
pub fn table(edges: &[Edge]) {
    println!(
        "   {:<14} {:<10} {:<14} {:<5} {:>7} {:>8} {:>9} {:>9}  identities",
        "client", "", "server", "mTLS", "per s", "success", "p50", "p99"
    );
    for edge in edges {
        let success = edge.success.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
        let latency = |pick: fn(&(Duration, Duration)) -> Duration| {
            edge.latency.as_ref().map_or("-".to_owned(), |both| format!("{:.1} ms", pick(both).as_secs_f64() * 1000.0))
        };
        println!(
            "   {:<14} -{:-<8}> {:<14} {:<5} {:>7.1} {:>8} {:>9} {:>9}  {} > {}",
            account(&edge.client),
            edge.protocol,
            edge.workload,
            if edge.mutual_tls { "yes" } else { "no" },
            edge.rate,
            success,
            latency(|both| both.0),
            latency(|both| both.1),
            short(&edge.client),
            short(&edge.server),
        );
    }
}

/// Where to look while the mesh keeps running.
pub fn invite(mesh: &Mesh) {
    say("\nThe mesh keeps running; Ctrl-C ends it. In another terminal, as this user:");
    say(&format!("  manifests      {}", mesh.files.manifests().display()));
    say(&format!("  control plane  nsenter --net={} curl -s localhost:15014/status", mesh.fabric_path().display()));
    for (name, path) in mesh.pod_paths() {
        say(&format!("  {name:<13}  nsenter --net={} curl -s localhost:15020/metrics", path.display()));
    }
}

/// Shows the mesh live for a while, or until Ctrl-C.
pub fn watch(mesh: &Mesh, limit: Option<Duration>, interrupted: &Interrupted) {
    let begun = Instant::now();
    let live = std::io::stdout().is_terminal();
    let mut before = Reading::take(mesh);
    let mut drawn = 0;
    while !interrupted.is_set() && limit.is_none_or(|limit| begun.elapsed() < limit) {
        std::thread::sleep(REDRAW);
        let now = Reading::take(mesh);
        let edges = now.edges_since(&before);
        if live || drawn == 0 {
            if live && drawn > 0 {
                // ECMA-48 CUU and ED: up over the last table, and clear.
                print!("\x1b[{drawn}A\x1b[J");
            }
            table(&edges);
            drawn = edges.len() + 1;
        }
        before = now;
    }
}

/// The last part of a SPIFFE ID.
fn account(principal: &str) -> &str {
    match principal.rsplit('/').next() {
        Some("") | None => "(unknown)",
        Some(account) => account,
    }
}

/// A SPIFFE ID without scheme.
fn short(principal: &str) -> &str {
    if principal.is_empty() { "(none)" } else { principal.trim_start_matches("spiffe://") }
}
