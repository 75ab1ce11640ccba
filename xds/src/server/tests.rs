//! Client and server over real sockets on loopback.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::client::{self, Connection, Subscriptions};
use crate::delta::client::Update;
use crate::nack::Reject;
use crate::resource::{Resource, WILDCARD};

/// Resources for everybody but those whose node is called "stranger"; names that begin with "private" for nobody.
struct Mesh {
    contents: Mutex<BTreeMap<(Kind, String), &'static str>>,
    generation: watch::Sender<u64>,
    events: Mutex<Vec<String>>,
    progress: watch::Sender<usize>,
}

impl Mesh {
    fn new(contents: &[(Kind, &str, &'static str)]) -> Arc<Self> {
        Arc::new(Self {
            contents: Mutex::new(contents.iter().map(|(kind, name, c)| ((*kind, name.to_string()), *c)).collect()),
            generation: watch::Sender::new(0),
            events: Mutex::default(),
            progress: watch::Sender::new(0),
        })
    }

    fn put(&self, kind: Kind, name: &str, content: &'static str) {
        self.contents.lock().unwrap().insert((kind, name.to_owned()), content);
        self.generation.send_modify(|generation| *generation += 1);
    }

    fn remove(&self, kind: Kind, name: &str) {
        self.contents.lock().unwrap().remove(&(kind, name.to_owned()));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Waits for an event and returns everything up to it, which is then forgotten.
    async fn events_until(&self, last: &str) -> Vec<String> {
        let mut progress = self.progress.subscribe();
        let there = |events: &[String]| events.iter().position(|event| event == last);
        within(progress.wait_for(|_| there(&self.events.lock().unwrap()).is_some()), last).await.unwrap();
        let mut events = self.events.lock().unwrap();
        let end = there(&events).unwrap();
        events.drain(..=end).collect()
    }
}

impl Source for Mesh {
    type Client = String;

    async fn open(&self, node: &Node, peer: &PeerIdentity) -> Result<String, Status> {
        assert!(peer.address.unwrap().ip().is_loopback());
        if node.id == "stranger" { Err(Status::permission_denied("who are you?")) } else { Ok(node.id.clone()) }
    }

    fn allowed(&self, _: &String, _: Kind, name: &str) -> Result<(), String> {
        if name.starts_with("private") { Err("is another workload's".into()) } else { Ok(()) }
    }

    fn lookup(&self, _: &String, kind: Kind, name: &str) -> Answer {
        match self.contents.lock().unwrap().get(&(kind, name.to_owned())) {
            Some(content) => Answer::Present(resource(name, content)),
            None => Answer::Absent,
        }
    }

    fn wildcard(&self, _: &String, kind: Kind) -> Option<Arc<Set>> {
        let contents = self.contents.lock().unwrap();
        let of_kind = contents.iter().filter(|((k, _), _)| *k == kind);
        Some(Arc::new(of_kind.map(|((_, name), content)| resource(name, content)).collect()))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn observed(&self, client: &String, event: Observed<'_>) {
        let text = match event {
            Observed::Connected { protocol } => format!("{client} connected {protocol:?}"),
            Observed::Sent { kind, resources, removed } => format!("sent {kind} +{resources} -{removed}"),
            Observed::Answered(verdict) => match &verdict.refused {
                Some(reason) => format!("nack {} {reason}", verdict.name),
                None => format!("ack {}", verdict.name),
            },
            Observed::Denied { kind, name, reason } => format!("denied {kind} {name} {reason}"),
            Observed::Limited(error) => format!("limited {error}"),
            Observed::Disconnected => "disconnected".into(),
        };
        self.events.lock().unwrap().push(text);
        self.progress.send_modify(|events| *events += 1);
    }
}

fn resource(name: &str, content: &'static str) -> Resource {
    Resource::from_bytes(name, Bytes::from_static(content.as_bytes()), [])
}

/// One replica of the control plane, on a runtime of its own, so that everything of it dies at once.
struct Replica {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Replica {
    fn start(mesh: &Arc<Mesh>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = AggregatedDiscovery::new(Arc::clone(mesh));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
                let router = tonic::transport::Server::builder().add_service(service);
                tokio::select! {
                    served = router.serve_with_incoming(incoming) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop, thread }
    }

    fn kill(self) {
        let _ = self.stop.send(());
        self.thread.join().unwrap();
    }
}

/// What a client's handler has applied, and what arrived for it.
#[derive(Default)]
struct Applied {
    contents: BTreeMap<String, String>,
    arrived: usize,
}

/// A client whose handler refuses the content "bad".
fn start_client(id: &str, addresses: Arc<Mutex<Vec<SocketAddr>>>) -> (Subscriptions, watch::Receiver<Applied>) {
    let (applied, watcher) = watch::channel(Applied::default());
    let connect = move || {
        let address = addresses.lock().unwrap()[0];
        async move { channel(address).await }
    };
    let apply = move |update: &Update| {
        let mut rejects = Vec::new();
        applied.send_modify(|applied| {
            for added in &update.added {
                applied.arrived += 1;
                if added.bytes == "bad" {
                    rejects.push(Reject { name: added.name.clone(), field: "content".into(), reason: "is bad".into() });
                } else {
                    let content = String::from_utf8(added.bytes.to_vec()).unwrap();
                    applied.contents.insert(added.name.to_string(), content);
                }
            }
            for name in &update.removed {
                applied.contents.insert(name.to_string(), "(none)".into());
            }
        });
        rejects
    };
    let node = Node { id: id.into(), ..Node::default() };
    let (subscriptions, task) = client::new(node, connect, apply);
    tokio::spawn(task);
    (subscriptions, watcher)
}

async fn channel(address: SocketAddr) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}"))?.connect().await
}

async fn within<F: Future>(future: F, what: &str) -> F::Output {
    let outcome = tokio::time::timeout(Duration::from_secs(20), future).await;
    outcome.unwrap_or_else(|_| panic!("{what}: did not happen"))
}

async fn until(watcher: &mut watch::Receiver<Applied>, name: &str, content: &str) {
    let there = |applied: &Applied| applied.contents.get(name).is_some_and(|held| held == content);
    within(watcher.wait_for(there), &format!("{name} = {content}")).await.unwrap();
}

fn addresses(address: SocketAddr) -> Arc<Mutex<Vec<SocketAddr>>> {
    Arc::new(Mutex::new(vec![address]))
}

/// A stream without our client: what is sent is written by the test.
async fn raw_delta(replica: &Replica) -> (mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>) {
    let mut rpc = AggregatedDiscoveryServiceClient::new(channel(replica.address).await.unwrap());
    let (requests, outgoing) = mpsc::channel(16);
    let responses = rpc.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap();
    (requests, responses.into_inner())
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: "raw".into(), ..Node::default() }),
        type_url: Kind::Listener.type_url().into(),
        resource_names_subscribe: names.iter().map(|name| name.to_string()).collect(),
        ..Default::default()
    }
}

