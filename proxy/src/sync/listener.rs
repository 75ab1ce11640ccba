//! Listener `outbound/<ip>:<port>` → protocol, route table and cluster by name.
//!
//! The protocol is told from the shape: an http_inspector means that bytes decide, an HTTP connection manager of codec
//! HTTP2 means HTTP/2, of any other HTTP, none at all opaque bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener as PbListener};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use heddle_xds::resource::parse_outbound;
use prost::Name;

use super::read::{self, Error, Within, at_most};
use super::route::INVALID_CLUSTER;
use crate::tables::Sources;
use crate::tables::listener::Protocol;

/// One original destination, with the names of what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Declared protocol.
    pub protocol: Protocol,
    /// The route table's name, where there may be HTTP.
    pub routes: Option<Arc<str>>,
    /// Where opaque connections go; `None` where there can be none.
    pub tcp: Option<Opaque>,
    /// What it was made from.
    pub sources: Sources,
}

/// What tells opaque connections apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opaque {
    /// Nothing.
    Shares(Vec<Share>),
    /// The server name a TLS client asks for.
    ServerNames(BTreeMap<Arc<str>, Vec<Share>>),
}

/// A share of opaque connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The cluster's name; `None`: the reference is invalid.
    pub cluster: Option<Arc<str>>,
    /// Above 0.
    pub weight: u32,
}

impl Parsed {
    /// Names of the clusters of opaque connections.
    pub fn tcp_clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        let (alone, named) = match &self.tcp {
            Some(Opaque::Shares(shares)) => (Some(shares), None),
            Some(Opaque::ServerNames(names)) => (None, Some(names.values())),
            None => (None, None),
        };
        let shares = alone.into_iter().chain(named.into_iter().flatten()).flatten();
        shares.filter_map(|share| share.cluster.as_ref())
    }
}

/// Reads the resource `name`, `outbound/<ip>:<port>`.
///
/// # Errors
/// The first field that is wrong.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Parsed, Error> {
    let message: PbListener = read::message(bytes)?;
    read::name("name", &message.name, name)?;
    let address = read::socket_address(message.address.as_ref()).within("address")?;
    if parse_outbound(name) != Some(address) {
        return Err(Error::new("address", format!("is {address}, must be the one the listener is named after")));
    }
    let sources = read::sources(message.metadata.as_ref())?;
    let mut found = Chains::default();
    for (index, chain) in message.filter_chains.iter().enumerate() {
        found.take(chain).nth("filter_chains", index)?;
    }
    if let Some(chain) = &message.default_filter_chain {
        found.take(chain).within("default_filter_chain")?;
    }
    if !found.names.is_empty() {
        if found.routes.is_some() || found.tcp.is_some() {
            let reason = "must not hold a chain without server_names beside chains that have them";
            return Err(Error::new("filter_chains", reason));
        }
        let tcp = Some(Opaque::ServerNames(found.names));
        return Ok(Parsed { protocol: Protocol::Tcp, routes: None, tcp, sources });
    }
    let by_bytes = message.listener_filters.iter().any(|filter| filter.name == HTTP_INSPECTOR);
    let protocol = match (&found.routes, &found.tcp) {
        (None, None) => return Err(Error::new("filter_chains", "must hold an http_connection_manager or a tcp_proxy")),
        _ if by_bytes => Protocol::Detect,
        (Some(_), Some(_)) => {
            let reason = format!("must hold {HTTP_INSPECTOR} where there are chains for HTTP and for opaque bytes");
            return Err(Error::new("listener_filters", reason));
        }
        (Some((CodecType::Http2, _)), None) => Protocol::Http2,
        (Some(_), None) => Protocol::Http,
        (None, Some(_)) => Protocol::Tcp,
    };
    let (routes, tcp) = (found.routes.map(|(_, name)| name), found.tcp.map(Opaque::Shares));
    Ok(Parsed { protocol, routes, tcp, sources })
}

#[derive(Default)]
struct Chains {
    routes: Option<(CodecType, Arc<str>)>,
    tcp: Option<Vec<Share>>,
    names: BTreeMap<Arc<str>, Vec<Share>>,
}

