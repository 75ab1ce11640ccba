//! ADS over tonic: one task for each stream between the protocol's state machine and the source of resources.
//!
//! Both methods are served, `DeltaAggregatedResources` and `StreamAggregatedResources`. The service is written by hand and
//! not generated, because its codec writes resources that are encoded already (`wire.rs`).
//!
//! A stream's task holds one response at most that the transport has not taken; a change of the source wakes it once, however
//! many changes there were, and what is sent is looked up then. Who the peer is comes from the connection: an accept loop
//! that terminates TLS hands tonic an IO type whose [`tonic::transport::server::Connected::ConnectInfo`] is a
//! [`PeerIdentity`]; over plain TCP the address is taken from [`TcpConnectInfo`] and there is no identity.
//!
//! A client that stopped reading is not timed out here: the caller's transport has to send HTTP/2 keepalive
//! (`Server::http2_keepalive_interval`), and such a client costs no more memory while it lasts. Called by the control plane.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures::future::BoxFuture;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Status, Streaming};

use crate::protocol::{self, Answer, Received, Verdict, View};
use crate::resource::Kind;
use crate::snapshot::Set;
use crate::wire::{Wire, WireCodec};
use crate::{Node, delta, sotw};

/// Where resources come from and who may have them.
pub trait Source: Send + Sync + 'static {
    /// A caller that was let in: what `open` found out about it.
    type Client: Send + Sync + 'static;

    /// Decides who is calling, from the node of the stream's first request and the connection's peer. An error ends the
    /// stream. Given up with UNAVAILABLE after [`OPEN_TIMEOUT`].
    fn open(&self, node: &Node, peer: &PeerIdentity) -> impl Future<Output = Result<Self::Client, Status>> + Send;

    /// Whether the client may ask for this name ([`crate::resource::WILDCARD`]: for everything of this kind), once for each
    /// new subscription. The error is the reason; the stream ends with PERMISSION_DENIED.
    fn allowed(&self, client: &Self::Client, kind: Kind, name: &str) -> Result<(), String>;

    /// The answer for one name, for this client. Called for every name of a stream after each change: it must be quick, and
    /// a resource is cloned, not built, here where possible.
    fn lookup(&self, client: &Self::Client, kind: Kind, name: &str) -> Answer;

    /// Everything of a kind for this client; none while the source is not whole. Called only for wildcard subscriptions.
    fn wildcard(&self, client: &Self::Client, kind: Kind) -> Option<Arc<Set>>;

    /// A generation that rises with every change of what `lookup` and `wildcard` answer.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Told what happens on a stream, in order. Must not block.
    fn observed(&self, client: &Self::Client, event: Observed<'_>);
}

/// What happened on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed<'a> {
    /// The stream was let in.
    Connected {
        /// Which of the two protocols it speaks.
        protocol: Protocol,
    },
    /// A response was handed to the transport.
    Sent {
        /// The type.
        kind: Kind,
        /// How many resources it carries.
        resources: usize,
        /// How many names it reports as not existing.
        removed: usize,
    },
    /// The client accepted or refused a resource.
    Answered(&'a Verdict),
    /// The client asked for what it may not have; the stream ends.
    Denied {
        /// The type.
        kind: Kind,
        /// What was asked for.
        name: &'a str,
        /// Why not, as [`Source::allowed`] said.
        reason: &'a str,
    },
    /// The client broke a limit; the stream ends.
    Limited(&'a protocol::Error),
    /// The stream ended. The last event.
    Disconnected,
}

/// The two protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `DeltaAggregatedResources`.
    Delta,
    /// `StreamAggregatedResources`.
    StateOfTheWorld,
}

/// Who is at the other end of a connection. An accept loop sets it as tonic's connection info, so that it is a request
/// extension here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The peer's address, if it has one.
    pub address: Option<SocketAddr>,
    /// The SPIFFE ID of the verified client certificate; none without one.
    pub spiffe_id: Option<Arc<str>>,
}

impl PeerIdentity {
    fn of(extensions: &tonic::Extensions) -> Self {
        extensions.get::<PeerIdentity>().cloned().unwrap_or_else(|| PeerIdentity {
            address: extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr),
            spiffe_id: None,
        })
    }
}

