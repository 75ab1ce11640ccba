//! `heddle token`: a join token for a workload outside Kubernetes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use heddle_control_plane::authority::join_token;

/// Arguments of `heddle token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The control plane's state directory, which holds the key tokens are signed with.
    #[arg(long, env = "HEDDLE_STATE")]
    state: PathBuf,
    /// Namespace of the workload.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Service account it runs under.
    #[arg(long, default_value = "default")]
    service_account: String,
    /// Name of its Workload object.
    #[arg(long)]
    workload: String,
    /// Hours the token can be used.
    #[arg(long, default_value_t = 24)]
    hours: u64,
}

/// Writes the token to standard output.
///
/// # Errors
/// If there is no control plane's state, or a name is none.
#[allow(clippy::print_stdout, reason = "this is the command's output")]
pub fn run(args: &TokenArgs) -> anyhow::Result<()> {
    let lifetime = Duration::from_secs(args.hours.saturating_mul(3600));
    let token = join_token(&args.state, &args.namespace, &args.service_account, &args.workload, lifetime)?;
    println!("{token}");
    Ok(())
}
