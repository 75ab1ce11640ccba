//! Two clients of the same Services: one with this sidecar, one with a real Envoy.

use crate::envoy::Envoy;
use crate::live::LiveMesh;
use crate::pods::MeshPod;

/// What [`crate::live::shop`] must be told of them.
pub const WORKLOADS: [(&str, u8, &str, &str); 2] =
    [("heddle-client", 2, "client", "client"), ("envoy-client", 3, "client", "client")];

/// The two. What is declared first is stopped first.
pub struct Clients {
    _envoy: Envoy,
    /// With this sidecar, of two workers.
    pub heddle: MeshPod,
    /// With an Envoy.
    pub other: MeshPod,
}

impl Clients {
    /// Starts both in a mesh that knows [`WORKLOADS`]; `binary` is the `heddle` binary.
    pub fn start(mesh: &LiveMesh, binary: &str) -> Self {
        let heddle = mesh.workload("heddle-client", 2, "client", 2);
        let other = mesh.pod("envoy-client", 3);
        let envoy = Envoy::start(mesh, &other, binary, "envoy-client", "client", &[]);
        Self { _envoy: envoy, heddle, other }
    }

    /// Both, by what stands beside them.
    pub fn each(&self) -> [(&'static str, &MeshPod); 2] {
        [("heddle-proxy", &self.heddle), ("Envoy", &self.other)]
    }
}