/// The ADS service, to be added to a tonic server.
#[derive(Debug)]
pub struct AggregatedDiscovery<S> {
    source: Arc<S>,
}

impl<S: Source> AggregatedDiscovery<S> {
    /// The service over a source.
    pub fn new(source: Arc<S>) -> Self {
        Self { source }
    }
}

impl<S> Clone for AggregatedDiscovery<S> {
    fn clone(&self) -> Self {
        Self { source: Arc::clone(&self.source) }
    }
}

impl<S> NamedService for AggregatedDiscovery<S> {
    const NAME: &'static str = SERVICE;
}

impl<S: Source> Service<http::Request<tonic::body::Body>> for AggregatedDiscovery<S> {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let source = Arc::clone(&self.source);
        let method = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE));
        match method {
            Some("/DeltaAggregatedResources") => {
                Box::pin(async move { Ok(serve::<S, delta::server::Server>(source, request).await) })
            }
            Some("/StreamAggregatedResources") => {
                Box::pin(async move { Ok(serve::<S, sotw::server::Server>(source, request).await) })
            }
            _ => Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) }),
        }
    }
}

async fn serve<S: Source, M: Machine>(
    source: Arc<S>,
    request: http::Request<tonic::body::Body>,
) -> http::Response<tonic::body::Body> {
    let codec = WireCodec::<M::Request, M::Response>::new();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_BYTES);
    grpc.streaming(Streams::<S, M> { source, machine: std::marker::PhantomData }, request).await
}

struct Streams<S, M> {
    source: Arc<S>,
    machine: std::marker::PhantomData<fn() -> M>,
}

impl<S: Source, M: Machine> StreamingService<M::Request> for Streams<S, M> {
    type Response = M::Response;
    type ResponseStream = ReceiverStream<Result<M::Response, Status>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<M::Request>>) -> Self::Future {
        let (responses, stream) = mpsc::channel(1);
        let source = Arc::clone(&self.source);
        let peer = PeerIdentity::of(request.extensions());
        tokio::spawn(async move {
            if let Err(status) = run::<S, M>(source, &peer, request.into_inner(), &responses).await {
                tracing::debug!(address = ?peer.address, spiffe_id = ?peer.spiffe_id, %status, "ADS stream ends");
                // Waits only for the transport to take the response before it, and ends when the client is gone.
                let _ = responses.send(Err(status)).await;
            }
        });
        Box::pin(async move { Ok(tonic::Response::new(ReceiverStream::new(stream))) })
    }
}

/// One stream, from its first request to its end.
async fn run<S: Source, M: Machine>(
    source: Arc<S>,
    peer: &PeerIdentity,
    mut requests: Streaming<M::Request>,
    responses: &mpsc::Sender<Result<M::Response, Status>>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_REQUEST_TIMEOUT, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no request came"))??;
    let Some(mut first) = first else { return Ok(()) };
    let node = M::node(&mut first).unwrap_or_default();
    // Subscribed before the first look, so that no change falls between.
    let changes = source.changes();
    let client = tokio::time::timeout(OPEN_TIMEOUT, source.open(&node, peer))
        .await
        .map_err(|_| Status::unavailable("the caller could not be identified in time"))??;
    let stream = Stream { source, client, machine: M::default() };
    stream.tell(Observed::Connected { protocol: M::PROTOCOL });
    stream.converse(first, requests, changes, responses).await
}

struct Stream<S: Source, M> {
    source: Arc<S>,
    client: S::Client,
    machine: M,
}

impl<S: Source, M> Drop for Stream<S, M> {
    fn drop(&mut self) {
        self.source.observed(&self.client, Observed::Disconnected);
    }
}

