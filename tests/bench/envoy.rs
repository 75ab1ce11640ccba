//! Envoy as a sidecar that does the same: the same capture, mutual TLS with certificates of the same kind, the protocol
//! found out per connection and kept on the way, identity headers, retries, outlier detection, default stats.
//!
//! Its configuration is static and has one Service, so that the comparison depends on no control plane. It has less to
//! do than a sidecar of a mesh built on Envoy: no metrics by workload, no policies, no telemetry filters.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle::pods::{Child, Pod};
use heddle_certs::bundle::Bundle;
use heddle_certs::ca::Authority;
use heddle_certs::credential::Identity;
use heddle_certs::csr::{Csr, KeyRequest};
use heddle_certs::identity::{SpiffeId, TrustDomain};
use heddle_certs::store::identity_files;
use heddle_proxy::capture::PROXY_UID;
use serde_json::{Value, json};

use crate::load::Protocol;
use crate::rig::{Pods, Rig, SERVICE};

/// Life of its certificates. Chosen: longer than any run.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Starts both sidecars, client's and server's, and waits until they are ready.
pub fn start_sidecars(rig: &Rig, pods: &Pods) -> anyhow::Result<[Child; 2]> {
    let trust_domain = TrustDomain::parse("bench.test")?;
    let authority = Authority::generate(&trust_domain, LIFETIME, SystemTime::now())?;
    let bundle = Arc::new(Bundle::new(trust_domain.clone(), [authority.root().clone()])?);
    let client = SpiffeId::new(&trust_domain, "bench", "client")?;
    let server = SpiffeId::new(&trust_domain, "bench", "server")?;
    let start = |pod: &Pod, id: &SpiffeId, role: &str, config: &dyn Fn(&Tls) -> Value| {
        let request = KeyRequest::generate(id)?;
        let signed = authority.sign(&Csr::from_der(&request.csr)?, id, LIFETIME, SystemTime::now())?;
        let directory = rig.directory().join(format!("envoy-{role}"));
        fs::create_dir_all(&directory)?;
        for (name, bytes) in identity_files(&Identity::new(signed.chain, request.key)?, &bundle) {
            fs::write(directory.join(name), bytes)?;
        }
        let bootstrap = directory.join("bootstrap.json");
        fs::write(&bootstrap, config(&Tls(directory.to_string_lossy().into_owned())).to_string())?;
        let arguments = [
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warn",
            "--config-path",
            &bootstrap.to_string_lossy(),
        ]
        .map(str::to_owned);
        let name = format!("envoy-{role}");
        let child = rig.spawn(&pod.netns, &name, Some(PROXY_UID), &rig.envoy_program, &arguments)?;
        rig.wait_ready(&pod.netns, &name, 15000, "/ready")?;
        anyhow::Ok(child)
    };
    let outbound = |tls: &Tls| outbound(tls, pods, &server);
    let inbound = |tls: &Tls| inbound(tls, &client);
    Ok([start(&pods.client, &client, "client", &outbound)?, start(&pods.server, &server, "server", &inbound)?])
}

/// Where key, chain and bundle are.
struct Tls(String);

impl Tls {
    /// TLS 1.3 only; the peer must be `peer`.
    fn context(&self, peer: &SpiffeId) -> Value {
        let directory = &self.0;
        let file = |name: &str| json!({ "filename": format!("{directory}/{name}") });
        json!({
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{ "certificate_chain": file("chain.pem"), "private_key": file("key.pem") }],
            "validation_context": {
                "trusted_ca": file("bundle.pem"),
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer.to_string() } }],
            },
        })
    }
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Grpc];

