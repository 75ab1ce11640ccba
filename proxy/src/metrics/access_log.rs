//! The access log: one line a request, an opaque connection or a connection that was refused, as JSON or text, off by
//! default.
//!
//! Lines go to a thread of their own through a bounded queue: a slow reader of standard output never slows a request;
//! lines that find the queue full are dropped and counted.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use http::request::Parts;
use prometheus::{IntCounter, Registry};
use serde::{Serialize, Serializer};

use super::{Direction, edges};
use crate::http::error::Cause;

/// How lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Not at all.
    #[default]
    Off,
    /// `name=value` pairs.
    Text,
    /// One JSON object a line.
    Json,
}

/// Lines that may wait to be written. Chosen: a second's worth of a busy sidecar.
const QUEUE: usize = 8_192;

/// Where lines go.
pub struct AccessLog {
    format: Format,
    queue: Option<SyncSender<Vec<u8>>>,
    dropped: IntCounter,
}

impl AccessLog {
    /// A log to standard output.
    ///
    /// # Errors
    /// If the thread cannot be made, or the metric's name is taken.
    pub fn start(format: Format, registry: &Registry) -> Result<Self, StartError> {
        let dropped =
            IntCounter::new("heddle_access_log_dropped_total", "Access log lines dropped: the queue was full.")?;
        registry.register(Box::new(dropped.clone()))?;
        let queue = match format {
            Format::Off => None,
            Format::Text | Format::Json => {
                let (queue, lines) = sync_channel(QUEUE);
                std::thread::Builder::new().name("access-log".into()).spawn(move || write(&lines))?;
                Some(queue)
            }
        };
        Ok(Self { format, queue, dropped })
    }

    /// Whether lines are wanted.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Writes a line about something that took `duration`.
    pub fn write(&self, line: &mut Line, duration: Duration) {
        line.duration_ms = duration.as_secs_f64() * 1000.0;
        let bytes = match self.format {
            Format::Off => return,
            Format::Json => serde_json::to_vec(line).unwrap_or_default(),
            Format::Text => line.text(),
        };
        if self.queue.as_ref().is_some_and(|queue| queue.try_send(bytes).is_err()) {
            self.dropped.inc();
        }
    }
}

/// Why the log cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread.
    #[error(transparent)]
    Thread(#[from] std::io::Error),
    /// The metric's name is taken.
    #[error(transparent)]
    Metric(#[from] prometheus::Error),
}

fn write(lines: &Receiver<Vec<u8>>) {
    let mut out = std::io::stdout();
    while let Ok(mut line) = lines.recv() {
        line.push(b'\n');
        // Locked for one line only: others in this process write there too. Where nobody reads any more, there is
        // nowhere to say so.
        let _ = out.write_all(&line);
    }
}

/// One line.
#[derive(Debug, Default, Serialize)]
pub struct Line {
    /// Seconds since 1970, at the beginning.
    start: f64,
    duration_ms: f64,
    direction: String,
    protocol: String,
    connection_security_policy: String,
    source_principal: String,
    source_namespace: String,
    /// Outbound: this workload, as metrics name it.
    source_workload: String,
    destination_namespace: String,
    destination_service: String,
    destination_workload: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
    /// Where the other end meant to connect, of a request or of a connection that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    original_destination: Option<SocketAddr>,
    /// The rule of the route that was taken, `<Kind>/<namespace>/<name>/<rule>`; outbound only.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub route: Option<Arc<str>>,
    /// The endpoint that was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<SocketAddr>,
    #[serde(skip_serializing_if = "String::is_empty")]
    method: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    host: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    request_id: String,
    /// HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// gRPC status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Short name of the failure's cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// Octets from the client.
    pub sent_bytes: u64,
    /// Octets to the client.
    pub received_bytes: u64,
}

impl Line {
    /// About a request that begins now.
    pub fn request(head: &Parts, peer: SocketAddr, original_dst: SocketAddr) -> Self {
        let field = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let host = head.uri.authority().map_or_else(|| field("host"), ToString::to_string);
        Self {
            peer: Some(peer),
            original_destination: Some(original_dst),
            method: head.method.to_string(),
            host,
            path: head.uri.path().to_owned(),
            request_id: field("x-request-id"),
            ..Self::tcp()
        }
    }

    /// About an opaque connection.
    pub fn tcp() -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { start, ..Self::default() }
    }

    /// About a connection of `peer` to `original_dst` that was closed unserved.
    pub fn refused(direction: Direction, peer: SocketAddr, original_dst: Option<SocketAddr>, cause: Cause) -> Self {
        Self {
            direction: direction.name().to_owned(),
            protocol: "tcp".to_owned(),
            peer: Some(peer),
            original_destination: original_dst,
            cause: Some(cause.name()),
            ..Self::tcp()
        }
    }

    /// Who talked to whom; `labels` as [`edges::LABELS`].
    pub fn edge(&mut self, labels: &[&str; 9]) {
        let value = |name| edges::LABELS.iter().position(|label| *label == name).map_or("", |at| labels[at]).to_owned();
        self.direction = value("direction");
        self.protocol = value("protocol");
        self.connection_security_policy = value("connection_security_policy");
        self.source_principal = value("source_principal");
        self.source_namespace = value("source_namespace");
        self.source_workload = value("source_workload");
        self.destination_namespace = value("destination_namespace");
        self.destination_service = value("destination_service");
        self.destination_workload = value("destination_workload");
    }

    /// The same fields as in JSON, quoted where needed.
    fn text(&self) -> Vec<u8> {
        let mut text = String::new();
        if let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) {
            for (name, value) in fields {
                // Writing to a String cannot fail.
                let _ = write!(text, "{}{name}={value}", if text.is_empty() { "" } else { " " });
            }
        }
        text.into_bytes()
    }
}

fn text<S: Serializer>(value: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_text_name_the_same_fields_and_quote_what_clients_choose() {
        let request = http::Request::get("/a%22b").header("host", "shop").body(()).unwrap();
        let local = ([127, 0, 0, 1], 9).into();
        let line = Line::request(&request.into_parts().0, local, local);
        let json = serde_json::to_string(&line).unwrap();
        assert!(json.contains(r#""path":"/a%22b""#), "{json}");
        let text = String::from_utf8(line.text()).unwrap();
        assert!(text.contains(r#" path="/a%22b""#), "{text}");
    }
}
