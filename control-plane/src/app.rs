//! Builds a control plane once, in order, top to bottom: pages → objects → keys → mesh → servers. Nothing but the admin pages
//! answers before there is a mesh to serve.
//!
//! [`run`] is the program; [`start`] is for programs that embed it: the `heddle` tool and tests. Both need a tokio runtime,
//! better one with several threads.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_certs::rpc::IdentityServer;
use heddle_xds::server::AggregatedDiscovery;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::admin::{self, Pages};
use crate::ads::{Ads, Port, Shared};
use crate::authority::{self, Authority, Current};
use crate::cluster;
use crate::cluster::lease::{self, Lead};
use crate::cluster::review::Reviewer;
use crate::cluster::roots::Roots;
use crate::cluster::secret::{Place, Secret};
use crate::cluster::status;
use crate::config::{self, Config};
use crate::issue::Service;
use crate::loads::{self, LoadReportingServiceServer, Loads};
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::replicas::{self, ReplicasServer, Reports};
use crate::source::{Snapshot, directory, kubernetes};
use crate::webhook::live::Live;
use crate::webhook::notices::{self, Notices};
use crate::webhook::{self, Webhooks, bundle};
use crate::{listen, logging, translate};

/// Why a control plane cannot start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting cannot be meant.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The log filter cannot be read.
    #[error(transparent)]
    Log(#[from] logging::Error),
    /// Two metrics of one name.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// There is nothing to sign with.
    #[error(transparent)]
    Authority(#[from] authority::Error),
    /// The manifests cannot be read or watched.
    #[error("--manifests {}: {error}", directory.display())]
    Source {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        error: directory::Error,
    },
    /// There is no client for an API server.
    #[error("--kubernetes: {0}")]
    Cluster(#[from] cluster::Error),
    /// What sidecars are to be given cannot be read.
    #[error("--injection {}: {reason}", path.display())]
    Injection {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody to whom what is made could belong.
    #[error(transparent)]
    Owner(#[from] cluster::owner::Error),
    /// An address is not to be had.
    #[error("{what}: cannot listen on {address}: {error}")]
    Bind {
        /// The flag.
        what: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// No server configuration can be made.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A server ended.
    #[error("gRPC server: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// A signal cannot be received, or a bound address is unknown.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A part that must run for ever has ended.
    #[error("{0} has ended by itself")]
    Ended(&'static str),
}

/// A control plane that runs. Dropping it ends it without waiting.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where xDS and certificates are served over TLS.
    pub address: SocketAddr,
    /// Where xDS is served without TLS, if it is.
    pub plain_ads: Option<SocketAddr>,
    /// Where the admin pages are served, as bound.
    pub admin: SocketAddr,
    state: Option<PathBuf>,
    stop: watch::Sender<bool>,
    /// End when `stop` turns true.
    servers: JoinSet<Result<(), Error>>,
    /// Never end.
    watchers: JoinSet<Result<(), Error>>,
    _source: Source,
}

/// What is read, and watched as long as this lives.
#[derive(Debug)]
enum Source {
    Directory(directory::Watch),
    Kubernetes(kubernetes::Watch),
}

impl Source {
    fn snapshots(&self) -> watch::Receiver<Snapshot> {
        match self {
            Self::Directory(watch) => watch.snapshots(),
            Self::Kubernetes(watch) => watch.snapshots(),
        }
    }
}

/// Runs until the process is told to end by SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start, or a part of it ends by itself.
pub async fn run(config: Config) -> Result<(), Error> {
    logging::start(&config.log, config.log_format)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A cluster that does not answer is waited for; so is told that it is to end.
    let mut control_plane = tokio::select! {
        started = start(config) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        error = control_plane.failed() => Err(error),
    };
    control_plane.shutdown().await;
    result
}

/// Starts a control plane; when this returns, it answers.
///
/// # Errors
/// Says which setting, file or address is at fault.
pub async fn start(config: Config) -> Result<ControlPlane, Error> {
    config.check()?;
    let config = Arc::new(config);
    let metrics = Metrics::new()?;
    let publisher = Arc::new(Publisher::default());
    let shared = Arc::new(Shared::new(Arc::clone(&publisher), metrics.clone()));
    let (clients, source) = match config.source()? {
        config::Source::Directory { manifests, .. } => {
            let failed = |error| Error::Source { directory: manifests.to_owned(), error };
            (None, Source::Directory(directory::watch(manifests).map_err(failed)?))
        }
        config::Source::Kubernetes => {
            let mut clients = cluster::connect().await?;
            if let Some(owner) = &config.owner {
                clients.owner = Some(cluster::owner::find(clients.calls.clone(), owner).await?);
            }
            let watch = kubernetes::watch(&clients, metrics.clone());
            (Some(clients), Source::Kubernetes(watch))
        }
    };
    let snapshots = source.snapshots();

    let tls = bind("--listen", config.listen).await?;
    let plain = match config.plain_ads {
        Some(address) => Some(bind("--plain-ads", address).await?),
        None => None,
    };
    let everywhere = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), config.admin_port);
    let pages_listener = bind("--admin-port", everywhere).await?;
    let (stop, stopped) = watch::channel(false);
    let mut control_plane = ControlPlane {
        address: tls.local_addr()?,
        plain_ads: plain.as_ref().map(TcpListener::local_addr).transpose()?,
        admin: pages_listener.local_addr()?,
        state: config.state.clone(),
        stop,
        servers: JoinSet::new(),
        watchers: JoinSet::new(),
        _source: source,
    };
    let port = control_plane.address.port();
    let ControlPlane { servers, watchers, .. } = &mut control_plane;
    let pages =
        Pages { config: config.clone(), shared: shared.clone(), source: snapshots.clone(), metrics: metrics.clone() };
    let pages_stopped = stopped.clone();
    servers.spawn(async move {
        admin::serve(pages_listener, pages, pages_stopped).await;
        Ok(())
    });

    let (holds, lead) = watch::channel(Lead::Unknown);
    let authority = Arc::new(match (config.source()?, &clients) {
        (config::Source::Kubernetes, Some(clients)) => {
            let place = Place { namespace: config.namespace.clone(), name: config.root_secret.clone() };
            let secret = Secret::open(clients, place);
            Authority::open_secret(&config, secret, lead.clone(), metrics.clone()).await?
        }
        (config::Source::Directory { state, .. }, _) => {
            Authority::open(&config, state, metrics.clone(), SystemTime::now())?
        }
        (config::Source::Kubernetes, None) => return Err(Error::Config(config::Error::Source)),
    });
    let settings = translate::Settings {
        trust_domain: config.trust_domain.to_string(),
        root_namespace: config.root_namespace.clone(),
        mesh: config.mesh(),
    };
    let first = first(snapshots.clone()).await?;
    let mesh = Mesh::begin(settings, Arc::clone(&publisher), metrics.clone(), &first);

    let reviewer = clients.as_ref().map(|clients| Reviewer::new(clients.calls.clone(), metrics.clone()));
    let service = Service::new(Arc::clone(&authority), publisher, reviewer, metrics.clone());
    let reports = Arc::new(Reports::default());
    let replicas = replicas::Service::new(Arc::clone(&reports), authority.current(), lead.clone());
    if let Some(clients) = clients {
        let roots = Roots::new(clients.clone(), authority.current(), metrics.clone());
        let mut injection = None;
        if let Some(path) = &config.injection {
            let failed = |reason| Error::Injection { path: path.clone(), reason };
            let (sender, settings) = watch::channel(Arc::new(webhook::settings::read(path).map_err(failed)?));
            let follow = webhook::settings::follow(path.clone(), sender, metrics.clone());
            watchers.spawn(never_ends(follow, "following the injection settings"));
            injection = Some(settings);
        }
        let (notices, waiting) = Notices::new(metrics.clone());
        let live = Live::new(&clients, snapshots.clone(), roots.clone(), notices);
        let webhooks = Webhooks { settings: injection, cluster: Arc::new(live), metrics: metrics.clone() };
        let everywhere = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), config.webhook_port);
        let listener = bind("--webhook-port", everywhere).await?;
        let (current, webhooks_stopped) = (authority.current(), stopped.clone());
        servers.spawn(async move { Ok(webhook::serve::serve(listener, current, webhooks, webhooks_stopped).await?) });
        let (webhooks_of, namespace) = (clients.clone(), config.namespace.clone());
        let (current, counts) = (authority.current(), metrics.clone());
        let configurations = async move { bundle::keep(webhooks_of, &namespace, current, counts).await };
        watchers.spawn(never_ends(configurations, "keeping the roots in the webhooks' configurations"));
        let events = notices::publish(clients.calls.clone(), Some(config.replica()), waiting, metrics.clone());
        watchers.spawn(never_ends(events, "publishing events"));
        watchers.spawn(never_ends(roots.keep(snapshots.clone(), lead.clone()), "keeping the roots in every namespace"));
        let feedback = Arc::clone(&shared);
        let feedback = move || feedback.feedback.counts();
        let report = replicas::report(config.replica(), feedback, authority.current(), lead.clone(), metrics.clone());
        watchers.spawn(never_ends(report, "reporting to the replica that holds the lease"));
        let writer = status::Writer {
            clients: clients.clone(),
            shared: Arc::clone(&shared),
            reports,
            snapshots: snapshots.clone(),
            lead,
            metrics: metrics.clone(),
        };
        watchers.spawn(never_ends(writer.run(), "writing statuses"));
        let candidate = lease::Candidate {
            namespace: config.namespace.clone(),
            identity: config.replica(),
            owner: clients.owner.clone(),
            address: clients.own_address(port),
        };
        let election = lease::run(clients.calls, candidate, holds, metrics.clone(), stopped.clone());
        servers.spawn(async move {
            election.await;
            Ok(())
        });
    }
    watchers.spawn(never_ends(mesh.follow(snapshots), "watching the source"));
    watchers.spawn(never_ends(Arc::clone(&authority).keep(), "renewing certificates"));
    let services = Services { ads: Arc::clone(&shared), identity: service, replicas };
    servers.spawn(serve_tls(tls, authority.current(), services, config, metrics.clone(), stopped.clone()));
    if let Some(plain) = plain {
        servers.spawn(serve_plain(plain, shared, metrics, stopped));
    }
    tracing::info!(
        address = %control_plane.address,
        plain_ads = ?control_plane.plain_ads,
        admin = %control_plane.admin,
        state = ?control_plane.state,
        "serving"
    );
    Ok(control_plane)
}

/// The first snapshot in which everything was read.
async fn first(mut snapshots: watch::Receiver<Snapshot>) -> Result<Snapshot, Error> {
    let whole = snapshots.wait_for(Snapshot::is_whole).await;
    whole.map(|snapshot| snapshot.clone()).map_err(|_| Error::Ended("reading the source"))
}

impl ControlPlane {
    /// The state directory, if it is one of files: for [`authority::join_token`] and [`authority::bundle_path`].
    pub fn state(&self) -> Option<&Path> {
        self.state.as_deref()
    }

    /// Waits for a part to end by itself, which only happens when something is wrong; says what.
    pub async fn failed(&mut self) -> Error {
        let ended = tokio::select! {
            Some(ended) = self.servers.join_next() => ended,
            Some(ended) = self.watchers.join_next() => ended,
            else => return Error::Ended("everything"),
        };
        match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => Error::Ended("a server"),
            Err(error) => Error::Io(io::Error::other(error)),
        }
    }

    /// Closes the listeners, lets answers under way arrive, ends all streams, gives the lease back, and waits for it.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let servers_end = async {
            while let Some(ended) = self.servers.join_next().await {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "ended");
                }
            }
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, servers_end).await.is_err() {
            tracing::warn!("connections are still open after {SHUTDOWN_TIMEOUT:?}; they are cut");
        }
        self.servers.shutdown().await;
        self.watchers.shutdown().await;
    }
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    listen::bind(address).await.map_err(|error| Error::Bind { what, address, error })
}