/// The client's: what is sent to the Service goes to the server's pod in mutual TLS.
fn outbound(tls: &Tls, pods: &Pods, server: &SpiffeId) -> Value {
    let service = |protocol: Protocol| {
        let port = protocol.port();
        json!({
            "name": format!("{SERVICE}:{port}"),
            "address": address(&SERVICE.to_string(), port),
            "bind_to_port": false,
            "filter_chains": [{ "filters": [http_filter("outbound", &format!("origin-{port}"), json!({
                "route": {
                    "cluster": format!("origin-{port}"),
                    "timeout": "0s",
                    "retry_policy": {
                        "retry_on": "connect-failure,refused-stream,reset-before-request",
                        "num_retries": 2,
                    },
                },
            }), json!({}))] }],
        })
    };
    let cluster = |protocol: Protocol| {
        let port = protocol.port();
        json!({
            "name": format!("origin-{port}"),
            "type": "STATIC",
            "lb_policy": "LEAST_REQUEST",
            "connect_timeout": "2s",
            "outlier_detection": {},
            "load_assignment": {
                "cluster_name": format!("origin-{port}"),
                "endpoints": [{ "lb_endpoints": [{
                    "endpoint": { "address": address(&pods.server.ipv4.to_string(), port) },
                }] }],
            },
            "typed_extension_protocol_options": keep_protocol(),
            "transport_socket": {
                "name": "tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": tls.context(server),
                },
            },
        })
    };
    let mut clusters = PROTOCOLS.map(cluster).to_vec();
    clusters.push(original_destination("passthrough", Value::Null));
    let mut listeners = PROTOCOLS.map(service).to_vec();
    listeners.push(json!({
        "name": "capture",
        "address": address("0.0.0.0", 15001),
        "use_original_dst": true,
        "listener_filters": [listener_filter("original_dst", "original_dst.v3.OriginalDst")],
        "filter_chains": [{ "filters": [{
            "name": "tcp",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "passthrough",
                "cluster": "passthrough",
            },
        }] }],
    }));
    bootstrap(&listeners, &clusters)
}

/// The server's: takes mutual TLS from the client only, and dials the application as inbound sidecars do.
fn inbound(tls: &Tls, client: &SpiffeId) -> Value {
    let options = json!({
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": { "uri": true },
    });
    let listener = json!({
        "name": "inbound",
        "address": address("0.0.0.0", 15006),
        "listener_filters": [
            listener_filter("original_dst", "original_dst.v3.OriginalDst"),
            listener_filter("tls_inspector", "tls_inspector.v3.TlsInspector"),
        ],
        "filter_chains": [{
            "filter_chain_match": { "transport_protocol": "tls" },
            "filters": [http_filter(
                "inbound",
                "inbound",
                json!({ "route": { "cluster": "application", "timeout": "0s" } }),
                options,
            )],
            "transport_socket": {
                "name": "tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "common_tls_context": tls.context(client),
                },
            },
        }],
    });
    // Not captured again: capture lets this source go.
    let from = json!({ "source_address": { "address": "127.0.0.6", "port_value": 0 } });
    bootstrap(&[listener], &[original_destination("application", from)])
}

fn bootstrap(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "admin": { "address": address("127.0.0.1", 15000) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

/// An HTTP connection manager all of whose requests take `route`; `options` are merged in.
fn http_filter(stat_prefix: &str, name: &str, mut route: Value, options: Value) -> Value {
    route["match"] = json!({ "prefix": "/" });
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": stat_prefix,
        "codec_type": "AUTO",
        "route_config": { "name": name, "virtual_hosts": [{ "name": name, "domains": ["*"], "routes": [route] }] },
        "http_filters": [{
            "name": "router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    if let (Some(manager), Value::Object(options)) = (manager.as_object_mut(), options) {
        manager.extend(options);
    }
    json!({ "name": "http", "typed_config": manager })
}

/// HTTP/1.1 goes on as HTTP/1.1, HTTP/2 as HTTP/2.
fn keep_protocol() -> Value {
    json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "use_downstream_protocol_config": { "http_protocol_options": {}, "http2_protocol_options": {} },
    } })
}

fn original_destination(name: &str, bind: Value) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": keep_protocol(),
    });
    if !bind.is_null() {
        cluster["upstream_bind_config"] = bind;
    }
    cluster
}

fn listener_filter(name: &str, kind: &str) -> Value {
    json!({
        "name": name,
        "typed_config": { "@type": format!("type.googleapis.com/envoy.extensions.filters.listener.{kind}") },
    })
}

fn address(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}
