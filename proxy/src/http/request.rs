//! THE function: one request from the downstream connection to its response.
//!
//! guard → route → filters → attempts → response filters; what each step means is in its own file. The same path
//! serves outbound requests, which are routed, and inbound ones, which are authorized and go to the application
//! beside us.

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header, response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::attempt::{self, Target, X_HEDDLE_ATTEMPT};
use super::body::{Body, Failure};
use super::client_body::ClientBody;
use super::error::{self, Cause, Error};
use super::filter::{self, Verdict};
use super::source::Source;
use super::{
    cors, deadline, fault, guard, hash, headers, identity, limit, mirror, route, session, trace, translate, upgrade,
};
use crate::authz::{self, Decision, Facts};
use crate::balance;
use crate::concurrency::Place;
use crate::drain::Phase;
use crate::metrics::{Direction, Record};
use crate::tables::cluster::{EndpointTls, UpstreamHttp};
use crate::tables::policy::PolicySet;
use crate::tables::route::{Filter, Mirror, Rule, Session};
use crate::tables::{Answer, Cluster, Millis, RouteTable};
use crate::tls::Peer;
use crate::upstream::{self, Lease, Towards};
use crate::worker::Worker;

/// What is known of one downstream connection; its requests share it.
pub struct Connection {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// Which way it goes.
    pub direction: Direction,
    /// The other end.
    pub peer: SocketAddr,
    /// Where it was going.
    pub original_dst: SocketAddr,
    /// When it must end, because the peer's certificate has long expired; `None` without TLS.
    pub ends: Option<Instant>,
    /// Inbound only.
    inbound: Option<Inbound>,
}

struct Inbound {
    application: Arc<Cluster>,
    caller: Option<Rc<Peer>>,
    forwarded_client_cert: Option<HeaderValue>,
}

impl Connection {
    /// A connection of the application to `original_dst`.
    pub fn outbound(worker: Rc<Worker>, peer: SocketAddr, original_dst: SocketAddr) -> Rc<Self> {
        Rc::new(Self { worker, direction: Direction::Outbound, peer, original_dst, ends: None, inbound: None })
    }

    /// A connection to the application, from `caller` if it came over mutual TLS.
    pub fn inbound(
        worker: Rc<Worker>,
        peer: SocketAddr,
        original_dst: SocketAddr,
        application: Arc<Cluster>,
        caller: Option<Rc<Peer>>,
    ) -> Rc<Self> {
        let own = worker.shared.dialer.identity.principal();
        let forwarded_client_cert =
            own.zip(caller.as_deref()).and_then(|(own, c)| identity::forwarded_client_cert(&own, c));
        let ends = caller.as_ref().map(|caller| caller.ends);
        let inbound = Some(Inbound { application, caller, forwarded_client_cert });
        Rc::new(Self { worker, direction: Direction::Inbound, peer, original_dst, ends, inbound })
    }

    /// Whether many clients may share it: another sidecar's.
    pub fn is_from_sidecar(&self) -> bool {
        self.caller().is_some()
    }

    fn caller(&self) -> Option<&Rc<Peer>> {
        self.inbound.as_ref()?.caller.as_ref()
    }
}

