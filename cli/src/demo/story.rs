//! The story: one change after the other, each with what was observed.
//!
//! Every step waits until what it claims is seen in the sidecars' own metrics or by the customers, and fails if it is
//! not; nothing is claimed that was not read.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::Interrupted;
use super::mesh::Mesh;
use super::observe::Reading;
use super::screen;
use super::workloads::Tally;

/// Longest wait for a step's observation. Chosen: a certificate of a minute is renewed within 40 s.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Tells the whole story.
///
/// # Errors
/// At the first step that was not observed.
pub fn tell(mesh: &Mesh, interrupted: &Interrupted) -> anyhow::Result<()> {
    let story = Story { mesh, interrupted };
    let steps: [(&str, Step<'_>); 8] = [
        ("Traffic flows, and every edge has two identities", Story::everything_is_mutual),
        ("A canary: one request in ten to the new catalog", Story::canary),
        ("An endpoint that keeps failing is ejected", Story::ejection),
        ("A retry saves requests", Story::retry),
        ("A workload is killed, and no request fails", Story::kill),
        ("A circuit opens", Story::circuit),
        ("A policy denies", Story::deny),
        ("Certificates are rotated under load", Story::rotation),
    ];
    for (number, (title, step)) in steps.into_iter().enumerate() {
        screen::step(number + 1, title);
        step(&story).with_context(|| format!("step {} was not observed: {title}", number + 1))?;
    }
    screen::say("\nEvery step was observed.");
    Ok(())
}

type Step<'m> = fn(&Story<'m>) -> anyhow::Result<()>;

struct Story<'m> {
    mesh: &'m Mesh,
    interrupted: &'m Interrupted,
}

