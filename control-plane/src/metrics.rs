//! What the control plane counts, exposed in Prometheus text format on `:15014/metrics`.
//!
//! Names carry their unit and end in `_total` where they only grow. No label holds a name from outside: the number of
//! series is fixed by what is written here. Recorded by the parts that do the work; read by [`crate::admin`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_xds::resource::Kind;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::admit::{Dialect, Reason};
use crate::cluster::review::Outcome;
use crate::cluster::status;

/// Everything that is counted. Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    streams: IntGaugeVec,
    answers: IntCounterVec,
    sent: IntCounterVec,
    removed: IntCounterVec,
    denied: IntCounterVec,
    limited: IntCounter,
    propagation: Histogram,
    objects: IntGaugeVec,
    source_errors: IntCounter,
    source_broken: IntGauge,
    source_served: IntGaugeVec,
    watch_failures: IntCounterVec,
    leading: IntGauge,
    lease_failures: IntCounter,
    roots_written: IntCounterVec,
    statuses: IntCounterVec,
    reports: IntCounterVec,
    reviews: IntCounterVec,
    review_time: Histogram,
    updates: IntCounter,
    translation: Histogram,
    issued: IntCounterVec,
    root_expiry: IntGauge,
    own_expiry: IntGauge,
    rotation_failures: IntCounter,
    connections: IntGauge,
    handshakes: IntCounterVec,
    admissions: HistogramVec,
    admission_connections: IntCounter,
    without_roots: IntCounter,
    events: IntCounterVec,
    ca_bundles: IntCounterVec,
    settings_refused: IntCounter,
}

/// What became of an admission request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The pod got a sidecar.
    Injected,
    /// Nothing was to be done, and nothing is against it.
    Allowed,
    /// The pod gets no sidecar.
    Skipped,
    /// It must not be.
    Refused,
    /// The request cannot be read.
    Malformed,
    /// It could not be decided.
    Failed,
    /// It took too long.
    Timeout,
    /// Too many at once.
    Overflow,
}

/// How a TCP connection to the TLS port began, or why it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// With a client certificate that was verified.
    Mutual,
    /// Without a client certificate.
    Anonymous,
    /// TLS failed, or the certificate was refused.
    Failed,
    /// It took too long.
    Timeout,
    /// There were too many connections already.
    Overflow,
}