/// Serves one request.
///
/// # Errors
/// Only to tell a sidecar over HTTP/2 that the request never reached the application: RST_STREAM with
/// REFUSED_STREAM.
pub async fn handle(connection: Rc<Connection>, request: Request<Incoming>) -> Result<Response<Body>, h2::Error> {
    let (head, body) = request.into_parts();
    let body = ClientBody::new(body, &head, connection.clone());
    let (version, grpc) = (head.version, route::is_grpc(&head.headers));
    let mut record = Record::new(&connection.worker, connection.direction, connection.caller(), grpc);
    record.log(&head, connection.peer, connection.original_dst);
    let mut chosen = Chosen::default();
    let reply = match guard::check(&head) {
        Ok(()) => serve(&connection, head, body, &mut record, &mut chosen).await,
        Err(refused) => Err(Error::new(Cause::ProtocolError, refused)),
    };
    let mut response = match reply {
        Ok(Reply::Upstream { head, body, lease, deadline, idle }) => {
            record.status = head.status;
            record.note_grpc_status(&head.headers);
            let deadline = deadline.map(|deadline| tokio::time::sleep_until(deadline.into()));
            let failure = if grpc && version == Version::HTTP_2 { Failure::GrpcStatus } else { Failure::Reset };
            Response::from_parts(head, Body::upstream(body, lease, record, deadline, idle, failure))
        }
        Ok(Reply::Switched { head, streams }) => {
            record.status = head.status;
            tokio::task::spawn_local(upgrade::relay(streams, record));
            return Ok(Response::from_parts(head, Body::empty()));
        }
        Ok(Reply::Own(response, cause)) => {
            record.end(response.status(), cause);
            response
        }
        Err(error) => failure(&connection, &error, version, grpc, record)?,
    };
    chosen.change(response.headers_mut());
    *response.version_mut() = if version == Version::HTTP_2 { version } else { Version::HTTP_11 };
    if connection.worker.shared.drain.phase() >= Phase::Draining {
        if version != Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if connection.is_from_sidecar() {
            response.headers_mut().insert(error::X_HEDDLE_DRAINING, HeaderValue::from_static("true"));
        }
    }
    Ok(response)
}

