//! The link to the control plane: the thread that keeps the certificate and the tables.
//!
//! Everything known stays in force while the control plane is away: a broken stream withdraws nothing.

use std::io;
use std::sync::Arc;
use std::thread;

use heddle_certs::bundle::Bundle;
use heddle_certs::credential::Identity;
use heddle_xds::Node;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::app::Sidecar;
use crate::identity::{self, Keeper};
use crate::sync;
use crate::tls::{ControlPlane, ControlPlaneError};
use crate::worker::Shared;

/// Why the link cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name or the roots are wrong.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// No thread.
    #[error("cannot start the control thread: {0}; is the limit of processes reached?")]
    Thread(#[from] io::Error),
}

/// The certificate with which the control plane is called, once there is one.
type Credentials = Option<(Identity, Arc<Bundle>)>;

/// Starts the control thread, if a control plane is configured. It runs until the process ends.
///
/// # Errors
/// If it cannot begin; that the control plane is away is no error.
pub fn start(sidecar: Sidecar) -> Result<(), Error> {
    let Sidecar { shared, wishes } = sidecar;
    let Some(address) = shared.config.control_plane.clone() else { return Ok(()) };
    let control_plane = ControlPlane { address, mark: shared.config.mark };
    let keeper = Keeper::new(shared.config.identity.clone(), control_plane.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (credentials, known) = watch::channel::<Credentials>(None);
    let connect = move || connect(control_plane.clone(), known.clone());
    let (publisher, clock) = (shared.clone(), shared.clone());
    let tables = sync::run(
        node(&shared),
        connect,
        wishes,
        shared.xds.clone(),
        move |tables| publisher.tables.publish(tables),
        move || clock.now(),
    );
    thread::Builder::new().name("control".into()).spawn(move || {
        runtime.block_on(async {
            let certificates = keeper.keep(move |identity, roots| {
                if let Err(error) = shared.dialer.identity.replace(identity.clone(), roots.clone()) {
                    tracing::error!(%error, "certificate not usable; the one before stays");
                    return;
                }
                credentials.send_replace(Some((identity.clone(), roots.clone())));
            });
            tokio::join!(certificates, tables);
        });
    })?;
    Ok(())
}

fn node(shared: &Shared) -> Node {
    let identity = &shared.config.identity;
    Node {
        id: format!("{}.{}", identity.workload, identity.namespace),
        user_agent_name: "heddle-proxy".to_owned(),
        ..Node::default()
    }
}

/// A channel with the newest certificate; waits for the first one.
async fn connect(
    control_plane: ControlPlane,
    mut known: watch::Receiver<Credentials>,
) -> Result<Channel, ControlPlaneError> {
    // Fails only when the thread ends, and this with it.
    let credentials = known.wait_for(Option::is_some).await.ok().and_then(|credentials| credentials.clone());
    match credentials {
        Some((identity, roots)) => control_plane.connect(&roots, Some(&identity)).await,
        None => std::future::pending().await,
    }
}
