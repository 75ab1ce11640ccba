//! The driver against a real server of the protocol, over loopback.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use envoy_types::pb::envoy::config::listener::v3::Listener as PbListener;
use heddle_xds::protocol::Answer as Reply;
use heddle_xds::resource::{Kind, Resource};
use heddle_xds::server::{AggregatedDiscovery, Observed, PeerIdentity, Source};
use heddle_xds::snapshot::Set;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::sync::inbound;
use crate::tables::{Answer, Demand, Store};

/// How long a test waits for what must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// Knows what it is given, of everything else that it does not exist.
struct Fixed {
    resources: Mutex<HashMap<(Kind, String), Resource>>,
    generation: watch::Sender<u64>,
}

impl Fixed {
    fn new() -> Arc<Self> {
        Arc::new(Self { resources: Mutex::default(), generation: watch::Sender::new(0) })
    }

    fn give(&self, kind: Kind, name: &str, bytes: Vec<u8>) {
        let resource = Resource::from_bytes(name, bytes.into(), []);
        self.resources.lock().unwrap().insert((kind, name.to_owned()), resource);
        self.generation.send_modify(|generation| *generation += 1);
    }
}

impl Source for Fixed {
    type Client = ();

    async fn open(&self, _: &Node, _: &PeerIdentity) -> Result<(), Status> {
        Ok(())
    }

    fn allowed(&self, (): &(), _: Kind, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn lookup(&self, (): &(), kind: Kind, name: &str) -> Reply {
        let resources = self.resources.lock().unwrap();
        resources.get(&(kind, name.to_owned())).cloned().map_or(Reply::Absent, Reply::Present)
    }

    fn wildcard(&self, (): &(), _: Kind) -> Option<Arc<Set>> {
        None
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn observed(&self, (): &(), _: Observed<'_>) {}
}

fn serve(source: Arc<Fixed>) -> SocketAddr {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    tokio::spawn(Server::builder().add_service(AggregatedDiscovery::new(source)).serve_with_incoming(incoming));
    address
}

/// A sidecar's side: demand, tables, counts, and the driver's task.
fn sidecar<C: Connect>(connect: C) -> (Demand, Arc<Store>, Arc<Counts>, tokio::task::JoinHandle<()>) {
    let (demand, wishes) = Demand::new();
    let (store, counts) = (Arc::new(Store::default()), Arc::<Counts>::default());
    let published = store.clone();
    let run =
        run(Node::default(), connect, wishes, counts.clone(), move |tables| published.publish(tables), || Millis(1));
    (demand, store, counts, tokio::spawn(run))
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.unwrap()
}

#[tokio::test]
async fn a_wish_is_answered_and_what_changes_later_follows() {
    let source = Fixed::new();
    source.give(Kind::Listener, "inbound", inbound::tests::resource("shop/cart-0"));
    let address = serve(source.clone());
    let connect = move || async move { Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await };
    let (demand, store, counts, task) = sidecar(connect);

    let workload = soon(store.wait_for(|tables| Some(tables.inbound.as_ref()?.workload.clone()))).await;
    assert_eq!(&*workload, "cart-0");
    assert!(counts.connected.load(Ordering::Relaxed));

    let destination: SocketAddr = "10.1.0.1:80".parse().unwrap();
    assert!(demand.ask(destination));
    let answer = soon(store.wait_for(|tables| tables.outbound.get(&destination).cloned())).await;
    assert!(matches!(answer.answer, Answer::DoesNotExist));

    source.give(Kind::Listener, "inbound", inbound::tests::resource("shop/cart-1"));
    soon(store.wait_for(|tables| (*tables.inbound.as_ref()?.workload == *"cart-1").then_some(()))).await;

    // What is refused is counted, and what was good stays.
    let bad = PbListener { name: "other".into(), ..PbListener::default() };
    source.give(Kind::Listener, "inbound", prost::Message::encode_to_vec(&bad));
    let nack = &counts.of(Kind::Listener).nack;
    soon(async {
        while nack.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(&*store.load().inbound.as_ref().unwrap().workload, "cart-1");
    assert_eq!(counts.of(Kind::Listener).ack.load(Ordering::Relaxed), 3);

    drop(demand);
    soon(task).await.unwrap();
}

#[tokio::test]
async fn without_a_control_plane_attempts_are_counted_and_nothing_is_withdrawn() {
    let (demand, store, counts, task) = sidecar(|| async { Err::<Channel, _>("no route to host") });
    assert!(demand.ask("10.1.0.1:80".parse().unwrap()));

    soon(async {
        while counts.disconnects.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    assert!(!counts.connected.load(Ordering::Relaxed));
    assert!(store.load().outbound.is_empty());
    drop(demand);
    soon(task).await.unwrap();
}
