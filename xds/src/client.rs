//! The incremental ADS client on its sockets: one task that keeps a stream to the control plane, for as long as its
//! [`Subscriptions`] exist.
//!
//! A broken stream withdraws nothing; the next one says what is held and receives the differences. Connecting is the
//! caller's: it hands in a [`Connect`] that makes a channel, with TLS, addresses and timeouts of its own. A stream may be
//! silent for as long as it likes; whether the peer still lives is found out by HTTP/2 keepalive, which the caller sets on
//! its channel (`Endpoint::http2_keep_alive_interval` with `keep_alive_while_idle(true)`), and nowhere else.
//!
//! Decoding what arrives and acting on it is the [`Handler`]'s. Called by the sidecar's `sync`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::Node;
use crate::delta::client::{Client, Update};
use crate::nack::Reject;
use crate::resource::Kind;

/// Makes a connected channel to a control plane, a different replica each time if there are several.
pub trait Connect: Send + 'static {
    /// Why there is none; shown in [`Connection::Waiting`].
    type Error: std::fmt::Display;

    /// Called for every attempt; given up after [`CONNECT_TIMEOUT`].
    fn connect(&mut self) -> impl Future<Output = Result<Channel, Self::Error>> + Send;
}

impl<F, R, E> Connect for F
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = Result<Channel, E>> + Send,
    E: std::fmt::Display,
{
    type Error = E;

    fn connect(&mut self) -> impl Future<Output = Result<Channel, E>> + Send {
        self()
    }
}

/// What is done with resources.
pub trait Handler: Send + 'static {
    /// Applies an update and returns what is refused of it; the last good version of that stays. Runs on the client's task
    /// and must not block.
    fn apply(&mut self, update: &Update) -> Vec<Reject>;
}

impl<F: FnMut(&Update) -> Vec<Reject> + Send + 'static> Handler for F {
    fn apply(&mut self, update: &Update) -> Vec<Reject> {
        self(update)
    }
}

/// How it stands with the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nothing was subscribed to yet, so there is no stream.
    Idle,
    /// An attempt is under way.
    Connecting,
    /// A stream is open.
    Connected,
    /// The last attempt or stream failed; the next attempt follows.
    Waiting {
        /// Attempts that failed since a stream last lived for [`STABLE_AFTER`].
        failures: u32,
        /// Why the last one did.
        error: Arc<str>,
    },
}

/// The door to a running client: cheap to clone, usable from any thread. The client ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Subscriptions {
    commands: mpsc::Sender<Command>,
    connection: watch::Receiver<Connection>,
}

/// A command that could not be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// [`MAX_COMMANDS`] commands wait already: the client's task does not get to run.
    #[error("the xDS client is {MAX_COMMANDS} commands behind; try again later")]
    Busy,
    /// The client's task is gone.
    #[error("the xDS client has ended")]
    Ended,
}

impl Subscriptions {
    /// Wants a name. Nothing happens if it is wanted already.
    pub fn subscribe(&self, kind: Kind, name: impl Into<Arc<str>>) -> Result<(), Error> {
        self.give(Command { kind, name: name.into(), wanted: true })
    }

    /// Wants a name no more. The handler is not told of it any more, nor of its removal.
    pub fn unsubscribe(&self, kind: Kind, name: impl Into<Arc<str>>) -> Result<(), Error> {
        self.give(Command { kind, name: name.into(), wanted: false })
    }

    /// How it stands with the control plane; each change wakes the receiver.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.clone()
    }

    fn give(&self, command: Command) -> Result<(), Error> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Busy,
            mpsc::error::TrySendError::Closed(_) => Error::Ended,
        })
    }
}

/// A client that says it is `node`. The future is the client's task, for the caller to spawn where it wants it.
pub fn new<C: Connect, H: Handler>(
    node: Node,
    connect: C,
    handler: H,
) -> (Subscriptions, impl Future<Output = ()> + Send + 'static) {
    let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
    let (connection, watcher) = watch::channel(Connection::Idle);
    let task = Task { client: Client::new(node), inbox, connection, connect, handler, opened: None };
    (Subscriptions { commands, connection: watcher }, task.run())
}

#[derive(Debug)]
struct Command {
    kind: Kind,
    name: Arc<str>,
    wanted: bool,
}

struct Task<C, H> {
    client: Client,
    inbox: mpsc::Receiver<Command>,
    connection: watch::Sender<Connection>,
    connect: C,
    handler: H,
    /// When the server accepted the present stream, or the last one.
    opened: Option<Instant>,
}

/// Every [`Subscriptions`] was dropped.
struct Dropped;

/// Why a stream is over.
enum End {
    Dropped,
    Failed(Status),
}

impl<C: Connect, H: Handler> Task<C, H> {
    async fn run(mut self) {
        let Err(Dropped) = self.keep_connected().await;
    }

    async fn keep_connected(&mut self) -> Result<std::convert::Infallible, Dropped> {
        let mut failures: u32 = 0;
        loop {
            if self.client.is_idle() {
                self.connection.send_replace(Connection::Idle);
            }
            while self.client.is_idle() {
                let command = self.inbox.recv().await.ok_or(Dropped)?;
                self.obey(command);
            }
            self.connection.send_replace(Connection::Connecting);
            self.opened = None;
            let error: Arc<str> = match self.attempt().await? {
                Ok(channel) => match self.stream(channel).await {
                    End::Dropped => return Err(Dropped),
                    End::Failed(status) => format!("{:?}: {}", status.code(), status.message()).into(),
                },
                Err(error) => error,
            };
            let was_stable = self.opened.is_some_and(|opened| opened.elapsed() >= STABLE_AFTER);
            failures = if was_stable { 1 } else { failures.saturating_add(1) };
            tracing::debug!(failures, %error, "no stream to the control plane");
            self.connection.send_replace(Connection::Waiting { failures, error });
            self.until(tokio::time::sleep(back_off(failures, fastrand::f64()))).await?;
        }
    }

