//! Pods with sidecars.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle::pods::{Fabric, Netns, Pod};
use heddle_certs::bundle::Bundle;
use heddle_certs::ca::Authority;
use heddle_certs::credential::Identity;
use heddle_certs::csr::{Csr, KeyRequest};
use heddle_certs::identity::{SpiffeId, TrustDomain};
use heddle_proxy::app;
use heddle_proxy::capture::{self, Exempt, Rules};
use heddle_proxy::config::Config;
use heddle_proxy::tables::Tables;
use heddle_proxy::tables::demand::Wishes;
use heddle_proxy::worker::Shared;

/// SO_MARK of the sidecars' own connections.
pub const MARK: u32 = 0x1dd1e;

/// Pods on one bridge, and the authority their certificates come from.
pub struct Mesh {
    fabric: Fabric,
    authority: Authority,
}

/// One pod; with a sidecar once [`MeshPod::sidecar`] was called.
pub struct MeshPod {
    /// Namespace and addresses.
    pub pod: Pod,
    /// What the parts of its sidecar share.
    pub sidecar: Option<Arc<Shared>>,
}

impl Mesh {
    /// No pods yet.
    pub fn new() -> Self {
        let fabric = Fabric::new(Ipv4Addr::new(10, 77, 0, 1), v6(1)).expect("tests of pods need root");
        let authority = Authority::generate(&trust_domain(), Duration::from_secs(86_400), SystemTime::now()).unwrap();
        Self { fabric, authority }
    }

    /// The pod with the addresses 10.77.0.`number` and fd77::`number`.
    pub fn pod(&self, name: &str, number: u8) -> MeshPod {
        let pod = self.fabric.add_pod(name, Ipv4Addr::new(10, 77, 0, number), v6(number)).unwrap();
        MeshPod { pod, sidecar: None }
    }

    /// A certificate for the service account `name` in the namespace `shop`.
    pub fn identity(&self, name: &str) -> Identity {
        let id = SpiffeId::new(&trust_domain(), "shop", name).unwrap();
        let request = KeyRequest::generate(&id).unwrap();
        let csr = Csr::from_der(&request.csr).unwrap();
        let signed = self.authority.sign(&csr, &id, Duration::from_secs(3600), SystemTime::now()).unwrap();
        Identity::new(signed.chain, request.key).unwrap()
    }

    /// The roots everybody trusts.
    pub fn bundle(&self) -> Arc<Bundle> {
        Arc::new(Bundle::new(trust_domain(), [self.authority.root().clone()]).unwrap())
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl MeshPod {
    /// Starts a sidecar with `workers` threads and captures the pod's traffic. Returns what it asks the control plane for:
    /// nobody answers unless the test does.
    pub fn sidecar(&mut self, workers: usize, tables: Tables) -> Wishes {
        self.sidecar_with(Config { workers, ..Config::default() }, tables)
    }

    /// [`Self::sidecar`] with further settings.
    pub fn sidecar_with(&mut self, config: Config, tables: Tables) -> Wishes {
        let config = Config { mark: Some(MARK), ..config };
        let rules = Rules { exempt: Exempt::Mark(MARK), ..Rules::default() };
        let sidecar = self.netns().run(|| {
            capture::install(&rules).unwrap();
            app::start(config, tables).unwrap()
        });
        let sidecar = sidecar.unwrap();
        self.sidecar = Some(sidecar.shared);
        sidecar.wishes
    }

    /// A sidecar that can speak mutual TLS as the service account named like the pod.
    pub fn meshed_sidecar(&mut self, mesh: &Mesh, workers: usize, tables: Tables) {
        self.sidecar(workers, tables);
        let identity = mesh.identity(&self.pod.name);
        self.shared().dialer.identity.replace(identity, mesh.bundle()).unwrap();
    }

    /// What the parts of its sidecar share.
    pub fn shared(&self) -> &Arc<Shared> {
        self.sidecar.as_ref().expect("the pod has a sidecar")
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.pod.netns
    }

    /// Its IPv4 address with `port`.
    pub fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.pod.ipv4), port)
    }

    /// Its IPv6 address with `port`.
    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(self.pod.ipv6), port)
    }

    /// The SPIFFE ID of the service account named like the pod.
    pub fn spiffe_id(&self) -> String {
        SpiffeId::new(&trust_domain(), "shop", &self.pod.name).unwrap().to_string()
    }
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("mesh.test").unwrap()
}

fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into())
}