/// What became of a request for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issued {
    /// Signed, for a join token.
    ForToken,
    /// Signed, for a service account token.
    ForServiceAccount,
    /// Signed, for the certificate before it.
    ForCertificate,
    /// The caller did not prove who it is.
    Unauthenticated,
    /// The caller may not have what it asks for.
    Denied,
    /// The request cannot be read.
    Invalid,
    /// Too many requests at once.
    Overflow,
    /// The authority could not sign.
    Failed,
}

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// Never in a build that passed its tests: only on two metrics of one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let new = Self {
            streams: gauges("heddle_xds_streams", "ADS streams that are open.", &["dialect"])?,
            answers: counters("heddle_xds_answers_total", "Resources that clients answered for.", &["type", "result"])?,
            sent: counters("heddle_xds_resources_sent_total", "Resources in responses.", &["type"])?,
            removed: counters("heddle_xds_removals_sent_total", "Names reported as not existing.", &["type"])?,
            denied: counters("heddle_xds_denied_total", "Streams refused or ended for what they asked.", &["reason"])?,
            limited: IntCounter::new("heddle_xds_limited_total", "Streams ended because they broke a limit.")?,
            propagation: histogram(
                "heddle_xds_propagation_seconds",
                "From the change of a resource to a client's acceptance of it.",
                PROPAGATION_SECONDS,
            )?,
            objects: gauges("heddle_config_objects", "Objects that are read.", &["kind"])?,
            source_errors: IntCounter::new(
                "heddle_source_errors_total",
                "Times a file or an object could not be taken over.",
            )?,
            source_broken: IntGauge::new(
                "heddle_source_broken",
                "Files or objects that cannot be read as they are now.",
            )?,
            source_served: gauges(
                "heddle_source_served",
                "Whether the API server knows a kind: 1, or 0 while its definition is not installed.",
                &["kind"],
            )?,
            watch_failures: counters(
                "heddle_source_watch_failures_total",
                "Times that objects of the API server could not be listed or watched.",
                &["kind"],
            )?,
            leading: IntGauge::new(
                "heddle_leading",
                "Whether this replica holds the lease, and so writes statuses and exchanges roots: 1 or 0.",
            )?,
            lease_failures: IntCounter::new(
                "heddle_lease_failures_total",
                "Times the lease could not be read or renewed.",
            )?,
            roots_written: counters(
                "heddle_roots_writes_total",
                "ConfigMaps with the roots that were written, or could not be.",
                &["result"],
            )?,
            statuses: counters(
                "heddle_status_writes_total",
                "Statuses of objects that were to be written.",
                &["outcome"],
            )?,
            reports: counters(
                "heddle_replica_reports_total",
                "Reports of what clients say to the replica that holds the lease.",
                &["result"],
            )?,
            reviews: counters("heddle_token_reviews_total", "Service account tokens that were shown.", &["outcome"])?,
            review_time: histogram(
                "heddle_token_review_seconds",
                "From a service account token to its holder, the API server asked.",
                REVIEW_SECONDS,
            )?,
            updates: IntCounter::new("heddle_config_updates_total", "Changes of the mesh that were published.")?,
            translation: histogram(
                "heddle_config_translation_seconds",
                "From changed objects to published resources.",
                TRANSLATION_SECONDS,
            )?,
            issued: counters("heddle_certificates_requests_total", "Requests for certificates.", &["outcome"])?,
            root_expiry: IntGauge::new(
                "heddle_root_expiry_timestamp_seconds",
                "When the first of the published roots ends, in seconds since 1970.",
            )?,
            own_expiry: IntGauge::new(
                "heddle_server_certificate_expiry_timestamp_seconds",
                "When the control plane's own certificate ends, in seconds since 1970.",
            )?,
            rotation_failures: IntCounter::new(
                "heddle_rotation_failures_total",
                "Times a root or the control plane's own certificate could not be exchanged.",
            )?,
            connections: IntGauge::new("heddle_connections", "TLS connections that are open.")?,
            handshakes: counters("heddle_handshakes_total", "Connections to the TLS port.", &["outcome"])?,
            admissions: HistogramVec::new(
                HistogramOpts::new("heddle_admission_seconds", "From an admission request's arrival to its answer.")
                    .buckets(ADMISSION_SECONDS.to_vec()),
                &["webhook", "outcome"],
            )?,
            admission_connections: IntCounter::new(
                "heddle_admission_connections_refused_total",
                "Connections to the webhook port closed at once: too many were open.",
            )?,
            without_roots: IntCounter::new(
                "heddle_admission_without_roots_total",
                "Pods injected before the roots were in their namespace.",
            )?,
            events: counters("heddle_admission_events_total", "Events about pods without sidecar.", &["outcome"])?,
            settings_refused: IntCounter::new(
                "heddle_injection_settings_refused_total",
                "Times the file of injection settings said something that cannot be used.",
            )?,
            ca_bundles: counters(
                "heddle_webhook_configuration_writes_total",
                "Webhook configurations given the mesh's roots, or that could not be.",
                &["result"],
            )?,
            registry,
        };
        new.register()?;
        new.begin_at_zero();
        Ok(new)
    }

    fn register(&self) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 33] = [
            Box::new(self.streams.clone()),
            Box::new(self.answers.clone()),
            Box::new(self.sent.clone()),
            Box::new(self.removed.clone()),
            Box::new(self.denied.clone()),
            Box::new(self.limited.clone()),
            Box::new(self.propagation.clone()),
            Box::new(self.objects.clone()),
            Box::new(self.source_errors.clone()),
            Box::new(self.source_broken.clone()),
            Box::new(self.source_served.clone()),
            Box::new(self.watch_failures.clone()),
            Box::new(self.leading.clone()),
            Box::new(self.lease_failures.clone()),
            Box::new(self.roots_written.clone()),
            Box::new(self.statuses.clone()),
            Box::new(self.reports.clone()),
            Box::new(self.reviews.clone()),
            Box::new(self.review_time.clone()),
            Box::new(self.updates.clone()),
            Box::new(self.translation.clone()),
            Box::new(self.issued.clone()),
            Box::new(self.root_expiry.clone()),
            Box::new(self.own_expiry.clone()),
            Box::new(self.rotation_failures.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.handshakes.clone()),
            Box::new(self.admissions.clone()),
            Box::new(self.admission_connections.clone()),
            Box::new(self.without_roots.clone()),
            Box::new(self.events.clone()),
            Box::new(self.ca_bundles.clone()),
            Box::new(self.settings_refused.clone()),
        ];
        all.into_iter().try_for_each(|collector| self.registry.register(collector))
    }

    /// A series that is not there cannot be told from one that nobody counts.
    fn begin_at_zero(&self) {
        for dialect in Dialect::ALL {
            self.streams.with_label_values(&[dialect.name()]);
        }
        for kind in Kind::DELIVERY {
            self.sent.with_label_values(&[kind.short_name()]);
            self.removed.with_label_values(&[kind.short_name()]);
            for result in [ACCEPTED, REFUSED] {
                self.answers.with_label_values(&[kind.short_name(), result]);
            }
        }
        for reason in Reason::ALL {
            self.denied.with_label_values(&[reason.name()]);
        }
        for outcome in Issued::ALL {
            self.issued.with_label_values(&[outcome.name()]);
        }
        for outcome in status::Outcome::ALL {
            self.statuses.with_label_values(&[outcome.name()]);
        }
        for outcome in Outcome::ALL {
            self.reviews.with_label_values(&[outcome.name()]);
        }
        for outcome in Handshake::ALL {
            self.handshakes.with_label_values(&[outcome.name()]);
        }
    }

    /// A stream was let in, `+1`, or ended, `-1`.
    pub fn stream(&self, dialect: Dialect, change: i64) {
        self.streams.with_label_values(&[dialect.name()]).add(change);
    }

    /// A client accepted or refused a resource.
    pub fn answered(&self, kind: Kind, accepted: bool) {
        let result = if accepted { ACCEPTED } else { REFUSED };
        self.answers.with_label_values(&[kind.short_name(), result]).inc();
    }

    /// A response was sent.
    pub fn sent(&self, kind: Kind, resources: usize, removed: usize) {
        self.sent.with_label_values(&[kind.short_name()]).inc_by(resources as u64);
        self.removed.with_label_values(&[kind.short_name()]).inc_by(removed as u64);
    }

    /// A stream was not let in, or asked for what it may not have.
    pub fn denied(&self, reason: Reason) {
        self.denied.with_label_values(&[reason.name()]).inc();
    }

    /// A stream broke a limit.
    pub fn limited(&self) {
        self.limited.inc();
    }

    /// A client accepted a changed resource so long after its change.
    pub fn propagated(&self, after: Duration) {
        self.propagation.observe(after.as_secs_f64());
    }

    /// How many objects of `kind` there are.
    pub fn objects(&self, kind: &str, count: usize) {
        self.objects.with_label_values(&[kind]).set(gauge(count));
    }

    /// The API server knows a kind, or does not.
    pub fn source_served(&self, kind: &str, served: bool) {
        self.source_served.with_label_values(&[kind]).set(i64::from(served));
        // From now on, a failure is a rise and not a beginning.
        self.watch_failures.with_label_values(&[kind]);
    }

    /// A kind could not be listed or watched.
    pub fn source_watch_failed(&self, kind: &str) {
        self.watch_failures.with_label_values(&[kind]).inc();
    }

    /// This replica holds the lease, or does not.
    pub fn leading(&self, held: bool) {
        self.leading.set(i64::from(held));
    }

    /// The lease could not be read or renewed.
    pub fn lease_failed(&self) {
        self.lease_failures.inc();
    }

    /// A ConfigMap with the roots was written, or could not be.
    pub fn roots_written(&self, written: bool) {
        self.roots_written.with_label_values(&[if written { WRITTEN } else { FAILED }]).inc();
    }

    /// A status was to be written.
    pub fn status_written(&self, outcome: status::Outcome) {
        self.statuses.with_label_values(&[outcome.name()]).inc();
    }

    /// What clients say was reported to another replica, or could not be.
    pub fn reported(&self, arrived: bool) {
        self.reports.with_label_values(&[if arrived { WRITTEN } else { FAILED }]).inc();
    }

    /// A service account token was shown; finding out about it took so long.
    pub fn reviewed(&self, outcome: Outcome, took: Duration) {
        self.reviews.with_label_values(&[outcome.name()]).inc();
        self.review_time.observe(took.as_secs_f64());
    }

    /// A service account token was refused for more than the token itself: that was counted before as accepted.
    pub fn review_overruled(&self, outcome: Outcome) {
        self.reviews.with_label_values(&[outcome.name()]).inc();
    }

    /// The source was read; so many mistakes in it are new, so many are there in all.
    pub fn source_read(&self, new: usize, all: usize) {
        self.source_errors.inc_by(new as u64);
        self.source_broken.set(gauge(all));
    }

    /// A change was published; it took so long from the changed objects on.
    pub fn published(&self, took: Duration) {
        self.updates.inc();
        self.translation.observe(took.as_secs_f64());
    }

    /// A request for a certificate was answered.
    pub fn issued(&self, outcome: Issued) {
        self.issued.with_label_values(&[outcome.name()]).inc();
    }

    /// The roots, or the control plane's own certificate, were exchanged.
    pub fn rotated(&self, first_root_ends: SystemTime, own_ends: SystemTime) {
        self.root_expiry.set(timestamp(first_root_ends));
        self.own_expiry.set(timestamp(own_ends));
    }

    /// They could not be exchanged.
    pub fn rotation_failed(&self) {
        self.rotation_failures.inc();
    }

    /// A connection came.
    pub fn handshake(&self, outcome: Handshake) {
        self.handshakes.with_label_values(&[outcome.name()]).inc();
    }

    /// An admission request was answered, or could not be; it took so long.
    pub fn admitted(&self, webhook: &str, outcome: Admission, took: Duration) {
        self.admissions.with_label_values(&[webhook, outcome.name()]).observe(took.as_secs_f64());
    }

    /// A connection to the webhook port was closed for want of a place.
    pub fn admission_connection_refused(&self) {
        self.admission_connections.inc();
    }

    /// A pod was injected before the roots were in its namespace.
    pub fn admission_without_roots(&self) {
        self.without_roots.inc();
    }

    /// An event was to be published.
    pub fn event(&self, outcome: &str) {
        self.events.with_label_values(&[outcome]).inc();
    }

    /// The file of injection settings cannot be used as it is now.
    pub fn injection_settings_refused(&self) {
        self.settings_refused.inc();
    }

    /// A webhook configuration was given the roots, or could not be.
    pub fn ca_bundle_written(&self, written: bool) {
        self.ca_bundles.with_label_values(&[if written { "written" } else { "failed" }]).inc();
    }

    /// How many connections are open; the holder adds and takes away its own.
    pub fn connections(&self) -> &IntGauge {
        &self.connections
    }

    /// The exposition, text format 0.0.4.
    ///
    /// # Errors
    /// Never in practice: only on a metric without a name.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        families.retain(|family| !family.get_metric().is_empty());
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

