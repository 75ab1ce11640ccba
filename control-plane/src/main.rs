//! `heddle-control-plane`: the control plane as a program of its own.

use std::process::ExitCode;

use clap::Parser;
use heddle_control_plane::app;
use heddle_control_plane::config::Config;

/// Heddle's control plane: tells sidecars what they need over xDS, and signs their certificates.
#[derive(Debug, Parser)]
#[command(name = "heddle-control-plane", version)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

fn main() -> ExitCode {
    let config = Cli::parse().config;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(app::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the log may not have begun, and an operator must see why there is no control plane"
)]
fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("heddle-control-plane: {error}");
    ExitCode::FAILURE
}
