//! A real Envoy in the sidecar's place: its identity from `heddle-proxy agent`, everything else from the control plane
//! by wildcard, over mutual TLS.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::live::LiveMesh;
use crate::pods::{MARK, MeshPod};
use crate::programs::Server;
use crate::{eventually, pypi};

/// Envoy and the agent beside it; both end when this is dropped.
pub struct Envoy {
    _envoy: Server,
    _agent: Server,
    _directory: TempDir,
}

impl Envoy {
    /// Captures the traffic of `pod` and starts both, as the workload `workload` of the service account `account`;
    /// returns once Envoy has everything it asked for. `binary` is the `heddle` binary, `arguments` are Envoy's.
    pub fn start(
        mesh: &LiveMesh,
        pod: &MeshPod,
        binary: &str,
        workload: &str,
        account: &str,
        arguments: &[&str],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = directory.path().join("identity");
        mesh.capture(pod);
        let agent = mesh.agent_command(binary, workload, account, &identity);
        let agent = Server::start(pod, agent, "certificate received");
        eventually(&format!("the agent of {workload} writes its files"), || {
            ["key.pem", "chain.pem", "bundle.pem"].iter().all(|name| identity.join(name).exists()).then_some(())
        });
        let bootstrap = directory.path().join("bootstrap.json");
        std::fs::write(&bootstrap, self::bootstrap(workload, &identity).to_string()).unwrap();
        // A process name of its own: who ends processes by the name `envoy` on this machine does not mean this one.
        let program = directory.path().join("sidecar-by-others");
        symlink(pypi::envoy(), &program).unwrap();
        let mut command = Command::new("setpriv");
        command.env_clear().args(["--pdeathsig", "KILL", "--"]).arg(program);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "info"]);
        command.args(arguments).arg("--config-path");
        command.arg(bootstrap);
        // Said when the first answer to every subscription is in force.
        let envoy = Server::start(pod, command, "starting workers");
        Self { _envoy: envoy, _agent: agent, _directory: directory }
    }
}

/// What a person would write to put an Envoy into this mesh.
fn bootstrap(workload: &str, identity: &Path) -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    json!({
        "node": {
            "id": format!("{workload}.shop"),
            "cluster": "shop",
            "metadata": { "heddle.dev/identity-directory": identity },
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": CONTROL_PLANE } }],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": { "clusters": [control_plane(identity)] },
        // Rate limits by identity and address read them by a format.
        "layered_runtime": { "layers": [{ "name": "heddle", "static_layer": {
            "envoy.reloadable_features.enable_formatter_for_ratelimit_action_descriptor_value": true,
        } }] },
        // Where capture exempts by user, Envoy runs as that user instead.
        "cluster_manager": { "upstream_bind_config": { "socket_options": [{
            "level": SOL_SOCKET, "name": SO_MARK, "int_value": MARK, "state": "STATE_PREBIND",
        }] } },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 15000 } } },
    })
}

fn control_plane(identity: &Path) -> Value {
    let secret = |name: &str| {
        json!({
            "name": name,
            "sds_config": {
                "path_config_source": {
                    "path": identity.join(format!("{name}.yaml")),
                    "watched_directory": { "path": identity },
                },
                "resource_api_version": "V3",
            },
        })
    };
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [secret("identity")],
            "combined_validation_context": {
                "default_validation_context": { "match_typed_subject_alt_names": [{
                    "san_type": "URI",
                    "matcher": { "exact": "spiffe://cluster.local/ns/heddle-system/sa/heddle-control-plane" },
                }] },
                "validation_context_sds_secret_config": secret("roots"),
            },
        },
    });
    let http = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    });
    json!({
        "name": CONTROL_PLANE,
        "type": "STATIC",
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http },
        "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": tls },
        "load_assignment": {
            "cluster_name": CONTROL_PLANE,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
                "socket_address": { "address": "10.77.0.1", "port_value": 15012 },
            } } }] }],
        },
    })
}

/// The one cluster an Envoy has to know by itself.
const CONTROL_PLANE: &str = "heddle-control-plane";
/// Linux `asm-generic/socket.h`.
const SOL_SOCKET: u32 = 1;
/// As above.
const SO_MARK: u32 = 36;