impl Handshake {
    const ALL: [Self; 5] = [Self::Mutual, Self::Anonymous, Self::Failed, Self::Timeout, Self::Overflow];

    fn name(self) -> &'static str {
        match self {
            Self::Mutual => "mutual",
            Self::Anonymous => "anonymous",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Overflow => "overflow",
        }
    }
}

impl Admission {
    fn name(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Allowed => "allowed",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Overflow => "overflow",
        }
    }
}

impl Issued {
    const ALL: [Self; 8] = [
        Self::ForToken,
        Self::ForServiceAccount,
        Self::ForCertificate,
        Self::Unauthenticated,
        Self::Denied,
        Self::Invalid,
        Self::Overflow,
        Self::Failed,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::ForToken => "signed_for_token",
            Self::ForServiceAccount => "signed_for_service_account",
            Self::ForCertificate => "signed_for_certificate",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Overflow => "overflow",
            Self::Failed => "failed",
        }
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn timestamp(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

const ACCEPTED: &str = "accepted";
const REFUSED: &str = "refused";
const WRITTEN: &str = "written";
const FAILED: &str = "failed";

/// Seconds. From one round trip on a quiet mesh to what operators call an outage.
const PROPAGATION_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// Seconds. From an API server next door to the longest that is waited for one.
const REVIEW_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Seconds. A pod takes some hundred microseconds; 20 ms is what is aimed at, 10 s what Kubernetes gives.
const ADMISSION_SECONDS: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 2.5, 10.0];
/// Seconds. One Service takes microseconds, a whole mesh seconds.
const TRANSLATION_SECONDS: &[f64] = &[0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_with_fixed_labels_is_there_from_the_start() {
        let text = String::from_utf8(Metrics::new().unwrap().text().unwrap()).unwrap();

        for line in [
            "heddle_xds_streams{dialect=\"heddle\"} 0",
            "heddle_xds_answers_total{result=\"refused\",type=\"lds\"} 0",
            "heddle_xds_denied_total{reason=\"no_certificate\"} 0",
            "heddle_certificates_requests_total{outcome=\"signed_for_token\"} 0",
            "heddle_handshakes_total{outcome=\"mutual\"} 0",
            "heddle_connections 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_recorded_is_exposed() {
        let metrics = Metrics::new().unwrap();

        metrics.sent(Kind::Listener, 3, 2);
        metrics.source_read(2, 2);
        metrics.source_read(0, 0);
        metrics.rotated(UNIX_EPOCH + Duration::from_secs(7), UNIX_EPOCH);

        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        for line in [
            "heddle_xds_resources_sent_total{type=\"lds\"} 3",
            "heddle_xds_removals_sent_total{type=\"lds\"} 2",
            "heddle_source_errors_total 2",
            "heddle_source_broken 0",
            "heddle_root_expiry_timestamp_seconds 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
