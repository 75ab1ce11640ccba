//! `heddle-proxy`: the sidecar. All it does is in the library.

use clap::Parser;
use heddle_proxy::commands::{self, Command};

/// The Heddle sidecar.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> anyhow::Result<()> {
    commands::run(Arguments::parse().command)
}
