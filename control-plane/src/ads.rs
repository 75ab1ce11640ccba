//! The mesh as a source of ADS streams: who comes in, what they may ask, what they get in their dialect, and what they say
//! about it.
//!
//! One value serves one port: the TLS port, where the certificate proves who calls, or the loopback port, where nothing
//! does. Nothing is built here that [`crate::publish`] has already; an Envoy's set is made for each stream when it asks and
//! kept until the mesh changes. Served by [`heddle_xds::server`]; made by [`crate::app`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use heddle_xds::Node;
use heddle_xds::protocol::{self, Verdict};
use heddle_xds::resource::{INBOUND, Kind, Resource};
use heddle_xds::server::{Observed, PeerIdentity, Protocol, Source};
use heddle_xds::snapshot::Set;
use tokio::sync::{Semaphore, watch};
use tonic::Status;

use crate::admit::{self, Caller, Dialect, Proof, Reason};
use crate::emit::{envoy, grpc};
use crate::feedback::{Feedback, Said};
use crate::metrics::Metrics;
use crate::publish::{Answer, Publisher, Snapshot};

/// What all ports share.
#[derive(Debug)]
pub struct Shared {
    /// The mesh.
    pub publisher: Arc<Publisher>,
    /// What clients say.
    pub feedback: Feedback,
    /// Streams that are open, by number.
    clients: Mutex<BTreeMap<u64, Arc<Client>>>,
    next_client: AtomicU64,
    /// Streams that wait to be let in.
    waiting: Semaphore,
    metrics: Metrics,
}

/// The source of one port.
#[derive(Debug, Clone)]
pub struct Ads {
    shared: Arc<Shared>,
    port: Port,
}

/// Everything one Envoy is told.
type Sets = BTreeMap<Kind, Arc<Set>>;

/// What a connection to a port proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Mutual TLS: who calls.
    Tls,
    /// Nothing.
    Loopback,
}

/// One stream that was let in.
#[derive(Debug)]
pub struct Client {
    number: u64,
    /// Who it speaks for.
    pub caller: Caller,
    /// `<namespace>/<name>` of the workload.
    pub workload: Arc<str>,
    /// Where it comes from.
    pub address: Option<SocketAddr>,
    /// Its user agent's version, as it says.
    pub version: String,
    /// When it came.
    pub since: SystemTime,
    protocol: Mutex<Option<Protocol>>,
    said: Said,
    /// What a proxyless gRPC client says about itself.
    grpc: grpc::Client,
    /// What an Envoy says about itself.
    settings: envoy::Settings,
    /// An Envoy's resources, and the generation they were made of.
    envoy: Mutex<Option<(u64, Arc<Sets>)>>,
}

impl Shared {
    /// Nobody is connected yet.
    pub fn new(publisher: Arc<Publisher>, metrics: Metrics) -> Self {
        Self {
            publisher,
            feedback: Feedback::default(),
            clients: Mutex::default(),
            next_client: AtomicU64::new(0),
            waiting: Semaphore::new(MAX_WAITING),
            metrics,
        }
    }

    /// The streams that are open.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Client {
    /// Which of the two protocols it speaks; none before its first request was taken.
    pub fn protocol(&self) -> Option<Protocol> {
        *self.protocol.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ads {
    /// The source of a port.
    pub fn new(shared: Arc<Shared>, port: Port) -> Self {
        Self { shared, port }
    }

    fn proof<'p>(&self, peer: &'p PeerIdentity) -> Proof<'p> {
        match self.port {
            Port::Tls => Proof::Certificate {
                spiffe_id: peer.spiffe_id.as_deref(),
                address: peer.address.map(|address| address.ip()),
            },
            Port::Loopback => Proof::Loopback,
        }
    }

    /// Who calls. What the next news may change is waited for a little: a sidecar is faster than the news of its pod.
    async fn caller(&self, node: &Node, peer: &PeerIdentity) -> Result<Caller, Status> {
        let Shared { publisher, metrics, waiting, .. } = &*self.shared;
        let place = waiting.try_acquire();
        let found = publisher.ask(|snapshot| match admit::caller(snapshot.model(), node, self.proof(peer)) {
            Ok(caller) => Answer::Final(Ok(caller)),
            Err(error) => match patience(error.reason()).filter(|_| place.is_ok()) {
                Some(patience) => Answer::For(patience, Err(error)),
                None => Answer::Final(Err(error)),
            },
        });
        let Some(found) = found.await else {
            return Err(Status::unavailable("the mesh is not read yet; try again"));
        };
        found.map_err(|error| {
            metrics.denied(error.reason());
            tracing::info!(address = ?peer.address, spiffe_id = ?peer.spiffe_id, %error, "ADS stream refused");
            match error {
                admit::Error::NoCertificate => Status::unauthenticated(error.to_string()),
                admit::Error::NodeId(_)
                | admit::Error::UserAgent(_)
                | admit::Error::UnknownWorkload(_)
                | admit::Error::Identity { .. }
                | admit::Error::Address { .. } => Status::permission_denied(error.to_string()),
            }
        })
    }

