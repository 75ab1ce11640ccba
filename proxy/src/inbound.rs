//! One connection to the application, on its way in: is it a sidecar's, what does it speak, may it, who serves it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::authz::{self, Decision, Facts};
use crate::detect::{self, Sniffed, Speaker};
use crate::http::error::Cause;
use crate::http::request::Connection;
use crate::http::serve;
use crate::listen::Accepted;
use crate::metrics::{Direction, TcpRecord};
use crate::opaque;
use crate::reading::{self, Reading};
use crate::stream::Stream;
use crate::tables::{Cluster, Inbound as InForce, Port, Protocol, TlsMode};
use crate::tls::{self, Alpn, Hello, Peer, hello};
use crate::upstream::Towards;
use crate::worker::Worker;

/// Serves the connection to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let shared = &worker.shared;
    let Accepted { stream, peer, original_dst } = accepted;
    let refused = |cause| shared.refused(Direction::Inbound, peer, Some(original_dst), cause);
    let Some(_open) = shared.metrics.connections.open(Direction::Inbound, shared.config.max_connections) else {
        return refused(Cause::Overflow);
    };
    let Some(in_force) = shared.tables.load().inbound.clone() else {
        return refused(Cause::ConfigUnavailable);
    };
    let port = in_force.port(original_dst.port()).clone();
    let application = shared.applications.cluster(original_dst, &port);
    let connection = Inbound { worker: &worker, peer, original_dst, port, application };
    if let Err(cause) = connection.serve(stream.into()).await {
        refused(cause);
    }
}

/// The connection and what holds for its port.
struct Inbound<'c> {
    worker: &'c Rc<Worker>,
    peer: SocketAddr,
    original_dst: SocketAddr,
    port: Arc<Port>,
    application: Arc<Cluster>,
}

