//! What a process says of its xDS resources (CSDS, gRFC A40).

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use heddle_tests::pods::MeshPod;

/// There are some, and each was accepted in its newest version.
pub fn all_accepted(name: &str, pod: &MeshPod) {
    let resources = resources(pod);
    assert!(!resources.is_empty(), "{name} has resources");
    let refused = resources.iter().filter(|resource| {
        resource.client_status != ClientResourceStatus::Acked as i32 || resource.error_state.is_some()
    });
    let refused: Vec<_> = refused
        .map(|resource| format!("{} {}: {:?}", resource.type_url, resource.name, resource.error_state))
        .collect();
    assert!(refused.is_empty(), "{name}: {refused:#?}");
}

fn resources(pod: &MeshPod) -> Vec<GenericXdsConfig> {
    let asked = pod.netns().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut service = ClientStatusDiscoveryServiceClient::connect("http://127.0.0.1:9001").await.unwrap();
            service.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner()
        })
    });
    // One for each target, and one for a server.
    asked.unwrap().config.into_iter().flat_map(|client| client.generic_xds_configs).collect()
}
