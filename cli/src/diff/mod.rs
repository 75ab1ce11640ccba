//! `heddle diff`: what changed manifests would do to recorded traffic, before they are applied.
//!
//! Each distinct request of the record is explained by both directories of manifests ([`crate::explain`]), and the decisions
//! that differ are printed. State is not in manifests: no endpoint is ejected and every rate limit has room.

mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use crate::explain::mesh::{Mesh, MeshArgs};
use crate::explain::whole::{self, Whole};
use crate::explain::{Cache, Output, written};
use traffic::{Asked, Traffic};

/// Arguments of `heddle diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The manifests as they are.
    #[arg(long, value_name = "DIR")]
    before: PathBuf,
    /// The manifests as they would be.
    #[arg(long, value_name = "DIR")]
    after: PathBuf,
    /// Recorded traffic, one JSON object a line: access logs of sidecars (`--access-log json`), or requests as
    /// {"from":"shop/web","to":"api.shop:80","path":"/cart"}, with method, host, headers and protocol where they matter.
    #[arg(long, value_name = "FILE")]
    traffic: PathBuf,
    /// The workload whose requests those are that name none.
    #[arg(long, value_name = "WORKLOAD")]
    from: Option<String>,
    /// Fails if anything differs.
    #[arg(long)]
    exit_code: bool,
    /// What both meshes are set to.
    #[command(flatten)]
    mesh: MeshArgs,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What differs, in all.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Differences {
    /// Distinct requests that were compared.
    compared: usize,
    /// Lines of the record that say no request.
    skipped: usize,
    /// Those for which something differs.
    requests: Vec<Difference>,
}

/// What differs for one request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    request: String,
    from: String,
    to: String,
    /// How often it is in the record.
    times: usize,
    changes: Vec<Change>,
}

/// A decision that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    decision: String,
    before: String,
    after: String,
}

/// Prints what differs.
///
/// # Errors
/// If something cannot be read; with `--exit-code` if anything differs.
#[allow(clippy::print_stdout, reason = "this is the command's output")]
pub fn run(args: &DiffArgs) -> anyhow::Result<()> {
    let before = Mesh::manifests(&args.before, &args.mesh).context("--before")?;
    let after = Mesh::manifests(&args.after, &args.mesh).context("--after")?;
    let text = fs::read_to_string(&args.traffic).with_context(|| format!("--traffic {}", args.traffic.display()))?;
    let traffic =
        Traffic::read(&text, args.from.as_deref()).with_context(|| format!("--traffic {}", args.traffic.display()))?;
    let mut caches = [Cache::default(), Cache::default()];
    let mut differences =
        Differences { compared: traffic.requests.len(), skipped: traffic.skipped, requests: Vec::new() };
    for (asked, times) in &traffic.requests {
        let [old, new] = &mut caches;
        let changes = changes(&decisions(&before, old, asked), &decisions(&after, new, asked));
        if !changes.is_empty() {
            let (request, from, to) = (asked.request.to_string(), asked.from.clone(), asked.to.to_string());
            differences.requests.push(Difference { request, from, to, times: *times, changes });
        }
    }
    print!("{}", written(args.output, &differences, shown)?);
    if args.exit_code && !differences.requests.is_empty() {
        bail!("{} of {} requests would be treated otherwise", differences.requests.len(), differences.compared);
    }
    Ok(())
}

/// Every decision about a request, by name.
fn decisions(mesh: &Mesh, cache: &mut Cache, asked: &Asked) -> BTreeMap<String, String> {
    match whole::explain(mesh, cache, &asked.from, &asked.to, asked.address, &asked.request) {
        Ok(whole) => named(&whole),
        Err(error) => [("request".to_owned(), format!("cannot be made: {error:#}"))].into(),
    }
}