/// The status a stream ends with after one request.
async fn refusal(replica: &Replica, request: DeltaDiscoveryRequest) -> Status {
    let (requests, mut responses) = raw_delta(replica).await;
    requests.send(request).await.unwrap();
    within(responses.message(), "the refusal").await.unwrap_err()
}

#[tokio::test]
async fn a_client_is_answered_on_demand_and_follows_changes() {
    let mesh = Mesh::new(&[(Kind::Listener, "inbound", "1")]);
    let replica = Replica::start(&mesh);
    let (subscriptions, mut applied) = start_client("cart.shop", addresses(replica.address));

    subscriptions.subscribe(Kind::Listener, "inbound").unwrap();
    until(&mut applied, "inbound", "1").await;
    subscriptions.subscribe(Kind::Listener, "outbound/10.0.0.1:80").unwrap();
    until(&mut applied, "outbound/10.0.0.1:80", "(none)").await;
    mesh.put(Kind::Listener, "outbound/10.0.0.1:80", "2");
    until(&mut applied, "outbound/10.0.0.1:80", "2").await;
    mesh.remove(Kind::Listener, "outbound/10.0.0.1:80");
    until(&mut applied, "outbound/10.0.0.1:80", "(none)").await;

    assert_eq!(applied.borrow().arrived, 2);
    assert_eq!(*subscriptions.connection().borrow(), Connection::Connected);
    drop(subscriptions);
    let events = mesh.events_until("disconnected").await;
    assert_eq!(events[0], "cart.shop connected Delta");
    assert!(events.contains(&"ack inbound".to_owned()));
}

