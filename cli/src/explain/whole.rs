//! The whole path: what the client's sidecar decides, and then the sidecar of each server it may choose.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use heddle_control_plane::explain::Client;
use heddle_proxy::explain::answer::{Backend, Endpoint};
use heddle_proxy::explain::{Caller, Ending, Inbound, Outbound, Request, Sight, Target, inbound, outbound, text};
use serde::Serialize;

use super::mesh::Mesh;
use super::tables::Cache;

/// Every decision about one request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Whole {
    /// What was asked.
    pub request: String,
    /// Who asks.
    pub from: String,
    /// Whether the client has a sidecar; without one what is said of it is what one would do.
    pub sidecar: bool,
    /// What the client's sidecar does.
    pub client: Outbound,
    /// What the servers' sidecars do, those together that do the same.
    pub servers: Vec<Server>,
}

/// Servers whose sidecars decide alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Their endpoints.
    pub endpoints: Vec<SocketAddr>,
    /// What runs them, `<namespace>/<name>`; empty if unknown.
    pub workload: String,
    /// What their sidecars do; none where there is no sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Inbound>,
}

/// Explains `request` of the workload `from` to `target`, or to `address` if that is given.
///
/// # Errors
/// If the workload or the destination is unknown, or the request none.
pub fn explain(
    mesh: &Mesh,
    cache: &mut Cache,
    from: &str,
    target: &Target,
    address: Option<SocketAddr>,
    request: &Request,
) -> anyhow::Result<Whole> {
    let client = mesh.client(from)?;
    let destination = match address {
        Some(address) => address,
        None => {
            let namespace = client.name.split('/').next().unwrap_or_default();
            mesh.destination(namespace, &target.host, target.port)?
        }
    };
    let tables = cache.tables(mesh, &client.name, Some(destination))?;
    // Nothing has happened yet in tables that were just made, and sessions that are said are taken as they are.
    let sight = Sight { tables: &tables, elapsed: Duration::ZERO, wall: SystemTime::now() };
    let answer = outbound(&sight, destination, first_address(&client), request)?;
    let opaque = answer.listener.as_ref().is_some_and(|listener| !listener.reading.starts_with("http"));
    let mut servers: Vec<Server> = Vec::new();
    for (backend, endpoint) in chosen(&answer) {
        let sent = backend.sent.as_ref().unwrap_or(request);
        let server = server(mesh, cache, &client, endpoint, opaque, sent)?;
        match servers.iter_mut().find(|known| known.answer == server.answer && known.workload == server.workload) {
            Some(known) if !known.endpoints.contains(&endpoint.address) => known.endpoints.push(endpoint.address),
            Some(_) => {}
            None => servers.push(server),
        }
    }
    Ok(Whole { request: request.to_string(), from: client.name, sidecar: client.sidecar, client: answer, servers })
}

/// Every endpoint that may get the request.
fn chosen(answer: &Outbound) -> impl Iterator<Item = (&Backend, &Endpoint)> {
    let sent = |backend: &&Backend| backend.percent > 0.0 && matches!(backend.ending, Ending::Sent { .. });
    let backends = answer.backends.iter().filter(sent);
    backends.flat_map(|backend| {
        backend.endpoints.iter().filter(|endpoint| endpoint.eligible).map(move |endpoint| (backend, endpoint))
    })
}

fn server(
    mesh: &Mesh,
    cache: &mut Cache,
    client: &Client,
    endpoint: &Endpoint,
    opaque: bool,
    sent: &Request,
) -> anyhow::Result<Server> {
    let mut server = Server { endpoints: vec![endpoint.address], workload: endpoint.workload.clone(), answer: None };
    let Some(found) = mesh.server(endpoint.address.ip())? else { return Ok(server) };
    if !found.sidecar {
        return Ok(server);
    }
    let tables = cache.tables(mesh, &found.name, None)?;
    let sight = Sight { tables: &tables, elapsed: Duration::ZERO, wall: SystemTime::now() };
    let mutual = client.sidecar && !endpoint.identities.is_empty();
    let principal = mutual.then(|| client.identity.clone());
    let caller = Caller { principal, ip: first_address(client), opaque };
    server.answer = Some(inbound(&sight, endpoint.address.port(), &caller, sent)?);
    Ok(server)
}

fn first_address(client: &Client) -> IpAddr {
    client.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

impl Whole {
    /// Adds where objects stand, as far as the mesh knows.
    ///
    /// # Errors
    /// If the control plane cannot be asked.
    pub fn add_places(&mut self, mesh: &Mesh) -> anyhow::Result<()> {
        let mut names = BTreeSet::new();
        self.each_place(&mut |name, _| {
            names.insert(name.to_owned());
        });
        let places = mesh.places(names.into_iter().collect())?;
        self.each_place(&mut |name, place| *place = places.get(name).cloned());
        Ok(())
    }

    fn each_place(&mut self, visit: &mut dyn FnMut(&str, &mut Option<String>)) {
        self.client.places(visit);
        self.servers.iter_mut().filter_map(|server| server.answer.as_mut()).for_each(|answer| answer.places(visit));
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n\nclient: {}\n", self.request, self.from);
        if !self.sidecar {
            out.push_str("  it has no sidecar, so this is what one would do\n");
        }
        out.push_str(&text::outbound(&self.client, "  "));
        for server in &self.servers {
            let endpoints: Vec<_> = server.endpoints.iter().map(ToString::to_string).collect();
            out.push_str(&format!("\nserver: {} at {}\n", server.workload, endpoints.join(", ")));
            match &server.answer {
                Some(answer) => out.push_str(&text::inbound(answer, "  ")),
                None => out.push_str("  it has no sidecar: nothing is decided there\n"),
            }
        }
        out
    }
}