async fn never_ends(part: impl Future<Output = ()>, name: &'static str) -> Result<(), Error> {
    part.await;
    Err(Error::Ended(name))
}

/// What is served over TLS.
struct Services {
    ads: Arc<Shared>,
    identity: Service,
    replicas: replicas::Service,
}

async fn serve_tls(
    listener: TcpListener,
    current: watch::Receiver<Current>,
    services: Services,
    config: Arc<Config>,
    metrics: Metrics,
    stopped: watch::Receiver<bool>,
) -> Result<(), Error> {
    let (connections, accepted) = mpsc::channel(ACCEPTED_CONNECTIONS);
    let accept = listen::accept_tls(listener, current, connections, config.max_connections, stopped.clone(), metrics);
    let Services { ads, identity, replicas } = services;
    let identity = IdentityServer::new(identity).max_decoding_message_size(MAX_IDENTITY_REQUEST_BYTES);
    let replicas = ReplicasServer::new(replicas).max_decoding_message_size(replicas::MAX_REPORT_BYTES);
    let serve = server()
        .add_service(AggregatedDiscovery::new(Arc::new(Ads::new(ads, Port::Tls))))
        .add_service(loads(Port::Tls))
        .add_service(identity)
        .add_service(replicas)
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), stop_signal(stopped));
    let (accepted, served) = tokio::join!(accept, serve);
    accepted?;
    served?;
    Ok(())
}

