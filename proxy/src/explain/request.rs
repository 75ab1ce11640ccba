//! What is asked about: a request, or an opaque connection, as people write it down.

use std::fmt;
use std::str::FromStr;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Uri, Version};
use serde::{Deserialize, Serialize};

use crate::detect::Sniffed;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// What the client speaks.
    #[serde(default)]
    pub protocol: Speaks,
    /// Method, in upper case as it is sent. Default: GET.
    #[serde(default = "get")]
    pub method: String,
    /// Host, with port where the client sends one; of TLS the server name.
    #[serde(default)]
    pub host: String,
    /// Path and query. Default: `/`.
    #[serde(default = "root")]
    pub path: String,
    /// Further headers, in order, each name and value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Speaks {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, gRPC among it.
    Http2,
    /// TLS of the application's own.
    Tls,
    /// Anything else.
    Tcp,
}

/// Where a client connects to, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Name or address, an IPv6 one without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Why something cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No scheme that says what is spoken.
    #[error("URL `{0}`: must begin with http://, http2://, grpc://, tls:// or tcp://")]
    Scheme(String),
    /// No host, or a port that is none.
    #[error("destination `{0}`: must be a host with an optional port, as api.shop:8080, 10.0.0.1:80 or [fd00::1]:80")]
    Target(String),
    /// No method.
    #[error("method `{0}`: must be a token, as GET (RFC 9110 §9.1)")]
    Method(String),
    /// No path.
    #[error("path `{0}`: must begin with / and be a path with an optional query (RFC 9110 §4.2.1)")]
    Path(String),
    /// No header.
    #[error(
        "header `{0}`: must be written as `name: value`, with a name that is a token and no line break (RFC 9110 §5)"
    )]
    Header(String),
    /// No host that could be sent.
    #[error("host `{0}`: must be a host with an optional port")]
    Host(String),
    /// A field of the question.
    #[error("{field} `{value}`: {remedy}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it says.
        value: String,
        /// What would be right.
        remedy: &'static str,
    },
    /// JSON that does not say what is asked.
    #[error("the question cannot be read: {0}")]
    Json(String),
}

impl Request {
    /// Reads `http://api.shop:8080/cart?x=1`, `grpc://…`, `tls://…` or `tcp://…`, and where that leads.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_url(url: &str) -> Result<(Self, Target), Invalid> {
        let wrong = || Invalid::Scheme(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let (protocol, port) = match scheme {
            "http" => (Speaks::Http1, 80),
            "http2" | "grpc" => (Speaks::Http2, 80),
            "tls" => (Speaks::Tls, 443),
            "tcp" => (Speaks::Tcp, 0),
            _ => return Err(wrong()),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let target = Target::parse(authority, port)?;
        let path = path.split('#').next().unwrap_or_default();
        let mut request = Self {
            protocol,
            method: get(),
            host: if protocol == Speaks::Tls { target.host.clone() } else { authority.to_owned() },
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers: Vec::new(),
        };
        if scheme == "grpc" {
            request.method = "POST".to_owned();
            request.headers.push(("content-type".to_owned(), "application/grpc".to_owned()));
        }
        Ok((request, target))
    }

    /// Adds `name: value`; a Host takes the place of the one that is there.
    ///
    /// # Errors
    /// If it is none.
    pub fn add_header(&mut self, text: &str) -> Result<(), Invalid> {
        let (name, value) = text.split_once(':').ok_or_else(|| Invalid::Header(text.to_owned()))?;
        let value = value.trim();
        header(name, value)?;
        if name.eq_ignore_ascii_case("host") {
            value.clone_into(&mut self.host);
        } else {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        Ok(())
    }

    /// The head as hyper would read it; `None` of what is no HTTP.
    ///
    /// # Errors
    /// The first part that cannot be sent.
    pub fn head(&self) -> Result<Option<Parts>, Invalid> {
        let version = match self.protocol {
            Speaks::Http1 => Version::HTTP_11,
            Speaks::Http2 => Version::HTTP_2,
            Speaks::Tls | Speaks::Tcp => return Ok(None),
        };
        let method = Method::from_bytes(self.method.as_bytes()).map_err(|_| Invalid::Method(self.method.clone()))?;
        let path = || Invalid::Path(self.path.clone());
        if !self.path.starts_with('/') {
            return Err(path());
        }
        let path = http::uri::PathAndQuery::try_from(self.path.as_str()).map_err(|_| path())?;
        let host = || Invalid::Host(self.host.clone());
        let (mut head, ()) = http::Request::new(()).into_parts();
        (head.method, head.version) = (method, version);
        if version == Version::HTTP_2 {
            let uri = Uri::builder().scheme("http").authority(self.host.as_str()).path_and_query(path);
            head.uri = uri.build().map_err(|_| host())?;
        } else {
            head.uri = path.into();
            head.headers.insert(HOST, HeaderValue::try_from(self.host.as_str()).map_err(|_| host())?);
        }
        for (name, value) in &self.headers {
            // Around a value HTTP/1 takes blanks away (RFC 9112 §5.1); HTTP/2 has them arrive.
            let sent = if version == Version::HTTP_2 { value } else { value.trim_matches([' ', '\t']) };
            let (name, value) = header(name, sent)?;
            head.headers.append(name, value);
        }
        Ok(Some(head))
    }

    /// What detection would say of its first bytes.
    pub(super) fn sniffed(&self) -> Sniffed {
        match self.protocol {
            Speaks::Http1 => Sniffed::Http1,
            Speaks::Http2 => Sniffed::Http2,
            Speaks::Tls => Sniffed::Tls,
            Speaks::Tcp => Sniffed::Opaque,
        }
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Invalid> {
    let wrong = || Invalid::Header(format!("{name}: {value}"));
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
    Ok((name, HeaderValue::try_from(value).map_err(|_| wrong())?))
}

impl Target {
    /// Reads `host`, `host:port` or `[v6]:port`; `port` is for a host alone, 0: there must be one.
    ///
    /// # Errors
    /// If it is neither.
    pub fn parse(text: &str, port: u16) -> Result<Self, Invalid> {
        let wrong = || Invalid::Target(text.to_owned());
        let (host, given) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))),
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port).filter(|port| !port.is_empty())),
                None => (text, Some("")),
            },
        };
        let port = match given.ok_or_else(wrong)? {
            "" => port,
            digits => digits.parse().map_err(|_| wrong())?,
        };
        let of_host = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || port == 0 || !host.chars().all(of_host) {
            return Err(wrong());
        }
        Ok(Self { host: host.trim_end_matches('.').to_ascii_lowercase(), port })
    }
}

impl FromStr for Target {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text, 80)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Speaks::Http1 | Speaks::Http2 => write!(f, "{} http://{}{}", self.method, self.host, self.path)?,
            Speaks::Tls => return write!(f, "a TLS connection for {}", self.host),
            Speaks::Tcp => return f.write_str("an opaque connection"),
        }
        self.headers.iter().try_for_each(|(name, value)| write!(f, ", {name}: {value}"))
    }
}

fn get() -> String {
    "GET".to_owned()
}

fn root() -> String {
    "/".to_owned()
}
