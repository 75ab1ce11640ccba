//! The mesh in which everything is tried: three servers that do as they are told, servers that xDS tells whom they take, and
//! the clients.

use std::net::SocketAddr;
use std::sync::Mutex;

use heddle_tests::live::LiveMesh;
use heddle_tests::pods::MeshPod;
use heddle_tests::programs::Server;

use super::calls::{Calls, Outcome};
use super::manifests;
use super::programs::{self, Identity};

/// The clients: name, as their Workloads end, and the last part of their addresses.
pub const CLIENTS: [(&str, u8); 3] = [("go", 2), ("java", 3), ("grpcio", 4)];
/// The servers that are told by xDS whom they take: Service and Workload, by what they are written in.
pub const SERVERS: [&str; 2] = ["guarded-go", "guarded-java"];

/// Everything; programs first, so that they stop first.
pub struct World {
    _programs: Vec<Server>,
    /// As [`CLIENTS`].
    pub clients: Vec<Client>,
    /// A client that no policy names.
    pub stranger: Client,
    /// The pods of `a`, `b` and `c`, of which the first is in the clients' zone.
    pub servers: Vec<MeshPod>,
    /// A client with a sidecar, of Go.
    pub sided: Client,
    guarded: Vec<MeshPod>,
    _impostor: MeshPod,
    /// Who owns which key on the ring, as the first client found it.
    pub owners: Mutex<Option<Vec<String>>>,
    /// The mesh.
    pub mesh: LiveMesh,
}

/// A client.
pub struct Client {
    /// What it is written in.
    pub name: &'static str,
    /// Where it runs.
    pub pod: MeshPod,
    /// A port of servers that nobody else uses.
    pub own_port: u16,
}

impl Client {
    /// Makes calls.
    pub fn makes(&self, calls: &Calls) -> Vec<Outcome> {
        calls.by(&self.pod)
    }
}

impl World {
    /// Builds the applications, if that was not done, and starts all of it.
    pub fn start() -> Self {
        programs::build();
        let mesh = LiveMesh::start(&[("world.yaml", &manifests::world())]);
        for (client, _) in CLIENTS {
            let service = format!("moved-{client}");
            mesh.apply(&format!("{service}.yaml"), &manifests::moved(&service, "a"));
        }
        let servers: Vec<_> = [("a", 10), ("b", 11), ("c", 12)].map(|(name, number)| mesh.pod(name, number)).into();
        let mut running: Vec<_> = servers.iter().map(|pod| programs::server(pod, PORT)).collect();
        let client = |(index, (name, number)): (usize, (&'static str, u8))| {
            let own_port = PORT + 1 + u16::try_from(index).unwrap();
            Client { name, pod: mesh.pod(&format!("client-{name}"), number), own_port }
        };
        let clients: Vec<_> = CLIENTS.into_iter().enumerate().map(client).collect();
        let stranger = client((CLIENTS.len(), ("stranger", 5)));
        let sided = Client { name: "sided", pod: mesh.workload("sided", 6, "sided", 1), own_port: 0 };
        let guarded: Vec<_> = [(SERVERS[0], 20), (SERVERS[1], 21)].map(|(name, number)| mesh.pod(name, number)).into();
        let impostor = mesh.pod("impostor", 22);
        let everyone = clients.iter().chain([&stranger]).map(|client| &client.pod).chain(&guarded).chain([&impostor]);
        let identities: Vec<_> = everyone.map(|pod| Identity::of(&mesh, pod)).collect();
        let [go, java, grpcio, nobody, guarded_go, guarded_java, honest] = &identities[..] else { panic!("seven") };
        // One after another takes longer than all at once: each waits for its programs' start.
        let started = std::thread::scope(|scope| {
            let all = [
                scope.spawn(|| programs::go_client(&clients[0].pod, go)),
                scope.spawn(|| programs::java_client(&clients[1].pod, java)),
                scope.spawn(|| programs::grpcio_client(&clients[2].pod, grpcio)),
                scope.spawn(|| programs::go_client(&stranger.pod, nobody)),
                scope.spawn(|| programs::go_client_without_xds(&sided.pod)),
                scope.spawn(|| programs::go_server(&guarded[0], guarded_go, guarded_go)),
                scope.spawn(|| programs::java_server(&guarded[1], guarded_java)),
                // It shows another's certificate.
                scope.spawn(|| programs::go_server(&impostor, honest, guarded_go)),
            ];
            all.map(|thread| thread.join().unwrap())
        });
        running.extend(started);
        running.extend(identities.into_iter().map(|identity| identity.agent));
        let owners = Mutex::default();
        Self { _programs: running, clients, stranger, servers, sided, guarded, _impostor: impostor, owners, mesh }
    }

    /// Where a server of [`SERVERS`] listens.
    pub fn address_of(&self, server: &str) -> SocketAddr {
        self.guarded.iter().find(|pod| pod.pod.name == server).unwrap().v4(PORT)
    }

    /// Everything that has resources by xDS.
    pub fn processes(&self) -> impl Iterator<Item = (&str, &MeshPod)> {
        let clients = self.clients.iter().chain([&self.stranger]).map(|client| (client.name, &client.pod));
        clients.chain(self.guarded.iter().map(|pod| (pod.pod.name.as_str(), pod)))
    }
}

/// Where servers listen.
pub const PORT: u16 = 50051;
