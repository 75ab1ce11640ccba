//! A control plane on loopback, clients of it, and a small mesh in a directory.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use heddle_certs::bundle::Bundle;
use heddle_certs::credential::Identity;
use heddle_certs::csr::KeyRequest;
use heddle_certs::identity::{SpiffeId, TrustDomain};
use heddle_certs::rpc::{IdentityClient, SignRequest, authorize};
use heddle_certs::tls::{bootstrap_client_config, client_config};
use heddle_control_plane::app::{self, ControlPlane};
use heddle_control_plane::authority::{self, join_token};
use heddle_control_plane::config::Config;
use heddle_xds::Node;
use heddle_xds::client::{self, Subscriptions};
use heddle_xds::delta::client::Update;
use heddle_xds::nack::Reject;
use heddle_xds::resource::Kind;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};

/// Two workloads of one service account, one of another, and a Service. Those on the host's network may come from any
/// address, so from loopback too.
pub const SHOP: &str = r"
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {addresses: [192.0.2.1], serviceAccountName: web, hostNetwork: true, ports: [{port: 8080, appProtocol: http}]}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {name: web-2, namespace: shop}
spec: {addresses: [192.0.2.2], serviceAccountName: web}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {name: api, namespace: shop}
spec: {addresses: [192.0.2.3], serviceAccountName: api, hostNetwork: true}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
";

/// The Service of [`SHOP`] alone.
pub const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
";

/// The Service's clients' listener.
pub const WEB_LISTENER: &str = "outbound/10.0.0.1:80";
/// Its routes, cluster and endpoints.
pub const WEB_RESOURCE: &str = "shop/web/80";

/// A control plane and its directories.
pub struct Mesh {
    directory: tempfile::TempDir,
    pub control_plane: ControlPlane,
    /// Where it is now; a restart moves it.
    address: Arc<Mutex<SocketAddr>>,
}

impl Mesh {
    /// Starts over [`SHOP`].
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("manifests")).unwrap();
        std::fs::write(directory.path().join("manifests/shop.yaml"), SHOP).unwrap();
        let control_plane = app::start(config(directory.path())).await.unwrap();
        let address = Arc::new(Mutex::new(control_plane.address));
        Self { directory, control_plane, address }
    }

    /// Ends the control plane and starts another one over the same directories.
    pub async fn restart(self) -> Self {
        let Self { directory, control_plane, address } = self;
        control_plane.shutdown().await;
        let control_plane = app::start(config(directory.path())).await.unwrap();
        *address.lock().unwrap() = control_plane.address;
        Self { directory, control_plane, address }
    }

    pub fn manifest(&self, name: &str) -> PathBuf {
        self.directory.path().join("manifests").join(name)
    }

    /// As an editor does: written beside, then renamed.
    pub fn write(&self, name: &str, text: &str) {
        let draft = self.manifest(&format!(".{name}"));
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, self.manifest(name)).unwrap();
    }

    pub fn token(&self, account: &str, workload: &str) -> String {
        join_token(self.control_plane.state().unwrap(), "shop", account, workload, Duration::from_secs(60)).unwrap()
    }

    pub fn bundle(&self) -> Arc<Bundle> {
        let pem = std::fs::read(authority::bundle_path(self.control_plane.state().unwrap())).unwrap();
        Arc::new(Bundle::from_pem(trust_domain(), &pem).unwrap())
    }

    /// A connection with the certificate of `identity`, or with none.
    pub async fn channel(&self, identity: Option<&Identity>) -> Channel {
        connect(Arc::clone(&self.address), tls(self.bundle(), identity)).await.unwrap()
    }

    /// Asks for a certificate for `asked` with a token, over a connection without certificate.
    pub async fn sign(&self, token: &str, asked: &SpiffeId) -> Result<Identity, Status> {
        sign(self.channel(None).await, Some(token), asked).await
    }

    /// The certificate of a workload.
    pub async fn identity(&self, account: &str, workload: &str) -> Identity {
        self.sign(&self.token(account, workload), &id(account)).await.unwrap()
    }

    /// The status with which an ADS stream ends whose first request is this.
    pub async fn refusal(&self, identity: Option<&Identity>, node: Node, kind: Kind, name: &str) -> Status {
        let mut rpc = AggregatedDiscoveryServiceClient::new(self.channel(identity).await);
        let request = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: kind.type_url().into(),
            resource_names_subscribe: vec![name.into()],
            ..DeltaDiscoveryRequest::default()
        };
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
        let refused = async {
            let mut responses = rpc.delta_aggregated_resources(requests).await?.into_inner();
            match responses.message().await? {
                Some(response) => panic!("let in: {response:?}"),
                None => panic!("ended without a status"),
            }
        };
        let refused: Result<Infallible, Status> = within("refusal", refused).await;
        let Err(status) = refused;
        status
    }

    /// A client that lives over restarts.
    pub fn follow(&self, identity: Identity, node: Node, refuse: &'static [&'static str]) -> Follower {
        let (address, bundle) = (Arc::clone(&self.address), self.bundle());
        let connect = move || connect(Arc::clone(&address), tls(bundle.clone(), Some(&identity)));
        Follower::new(node, connect, refuse)
    }

    /// A page of the admin port: status line and body.
    pub async fn page(&self, path: &str) -> (String, String) {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.control_plane.admin.port());
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        within("page", stream.read_to_string(&mut text)).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// Reads a page until it contains all of `wanted`.
    pub async fn page_with(&self, path: &str, wanted: &[&str]) -> String {
        let mut last = String::new();
        let read = async {
            loop {
                last = self.page(path).await.1;
                if wanted.iter().all(|wanted| last.contains(wanted)) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            panic!("{path} without {wanted:?}:\n{last}");
        }
        last
    }
}

