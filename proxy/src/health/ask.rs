//! One question to one endpoint, on a connection that is kept between questions where the protocol allows it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::transport::Channel;

use crate::balance::health::{Check, Question};
use crate::http::error::Error;
use crate::probes::grpc::{self, No};
use crate::stream::Stream;
use crate::tables::cluster::{Cluster, Endpoint, EndpointTls};
use crate::tls::Alpn;
use crate::upstream::Towards;
use crate::worker::Shared;

/// Asks one endpoint.
pub(super) struct Asker {
    shared: Arc<Shared>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoint: Arc<Endpoint>,
    /// From the last question.
    kept: Option<Kept>,
}

/// Why an endpoint is not well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("no connection: {0}")]
    Connect(#[from] Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke, or what came is no answer.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// An answer that says no.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// gRPC: an answer that says no.
    #[error("it answers {0}")]
    NotServing(No),
}

impl Failure {
    /// As metrics name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Timeout(_) => "timeout",
            Self::Broken(_) => "broken",
            Self::Status(_) => "status",
            Self::NotServing(_) => "not_serving",
        }
    }
}

/// A connection between two questions, and when it must not be used any more.
struct Kept {
    connection: Connection,
    ends: Option<Instant>,
}

enum Connection {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
    Grpc(Channel),
}

impl Asker {
    /// Not connected yet.
    pub(super) fn new(shared: Arc<Shared>, cluster: Arc<Cluster>, endpoint: Arc<Endpoint>) -> Self {
        Self { shared, cluster, endpoint, kept: None }
    }

    /// Whether there is a certificate, where one is needed: that this sidecar has none yet says nothing of the endpoint.
    pub(super) fn can_ask(&self) -> bool {
        self.endpoint.tls == EndpointTls::Plaintext || self.shared.dialer.identity.load().is_some()
    }

    /// Asks once, within the check's timeout.
    ///
    /// # Errors
    /// If the endpoint does not say that it is well.
    pub(super) async fn ask(&mut self, check: &Check) -> Result<(), Failure> {
        let asked = tokio::time::timeout(check.timeout, self.ask_on_any(&check.question)).await;
        asked.unwrap_or(Err(Failure::Timeout(check.timeout)))
    }

    /// A kept connection that turns out broken says nothing yet: its time may just have been over.
    async fn ask_on_any(&mut self, question: &Question) -> Result<(), Failure> {
        let kept = self.kept.take().filter(|kept| kept.ends.is_none_or(|ends| Instant::now() < ends));
        if let Some(kept) = kept {
            match self.ask_on(kept, question).await {
                Err(Failure::Broken(_)) => {}
                answer => return answer,
            }
        }
        match self.connect(question).await? {
            Some(fresh) => self.ask_on(fresh, question).await,
            None => Ok(()),
        }
    }

    /// `None`: the connection itself is the answer.
    async fn connect(&self, question: &Question) -> Result<Option<Kept>, Failure> {
        let alpn = match question {
            Question::Tcp => Alpn::Tcp,
            Question::Http { http2: false, .. } => Alpn::Http1,
            Question::Http { http2: true, .. } | Question::Grpc { .. } => Alpn::Http2,
        };
        let settings = &self.cluster.settings;
        let dialled = self.shared.dialer.dial(&self.endpoint, settings, alpn, Towards::Network).await?;
        let io = dialled.stream;
        let connection = match question {
            Question::Tcp => return Ok(None),
            Question::Http { http2: false, .. } => Connection::Http1(http1(io).await.map_err(broken)?),
            Question::Http { http2: true, .. } => Connection::Http2(http2(io).await.map_err(broken)?),
            Question::Grpc { authority, .. } => {
                Connection::Grpc(grpc::channel(io, authority.as_str()).await.map_err(broken)?)
            }
        };
        Ok(Some(Kept { connection, ends: dialled.ends }))
    }

    async fn ask_on(&mut self, mut on: Kept, question: &Question) -> Result<(), Failure> {
        let response = match (&mut on.connection, question) {
            (Connection::Http1(sender), Question::Http { authority, path, .. }) => {
                sender.ready().await.map_err(broken)?;
                sender.send_request(get_http1(authority, path)).await.map_err(broken)?
            }
            (Connection::Http2(sender), Question::Http { authority, path, .. }) => {
                sender.ready().await.map_err(broken)?;
                sender.send_request(get_http2(authority, path)).await.map_err(broken)?
            }
            (Connection::Grpc(channel), Question::Grpc { service, .. }) => {
                let answer = grpc::ask(channel.clone(), service).await;
                if let Err(No::Broken(reason)) = answer {
                    return Err(Failure::Broken(reason));
                }
                self.kept = Some(on);
                return answer.map_err(Failure::NotServing);
            }
            // Made by `connect` for the question of the same check.
            _ => return Err(Failure::Broken("of another protocol".to_owned())),
        };
        let status = response.status();
        if is_read_whole(response).await {
            self.kept = Some(on);
        }
        if says_yes(question, status) { Ok(()) } else { Err(Failure::Status(status)) }
    }
}

fn says_yes(question: &Question, status: StatusCode) -> bool {
    match question {
        Question::Http { expected, .. } => {
            expected.iter().any(|(first, last)| (*first..=*last).contains(&status.as_u16()))
        }
        Question::Tcp | Question::Grpc { .. } => false,
    }
}

fn get_http1(authority: &Authority, path: &PathAndQuery) -> Request<Empty<Bytes>> {
    let mut request = get(Uri::from(path.clone()));
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(HOST, host);
    }
    request
}

fn get_http2(authority: &Authority, path: &PathAndQuery) -> Request<Empty<Bytes>> {
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority.clone()).path_and_query(path.clone());
    // Fails only if one of the three is missing.
    get(uri.build().unwrap_or_default())
}

fn get(uri: Uri) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(OWN_NAME));
    request
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Broken(error.to_string())
}

/// Reads the body; false if it is long or broken, and the connection cannot be used again.
async fn is_read_whole(response: Response<Incoming>) -> bool {
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES);
    body.collect().await.is_ok()
}

async fn http1(io: Stream) -> hyper::Result<http1::SendRequest<Empty<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    // Ends with the sender, as below.
    tokio::spawn(connection);
    Ok(sender)
}

async fn http2(io: Stream) -> hyper::Result<http2::SendRequest<Empty<Bytes>>> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// As servers' logs show who asks.
const OWN_NAME: &str = "heddle-health-check";
/// As much as the kubelet reads of an answer (`maxRespBodyLength`).
const MAX_BODY_BYTES: usize = 10 * 1024;
