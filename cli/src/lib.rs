//! The `heddle` tool: runs a mesh on this machine, and any part of Heddle by itself.
//!
//! One binary for a laptop: `heddle proxy …` is the sidecar, `heddle control-plane …` the control plane. Images ship
//! those as binaries of their own.

pub mod demo;
mod diff;
pub mod explain;
mod inject;
pub mod pods;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Heddle, a service mesh.
#[derive(Debug, Parser)]
#[command(name = "heddle", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a whole mesh on this machine and tells a story with it.
    Demo(demo::DemoArgs),
    /// The sidecar and its commands.
    Proxy {
        #[command(subcommand)]
        command: heddle_proxy::commands::Command,
    },
    /// The control plane.
    ControlPlane(Box<heddle_control_plane::config::Config>),
    /// Gives the pods in a manifest sidecars, as the webhook does in a cluster.
    Inject(inject::InjectArgs),
    /// Says why a request goes where it goes, or what a cause means.
    Explain(Box<explain::ExplainArgs>),
    /// Shows what changed manifests would do to recorded traffic.
    Diff(Box<diff::DiffArgs>),
    /// Makes a join token for a workload outside Kubernetes.
    Token(token::TokenArgs),
    /// Runs a program inside a pod, as one that dies with it.
    #[command(hide = true)]
    PodExec(pods::exec::PodExecArgs),
    /// One of the demo's applications.
    #[command(hide = true)]
    DemoWorkload {
        #[command(subcommand)]
        workload: demo::workloads::Workload,
    },
}

/// Runs the command that the arguments of this process name.
///
/// # Errors
/// If it cannot do what it is for.
pub fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Proxy { command } => heddle_proxy::commands::run(command),
        Command::ControlPlane(config) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            Ok(runtime.block_on(heddle_control_plane::app::run(*config))?)
        }
        Command::Inject(args) => inject::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Token(args) => token::run(&args),
        Command::PodExec(args) => match pods::exec::main(&args)? {},
        Command::DemoWorkload { workload } => demo::workloads::run(workload),
    }
}

/// Says what went wrong, in one line for people, and with which code the process ends.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