/// The answer to a request that failed.
fn failure(
    connection: &Connection,
    error: &Error,
    version: Version,
    grpc: bool,
    record: Record,
) -> Result<Response<Body>, h2::Error> {
    tracing::debug!(cause = error.cause.name(), source = ?error.source, "request failed");
    let mut response = error::response(error.cause, grpc);
    record.end(response.status(), Some(error.cause));
    if connection.caller().is_some() && error.cause.never_delivered() {
        if version == Version::HTTP_2 {
            return Err(h2::Reason::REFUSED_STREAM.into());
        }
        response.headers_mut().insert(error::X_HEDDLE_UNDELIVERED, HeaderValue::from_static("true"));
    }
    if error.cause == Cause::ProtocolError && version != Version::HTTP_2 {
        // After bytes that can be read in two ways, nothing else on this connection can be trusted.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// What a request led to, if it did not fail.
enum Reply {
    /// An upstream's response.
    Upstream {
        head: response::Parts,
        body: Incoming,
        lease: Lease,
        deadline: Option<Instant>,
        /// Longest silence.
        idle: Option<Duration>,
    },
    /// An upstream's 101: both connections are opaque from here on.
    Switched { head: response::Parts, streams: upgrade::Streams },
    /// A filter's answer, and what of its making made it a failure; nothing went upstream.
    Own(Response<Body>, Option<Cause>),
}

impl Reply {
    /// Holds `places` until the response has ended; what becomes opaque is no request any more.
    fn within(self, places: Vec<Place>) -> Self {
        match self {
            Self::Upstream { head, body, lease, deadline, idle } => {
                Self::Upstream { head, body, lease: lease.with_places(places), deadline, idle }
            }
            Self::Switched { .. } | Self::Own(..) => self,
        }
    }

    /// Tells the client where its session is, if it did not say so itself.
    fn tell_session(&mut self, kept: &Session, said: Option<SocketAddr>) {
        let (head, endpoint) = match self {
            Self::Upstream { head, lease, .. } => (head, lease.endpoint.address),
            Self::Switched { head, streams } => (head, streams.lease.endpoint.address),
            Self::Own(..) => return,
        };
        if said != Some(endpoint) {
            session::tell(kept, endpoint, &mut head.headers, SystemTime::now());
        }
    }
}

/// What was chosen for a request, as far as it is told in the response, whoever gives it.
#[derive(Default)]
struct Chosen {
    allowed: Option<cors::Allowed>,
    /// The rule, and the place of the backend in it; kept only if there are filters for responses.
    changes: Option<(Arc<Rule>, Option<usize>)>,
}

impl Chosen {
    /// A rule, and with it perhaps one of its backends.
    fn note(&mut self, rule: &Arc<Rule>, backend: Option<usize>) {
        let of_backend = backend.and_then(|place| rule.backends.get(place));
        if rule
            .filters
            .iter()
            .chain(of_backend.iter().flat_map(|backend| &backend.filters))
            .any(Filter::is_for_responses)
        {
            self.changes = Some((rule.clone(), backend));
        }
    }

    fn change(self, headers: &mut HeaderMap) {
        if let Some((rule, backend)) = &self.changes {
            filter::on_response(&rule.filters, headers);
            if let Some(backend) = backend.and_then(|place| rule.backends.get(place)) {
                filter::on_response(&backend.filters, headers);
            }
        }
        if let Some(allowed) = self.allowed {
            allowed.tell(headers);
        }
    }
}

async fn serve(
    connection: &Connection,
    mut head: Parts,
    body: ClientBody,
    record: &mut Record,
    chosen: &mut Chosen,
) -> Result<Reply, Error> {
    let mut arrived = Instant::now();
    trace::begin(&mut head.headers, &mut connection.worker.rng.borrow_mut());
    headers::name_host(&mut head, connection.original_dst);
    if !connection.is_from_sidecar() {
        head.headers.remove(X_HEDDLE_ATTEMPT);
    }
    if let Some(inbound) = &connection.inbound {
        return serve_inbound(connection, inbound, head, body, record).await;
    }
    let table = route_table(connection).await?;
    let rule = &route::select(&table, &head).ok_or(Cause::NoRoute)?.rule;
    record.route(&rule.name);
    if let Some(policy) = &rule.cors {
        let may = cors::allowed(policy, &head.headers);
        if let Some(answer) = cors::preflight(policy, may.as_ref(), &head) {
            return Ok(own(answer, "preflight"));
        }
        chosen.allowed = may;
    }
    let session = rule.session.as_ref().and_then(|kept| session::endpoint(kept, &head.headers, SystemTime::now()));
    let place = match session.and_then(|address| backend_in_session(rule, address, connection.worker.shared.now())) {
        Some(place) => Ok(place),
        None => choose_backend(rule, &mut connection.worker.rng.borrow_mut()),
    };
    if let Some(fault) = &rule.fault {
        let draw = |below| connection.worker.rng.borrow_mut().u32(..below);
        let count = &connection.worker.shared.metrics.faults;
        if let Some(answer) = fault::inject(fault, &head.headers, record.grpc, draw, count).await {
            chosen.note(rule, place.ok());
            return Ok(Reply::Own(answer, Some(Cause::FaultInjected)));
        }
        // A delay on purpose is none of the upstream's.
        arrived = Instant::now();
    }
    let hash = place.ok().and_then(|place| hash_for(rule, place, &head, connection.peer.ip()));
    chosen.note(rule, None);
    let port = connection.original_dst.port();
    if let Verdict::Answer(response) = filter::on_request(&rule.filters, &mut head, port) {
        return Ok(own(response, "redirect"));
    }
    let place = place?;
    let backend = rule.backends.get(place).ok_or(Cause::InvalidBackend)?;
    chosen.note(rule, Some(place));
    let cluster = backend.cluster.as_ref().ok_or(Cause::InvalidBackend)?;
    record.destination(cluster.service.as_ref());
    if let Verdict::Answer(response) = filter::on_request(&backend.filters, &mut head, port) {
        return Ok(own(response, "redirect"));
    }
    let target = Target {
        worker: &connection.worker,
        cluster,
        rule: Some(rule),
        deadline: deadline::of(arrived, rule.request_timeout, record.grpc, &head.headers),
        grpc: record.grpc,
        towards: Towards::Network,
        version: upstream_version(cluster, head.version),
        session,
        hash,
    };
    let mirrors = rule.mirrors.iter().chain(&backend.mirrors);
    let mut reply = forward(&target, mirrors, head, body, record).await?;
    if let Some(kept) = &rule.session {
        reply.tell_session(kept, session);
    }
    Ok(reply)
}

/// An answer that is no failure, with what made it.
fn own(mut response: Response<Body>, by: &'static str) -> Reply {
    error::name_answer(response.headers_mut(), by);
    Reply::Own(response, None)
}

async fn serve_inbound(
    connection: &Connection,
    inbound: &Inbound,
    mut head: Parts,
    body: ClientBody,
    record: &mut Record,
) -> Result<Reply, Error> {
    record.destination(inbound.application.service.as_ref());
    let places = match admit(connection, inbound, &head, record.grpc).await? {
        Ok(places) => places,
        Err((cause, refusal)) => return Ok(Reply::Own(refusal, Some(cause))),
    };
    identity::tell(&mut head.headers, inbound.forwarded_client_cert.as_ref());
    let target = Target {
        worker: &connection.worker,
        cluster: &inbound.application,
        rule: None,
        deadline: None,
        grpc: false,
        towards: Towards::Application,
        version: upstream_version(&inbound.application, head.version),
        session: None,
        hash: None,
    };
    let reply = forward(&target, iter::empty(), head, body, record).await?;
    Ok(if places.is_empty() { reply } else { reply.within(places) })
}

/// Asks the policies that are in force for this request; the places it has, or the answer to one that is too much.
async fn admit(
    connection: &Connection,
    inbound: &Inbound,
    head: &Parts,
    grpc: bool,
) -> Result<Result<Vec<Place>, (Cause, Response<Body>)>, Error> {
    let worker = &connection.worker;
    let (facts, in_force) = {
        let tables = worker.shared.tables.load();
        let Some(in_force) = &tables.inbound else { return Err(Cause::ConfigUnavailable.into()) };
        let in_force = in_force.port(connection.original_dst.port());
        let limited = !in_force.rate_limits.is_empty() || !in_force.concurrency.is_empty();
        if in_force.policies.is_empty() && !limited {
            return Ok(Ok(Vec::new()));
        }
        let facts = facts(connection, inbound, head);
        authorize(connection, &in_force.policies, &facts)?;
        if !limited {
            return Ok(Ok(Vec::new()));
        }
        (facts, in_force.clone())
    };
    if let Some(refusal) = limit::refuse(worker, &in_force.rate_limits, &facts, &head.headers, grpc).await {
        return Ok(Err(refusal));
    }
    Ok(limit::enter(worker, &in_force.concurrency).map_err(|cause| (cause, error::response(cause, grpc))))
}

/// What policies know of a request.
fn facts<'f>(connection: &Connection, inbound: &'f Inbound, head: &'f Parts) -> Facts<'f> {
    let caller = inbound.caller.as_deref();
    let principal = caller.map(|caller| &*caller.principal);
    let namespace = caller.and_then(|caller| caller.namespace.as_deref());
    Facts::of_request(principal, namespace, connection.peer.ip(), connection.original_dst.port(), head)
}

fn authorize(connection: &Connection, policies: &PolicySet, facts: &Facts<'_>) -> Result<(), Error> {
    if policies.is_empty() {
        return Ok(());
    }
    let decision = authz::decide(policies, facts);
    connection.worker.shared.metrics.authorization.decided(&decision);
    match decision {
        Decision::Allow(_) | Decision::WouldDeny(_) => Ok(()),
        Decision::Deny(by) => Err(Error::new(Cause::Denied, authz::reason(by))),
    }
}

/// The routes of the connection's original destination as they are now. A connection may have been idle for so long that
/// its destination was forgotten: then it is asked for again.
async fn route_table(connection: &Connection) -> Result<Arc<RouteTable>, Cause> {
    let shared = &connection.worker.shared;
    let destination = shared.destination(connection.original_dst).await.ok_or(Cause::ConfigUnavailable)?;
    destination.seen.touch(shared.now());
    match &destination.answer {
        Answer::Exists(listener) => listener.http.clone().ok_or(Cause::ProtocolMismatch),
        // The Service was deleted while its client kept the connection.
        Answer::DoesNotExist => Err(Cause::NoEndpoints),
    }
}

/// The place of the backend that has the endpoint of a request's session, which comes before weights (GEP-1619).
pub fn backend_in_session(rule: &Rule, address: SocketAddr, now: Millis) -> Option<usize> {
    let has = |cluster: &Arc<Cluster>| balance::at(cluster, address, now).is_some();
    rule.backends.iter().position(|backend| backend.weight > 0 && backend.cluster.as_ref().is_some_and(has))
}

/// The place of one of the rule's backends, by weight; a rule whose weights are all 0 answers 500 (Gateway API `weight`).
fn choose_backend(rule: &Rule, rng: &mut fastrand::Rng) -> Result<usize, Cause> {
    if let [only] = rule.backends.as_slice()
        && only.weight > 0
    {
        return Ok(0);
    }
    let mut ticket = rng.u32(..rule.total_weight.max(1));
    let chosen = rule.backends.iter().position(|backend| {
        let hit = ticket < backend.weight;
        ticket = ticket.saturating_sub(backend.weight);
        hit
    });
    chosen.ok_or(Cause::InvalidBackend)
}

/// The hash of a request, if the backend at `place` is chosen by one.
pub fn hash_for(rule: &Rule, place: usize, head: &Parts, client: IpAddr) -> Option<u64> {
    let hash_on = rule.backends.get(place)?.cluster.as_ref()?.settings.policy.hash_on();
    hash::of(hash_on, head, client)
}

/// A request leaves as it came, unless the endpoints speak only the other version.
pub fn upstream_version(cluster: &Cluster, came: Version) -> upstream::Version {
    match cluster.settings.upstream_http {
        UpstreamHttp::AsDownstream if came == Version::HTTP_2 => upstream::Version::Http2,
        UpstreamHttp::AsDownstream | UpstreamHttp::Http1 => upstream::Version::Http1,
        UpstreamHttp::Http2 => upstream::Version::Http2,
    }
}

/// Sends the request and prepares its response for the way back.
async fn forward<'m>(
    target: &Target<'_>,
    mirrors: impl Iterator<Item = &'m Mirror>,
    mut head: Parts,
    body: ClientBody,
    record: &mut Record,
) -> Result<Reply, Error> {
    let upgrade = headers::upgrade_wanted(head.version, &head.headers);
    let downstream = head.extensions.remove::<OnUpgrade>();
    headers::remove_hop_by_hop(&mut head.headers);
    if head.version != Version::HTTP_2 {
        headers::to_origin_form(&mut head);
    }
    // What becomes opaque has no copy.
    let feeds = if upgrade.is_some() { Vec::new() } else { mirror::start(target.worker, mirrors, &head, &body) };
    translate::request(&mut head, target.version)?;
    if let (Some(protocol), upstream::Version::Http1) = (upgrade, target.version) {
        headers::restore_upgrade(&mut head.headers, protocol);
    }
    let source = Source::new(head, body, target.towards, record.request_bytes.clone(), feeds);
    let (response, lease) = attempt::send(target, source, |endpoint| record.endpoint(endpoint)).await?;
    let (mut head, body) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let upstream = head.extensions.remove::<OnUpgrade>();
        let (Some(downstream), Some(upstream)) = (downstream, upstream) else {
            return Err(Cause::UpstreamProtocolError.into());
        };
        return Ok(Reply::Switched { head, streams: upgrade::Streams { downstream, upstream, lease } });
    }
    headers::remove_hop_by_hop(&mut head.headers);
    if matches!(lease.endpoint.tls, EndpointTls::Plaintext) {
        // Only a sidecar may speak for the mesh.
        head.headers.remove(error::X_HEDDLE_ERROR);
        head.headers.remove(error::X_HEDDLE_ANSWER);
        head.headers.remove(error::X_HEDDLE_UNDELIVERED);
        head.headers.remove(error::X_HEDDLE_DRAINING);
    }
    let idle = target.rule.and_then(|rule| rule.idle_timeout);
    Ok(Reply::Upstream { head, body, lease, deadline: target.deadline, idle })
}