impl<S: Source, M: Machine> Stream<S, M> {
    async fn converse(
        mut self,
        first: M::Request,
        mut requests: Streaming<M::Request>,
        mut changes: watch::Receiver<u64>,
        responses: &mpsc::Sender<Result<M::Response, Status>>,
    ) -> Result<(), Status> {
        self.receive(first)?;
        let mut look = true;
        let mut source_lives = true;
        loop {
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => {
                        self.receive(request)?;
                        look = true;
                    }
                    None => return Ok(()),
                },
                changed = changes.changed(), if source_lives => {
                    source_lives = changed.is_ok();
                    self.machine.changed();
                    look = true;
                }
                place = responses.reserve(), if look => {
                    let Ok(place) = place else { return Ok(()) };
                    match self.next_response() {
                        Some(response) => place.send(Ok(response)),
                        None => look = false,
                    }
                }
                () = responses.closed() => return Ok(()),
            }
        }
    }

    fn receive(&mut self, request: M::Request) -> Result<(), Status> {
        let received = self.machine.receive(request).map_err(|error| {
            self.source.observed(&self.client, Observed::Limited(&error));
            match error {
                protocol::Error::TooManySubscriptions { .. } => Status::resource_exhausted(error.to_string()),
                protocol::Error::NameTooLong { .. } => Status::invalid_argument(error.to_string()),
            }
        })?;
        for verdict in &received.verdicts {
            self.tell(Observed::Answered(verdict));
        }
        for (kind, name) in &received.subscribed {
            if let Err(reason) = self.source.allowed(&self.client, *kind, name) {
                self.tell(Observed::Denied { kind: *kind, name, reason: &reason });
                return Err(Status::permission_denied(format!("{kind} {name:?}: {reason}")));
            }
        }
        Ok(())
    }

    fn next_response(&mut self) -> Option<M::Response> {
        let view = ClientView { source: &*self.source, client: &self.client };
        let response = self.machine.next_response(&view)?;
        self.tell(M::observed(&response));
        Some(response)
    }

    fn tell(&self, event: Observed<'_>) {
        self.source.observed(&self.client, event);
    }
}

struct ClientView<'a, S: Source> {
    source: &'a S,
    client: &'a S::Client,
}

impl<S: Source> View for ClientView<'_, S> {
    fn lookup(&self, kind: Kind, name: &str) -> Answer {
        self.source.lookup(self.client, kind, name)
    }

    fn wildcard(&self, kind: Kind) -> Option<Arc<Set>> {
        self.source.wildcard(self.client, kind)
    }
}

/// What the two protocols have in common for a stream's task.
trait Machine: Default + Send + 'static {
    type Request: Message + Default + 'static;
    type Response: Wire;
    const PROTOCOL: Protocol;

    fn node(request: &mut Self::Request) -> Option<Node>;
    fn receive(&mut self, request: Self::Request) -> Result<Received, protocol::Error>;
    fn changed(&mut self);
    fn next_response(&mut self, view: &impl View) -> Option<Self::Response>;
    fn observed(response: &Self::Response) -> Observed<'static>;
}

impl Machine for delta::server::Server {
    type Request = DeltaDiscoveryRequest;
    type Response = delta::server::Response;
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(request: &mut DeltaDiscoveryRequest) -> Option<Node> {
        request.node.take()
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Received, protocol::Error> {
        self.receive(request)
    }

    fn changed(&mut self) {
        self.changed();
    }

    fn next_response(&mut self, view: &impl View) -> Option<delta::server::Response> {
        self.next_response(view)
    }

    fn observed(response: &delta::server::Response) -> Observed<'static> {
        Observed::Sent { kind: response.kind, resources: response.resources.len(), removed: response.removed.len() }
    }
}

impl Machine for sotw::server::Server {
    type Request = DiscoveryRequest;
    type Response = sotw::server::Response;
    const PROTOCOL: Protocol = Protocol::StateOfTheWorld;

    fn node(request: &mut DiscoveryRequest) -> Option<Node> {
        request.node.take()
    }

    fn receive(&mut self, request: DiscoveryRequest) -> Result<Received, protocol::Error> {
        self.receive(request)
    }

    fn changed(&mut self) {
        self.changed();
    }

    fn next_response(&mut self, view: &impl View) -> Option<sotw::server::Response> {
        self.next_response(view)
    }

    fn observed(response: &sotw::server::Response) -> Observed<'static> {
        Observed::Sent { kind: response.kind, resources: response.resources.len(), removed: 0 }
    }
}

/// Bytes in one request. Chosen: a first request with all names, their versions and a full refusal stays below it; gRPC's
/// own default.
pub const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// How long a new stream may stay without its first request. Chosen: ten times a slow round trip, and short enough that idle
/// streams of strangers do not pile up.
pub const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long [`Source::open`] may take. Chosen: below the time after which clients give a stream up.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// `envoy/service/discovery/v3/ads.proto`.
const SERVICE: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

#[cfg(test)]
mod tests;
