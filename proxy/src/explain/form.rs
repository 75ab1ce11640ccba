//! The sidecar's page `/explain`: what it is asked, as JSON or in a query, and which destination a name means.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::{Caller, Inbound, Invalid, Outbound, Request, Sight, Speaks, Target, inbound, outbound};
use crate::tables::listener::Opaque;
use crate::tables::{Answer, ServiceName, Tables};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Form {
    /// Which side of the sidecar is asked. Default: outbound.
    #[serde(default)]
    pub direction: Direction,
    /// Outbound: where the client connects to, `host:port` or `address:port`. Inbound: the application's port.
    pub destination: String,
    /// Address of the client. Default: loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// Inbound: SPIFFE ID of who calls. Default: it comes without mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Inbound: the caller's sidecar relays opaque bytes. Default: false.
    #[serde(default)]
    pub opaque: bool,
    /// What is asked for.
    pub request: Request,
}

/// Which side of a sidecar is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// What its application sends.
    #[default]
    Outbound,
    /// What comes for its application.
    Inbound,
}

/// A question that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Where requests to this destination go.
    To(Target),
    /// What becomes of requests for this port.
    Port(u16),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Explained {
    /// About the client's side.
    Outbound(Outbound),
    /// About the server's side.
    Inbound(Inbound),
}

impl Form {
    /// What is asked, once it is checked.
    ///
    /// # Errors
    /// The first part that is none.
    pub fn asked(&self) -> Result<Asked, Invalid> {
        self.request.head()?;
        match self.direction {
            Direction::Outbound => Ok(Asked::To(Target::parse(&self.destination, 80)?)),
            Direction::Inbound => {
                let port = self.destination.rsplit(':').next().unwrap_or_default();
                Ok(Asked::Port(port.parse().map_err(|_| Invalid::Target(self.destination.clone()))?))
            }
        }
    }

    /// Answers about the client's side.
    ///
    /// # Errors
    /// If the request cannot be sent.
    pub fn outbound(&self, sight: &Sight<'_>, destination: SocketAddr) -> Result<Explained, Invalid> {
        outbound(sight, destination, self.client(), &self.request).map(Explained::Outbound)
    }

    /// Answers about the server's side.
    ///
    /// # Errors
    /// If the request cannot be sent.
    pub fn inbound(&self, sight: &Sight<'_>, port: u16) -> Result<Explained, Invalid> {
        let caller = Caller { principal: self.caller.clone(), ip: self.client(), opaque: self.opaque };
        inbound(sight, port, &caller, &self.request).map(Explained::Inbound)
    }

    fn client(&self) -> IpAddr {
        self.client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

/// Reads `destination=api.shop:80&method=GET&path=/cart&header=x-user:%20a&direction=…&host=…&protocol=…&client=…&caller=…`;
/// of these only `destination` must be there, and `header` may be there more than once.
///
/// # Errors
/// The first parameter that is none, or has no such value.
pub fn read_query(query: &str) -> Result<Form, Invalid> {
    let request = Request {
        protocol: Speaks::Http1,
        method: "GET".into(),
        host: String::new(),
        path: "/".into(),
        headers: vec![],
    };
    let mut form = Form {
        direction: Direction::Outbound,
        destination: String::new(),
        client: None,
        caller: None,
        opaque: false,
        request,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned();
        let wrong = |field, remedy| Invalid::Field { field, value: value.clone(), remedy };
        match name {
            "destination" => form.destination = value,
            "method" => form.request.method = value,
            "path" => form.request.path = value,
            "host" => form.request.host = value,
            "header" => form.request.add_header(&value)?,
            "caller" => form.caller = Some(value),
            "client" => form.client = Some(value.parse().map_err(|_| wrong("client", "must be an IP address"))?),
            "opaque" => form.opaque = value.parse().map_err(|_| wrong("opaque", "must be true or false"))?,
            "direction" => {
                form.direction = match value.as_str() {
                    "outbound" => Direction::Outbound,
                    "inbound" => Direction::Inbound,
                    _ => return Err(wrong("direction", "must be outbound or inbound")),
                }
            }
            "protocol" => {
                form.request.protocol = match value.as_str() {
                    "http1" => Speaks::Http1,
                    "http2" => Speaks::Http2,
                    "tls" => Speaks::Tls,
                    "tcp" => Speaks::Tcp,
                    _ => return Err(wrong("protocol", "must be http1, http2, tls or tcp")),
                }
            }
            "output" => {}
            _ => {
                let value = name.to_owned();
                let remedy = "must be destination, method, path, host, header, protocol, direction, client, caller, opaque \
                              or output";
                return Err(Invalid::Field { field: "parameter", value, remedy });
            }
        }
    }
    if form.destination.is_empty() {
        let remedy = "must be there: where the client connects to, as api.shop:80, or inbound the application's port";
        return Err(Invalid::Field { field: "destination", value: String::new(), remedy });
    }
    if form.request.host.is_empty() {
        form.request.host.clone_from(&form.destination);
    }
    Ok(form)
}

/// The address that `target` means to this sidecar: an address is its own, and a name is that of a Service it knows, as
/// `api`, `api.shop` or `api.shop.svc.cluster.local`. `None`: it knows no such.
pub fn find(tables: &Tables, target: &Target) -> Option<SocketAddr> {
    if let Ok(ip) = target.host.parse() {
        return Some(SocketAddr::new(ip, target.port));
    }
    let own = tables.inbound.as_ref().map(|inbound| inbound.namespace.clone()).unwrap_or_default();
    let mut labels = target.host.split('.');
    let (name, namespace) = (labels.next()?, labels.next().unwrap_or(&own));
    if labels.next().is_some_and(|label| label != "svc") {
        return None;
    }
    let is_meant = |service: &ServiceName| *service.name == *name && *service.namespace == *namespace;
    let mut found: Vec<SocketAddr> = tables
        .outbound
        .iter()
        .filter(|(address, destination)| {
            let Answer::Exists(listener) = &destination.answer else { return false };
            // A table is named after the Service and its port; a listener without one leads to the Service's own cluster.
            let table = listener.http.as_ref().map(|table| &*table.name);
            let named = table.is_some_and(|table| {
                table.strip_prefix(&format!("{namespace}/{name}/")).is_some_and(|port| !port.contains('/'))
            });
            let shares = listener.tcp.as_ref().map(Opaque::clusters);
            let leads = shares.into_iter().flatten().any(|cluster| cluster.service.as_ref().is_some_and(is_meant));
            address.port() == target.port && (named || (table.is_none() && leads))
        })
        .map(|(address, _)| *address)
        .collect();
    found.sort();
    found.first().copied()
}
