//! A cluster: how it balances, what is open, where its endpoints stand, and what comes of a request to it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::answer::{Backend, Breaker, Ending, Endpoint, Source};
use super::{Sight, describe};
use crate::balance::breaker::{self, Kind};
use crate::balance::standing::{Gets, standings};
use crate::balance::{self, Nothing};
use crate::http::error::Cause;
use crate::tables::cluster::{Cluster, EndpointTls};

/// What is asked of a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// What is taken from the circuit breaker first.
    pub(super) kind: Kind,
    /// Where the client's session is.
    pub(super) session: Option<SocketAddr>,
    /// Of the request, where one chooses.
    pub(super) hash: Option<u64>,
}

/// The backend that `cluster` is, with a share of `percent`.
pub(super) fn backend(sight: &Sight<'_>, cluster: &Arc<Cluster>, percent: f64, wanted: Wanted) -> Backend {
    let (state, settings) = (&cluster.state, &cluster.settings);
    let (standings, far) = standings(cluster, sight.now());
    let far_percent = *far.as_ref().unwrap_or(&0);
    // As `attempt` picks: the session's endpoint first, if it takes requests.
    let kept = wanted.session.and_then(|address| balance::at(cluster, address, sight.now()));
    let endpoints = standings.iter().map(|standing| {
        let endpoint = &standing.endpoint;
        let eligible = match &kept {
            Some(kept) => kept.id() == endpoint.id(),
            None => standing.gets != Gets::Nothing,
        };
        let because = match &kept {
            Some(_) if eligible => Some("the client's session is here".to_owned()),
            Some(_) => Some("the client's session is elsewhere".to_owned()),
            None => describe::standing(standing, far_percent),
        };
        Endpoint {
            address: endpoint.address,
            workload: endpoint.workload.to_string(),
            weight: endpoint.weight,
            near: !endpoint.far,
            identities: match &endpoint.tls {
                EndpointTls::Plaintext => Vec::new(),
                EndpointTls::Mtls(identities) => identities.iter().map(ToString::to_string).collect(),
            },
            eligible,
            because,
        }
    });
    let full = state.breaker.open(wanted.kind) >= breaker::limit(state, settings, wanted.kind);
    let ending = match far {
        _ if full => refused(Cause::Overflow, Some(format!("{} are at their limit", wanted.kind.name()))),
        Err(Nothing::NoEndpoints) => refused(Cause::NoEndpoints, None),
        Err(Nothing::AllEjected) => refused(Cause::AllEjected, None),
        Ok(_) => Ending::Sent { cluster: cluster.name.to_string() },
    };
    let hashed = !settings.policy.hash_on().is_empty();
    let hash = match wanted.hash {
        Some(_) if hashed => ": the same endpoint for the same value",
        None if hashed => ": the request has no value, so any endpoint",
        _ => "",
    };
    Backend {
        percent,
        cluster: Some(cluster.name.to_string()),
        service: cluster.service.as_ref().map(ToString::to_string),
        sources: sources(&cluster.sources),
        filters: Vec::new(),
        sent: None,
        balancing: format!("{}{hash}", describe::balancing(&settings.policy)),
        breakers: Kind::ALL.map(|kind| breaker_of(cluster, kind)).into(),
        far_percent,
        endpoints: endpoints.collect(),
        ending,
    }
}

fn breaker_of(cluster: &Cluster, kind: Kind) -> Breaker {
    let (open, limit) = (cluster.state.breaker.open(kind), breaker::limit(&cluster.state, &cluster.settings, kind));
    Breaker { kind: kind.name().to_owned(), open, limit }
}

/// A share whose reference is invalid.
pub(super) fn invalid(percent: f64) -> Backend {
    Backend {
        percent,
        cluster: None,
        service: None,
        sources: Vec::new(),
        filters: Vec::new(),
        sent: None,
        balancing: String::new(),
        breakers: Vec::new(),
        far_percent: 0,
        endpoints: Vec::new(),
        ending: refused(Cause::InvalidBackend, None),
    }
}

/// A request that is answered with `cause`.
pub(super) fn refused(cause: Cause, because: Option<String>) -> Ending {
    Ending::Refused { cause: cause.name().to_owned(), status: Some(cause.status().as_u16()), because }
}

/// A connection that is closed because of `cause`.
pub(super) fn closed(cause: Cause) -> Ending {
    Ending::Refused { cause: cause.name().to_owned(), status: None, because: None }
}

pub(super) fn sources(objects: &[Box<str>]) -> Vec<Source> {
    objects.iter().map(|object| Source { object: object.to_string(), place: None }).collect()
}