async fn serve_plain(
    listener: TcpListener,
    shared: Arc<Shared>,
    metrics: Metrics,
    stopped: watch::Receiver<bool>,
) -> Result<(), Error> {
    let (connections, accepted) = mpsc::channel(ACCEPTED_CONNECTIONS);
    let accept = listen::accept_plain(listener, connections, MAX_PLAIN_CONNECTIONS, stopped.clone(), metrics);
    let serve = server()
        .add_service(AggregatedDiscovery::new(Arc::new(Ads::new(shared, Port::Loopback))))
        .add_service(loads(Port::Loopback))
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), stop_signal(stopped));
    let ((), served) = tokio::join!(accept, serve);
    served?;
    Ok(())
}

fn loads(port: Port) -> LoadReportingServiceServer<Loads> {
    LoadReportingServiceServer::new(Loads(port)).max_decoding_message_size(loads::MAX_REQUEST_BYTES)
}

fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
}

async fn stop_signal(mut stopped: watch::Receiver<bool>) {
    // An error means that the control plane was dropped.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Streams at once on one connection. Chosen: a sidecar has one ADS stream, one of bundles and a request to sign.
const MAX_STREAMS: u32 = 16;
/// Connections whose handshake is done and that tonic has not taken. Chosen: it takes them at once.
const ACCEPTED_CONNECTIONS: usize = 64;
/// Connections to the loopback port. Chosen: tests and tools of one machine.
const MAX_PLAIN_CONNECTIONS: usize = 1024;
/// Bytes of a request to sign: the largest certificate request and its frame (`heddle_certs::csr::MAX_BYTES`).
const MAX_IDENTITY_REQUEST_BYTES: usize = 2 * heddle_certs::csr::MAX_BYTES;
/// Bytes of a request's headers: the largest join token (`heddle_certs::token::MAX_BYTES`) and gRPC's own fields.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// How often a silent client is asked whether it lives. Chosen: below the idle timeouts of NATs and load balancers.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long it has for the answer. Chosen: as gRPC servers do (gRFC A9).
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long servers have to end: [`listen::DRAIN`] and some.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