impl Inbound<'_> {
    async fn serve(&self, mut client: Stream) -> Result<(), Cause> {
        let mut tentative = None;
        if self.may_wait_for_server() && !self.client_speaks(&mut client).await? {
            // A client that is silent may wait for the application to speak.
            let mut server = self.dial_or_abort(&mut client).await?;
            let speaker = self.who_speaks(&mut client, &mut server).await?;
            if speaker == Speaker::Server {
                return self.relay(client, Some(server), None).await;
            }
            tentative = Some(server);
        }
        match self.sniff(&mut client).await? {
            // A hello beyond the limit, or cut off, is no sidecar's.
            Sniffed::Tls => match hello::read(&mut client, hello::client_hello).await? {
                Some(Hello::SidecarTcp) => self.sidecar_opaque(client, tentative).await,
                Some(Hello::SidecarHttp) => self.sidecar_http(client).await,
                Some(Hello::Application) | None => self.plaintext(client, Sniffed::Tls, tentative).await,
            },
            sniffed => self.plaintext(client, sniffed, tentative).await,
        }
    }

    /// Whether the application may be one that speaks first, to a client without a sidecar.
    fn may_wait_for_server(&self) -> bool {
        let opaque = matches!(self.port.protocol, Protocol::Detect | Protocol::Tcp);
        opaque && self.port.tls != TlsMode::Strict
    }

    async fn client_speaks(&self, client: &mut Stream) -> Result<bool, Cause> {
        detect::client_speaks(client, detect::SILENCE).await.map_err(|_| Cause::DownstreamClosed)
    }

    async fn sniff(&self, client: &mut Stream) -> Result<Sniffed, Cause> {
        let metrics = &self.worker.shared.metrics.connections;
        let limited = |limit| metrics.detection_limited(Direction::Inbound, limit);
        let sniffed = detect::client_bytes(client, serve::HEAD_TIMEOUT, self.worker.ending(), limited).await;
        sniffed.map_err(|_| Cause::DownstreamClosed)
    }

    async fn who_speaks(&self, client: &mut Stream, server: &mut opaque::Dialled) -> Result<Speaker, Cause> {
        let speaker = detect::who_speaks(client, &mut server.stream, self.worker.ending()).await;
        speaker.map_err(|_| Cause::DownstreamClosed)
    }

    async fn sidecar_http(&self, client: Stream) -> Result<(), Cause> {
        let (client, caller, alpn) = self.accept(client).await?;
        let connection = self.connection(Some(caller.clone()));
        match alpn {
            Alpn::Http1 => serve::http1(connection, client).await,
            Alpn::Http2 => serve::http2(connection, client).await,
            Alpn::Tcp => return self.relay(client, None, Some(caller)).await,
        }
        Ok(())
    }

    /// The application is dialled before the handshake is completed: if it can't be reached, the caller's sidecar
    /// sees the handshake fail, knows that nothing was delivered, and tries another endpoint.
    async fn sidecar_opaque(&self, client: Stream, tentative: Option<opaque::Dialled>) -> Result<(), Cause> {
        let mut client = client;
        let mut server = match tentative {
            Some(server) => server,
            None => self.dial_or_abort(&mut client).await?,
        };
        let (mut client, caller, _) = self.accept(client).await?;
        if !self.has_http_rules() {
            return self.relay(client, Some(server), Some(caller)).await;
        }
        let speaker = self.who_speaks(&mut client, &mut server).await?;
        if speaker == Speaker::Client {
            match self.sniff(&mut client).await? {
                Sniffed::Http1 => {
                    drop(server);
                    serve::http1(self.connection(Some(caller)), client).await;
                    return Ok(());
                }
                Sniffed::Http2 => {
                    drop(server);
                    serve::http2(self.connection(Some(caller)), client).await;
                    return Ok(());
                }
                Sniffed::Tls | Sniffed::Opaque | Sniffed::More => {}
            }
        }
        self.relay(client, Some(server), Some(caller)).await
    }

    fn has_http_rules(&self) -> bool {
        self.port.protocol != Protocol::Tcp && self.port.policies.needs_http()
    }

    /// A caller without a sidecar, or the application's own TLS.
    async fn plaintext(
        &self,
        client: Stream,
        sniffed: Sniffed,
        tentative: Option<opaque::Dialled>,
    ) -> Result<(), Cause> {
        if self.port.tls == TlsMode::Strict {
            client.abort();
            return Err(Cause::TlsRequired);
        }
        match reading::inbound(self.port.protocol, sniffed) {
            Reading::Http1 => {
                drop(tentative);
                serve::http1(self.connection(None), client).await;
                Ok(())
            }
            Reading::Http2 => {
                drop(tentative);
                serve::http2(self.connection(None), client).await;
                Ok(())
            }
            Reading::Opaque | Reading::ByServerName => self.relay(client, tentative, None).await,
            Reading::Mismatch if self.port.protocol == Protocol::Http && detect::almost_http1(client.ahead()) => {
                serve::http1(self.connection(None), client).await;
                Ok(())
            }
            Reading::Mismatch if client.ahead().is_empty() => Ok(()),
            Reading::Mismatch => {
                client.abort();
                Err(Cause::ProtocolMismatch)
            }
        }
    }

    async fn accept(&self, client: Stream) -> Result<(Stream, Rc<Peer>, Alpn), Cause> {
        let accepted = tls::accept(&self.worker.shared.dialer.identity, client).await;
        let outcome = accepted.as_ref().map(|(_, peer, _)| peer);
        self.worker.shared.dialer.handshakes.ended(Direction::Inbound, outcome);
        let (stream, peer, alpn) = accepted.map_err(|error| {
            tracing::debug!(peer = %self.peer, %error, "handshake failed");
            Cause::TlsFailure
        })?;
        Ok((stream.into(), Rc::new(peer), alpn))
    }

    fn connection(&self, caller: Option<Rc<Peer>>) -> Rc<Connection> {
        Connection::inbound(self.worker.clone(), self.peer, self.original_dst, self.application.clone(), caller)
    }

    async fn dial_or_abort(&self, client: &mut Stream) -> Result<opaque::Dialled, Cause> {
        opaque::dial(self.worker, &self.application, Towards::Application, self.peer.ip()).await.map_err(|error| {
            client.reset_on_close();
            error.cause
        })
    }

    async fn relay(
        &self,
        mut client: Stream,
        server: Option<opaque::Dialled>,
        caller: Option<Rc<Peer>>,
    ) -> Result<(), Cause> {
        let service = self.application.service.as_ref();
        let mut record = TcpRecord::new(self.worker, Direction::Inbound, caller.as_deref(), service);
        let caller = caller.as_deref();
        let in_force = self.worker.shared.tables.load().inbound.clone();
        if let Some(cause) = in_force.and_then(|in_force| self.refusal(&in_force, caller, true)) {
            record.failed(cause);
            client.abort();
            return Ok(());
        }
        let server = match server {
            Some(server) => server,
            None => match self.dial_or_abort(&mut client).await {
                Ok(server) => server,
                Err(cause) => {
                    record.failed(cause);
                    return Ok(());
                }
            },
        };
        let tables = &self.worker.shared.tables;
        let revoked = tables.wait_for(|tables| self.refusal(tables.inbound.as_ref()?, caller, false));
        opaque::relay(client, server, record, revoked).await;
        Ok(())
    }

    /// Why an opaque connection is not allowed by what is in force, if it is not. Asked again at every change while
    /// the connection is open.
    fn refusal(&self, in_force: &InForce, caller: Option<&Peer>, counted: bool) -> Option<Cause> {
        let number = self.original_dst.port();
        let port = in_force.port(number);
        if caller.is_none() && port.tls == TlsMode::Strict {
            return Some(Cause::TlsRequired);
        }
        if port.policies.is_empty() {
            return None;
        }
        let facts = Facts {
            principal: caller.map(|caller| &*caller.principal),
            namespace: caller.and_then(|caller| caller.namespace.as_deref()),
            ip: self.peer.ip(),
            port: number,
            http: None,
        };
        let decision = authz::decide(&port.policies, &facts);
        if counted {
            self.worker.shared.metrics.authorization.decided(&decision);
        }
        matches!(decision, Decision::Deny(_)).then_some(Cause::Denied)
    }
}