#[tokio::test]
async fn a_refusal_reaches_the_source_and_the_good_resource_beside_it_applies() {
    let mesh = Mesh::new(&[(Kind::Listener, "a", "bad"), (Kind::Listener, "b", "good")]);
    let replica = Replica::start(&mesh);
    let (subscriptions, mut applied) = start_client("cart.shop", addresses(replica.address));

    subscriptions.subscribe(Kind::Listener, "a").unwrap();
    subscriptions.subscribe(Kind::Listener, "b").unwrap();

    until(&mut applied, "b", "good").await;
    mesh.events_until("nack a content: is bad").await;
    mesh.put(Kind::Listener, "a", "better");
    until(&mut applied, "a", "better").await;
    mesh.events_until("ack a").await;
}

#[tokio::test]
async fn after_a_replica_dies_the_next_one_sends_only_differences() {
    let names: Vec<String> = (1..=100).map(|host| format!("outbound/10.0.0.{host}:80")).collect();
    let contents: Vec<(Kind, &str, &'static str)> =
        names.iter().map(|name| (Kind::Listener, name.as_str(), "1")).collect();
    let mesh = Mesh::new(&contents);
    let (first, second) = (Replica::start(&mesh), Replica::start(&mesh));
    let list = addresses(first.address);
    let (subscriptions, mut applied) = start_client("cart.shop", Arc::clone(&list));
    for name in &names {
        subscriptions.subscribe(Kind::Listener, name.as_str()).unwrap();
    }
    within(applied.wait_for(|applied| applied.contents.len() == 100), "the first set").await.unwrap();
    assert_eq!(applied.borrow().arrived, 100);

    *list.lock().unwrap() = vec![second.address];
    first.kill();
    mesh.events_until("disconnected").await;
    mesh.put(Kind::Listener, &names[0], "2");
    mesh.remove(Kind::Listener, &names[1]);
    until(&mut applied, &names[1], "(none)").await;

    assert_eq!(applied.borrow().contents[&names[0]], "2");
    assert_eq!(applied.borrow().arrived, 101);
    let events = mesh.events_until("sent lds +0 -1").await;
    let sent: Vec<_> = events.iter().filter(|event| event.starts_with("sent")).collect();
    assert_eq!(sent, ["sent lds +1 -0", "sent lds +0 -1"]);
    second.kill();
}

#[tokio::test]
async fn nothing_is_withdrawn_while_no_replica_answers() {
    let mesh = Mesh::new(&[(Kind::Listener, "a", "1")]);
    let replica = Replica::start(&mesh);
    let (subscriptions, mut applied) = start_client("cart.shop", addresses(replica.address));
    subscriptions.subscribe(Kind::Listener, "a").unwrap();
    until(&mut applied, "a", "1").await;

    replica.kill();
    let mut connection = subscriptions.connection();
    let failed = |connection: &Connection| matches!(connection, Connection::Waiting { failures: 2.., .. });
    within(connection.wait_for(failed), "the second failure").await.unwrap();

    assert_eq!(applied.borrow().contents["a"], "1");
}

#[tokio::test]
async fn a_name_that_is_not_allowed_ends_the_stream_and_is_named() {
    let mesh = Mesh::new(&[(Kind::Listener, "private/a", "secret")]);
    let replica = Replica::start(&mesh);

    let status = refusal(&replica, subscribe(&["public", "private/a"])).await;

    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "lds \"private/a\": is another workload's");
    let events = mesh.events_until("disconnected").await;
    assert_eq!(events, ["raw connected Delta", "denied lds private/a is another workload's", "disconnected"]);
}

#[tokio::test]
async fn a_caller_that_is_not_let_in_is_told_so() {
    let replica = Replica::start(&Mesh::new(&[]));
    let node = Some(Node { id: "stranger".into(), ..Node::default() });

    let status = refusal(&replica, DeltaDiscoveryRequest { node, ..subscribe(&["a"]) }).await;

    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "who are you?"));
}

