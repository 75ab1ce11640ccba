//! What the sidecars say, made into edges: who called whom, how often, how well, how fast.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::exposition::Sample;
use super::mesh::Mesh;

/// One reading of every sidecar's metrics.
pub struct Reading {
    at: Instant,
    samples: BTreeMap<&'static str, Vec<Sample>>,
}

/// One edge between two readings.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    /// Identity of the caller; empty if it had none.
    pub client: String,
    /// Identity of the called workload.
    pub server: String,
    /// The called workload.
    pub workload: String,
    /// `http`, `grpc` or `tcp`.
    pub protocol: String,
    /// Whether it went over mutual TLS.
    pub mutual_tls: bool,
    /// Requests, or opaque connections, a second.
    pub rate: f64,
    /// Share that succeeded, 0 to 1; `None` if there were none.
    pub success: Option<f64>,
    /// Median and 99th percentile of durations; `None` for opaque connections.
    pub latency: Option<(Duration, Duration)>,
}

impl Reading {
    /// Reads all sidecars now.
    pub fn take(mesh: &Mesh) -> Self {
        Self { at: Instant::now(), samples: mesh.metrics() }
    }

    /// Sum over samples of `name` at `workload` with all of `labels`.
    pub fn sum(&self, workload: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.samples.get(workload).into_iter().flatten();
        let wanted = samples.filter(|s| s.name == name && labels.iter().all(|(label, value)| s.label(label) == *value));
        wanted.map(|sample| sample.value).sum()
    }

    /// Serial number and handshakes of the certificate in force at `workload`.
    pub fn certificate(&self, workload: &str) -> Option<(String, f64)> {
        let samples = self.samples.get(workload)?;
        let sample = samples.iter().find(|sample| sample.name == "heddle_certificate_handshakes")?;
        Some((sample.label("serial").to_owned(), sample.value))
    }

    /// Every edge that was used since `before`, seen from the called side.
    pub fn edges_since(&self, before: &Self) -> Vec<Edge> {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        let mut edges = Vec::new();
        for (workload, samples) in &self.samples {
            let server = samples.iter().find(|s| s.name == "heddle_certificate_expiry_timestamp_seconds");
            let server = server.map(|sample| sample.label("principal").to_owned()).unwrap_or_default();
            let earlier = before.samples.get(workload).map(Vec::as_slice).unwrap_or_default();
            let delta = Delta { now: samples, earlier };
            for key in delta.keys() {
                let edge = delta.edge(&key, seconds);
                edges.push(Edge { server: server.clone(), workload: (*workload).to_owned(), ..edge });
            }
        }
        edges.retain(|edge| edge.rate > 0.0);
        edges.sort_by(|a, b| (&a.client, &a.workload, &a.protocol).cmp(&(&b.client, &b.workload, &b.protocol)));
        edges
    }
}

/// Caller, protocol, security policy: what tells edges of one sidecar apart.
type Key = [String; 3];

/// One sidecar's samples at two times.
struct Delta<'s> {
    now: &'s [Sample],
    earlier: &'s [Sample],
}