/// What an ADS client of ours gets.
pub struct Follower {
    pub subscriptions: Subscriptions,
    updates: mpsc::UnboundedReceiver<Vec<String>>,
}

impl Follower {
    pub fn new<F, R>(node: Node, connect: F, refuse: &'static [&'static str]) -> Self
    where
        F: FnMut() -> R + Send + 'static,
        R: Future<Output = Result<Channel, String>> + Send + 'static,
    {
        let (sender, updates) = mpsc::unbounded_channel();
        let handler = move |update: &Update| {
            let changed = update.added.iter().map(|resource| format!("{} {}", update.kind, resource.name));
            let removed = update.removed.iter().map(|name| format!("{} -{name}", update.kind));
            let _ = sender.send(changed.chain(removed).collect());
            let refused = update.added.iter().filter(|resource| refuse.contains(&&*resource.name));
            refused
                .map(|resource| Reject {
                    name: resource.name.clone(),
                    field: "field".into(),
                    reason: "unwanted".into(),
                })
                .collect()
        };
        let (subscriptions, task) = client::new(node, connect, handler);
        tokio::spawn(task);
        Self { subscriptions, updates }
    }

    pub fn subscribe(&self, kind: Kind, name: &str) {
        self.subscriptions.subscribe(kind, name).unwrap();
    }

    /// What the next response brings: `<kind> <name>`, or `<kind> -<name>` for what does not exist.
    pub async fn next(&mut self) -> Vec<String> {
        within("update", self.updates.recv()).await.unwrap()
    }
}

pub fn config(directory: &std::path::Path) -> Config {
    Config {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        plain_ads: Some((Ipv4Addr::LOCALHOST, 0).into()),
        admin_port: 0,
        ..Config::new(directory.join("manifests"), directory.join("state"), trust_domain())
    }
}

pub fn trust_domain() -> TrustDomain {
    TrustDomain::parse("mesh.example").unwrap()
}

pub fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&trust_domain(), "shop", account).unwrap()
}

pub fn node(id: &str) -> Node {
    Node { id: id.into(), user_agent_name: "heddle-proxy".into(), ..Node::default() }
}

/// Asks for a certificate, with a token or with the certificate of the connection.
pub async fn sign(channel: Channel, token: Option<&str>, asked: &SpiffeId) -> Result<Identity, Status> {
    let request = KeyRequest::generate(asked).unwrap();
    let mut message = tonic::Request::new(SignRequest::new(request.csr, None));
    if let Some(token) = token {
        authorize(&mut message, token).unwrap();
    }
    let response = within("certificate", IdentityClient::new(channel).sign(message)).await?.into_inner();
    let (identity, _) = response.accept(request.key).unwrap();
    Ok(identity)
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("no {what} within {PATIENCE:?}"),
    }
}

fn tls(bundle: Arc<Bundle>, identity: Option<&Identity>) -> Arc<ClientConfig> {
    let expected = Arc::from([trust_domain().control_plane().unwrap()]);
    let mut config = match identity {
        Some(identity) => client_config(identity, bundle, expected).unwrap(),
        None => bootstrap_client_config(bundle, expected).unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn connect(address: Arc<Mutex<SocketAddr>>, tls: Arc<ClientConfig>) -> Result<Channel, String> {
    let address = *address.lock().unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_with_connector(Connector { address, tls }).await.map_err(|error| error.to_string())
}

/// Dials with mutual TLS, whatever the URI says.
struct Connector {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (address, tls) = (self.address, Arc::clone(&self.tls));
        Box::pin(async move {
            let socket = TcpStream::connect(address).await?;
            let name = ServerName::from(address.ip());
            Ok(TokioIo::new(TlsConnector::from(tls).connect(name, socket).await?))
        })
    }
}

/// Far above what anything here takes; only a failing test waits as long.
const PATIENCE: Duration = Duration::from_secs(30);
