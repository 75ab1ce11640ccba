//! `heddle-proxy`: the sidecar. All it does is in the library.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use heddle_proxy::cni::{self, CniArgs};
use heddle_proxy::commands::{self, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The Heddle sidecar.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let called = std::env::args_os().next().map(PathBuf::from);
    let is_plugin = called.as_deref().and_then(Path::file_name).is_some_and(|name| name == cni::FILE_NAME);
    let command = if is_plugin { Command::Cni(CniArgs::default()) } else { Arguments::parse().command };
    match commands::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