    /// The mesh, if the stream still speaks for the workload it came as: a name may be taken over by another.
    fn snapshot(&self, client: &Client) -> Option<Arc<Snapshot>> {
        let snapshot = self.shared.publisher.snapshot()?;
        let identity = snapshot.identity(&client.caller.workload);
        identity.is_none_or(|identity| *identity == client.caller.identity).then_some(snapshot)
    }

    /// What a name is to this client, and since when.
    fn find(&self, client: &Client, snapshot: &Snapshot, kind: Kind, name: &str) -> Option<(Resource, Instant)> {
        let workload = &client.caller.workload;
        match client.caller.dialect {
            Dialect::Heddle => {
                let found = self.shared.publisher.heddle(snapshot, workload, kind, name)?;
                Some((found.resource, found.since))
            }
            Dialect::Envoy => {
                let sets = self.envoy_sets(client, snapshot)?;
                Some((sets.get(&kind)?.get(name)?.clone(), snapshot.changed_at()))
            }
            Dialect::Grpc => {
                let found = self.shared.publisher.grpc(snapshot, workload, &client.grpc, kind, name)?;
                Some((found.resource, found.since))
            }
        }
    }

    /// Everything for an Envoy; none if its workload is gone.
    fn envoy_sets(&self, client: &Client, snapshot: &Snapshot) -> Option<Arc<Sets>> {
        let workload = snapshot.model().workloads.get(&client.caller.workload)?;
        let mut kept = client.envoy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((generation, sets)) = &*kept
            && *generation == snapshot.generation()
        {
            return Some(sets.clone());
        }
        let resources = envoy::resources(snapshot.model(), workload, &client.settings);
        let sets = resources.into_iter().map(|(kind, resources)| (kind, Arc::new(resources.into_iter().collect())));
        let sets = Arc::new(sets.collect());
        *kept = Some((snapshot.generation(), Arc::clone(&sets)));
        Some(sets)
    }

    fn answered(&self, client: &Client, verdict: &Verdict) {
        self.shared.metrics.answered(verdict.kind, verdict.refused.is_none());
        if let Some(reason) = &verdict.refused {
            let (workload, resource) = (&client.workload, &verdict.name);
            tracing::warn!(%workload, kind = %verdict.kind, %resource, reason, "a client refused a resource");
        }
        let Some(snapshot) = self.snapshot(client) else { return };
        // Without the version that was meant nothing is known of its objects; the word on the next one follows.
        let found = self.find(client, &snapshot, verdict.kind, &verdict.name);
        let Some((resource, since)) = found.filter(|(resource, _)| resource.version == verdict.version) else { return };
        let arrived = self.shared.feedback.count(&client.said, &client.workload, verdict, resource.sources);
        if arrived {
            self.shared.metrics.propagated(since.elapsed());
        }
    }
}

impl Source for Ads {
    type Client = Arc<Client>;

    async fn open(&self, node: &Node, peer: &PeerIdentity) -> Result<Arc<Client>, Status> {
        let caller = self.caller(node, peer).await?;
        let place = self.shared.publisher.snapshot().map(|mesh| mesh.place(&caller.workload)).unwrap_or_default();
        let client = Arc::new(Client {
            number: self.shared.next_client.fetch_add(1, Ordering::Relaxed),
            workload: caller.workload.to_string().into(),
            address: peer.address,
            version: version(node),
            since: SystemTime::now(),
            protocol: Mutex::default(),
            said: Said::default(),
            grpc: grpc::Client {
                namespace: caller.workload.namespace.clone(),
                certificate_provider: metadata(node, CERTIFICATE_PROVIDER).map(Arc::from),
                counts_by_load: node.user_agent_name == GRPC_JAVA,
                place,
            },
            settings: envoy_settings(node),
            envoy: Mutex::default(),
            caller,
        });
        Ok(client)
    }

    fn allowed(&self, client: &Arc<Client>, kind: Kind, name: &str) -> Result<(), String> {
        client.caller.allowed(kind, name)
    }

    fn lookup(&self, client: &Arc<Client>, kind: Kind, name: &str) -> protocol::Answer {
        let Some(snapshot) = self.snapshot(client) else { return protocol::Answer::Unknown };
        if let Some((resource, _)) = self.find(client, &snapshot, kind, name) {
            return protocol::Answer::Present(resource);
        }
        // A workload that is taken away keeps its own rules until its stream ends: it may still be draining.
        let own = match client.caller.dialect {
            Dialect::Heddle => kind == Kind::Listener && name == INBOUND,
            Dialect::Envoy => true,
            Dialect::Grpc => false,
        };
        if own && snapshot.identity(&client.caller.workload).is_none() {
            return protocol::Answer::Unknown;
        }
        self.shared.feedback.forget(&client.said, kind, name);
        protocol::Answer::Absent
    }

