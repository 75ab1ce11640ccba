//! THE function: one request from the downstream connection to its response.
//!
//! guard → route → filters → attempts → response filters; what each step means is in its own file. The same path
//! serves outbound requests, which are routed, and inbound ones, which go to the application beside us.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version, header, response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::attempt::{self, Target};
use super::body::Body;
use super::error::{self, Cause, Error};
use super::filter::{self, Verdict};
use super::{guard, headers, route, upgrade};
use crate::metrics::{Direction, Record};
use crate::tables::cluster::EndpointTls;
use crate::tables::route::{Backend, Rule};
use crate::tables::{Cluster, Destination, RouteTable};
use crate::upstream::Lease;
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
    /// Inbound only: the application.
    application: Option<Arc<Cluster>>,
}

impl Connection {
    /// A connection of the application to `original_dst`.
    pub fn outbound(worker: Rc<Worker>, peer: SocketAddr, original_dst: SocketAddr) -> Rc<Self> {
        Rc::new(Self { worker, direction: Direction::Outbound, peer, original_dst, application: None })
    }

    /// A connection to the application.
    pub fn inbound(
        worker: Rc<Worker>,
        peer: SocketAddr,
        original_dst: SocketAddr,
        application: Arc<Cluster>,
    ) -> Rc<Self> {
        let application = Some(application);
        Rc::new(Self { worker, direction: Direction::Inbound, peer, original_dst, application })
    }
}

/// Serves one request.
pub async fn handle(connection: Rc<Connection>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let (version, grpc) = (head.version, route::is_grpc(&head.headers));
    let mut record = Record::new(connection.worker.clone(), connection.direction, grpc);
    let reply = match guard::check(&head) {
        Ok(()) => serve(&connection, head, body, &mut record).await,
        Err(refused) => Err(Error::new(Cause::ProtocolError, refused)),
    };
    Ok(match reply {
        Ok(Reply::Upstream { head, body, lease, deadline }) => {
            record.status = head.status;
            record.note_grpc_status(&head.headers);
            let deadline = deadline.map(|deadline| tokio::time::sleep_until(deadline.into()));
            Response::from_parts(head, Body::upstream(body, lease, record, deadline))
        }
        Ok(Reply::Switched { head, streams }) => {
            record.status = head.status;
            tokio::task::spawn_local(upgrade::relay(streams, record));
            Response::from_parts(head, Body::empty())
        }
        Ok(Reply::Own(response)) => {
            record.end(response.status(), None);
            response
        }
        Err(error) => {
            tracing::debug!(cause = error.cause.name(), source = ?error.source, "request failed");
            let mut response = error::response(error.cause, grpc);
            record.end(response.status(), Some(error.cause));
            if error.cause == Cause::ProtocolError && version != Version::HTTP_2 {
                // After bytes that can be read in two ways, nothing else on this connection can be trusted.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    })
}

/// What a request led to, if it did not fail.
enum Reply {
    /// An upstream's response.
    Upstream { head: response::Parts, body: Incoming, lease: Lease, deadline: Option<Instant> },
    /// An upstream's 101: both connections are opaque from here on.
    Switched { head: response::Parts, streams: upgrade::Streams },
    /// A filter's answer; nothing went upstream.
    Own(Response<Body>),
}

async fn serve(connection: &Connection, mut head: Parts, body: Incoming, record: &mut Record) -> Result<Reply, Error> {
    let arrived = Instant::now();
    if let Some(application) = &connection.application {
        record.destination(application);
        let target = Target {
            worker: &connection.worker,
            cluster: application,
            rule: None,
            deadline: None,
            to_application: true,
        };
        return forward(&target, head, body, record).await;
    }
    let table = route_table(connection)?;
    let rule = &route::select(&table, &head).ok_or(Cause::NoRoute)?.rule;
    let port = connection.original_dst.port();
    if let Verdict::Answer(response) = filter::on_request(&rule.filters, &mut head, port) {
        return Ok(Reply::Own(response));
    }
    let backend = choose_backend(rule, &mut connection.worker.rng.borrow_mut())?;
    let cluster = backend.cluster.as_ref().ok_or(Cause::InvalidBackend)?;
    record.destination(cluster);
    if let Verdict::Answer(response) = filter::on_request(&backend.filters, &mut head, port) {
        return Ok(Reply::Own(response));
    }
    let target = Target {
        worker: &connection.worker,
        cluster,
        rule: Some(rule),
        deadline: rule.request_timeout.map(|timeout| arrived + timeout),
        to_application: false,
    };
    let mut reply = forward(&target, head, body, record).await?;
    if let Reply::Upstream { head, .. } = &mut reply {
        filter::on_response(&rule.filters, head);
        filter::on_response(&backend.filters, head);
    }
    Ok(reply)
}

/// The routes of the connection's original destination as they are now.
fn route_table(connection: &Connection) -> Result<Arc<RouteTable>, Cause> {
    match connection.worker.shared.tables.load().outbound.get(&connection.original_dst) {
        Some(Destination::Exists(listener)) => listener.http.clone().ok_or(Cause::ProtocolMismatch),
        Some(Destination::DoesNotExist) | None => Err(Cause::ConfigUnavailable),
    }
}

/// One of the rule's backends, by weight; a rule whose weights are all 0 answers 500 (Gateway API `weight`).
fn choose_backend<'r>(rule: &'r Rule, rng: &mut fastrand::Rng) -> Result<&'r Backend, Cause> {
    if let [only] = rule.backends.as_slice()
        && only.weight > 0
    {
        return Ok(only);
    }
    let mut ticket = rng.u32(..rule.total_weight.max(1));
    let chosen = rule.backends.iter().find(|backend| {
        let hit = ticket < backend.weight;
        ticket = ticket.saturating_sub(backend.weight);
        hit
    });
    chosen.ok_or(Cause::InvalidBackend)
}

/// Sends the request and prepares its response for the way back.
async fn forward(target: &Target<'_>, mut head: Parts, body: Incoming, record: &Record) -> Result<Reply, Error> {
    let upgrade = headers::upgrade_wanted(head.version, &head.headers);
    let downstream = head.extensions.remove::<OnUpgrade>();
    headers::remove_hop_by_hop(&mut head.headers);
    headers::to_origin_form(&mut head);
    if let Some(protocol) = upgrade {
        headers::restore_upgrade(&mut head.headers, protocol);
    }
    head.version = Version::HTTP_11;
    let (response, lease) = attempt::send(target, head, body, record.request_bytes.clone()).await?;
    let (mut head, body) = response.into_parts();
    head.version = Version::HTTP_11;
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
        head.headers.remove(error::X_HEDDLE_UNDELIVERED);
    }
    Ok(Reply::Upstream { head, body, lease, deadline: target.deadline })
}
