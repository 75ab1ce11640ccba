//! Heddle as a user runs it: a control plane with manifests, sidecars that learn everything from it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use heddle::pods::{Child, Pod};
use heddle_control_plane::authority::join_token;
use heddle_proxy::capture::PROXY_UID;

use crate::load::Protocol;
use crate::machine;
use crate::rig::{GATEWAY, Pods, Rig, SERVICE};

/// Services nobody has called yet in a round, all with the origin behind them.
const NEW_DESTINATIONS: u8 = 50;
/// Life of a join token. Chosen: longer than any run.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Addresses of the Services nobody has called.
pub fn new_destinations() -> Vec<IpAddr> {
    (1..=NEW_DESTINATIONS).map(|number| Ipv4Addr::new(10, 96, 1, number).into()).collect()
}

/// Starts the control plane on the bridge; it shares a processor with client and origin.
pub fn start_control_plane(rig: &Rig, pods: &Pods) -> anyhow::Result<Child> {
    let (manifests, state) = (rig.directory().join("manifests"), rig.directory().join("state"));
    fs::create_dir(&manifests)?;
    fs::create_dir(&state)?;
    fs::write(manifests.join("bench.yaml"), self::manifests(pods))?;
    let arguments = [
        "control-plane",
        "--listen",
        "[::]:15012",
        "--mesh-cidr",
        "10.77.0.0/24,10.96.0.0/16",
        "--server-name",
        &GATEWAY.to_string(),
        "--manifests",
        &manifests.to_string_lossy(),
        "--state",
        &state.to_string_lossy(),
    ]
    .map(str::to_owned);
    let netns = rig.fabric.netns();
    let child = rig.spawn(netns, "control-plane", None, rig.own(), &arguments)?;
    rig.wait_ready(netns, "control-plane", 15014, "/ready")?;
    machine::pin_process(child.id(), machine::APPLICATIONS)?;
    fs::copy(state.join("bundle.pem"), rig.directory().join("bundle.pem"))?;
    Ok(child)
}

/// Starts both sidecars, client's and server's, and waits until they are ready.
pub fn start_sidecars(rig: &Rig, pods: &Pods) -> anyhow::Result<[Child; 2]> {
    let start = |pod: &Pod, workload: &str| {
        let token = join_token(&rig.directory().join("state"), "bench", workload, workload, TOKEN_LIFETIME)?;
        let token_file = rig.directory().join(format!("{workload}.token"));
        fs::write(&token_file, token)?;
        let arguments = [
            "run",
            "--workers",
            "1",
            "--namespace",
            "bench",
            "--service-account",
            workload,
            "--workload",
            workload,
            "--control-plane",
            &format!("https://{GATEWAY}:15012"),
            "--token",
            &token_file.to_string_lossy(),
            "--bundle",
            &rig.directory().join("bundle.pem").to_string_lossy(),
        ]
        .map(str::to_owned);
        let name = format!("heddle-{workload}");
        let child = rig.spawn(&pod.netns, &name, Some(PROXY_UID), &rig.proxy, &arguments)?;
        rig.wait_ready(&pod.netns, &name, 15020, "/ready")?;
        anyhow::Ok(child)
    };
    Ok([start(&pods.client, "client")?, start(&pods.server, "server")?])
}

fn manifests(pods: &Pods) -> String {
    let (http, grpc) = (Protocol::Http1.port(), Protocol::Grpc.port());
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: { name: bench }\n".to_owned();
    for (name, pod) in [("client", &pods.client), ("server", &pods.server)] {
        text.push_str(&format!(
            "---\napiVersion: heddle.dev/v1alpha1\nkind: Workload\n\
             metadata: {{ name: {name}, namespace: bench, labels: {{ app: {name} }} }}\n\
             spec:\n  addresses: [\"{}\"]\n  serviceAccountName: {name}\n  \
             ports: [{{ port: {http} }}, {{ port: {grpc} }}]\n",
            pod.ipv4
        ));
    }
    for (number, address) in std::iter::once(SERVICE.into()).chain(new_destinations()).enumerate() {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: origin-{number}, namespace: bench }}\n\
             spec:\n  clusterIP: {address}\n  selector: {{ app: server }}\n  \
             ports: [{{ name: a, port: {http} }}, {{ name: b, port: {grpc} }}]\n",
        ));
    }
    text
}
