//! Recorded traffic: the access log of sidecars, or a list of requests, one JSON object a line.
//!
//! Of an access log the outbound lines count, for the inbound ones say the same requests again. What is no JSON is left out, so
//! that a container's whole output can be given; a line that is meant as a request and is none is an error with its number.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use heddle_proxy::explain::{Request, Speaks, Target};
use serde::Deserialize;
use serde_json::Value;

/// A record.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Each distinct request and how often it is there.
    pub(super) requests: BTreeMap<Asked, usize>,
    /// Lines that say none.
    pub(super) skipped: usize,
}

/// A request with who makes it and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    /// `<namespace>/<name>`.
    pub(super) from: String,
    /// Where the client connects to.
    pub(super) to: Target,
    /// The same as an address, where the record has it.
    pub(super) address: Option<SocketAddr>,
    /// What is asked.
    pub(super) request: Request,
}

/// A line of a list of requests.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Listed {
    from: Option<String>,
    to: String,
    #[serde(default)]
    protocol: Speaks,
    #[serde(default = "get")]
    method: String,
    host: Option<String>,
    #[serde(default = "root")]
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// A line of an access log, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Logged {
    direction: String,
    protocol: String,
    #[serde(default)]
    source_namespace: String,
    #[serde(default)]
    source_workload: String,
    #[serde(default)]
    destination_namespace: String,
    #[serde(default)]
    destination_service: String,
    original_destination: Option<SocketAddr>,
    #[serde(default)]
    method: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    path: String,
}

impl Traffic {
    /// Reads a record; `from` is whose requests those are that name nobody.
    ///
    /// # Errors
    /// With the number of the first line that is wrong, or if there is no request at all.
    pub(super) fn read(text: &str, from: Option<&str>) -> anyhow::Result<Self> {
        let mut traffic = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            match one(line, from).with_context(|| format!("line {number}"))? {
                Some(asked) => *traffic.requests.entry(asked).or_default() += 1,
                None => traffic.skipped += usize::from(!line.trim().is_empty()),
            }
        }
        if traffic.requests.is_empty() {
            bail!("no line is a request: it must be an access log in JSON with outbound lines, or a list of requests");
        }
        Ok(traffic)
    }
}

fn one(line: &str, from: Option<&str>) -> anyhow::Result<Option<Asked>> {
    let Ok(value @ Value::Object(_)) = serde_json::from_str::<Value>(line) else { return Ok(None) };
    let asked = if value.get("to").is_some() {
        listed(serde_json::from_value(value)?, from)?
    } else if value.get("direction").is_some() {
        let Some(asked) = logged(serde_json::from_value(value)?, from)? else { return Ok(None) };
        asked
    } else {
        return Ok(None);
    };
    asked.request.head()?;
    Ok(Some(asked))
}

fn listed(listed: Listed, from: Option<&str>) -> anyhow::Result<Asked> {
    let Listed { from: own, to, protocol, method, host, path, headers } = listed;
    let target = Target::parse(&to, 80)?;
    let from = own.or_else(|| from.map(str::to_owned)).context("from is missing, and there is no --from")?;
    let headers = headers.into_iter().collect();
    let request = Request { protocol, method, host: host.unwrap_or(to), path, headers };
    Ok(Asked { from, to: target, address: None, request })
}

/// None of what another sidecar's log says too, or of what went to nobody that is known.
fn logged(logged: Logged, from: Option<&str>) -> anyhow::Result<Option<Asked>> {
    if logged.direction != "outbound" || (logged.method.is_empty() && logged.original_destination.is_none()) {
        return Ok(None);
    }
    let own = format!("{}/{}", logged.source_namespace, logged.source_workload);
    let own = (!logged.source_workload.is_empty()).then_some(own);
    let from = own.or_else(|| from.map(str::to_owned)).context("source_workload is missing, and there is no --from")?;
    let to = match logged.original_destination {
        Some(address) => Target { host: address.ip().to_string(), port: address.port() },
        None if logged.destination_service.is_empty() => return Ok(None),
        None => {
            let port = Target::parse(&logged.host, 80).map_or(80, |target| target.port);
            Target { host: format!("{}.{}", logged.destination_service, logged.destination_namespace), port }
        }
    };
    let grpc = logged.protocol == "grpc";
    let protocol = match logged.protocol.as_str() {
        "grpc" => Speaks::Http2,
        "http" => Speaks::Http1,
        _ => Speaks::Tcp,
    };
    let content_type = grpc.then(|| ("content-type".to_owned(), "application/grpc".to_owned()));
    let request = Request {
        protocol,
        method: if logged.method.is_empty() { get() } else { logged.method },
        host: logged.host,
        path: if logged.path.is_empty() { root() } else { logged.path },
        headers: content_type.into_iter().collect(),
    };
    Ok(Some(Asked { from, to, address: logged.original_destination, request }))
}

fn get() -> String {
    "GET".to_owned()
}

fn root() -> String {
    "/".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_and_a_log_are_read_and_the_same_request_is_one() {
        let text = r#"
2026-01-01T00:00:00Z INFO not a request
{"from":"shop/web","to":"api.shop","path":"/cart","headers":{"x-user":"a"}}
{"from":"shop/web","to":"api.shop","path":"/cart","headers":{"x-user":"a"}}
{"direction":"outbound","protocol":"grpc","source_namespace":"shop","source_workload":"web","destination_namespace":"shop","destination_service":"api","original_destination":"10.96.0.1:80","method":"POST","host":"api.shop","path":"/a.B/C","status":200}
{"direction":"inbound","protocol":"http","method":"GET","host":"api.shop","path":"/cart"}
"#;
        let traffic = Traffic::read(text, None).unwrap();

        assert_eq!((traffic.requests.len(), traffic.skipped), (2, 2));
        let told: Vec<_> = traffic.requests.iter().map(|(asked, times)| (asked.to.to_string(), *times)).collect();
        assert_eq!(told, [("10.96.0.1:80".to_owned(), 1), ("api.shop:80".to_owned(), 2)]);
    }

    #[test]
    fn what_is_meant_as_a_request_and_is_none_is_named_by_its_line() {
        let error = |text: &str| format!("{:#}", Traffic::read(text, None).unwrap_err());
        assert!(error("{\"to\":\"api\",\"colour\":1}").starts_with("line 1: unknown field `colour`"));
        assert!(error("x\n{\"to\":\"api\"}").starts_with("line 2: from is missing"));
        assert!(
            error("{\"to\":\"api\",\"from\":\"a/b\",\"path\":\"x\"}")
                .starts_with("line 1: path `x`: must begin with /")
        );
        assert!(error("nothing").starts_with("no line is a request"));
    }
}