fn named(whole: &Whole) -> BTreeMap<String, String> {
    let client = &whole.client;
    let mut all = BTreeMap::new();
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            all.insert(name.to_owned(), value);
        }
    };
    if let Some(listener) = &client.listener {
        put("read as", listener.reading.clone());
    }
    if let Some(rule) = &client.rule {
        let limits =
            [("request", &rule.request_timeout), ("attempt", &rule.try_timeout), ("silence", &rule.idle_timeout)];
        let limits = limits.iter().filter_map(|(name, limit)| Some(format!("{name} {}", limit.as_ref()?)));
        put("route", rule.name.clone());
        put("filters", rule.filters.join("; "));
        put("timeouts", limits.collect::<Vec<_>>().join(", "));
        put("retries", rule.retry.clone());
        put("hedge", rule.hedge.clone().unwrap_or_default());
        put("session", rule.session.clone().unwrap_or_default());
    }
    let mut outcomes: Vec<_> =
        client.outcomes.iter().map(|outcome| format!("{:.2}% {}", outcome.percent, outcome.ending)).collect();
    outcomes.sort();
    put("outcome", outcomes.join("; "));
    for backend in client.backends.iter().filter(|backend| backend.percent > 0.0) {
        let Some(cluster) = &backend.cluster else { continue };
        let endpoints: BTreeSet<_> =
            backend.endpoints.iter().filter(|one| one.eligible).map(|one| one.address.to_string()).collect();
        let limits = backend.breakers.iter().map(|breaker| format!("{} {}", breaker.kind, breaker.limit));
        let tls = backend.endpoints.iter().filter(|one| one.eligible && one.identities.is_empty()).count();
        put(&format!("endpoints of {cluster}"), endpoints.into_iter().collect::<Vec<_>>().join(", "));
        put(&format!("balancing of {cluster}"), backend.balancing.clone());
        put(&format!("limits of {cluster}"), limits.collect::<Vec<_>>().join(", "));
        put(&format!("plaintext endpoints of {cluster}"), tls.to_string());
        put(&format!("sent to {cluster}"), backend.sent.as_ref().map(ToString::to_string).unwrap_or_default());
    }
    for server in &whole.servers {
        let Some(answer) = &server.answer else { continue };
        let at = format!("at {}:{}", server.workload, answer.port);
        let rule = |decision: &heddle_proxy::explain::answer::Decision| {
            let by = decision.rule.as_ref().map(|rule| format!(" by {rule}")).unwrap_or_default();
            format!("{}{by}", decision.verdict)
        };
        let limits = answer.rate_limits.iter().filter(|limit| limit.counts).map(|limit| {
            let dry_run = if limit.dry_run { " (dry run)" } else { "" };
            format!("{}{dry_run}", limit.object)
        });
        put(&format!("authorization {at}"), answer.decision.as_ref().map(rule).unwrap_or_default());
        put(&format!("rate limits {at}"), limits.collect::<Vec<_>>().join(", "));
        put(&format!("mutual TLS {at}"), answer.tls.clone());
        put(&format!("outcome {at}"), answer.ending.to_string());
    }
    all
}

fn changes(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<Change> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let value = |of: &BTreeMap<String, String>, name: &str| of.get(name).map_or("none", String::as_str).to_owned();
    let all = names.into_iter().map(|name| Change {
        decision: name.clone(),
        before: value(before, name),
        after: value(after, name),
    });
    all.filter(|change| change.before != change.after).collect()
}

fn shown(differences: &Differences) -> String {
    let mut out = String::new();
    for Difference { request, from, to, times, changes } in &differences.requests {
        let times = if *times == 1 { "once".to_owned() } else { format!("{times} times") };
        out.push_str(&format!("{request} from {from} to {to}, {times}\n"));
        for Change { decision, before, after } in changes {
            out.push_str(&format!("  {decision}\n  - {before}\n  + {after}\n"));
        }
    }
    let (differ, all, skipped) = (differences.requests.len(), differences.compared, differences.skipped);
    out.push_str(&format!("{differ} of {all} distinct requests differ; {skipped} lines say no request\n"));
    out
}