impl Delta<'_> {
    fn keys(&self) -> Vec<Key> {
        let inbound = self.now.iter().filter(|sample| sample.label("direction") == "inbound");
        let ended = inbound.filter(|s| s.name == REQUESTS || s.name == CONNECTIONS);
        let mut keys: Vec<Key> = ended.map(key).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    fn edge(&self, key: &Key, seconds: f64) -> Edge {
        let opaque = key[1] == "tcp";
        let name = if opaque { CONNECTIONS } else { REQUESTS };
        let all = self.grown(name, key, |_| true);
        let succeeded = self.grown(name, key, |sample| {
            let answered = opaque || sample.label("response_code").starts_with(['2', '3']);
            answered && sample.label("cause").is_empty() && matches!(sample.label("grpc_status"), "" | "0")
        });
        Edge {
            client: key[0].clone(),
            server: String::new(),
            workload: String::new(),
            protocol: key[1].clone(),
            mutual_tls: key[2] == "mutual_tls",
            rate: all / seconds,
            success: (all > 0.0).then(|| succeeded / all),
            latency: (!opaque && all > 0.0).then(|| (self.quantile(key, 0.5), self.quantile(key, 0.99))),
        }
    }

    fn grown(&self, name: &str, key: &Key, wanted: impl Fn(&Sample) -> bool) -> f64 {
        let sum = |samples: &[Sample]| -> f64 {
            let of_edge =
                samples.iter().filter(|s| s.name == name && s.label("direction") == "inbound" && key_is(s, key));
            of_edge.filter(|sample| wanted(sample)).map(|sample| sample.value).sum()
        };
        sum(self.now) - sum(self.earlier)
    }

    /// As Prometheus' `histogram_quantile`: linear within a bucket.
    fn quantile(&self, key: &Key, quantile: f64) -> Duration {
        let mut bounds: Vec<f64> = self.now.iter().filter(|s| s.name == BUCKETS).filter_map(bound).collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        let count = |le: f64| self.grown(BUCKETS, key, |sample| bound(sample) == Some(le));
        let Some(total) = bounds.last().map(|last| count(*last)) else { return Duration::ZERO };
        let (mut lower, mut below) = (0.0, 0.0);
        for le in bounds {
            let up_to = count(le);
            if up_to >= quantile * total && up_to > below {
                let upper = if le.is_finite() { le } else { lower };
                let seconds = lower + (upper - lower) * (quantile * total - below) / (up_to - below);
                return Duration::from_secs_f64(seconds.max(0.0));
            }
            if le.is_finite() {
                (lower, below) = (le, up_to);
            }
        }
        Duration::from_secs_f64(lower)
    }
}

fn key(sample: &Sample) -> Key {
    ["source_principal", "protocol", "connection_security_policy"].map(|label| sample.label(label).to_owned())
}

fn key_is(sample: &Sample, wanted: &Key) -> bool {
    key(sample) == *wanted
}

fn bound(sample: &Sample) -> Option<f64> {
    match sample.label("le") {
        "+Inf" => Some(f64::INFINITY),
        le => le.parse().ok(),
    }
}

const REQUESTS: &str = "heddle_requests_total";
const CONNECTIONS: &str = "heddle_tcp_connections_closed_total";
const BUCKETS: &str = "heddle_request_duration_seconds_bucket";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::exposition::parse;

    fn reading(seconds_ago: u64, page: &str) -> Reading {
        let at = Instant::now() - Duration::from_secs(seconds_ago);
        Reading { at, samples: BTreeMap::from([("web-a", parse(page))]) }
    }

    #[test]
    fn edges_are_what_grew_between_two_readings() {
        let labels = "direction=\"inbound\",protocol=\"http\",connection_security_policy=\"mutual_tls\",source_principal=\"spiffe://a\"";
        let page = |ok: u32, failed: u32, fast: u32, all: u32| {
            format!(
                "heddle_requests_total{{{labels},response_code=\"200\"}} {ok}\n\
                 heddle_requests_total{{{labels},response_code=\"503\"}} {failed}\n\
                 heddle_request_duration_seconds_bucket{{{labels},le=\"0.01\"}} {fast}\n\
                 heddle_request_duration_seconds_bucket{{{labels},le=\"0.1\"}} {all}\n\
                 heddle_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {all}\n"
            )
        };
        let (before, now) = (reading(10, &page(5, 0, 5, 5)), reading(0, &page(80, 25, 55, 105)));
        let edges = now.edges_since(&before);
        assert_eq!(edges.len(), 1);
        let edge = &edges[0];
        assert_eq!((edge.client.as_str(), edge.mutual_tls), ("spiffe://a", true));
        assert!((edge.rate - 10.0).abs() < 0.1, "{edge:?}");
        assert!((edge.success.unwrap() - 0.75).abs() < 0.001, "{edge:?}");
        let (median, high) = edge.latency.unwrap();
        assert_eq!(median, Duration::from_millis(10));
        assert!(high > Duration::from_millis(95) && high <= Duration::from_millis(100), "{high:?}");
    }
}