    fn wildcard(&self, client: &Arc<Client>, kind: Kind) -> Option<Arc<Set>> {
        // Only an Envoy gets as far: see `Caller::allowed`.
        let snapshot = self.snapshot(client)?;
        let sets = self.envoy_sets(client, &snapshot)?;
        Some(sets.get(&kind).cloned().unwrap_or_default())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.publisher.changes()
    }

    fn observed(&self, client: &Arc<Client>, event: Observed<'_>) {
        let Shared { metrics, clients, feedback, .. } = &*self.shared;
        let workload = &client.workload;
        match event {
            Observed::Connected { protocol } => {
                metrics.stream(client.caller.dialect, 1);
                *client.protocol.lock().unwrap_or_else(PoisonError::into_inner) = Some(protocol);
                clients.lock().unwrap_or_else(PoisonError::into_inner).insert(client.number, Arc::clone(client));
                tracing::debug!(%workload, ?protocol, dialect = client.caller.dialect.name(), "ADS stream begins");
            }
            Observed::Sent { kind, resources, removed } => metrics.sent(kind, resources, removed),
            Observed::Answered(verdict) => self.answered(client, verdict),
            Observed::Denied { kind, name, reason } => {
                metrics.denied(Reason::Name);
                tracing::info!(%workload, %kind, name, reason, "a client asked for what it may not have");
            }
            Observed::Limited(error) => {
                metrics.limited();
                tracing::info!(%workload, %error, "a client broke a limit");
            }
            Observed::Disconnected => {
                feedback.gone(&client.said);
                let known = clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&client.number);
                if known.is_some() {
                    metrics.stream(client.caller.dialect, -1);
                }
            }
        }
    }
}

/// How long the next news may change a refusal; `None`: it cannot.
fn patience(reason: Reason) -> Option<Duration> {
    match reason {
        Reason::UnknownWorkload => Some(UNKNOWN_WORKLOAD_WAIT),
        Reason::Identity | Reason::Address => Some(OTHER_WORKLOAD_WAIT),
        Reason::NoCertificate | Reason::NodeId | Reason::UserAgent | Reason::Name => None,
    }
}

/// `1.2.3` or what the client says instead, for people.
fn version(node: &Node) -> String {
    use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map_or_else(String::new, |v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch)),
        None => String::new(),
    };
    version.chars().take(MAX_VERSION_CHARS).collect()
}

fn envoy_settings(node: &Node) -> envoy::Settings {
    let mut settings = envoy::Settings::default();
    if let Some(directory) = metadata(node, IDENTITY_DIRECTORY) {
        settings.identity_directory = directory.trim_end_matches('/').to_owned();
    }
    settings
}

/// A text in the metadata of the node's bootstrap. It says something about its own machine only, so it is believed.
fn metadata<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    use envoy_types::pb::google::protobuf::value::Kind::StringValue;
    match &node.metadata.as_ref()?.fields.get(key)?.kind {
        Some(StringValue(text)) if text.len() <= MAX_METADATA_BYTES => Some(text),
        _ => None,
    }
}

/// Node metadata of a proxyless gRPC client: the certificate provider instance of its bootstrap that holds its identity and
/// the roots. Without it the client is told to speak plaintext.
pub const CERTIFICATE_PROVIDER: &str = "heddle.dev/certificate-provider";
/// The user agent of grpc-java (`GrpcUtil.getGrpcBuildVersion`).
const GRPC_JAVA: &str = "gRPC Java";
/// Node metadata of an Envoy: the directory the identity agent writes to, as that Envoy sees it.
pub const IDENTITY_DIRECTORY: &str = "heddle.dev/identity-directory";
/// Bytes of such a text. Linux' longest path (`PATH_MAX`).
const MAX_METADATA_BYTES: usize = 4096;
/// How long a workload that is not known yet is waited for. Chosen: ten times what a kubelet takes to tell a pod's address; clients
/// come again anyway.
pub(crate) const UNKNOWN_WORKLOAD_WAIT: Duration = Duration::from_secs(10);
/// How long a workload that is known otherwise is waited for: one of the same name may just have followed it. Chosen: what a
/// kubelet takes, twice.
pub(crate) const OTHER_WORKLOAD_WAIT: Duration = Duration::from_secs(2);
/// Streams that wait at once; one above is refused at once. Chosen: as many pods as a large cluster starts in the time they wait.
const MAX_WAITING: usize = 1024;
/// Chosen: a version with a build's hash.
const MAX_VERSION_CHARS: usize = 80;