#[tokio::test]
async fn too_many_subscriptions_end_the_stream() {
    let mesh = Mesh::new(&[]);
    let replica = Replica::start(&mesh);
    let names: Vec<String> = (0..=protocol::MAX_SUBSCRIPTIONS).map(|number| number.to_string()).collect();

    let status = refusal(&replica, subscribe(&names.iter().map(String::as_str).collect::<Vec<_>>())).await;

    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(mesh.events_until("disconnected").await[1].starts_with("limited lds: 4161 names"));
}

#[tokio::test]
async fn the_first_node_of_a_stream_is_the_only_one_that_counts() {
    let mesh = Mesh::new(&[(Kind::Listener, "a", "1")]);
    let replica = Replica::start(&mesh);
    let (requests, mut responses) = raw_delta(&replica).await;

    requests.send(subscribe(&["a"])).await.unwrap();
    let node = Some(Node { id: "stranger".into(), ..Node::default() });
    requests.send(DeltaDiscoveryRequest { node, ..subscribe(&["b"]) }).await.unwrap();

    let first = within(responses.message(), "a").await.unwrap().unwrap();
    assert_eq!(first.resources[0].name, "a");
}

#[tokio::test]
async fn the_older_protocol_is_served_from_the_same_source() {
    let mesh = Mesh::new(&[(Kind::Cluster, "a", "1"), (Kind::Cluster, "b", "1")]);
    let replica = Replica::start(&mesh);
    let mut rpc = AggregatedDiscoveryServiceClient::new(channel(replica.address).await.unwrap());
    let (requests, outgoing) = mpsc::channel(16);
    let mut responses = rpc.stream_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let mut request = DiscoveryRequest {
        node: Some(Node { id: "envoy".into(), ..Node::default() }),
        type_url: Kind::Cluster.type_url().into(),
        ..Default::default()
    };

    requests.send(request.clone()).await.unwrap();
    let first = within(responses.message(), "the first state").await.unwrap().unwrap();
    request.node = None;
    request.response_nonce = first.nonce.clone();
    request.version_info = first.version_info.clone();
    requests.send(request).await.unwrap();
    mesh.events_until("ack b").await;
    mesh.put(Kind::Cluster, "c", "1");
    let second = within(responses.message(), "the second state").await.unwrap().unwrap();

    assert_eq!(first.resources.iter().map(|any| any.value.as_slice()).collect::<Vec<_>>(), [b"1", b"1"]);
    assert_eq!(second.resources.len(), 3);
    assert_ne!(first.version_info, second.version_info);
    drop(requests);
    mesh.events_until("disconnected").await;
}

#[tokio::test]
async fn a_wildcard_subscription_of_our_own_client_follows_the_whole_set() {
    let mesh = Mesh::new(&[(Kind::Cluster, "a", "1")]);
    let replica = Replica::start(&mesh);
    let (subscriptions, mut applied) = start_client("cart.shop", addresses(replica.address));

    subscriptions.subscribe(Kind::Cluster, WILDCARD).unwrap();
    until(&mut applied, "a", "1").await;
    mesh.put(Kind::Cluster, "b", "1");
    until(&mut applied, "b", "1").await;
    mesh.remove(Kind::Cluster, "a");
    until(&mut applied, "a", "(none)").await;
}

#[test]
fn the_identity_an_accept_loop_set_goes_before_the_bare_address() {
    let identity = PeerIdentity {
        address: Some("10.0.0.1:4000".parse().unwrap()),
        spiffe_id: Some("spiffe://cluster.local/ns/shop/sa/cart".into()),
    };
    let tcp = TcpConnectInfo { local_addr: None, remote_addr: Some("10.0.0.2:4000".parse().unwrap()) };
    let mut extensions = tonic::Extensions::new();
    assert_eq!(PeerIdentity::of(&extensions), PeerIdentity::default());

    extensions.insert(tcp);
    let bare = PeerIdentity { address: Some("10.0.0.2:4000".parse().unwrap()), spiffe_id: None };
    assert_eq!(PeerIdentity::of(&extensions), bare);

    extensions.insert(identity.clone());
    assert_eq!(PeerIdentity::of(&extensions), identity);
}