impl Chains {
    fn take(&mut self, chain: &FilterChain) -> Result<(), Error> {
        let [filter] = chain.filters.as_slice() else {
            return Err(Error::new("filters", format!("has {} entries, must have one", chain.filters.len())));
        };
        let any = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => any,
            Some(ConfigType::ConfigDiscovery(_)) | None => {
                return Err(Error::new("typed_config", "is missing")).nth("filters", 0);
            }
        };
        if any.type_url == TcpProxy::type_url() {
            let shares = shares(&read::unpack(Some(any)).nth("filters", 0)?).nth("filters", 0)?;
            let names = chain.filter_chain_match.iter().flat_map(|matches| &matches.server_names);
            if names.clone().next().is_none() {
                return once(&mut self.tcp, shares).nth("filters", 0);
            }
            return self.take_named(names, &shares).within("filter_chain_match.server_names");
        }
        let manager: HttpConnectionManager = read::unpack(Some(any)).nth("filters", 0)?;
        once(&mut self.routes, routes(&manager).within("typed_config").nth("filters", 0)?).nth("filters", 0)
    }
}

impl Chains {
    fn take_named<'n>(&mut self, names: impl Iterator<Item = &'n String>, shares: &[Share]) -> Result<(), Error> {
        for name in names {
            if self.names.len() >= MAX_SERVER_NAMES {
                return Err(Error::new("", format!("make more than {MAX_SERVER_NAMES} in one listener")));
            }
            if self.names.insert(name.as_str().into(), shares.to_vec()).is_some() {
                return Err(Error::new("", format!("has `{name}` for the second time")));
            }
        }
        Ok(())
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Error> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::new("", "is the second of its kind in one listener")),
    }
}

fn shares(proxy: &TcpProxy) -> Result<Vec<Share>, Error> {
    let share = |name: &str, weight| Share { cluster: (name != INVALID_CLUSTER).then(|| name.into()), weight };
    match &proxy.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => Ok(vec![share(name, 1)]),
        Some(ClusterSpecifier::WeightedClusters(several)) if !several.clusters.is_empty() => {
            at_most("typed_config.weighted_clusters.clusters", &several.clusters, MAX_SHARES)?;
            let heavy = several.clusters.iter().any(|share| share.weight == 0 || share.weight > MAX_WEIGHT);
            if heavy {
                let reason = format!("must be from 1 to {MAX_WEIGHT}");
                return Err(Error::new("typed_config.weighted_clusters.clusters.weight", reason));
            }
            Ok(several.clusters.iter().map(|given| share(&given.name, given.weight)).collect())
        }
        _ => Err(Error::new("typed_config.cluster", "must name a cluster")),
    }
}

/// Server names of one listener. Chosen: a hundred TLSRoutes with as many names as Gateway API allows (16).
const MAX_SERVER_NAMES: usize = 1600;
/// Clusters of one listener. Gateway API allows 16 backends.
const MAX_SHARES: usize = 64;
/// Gateway API, `BackendRef.weight`; together they stay far below the end of a `u32`.
const MAX_WEIGHT: u32 = 1_000_000;

fn routes(manager: &HttpConnectionManager) -> Result<(CodecType, Arc<str>), Error> {
    let codec = match CodecType::try_from(manager.codec_type) {
        Ok(codec @ (CodecType::Auto | CodecType::Http1 | CodecType::Http2)) => codec,
        Ok(CodecType::Http3) | Err(_) => {
            return Err(Error::new("codec_type", format!("is {}, must be AUTO, HTTP1 or HTTP2", manager.codec_type)));
        }
    };
    match &manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) if !rds.route_config_name.is_empty() => {
            Ok((codec, rds.route_config_name.as_str().into()))
        }
        _ => Err(Error::new("rds.route_config_name", "must name a route configuration")),
    }
}

/// The listener filter that looks for HTTP.
const HTTP_INSPECTOR: &str = "envoy.filters.listener.http_inspector";

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_listener_that_says_nothing_or_lies_about_its_name_is_refused() {
        let empty = PbListener { name: "outbound/10.0.0.1:80".into(), ..PbListener::default() };
        let error = parse("outbound/10.0.0.2:80", &empty.encode_to_vec()).unwrap_err();
        assert_eq!(error.to_string(), "name: is \"outbound/10.0.0.1:80\", must be \"outbound/10.0.0.2:80\"");
        let error = parse("outbound/10.0.0.1:80", &empty.encode_to_vec()).unwrap_err();
        assert_eq!(error.field, "address.socket_address");
        assert!(parse("outbound/10.0.0.1:80", b"\xff").unwrap_err().reason.starts_with("does not decode: "));
    }
}