    /// Connects, obeying commands meanwhile.
    async fn attempt(&mut self) -> Result<Result<Channel, Arc<str>>, Dropped> {
        let Self { client, inbox, connect, .. } = self;
        let attempt = tokio::time::timeout(CONNECT_TIMEOUT, connect.connect());
        let mut attempt = std::pin::pin!(attempt);
        loop {
            tokio::select! {
                done = &mut attempt => return Ok(match done {
                    Ok(Ok(channel)) => Ok(channel),
                    Ok(Err(error)) => Err(error.to_string().into()),
                    Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}").into()),
                }),
                command = inbox.recv() => obey(client, command.ok_or(Dropped)?),
            }
        }
    }

    /// Waits, obeying commands meanwhile.
    async fn until(&mut self, end: impl Future<Output = ()>) -> Result<(), Dropped> {
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                command = self.inbox.recv() => self.obey(command.ok_or(Dropped)?),
            }
        }
    }

    /// One stream, until it breaks.
    async fn stream(&mut self, channel: Channel) -> End {
        let mut rpc = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let (requests, outgoing) = mpsc::channel(1);
        let opening = async move { rpc.delta_aggregated_resources(ReceiverStream::new(outgoing)).await };
        let mut responses = Responses::Opening(Box::pin(opening));
        self.client.stream_opened();
        let mut may_send = true;
        loop {
            tokio::select! {
                event = responses.next(), if !self.client.owes_answer() => match event {
                    Ok(Event::Opened) => {
                        self.opened = Some(Instant::now());
                        self.connection.send_replace(Connection::Connected);
                    }
                    Ok(Event::Response(response)) => {
                        let handler = &mut self.handler;
                        if let Err(error) = self.client.receive(response, |update| handler.apply(update)) {
                            return End::Failed(Status::internal(error.to_string()));
                        }
                        may_send = true;
                    }
                    Err(status) => return End::Failed(status),
                },
                place = requests.reserve(), if may_send => {
                    let Ok(place) = place else { return End::Failed(responses.end().await) };
                    match self.client.next_request() {
                        Some(request) => place.send(request),
                        None => may_send = false,
                    }
                }
                command = self.inbox.recv() => match command {
                    Some(command) => {
                        self.obey(command);
                        may_send = true;
                    }
                    None => return End::Dropped,
                },
            }
        }
    }

    fn obey(&mut self, command: Command) {
        obey(&mut self.client, command);
    }
}

fn obey(client: &mut Client, command: Command) {
    if command.wanted {
        client.subscribe(command.kind, &command.name);
    } else {
        client.unsubscribe(command.kind, &command.name);
    }
}

type Opening = Pin<Box<dyn Future<Output = Result<Response<Streaming<DeltaDiscoveryResponse>>, Status>> + Send>>;

/// The receiving side of a stream. Requests flow before the server sends its headers, which some servers do only with their
/// first response; so opening is a state and not a step before.
enum Responses {
    Opening(Opening),
    Open(Box<Streaming<DeltaDiscoveryResponse>>),
}

enum Event {
    Opened,
    Response(DeltaDiscoveryResponse),
}

impl Responses {
    /// May be dropped at any await without losing anything.
    async fn next(&mut self) -> Result<Event, Status> {
        match self {
            Responses::Opening(opening) => {
                *self = Responses::Open(Box::new(opening.await?.into_inner()));
                Ok(Event::Opened)
            }
            Responses::Open(stream) => match stream.message().await? {
                Some(response) => Ok(Event::Response(response)),
                None => Err(Status::unavailable("the control plane ended the stream")),
            },
        }
    }

    /// Why the transport takes no more requests: the status the stream ends with, if it comes soon.
    async fn end(&mut self) -> Status {
        let end = async {
            loop {
                if let Err(status) = self.next().await {
                    return status;
                }
            }
        };
        let unknown = || Status::unavailable("the stream takes no more requests");
        tokio::time::timeout(END_TIMEOUT, end).await.unwrap_or_else(|_| unknown())
    }
}

/// How long to wait after so many failures in a row: full jitter below an exponential bound ("Exponential Backoff And
/// Jitter", AWS Architecture Blog, 2015). `random` is in 0..1.
fn back_off(failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(MAX_DOUBLINGS);
    (BACK_OFF_BASE * 2u32.pow(doublings)).min(BACK_OFF_MAX).mul_f64(random)
}

/// Bound of the wait after the first failure. Chosen: a replica that restarts is left at once, and a thousand clients come
/// back spread over it.
pub const BACK_OFF_BASE: Duration = Duration::from_millis(200);
/// Bound of the wait after many failures. Chosen: a control plane that comes back has everybody within it.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// Doublings after which the bound is above [`BACK_OFF_MAX`] in any case; keeps the power in range.
const MAX_DOUBLINGS: u32 = 16;
/// A stream that lived so long was a good one: the back-off begins anew. Chosen: as long as the longest wait, so a server
/// that accepts and drops sees no more attempts than one that refuses.
pub const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How long one [`Connect::connect`] may take. Chosen: several round trips of TCP and TLS with losses.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the status of a stream that takes no more requests is waited for; it is there already or lost. Chosen: a round
/// trip.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Commands that may wait for the client's task. Chosen: it always takes them at once, so this is a burst of new
/// destinations on all workers.
pub const MAX_COMMANDS: usize = 1024;
/// Bytes in one response. Chosen: our server closes one after 1 MiB, so this leaves room for a single very large resource.
pub const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests;
