//! `heddle-proxy agent`: identity in files, and nothing else, for data planes that are not ours.
//!
//! Writes `key.pem`, `chain.pem` and `bundle.pem`, changed together and atomically, and beside them `identity.yaml` and
//! `roots.yaml`, from which Envoy reads them as file-based SDS. gRPC reads the PEM files by `file_watcher`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use heddle_certs::bundle::Bundle;
use heddle_certs::credential::Identity;
use heddle_certs::store::{self, Directory};

use crate::identity::{self, IdentityConfig, Keeper};
use crate::tls::ControlPlane;

/// Settings of `heddle-proxy agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// Where the control plane signs certificates, as `https://host:port`.
    #[arg(long, env = "HEDDLE_CONTROL_PLANE")]
    pub control_plane: String,
    /// Directory the files are kept in.
    #[arg(long, env = "HEDDLE_AGENT_DIRECTORY")]
    pub directory: PathBuf,
    /// SO_MARK for the agent's own connections, where capture exempts by mark instead of uid.
    #[arg(long, env = "HEDDLE_MARK")]
    pub mark: Option<u32>,
    /// Who this workload is.
    #[command(flatten)]
    pub identity: IdentityConfig,
}

/// Why the agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name or the roots are wrong.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Keeps the files until the process ends.
///
/// # Errors
/// If it cannot begin; later failures are logged and tried again.
pub async fn run(args: AgentArgs) -> Result<(), Error> {
    let control_plane = ControlPlane { address: args.control_plane, mark: args.mark };
    let keeper = Keeper::new(args.identity, control_plane)?;
    std::fs::create_dir_all(&args.directory).map_err(|source| Error::Write { path: args.directory.clone(), source })?;
    for (name, text) in sds_files(&args.directory) {
        let path = args.directory.join(name);
        std::fs::write(&path, text).map_err(|source| Error::Write { path, source })?;
    }
    let directory = Directory::new(&args.directory);
    keeper.keep(|identity, roots| write(&directory, identity, roots)).await;
    Ok(())
}

fn write(directory: &Directory, identity: &Identity, roots: &Arc<Bundle>) {
    if let Err(error) = directory.replace(&store::identity_files(identity, roots)) {
        tracing::error!(%error, "cannot write the identity's files; the ones before stay");
    }
}

/// Envoy's file-based SDS resources (Envoy documentation, "Secret discovery service", `path_config_source`); the
/// directory is watched, because its files change by one rename.
fn sds_files(directory: &std::path::Path) -> [(&'static str, String); 2] {
    let directory = directory.display();
    let secret = |name: &str, body: String| {
        format!(
            "resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: {name}\n{body}"
        )
    };
    let identity = format!(
        "  tls_certificate:\n    certificate_chain: {{ filename: \"{directory}/chain.pem\" }}\n    private_key: {{ filename: \"{directory}/key.pem\" }}\n    watched_directory: {{ path: \"{directory}\" }}\n"
    );
    let roots = format!(
        "  validation_context:\n    trusted_ca: {{ filename: \"{directory}/bundle.pem\" }}\n    watched_directory: {{ path: \"{directory}\" }}\n"
    );
    [("identity.yaml", secret("identity", identity)), ("roots.yaml", secret("roots", roots))]
}