impl Story<'_> {
    /// Looks until `seen` finds something.
    fn until<T>(&self, what: &str, mut seen: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = seen()? {
                return Ok(seen);
            }
            ensure!(!self.interrupted.is_set(), "interrupted");
            ensure!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn reading(&self) -> Reading {
        Reading::take(self.mesh)
    }

    /// Waits until the customers have been answered `count` times more.
    fn served(&self, count: u64) -> anyhow::Result<(Tally, Tally)> {
        let before = self.mesh.tally();
        let after = self.until(&format!("{count} more pages"), || {
            let now = self.mesh.tally();
            Ok((now.succeeded >= before.succeeded + count).then_some(now))
        })?;
        Ok((before, after))
    }

    fn everything_is_mutual(&self) -> anyhow::Result<()> {
        // The first requests may come before everybody is ready.
        self.served(20)?;
        let before = self.reading();
        let start = self.mesh.tally();
        let used = ["web-a", "web-b", "catalog-v1", "cart", "stock"];
        let edges = self.until("everybody is called", || {
            let edges = self.reading().edges_since(&before);
            let called = used.iter().all(|workload| edges.iter().any(|edge| edge.workload == *workload));
            Ok((called && self.mesh.tally().succeeded >= start.succeeded + 100).then_some(edges))
        })?;
        let end = self.mesh.tally();
        screen::table(&edges);
        ensure!(edges.iter().all(|edge| edge.mutual_tls && !edge.client.is_empty()), "an edge without identity");
        ensure!(
            end.failed == start.failed,
            "{} pages failed, the last with {}",
            end.failed - start.failed,
            end.last_failure
        );
        let pages = end.succeeded - start.succeeded;
        screen::observed(&format!("{pages} pages, none failed; {} edges, all of them mutual TLS", edges.len()));
        Ok(())
    }

    fn canary(&self) -> anyhow::Result<()> {
        let file = self.mesh.files.apply("50-canary.yaml", include_str!("../../../examples/shop/story/canary.yaml"))?;
        screen::changed("HTTPRoute catalog-canary: 90 % catalog, 10 % catalog-v2", Some(&file));
        let requests =
            |reading: &Reading, workload| reading.sum(workload, "heddle_requests_total", &[("direction", "inbound")]);
        let start = self.reading();
        self.until("the new catalog is called", || {
            Ok((requests(&self.reading(), "catalog-v2") > requests(&start, "catalog-v2")).then_some(()))
        })?;
        let before = self.reading();
        let (old, new) = self.until("400 requests to both catalogs", || {
            let now = self.reading();
            let grown = |workload| requests(&now, workload) - requests(&before, workload);
            let both = (grown("catalog-v1"), grown("catalog-v2"));
            Ok((both.0 + both.1 >= 400.0).then_some(both))
        })?;
        let share = new / (old + new);
        ensure!((0.04..=0.18).contains(&share), "the new catalog got {:.1} %", share * 100.0);
        screen::observed(&format!("catalog-v1 {old:.0} requests, catalog-v2 {new:.0}: {:.1} %", share * 100.0));
        Ok(())
    }

    fn ejection(&self) -> anyhow::Result<()> {
        let policy =
            self.mesh.files.apply("51-web.yaml", include_str!("../../../examples/shop/story/ejection.yaml"))?;
        screen::changed("TrafficPolicy web: out after 3 failures in a row", Some(&policy));
        let file = self.mesh.files.misbehave("web-b", "fail-every: 1\n")?;
        screen::changed("web-b answers 503 to everything", Some(&file));
        let labels = [("cluster", "shop/web/80")];
        let begun = self.reading().sum("shopper", "heddle_outlier_ejections_total", &labels);
        self.until("web-b is ejected", || {
            let now = self.reading();
            let ejections = now.sum("shopper", "heddle_outlier_ejections_total", &labels);
            Ok((ejections > begun && now.sum("shopper", "heddle_outlier_ejected", &labels) >= 1.0).then_some(()))
        })?;
        let (start, end) = self.served(60)?;
        screen::observed(&format!(
            "shopper's sidecar ejected 1 of 2 endpoints; then {} pages, {} failed",
            end.succeeded - start.succeeded,
            end.failed - start.failed
        ));
        self.mesh.files.misbehave("web-b", "")?;
        self.until("web-b is taken back", || {
            Ok((self.reading().sum("shopper", "heddle_outlier_ejected", &labels) == 0.0).then_some(()))
        })?;
        screen::observed("web-b works again and was taken back");
        Ok(())
    }

    fn retry(&self) -> anyhow::Result<()> {
        let policy = self.mesh.files.apply("51-web.yaml", include_str!("../../../examples/shop/story/retry.yaml"))?;
        screen::changed("TrafficPolicy web: 503 is tried again, at most twice", Some(&policy));
        let file = self.mesh.files.misbehave("web-b", "fail-every: 5\n")?;
        screen::changed("web-b answers 503 to one request in five", Some(&file));
        let retried = || self.reading().sum("shopper", "heddle_retries_total", &[("reason", "policy")]);
        let begun = retried();
        self.until("the first retry", || Ok((retried() > begun).then_some(())))?;
        // From here on the policy is known to be in force.
        let (start, end) = self.served(150)?;
        let saved = retried() - begun;
        ensure!(
            end.failed == start.failed,
            "{} pages failed, the last with {}",
            end.failed - start.failed,
            end.last_failure
        );
        screen::observed(&format!(
            "{saved:.0} requests tried again; {} pages, none failed",
            end.succeeded - start.succeeded
        ));
        self.mesh.files.misbehave("web-b", "")?;
        Ok(())
    }

    fn kill(&self) -> anyhow::Result<()> {
        let before = self.mesh.tally();
        self.mesh.kill("web-b")?;
        screen::changed("web-b and its sidecar killed (SIGKILL), under load", None);
        let (_, after) = self.served(200)?;
        ensure!(
            after.failed == before.failed,
            "{} pages failed, the last with {}",
            after.failed - before.failed,
            after.last_failure
        );
        let reading = self.reading();
        let retries = reading.sum("shopper", "heddle_retries_total", &[("cluster", "shop/web/80")]);
        screen::observed(&format!(
            "{} pages, none failed; {retries:.0} retries so far",
            after.succeeded - before.succeeded
        ));
        Ok(())
    }

    fn circuit(&self) -> anyhow::Result<()> {
        let policy =
            self.mesh.files.apply("52-catalog.yaml", include_str!("../../../examples/shop/story/circuit.yaml"))?;
        screen::changed("TrafficPolicy catalog: at most 5 requests at once", Some(&policy));
        let file = self.mesh.files.misbehave("catalog-v1", "delay-ms: 600\n")?;
        screen::changed("catalog-v1 takes 600 ms", Some(&file));
        let overflow = || self.reading().sum("web-a", "heddle_requests_total", &[("cause", "overflow")]);
        let begun = overflow();
        let refused = self.until("requests refused at once", || {
            let refused = overflow() - begun;
            Ok((refused >= 10.0).then_some(refused))
        })?;
        screen::observed(&format!("{refused:.0} requests answered 503, x-heddle-error: overflow, without waiting"));
        self.mesh.files.misbehave("catalog-v1", "")?;
        self.mesh.files.withdraw("52-catalog.yaml")?;
        self.until("pages succeed again", || {
            let before = self.mesh.tally();
            std::thread::sleep(Duration::from_secs(1));
            let after = self.mesh.tally();
            Ok((after.failed == before.failed && after.succeeded > before.succeeded).then_some(()))
        })
    }

    fn deny(&self) -> anyhow::Result<()> {
        let open = self.mesh.call("shopper", "/admin")?;
        ensure!(open == 200, "before the policy, /admin answers {open}");
        let file = self.mesh.files.apply("53-office.yaml", include_str!("../../../examples/shop/story/deny.yaml"))?;
        screen::changed("AuthorizationPolicy office: shoppers stay out of /admin", Some(&file));
        self.until("/admin is denied", || Ok((self.mesh.call("shopper", "/admin")? == 403).then_some(())))?;
        for path in ["/admin/till", "//admin", "/x/../admin", "/%61dmin"] {
            let status = self.mesh.call("shopper", path)?;
            ensure!(status == 403, "{path} answers {status}");
        }
        let (start, end) = self.served(20)?;
        ensure!(end.failed == start.failed, "pages fail too");
        screen::observed("/admin answers 403 in every spelling that was tried; pages are served as before");
        Ok(())
    }

    fn rotation(&self) -> anyhow::Result<()> {
        screen::changed("nothing: leaves live 60 s and are renewed between half and two thirds of it", None);
        let certificate = || self.reading().certificate("stock");
        let (first, _) = certificate().context("stock has no certificate")?;
        let before = self.mesh.tally();
        let (serial, handshakes) = self.until("handshakes with a new certificate", || {
            Ok(certificate().filter(|(serial, handshakes)| *serial != first && *handshakes >= 10.0))
        })?;
        let after = self.mesh.tally();
        if after.failed != before.failed {
            bail!("{} pages failed meanwhile, the last with {}", after.failed - before.failed, after.last_failure);
        }
        screen::observed(&format!("stock: serial {} became {}", short(&first), short(&serial)));
        let pages = after.succeeded - before.succeeded;
        screen::observed(&format!("{handshakes:.0} handshakes with the new one; {pages} pages meanwhile, none failed"));
        Ok(())
    }
}

fn short(serial: &str) -> &str {
    serial.get(..12).unwrap_or(serial)
}
