//! Asking live processes by their admin ports.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use heddle_proxy::explain::{Direction, Ending, Explained, Form, Request};

use super::whole::{Server, Whole};

/// Asks the client's sidecar, and the server's if there is one to ask.
///
/// # Errors
/// If one cannot be asked, or says that the question is none.
pub(super) fn explain(
    client: SocketAddr,
    server: Option<SocketAddr>,
    destination: &str,
    request: &Request,
    from: Option<&str>,
) -> anyhow::Result<Whole> {
    let form = Form {
        direction: Direction::Outbound,
        destination: destination.to_owned(),
        client: None,
        caller: None,
        opaque: false,
        request: request.clone(),
    };
    let answer = match ask(client, &form).with_context(|| format!("--sidecar {client}"))? {
        Explained::Outbound(answer) => answer,
        Explained::Inbound(_) => bail!("--sidecar {client} answered another question; is it of the same version?"),
    };
    let mut servers = Vec::new();
    if let Some(server) = server {
        let sent = answer.backends.iter().find(|backend| matches!(backend.ending, Ending::Sent { .. }));
        let endpoint = sent.and_then(|backend| backend.endpoints.iter().find(|endpoint| endpoint.eligible));
        let (backend, endpoint) = sent.zip(endpoint).context("--server-sidecar: the request goes to no endpoint")?;
        let caller = match from {
            Some(caller) if caller.starts_with("spiffe://") => Some(caller.to_owned()),
            Some(other) => bail!("--from {other}: with --server-sidecar it is the SPIFFE ID that the caller shows"),
            None => None,
        };
        let opaque = backend.sent.is_none();
        let form = Form {
            direction: Direction::Inbound,
            destination: endpoint.address.port().to_string(),
            client: None,
            caller: caller.filter(|_| !endpoint.identities.is_empty()),
            opaque,
            request: backend.sent.clone().unwrap_or_else(|| request.clone()),
        };
        let Explained::Inbound(answer) = ask(server, &form).with_context(|| format!("--server-sidecar {server}"))?
        else {
            bail!("--server-sidecar {server} answered another question; is it of the same version?");
        };
        servers.push(Server {
            endpoints: vec![endpoint.address],
            workload: answer.workload.clone(),
            answer: Some(answer),
        });
    }
    let from = from.map_or_else(|| format!("the sidecar at {client}"), str::to_owned);
    Ok(Whole { request: request.to_string(), from, sidecar: true, client: answer, servers })
}

fn ask(address: SocketAddr, form: &Form) -> anyhow::Result<Explained> {
    let body = post(address, &serde_json::to_string(form)?)?;
    serde_json::from_str(&body).context("the answer cannot be read; is it of the same version?")
}

/// Posts JSON to the page `/explain` of an admin port; the answer's body.
///
/// # Errors
/// If there is no answer, or one that is no 200, with its words.
pub(super) fn post(address: SocketAddr, json: &str) -> anyhow::Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&address, PATIENCE).context("cannot connect: is this the admin port?")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = json.len();
    write!(
        stream,
        "POST /explain HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("no answer: is this the admin port?")?;
    let answer = String::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP: is this the admin port?")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some("404") if body.is_empty() => bail!("it has no page /explain: is it an older version?"),
        _ => bail!("{}", body.trim()),
    }
}

/// Longest wait for a live process. Chosen: a sidecar itself waits up to 2 s for its control plane.
const PATIENCE: Duration = Duration::from_secs(10);
