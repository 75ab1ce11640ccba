//! The commands of `heddle-proxy`, for its own binary and for `heddle proxy …`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{self, AgentArgs};
use crate::app;
use crate::capture::{self, CaptureArgs};
use crate::cni::{self, CniArgs};
use crate::config::{Config, DrainArgs};
use crate::drain::Phase;
use crate::link;
use crate::logging::{self, LogFormat};
use crate::tables::Tables;
use crate::worker::Shared;

/// What a sidecar can be told to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the sidecar until SIGTERM.
    Run(Box<Config>),
    /// Redirects the pod's traffic to the sidecar, or ends that.
    Capture(CaptureArgs),
    /// Tells the running sidecar that its pod is about to end; returns at once.
    Drain(DrainArgs),
    /// A chained CNI plugin, as container runtimes call one (environment and standard input; its file may also be called
    /// `heddle-cni`), and what puts it on a node.
    Cni(CniArgs),
    /// Keeps this workload's certificate in files, for Envoy and gRPC.
    Agent(Box<AgentArgs>),
}

/// Runs one command to its end.
///
/// # Errors
/// If it cannot do what it is for.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(config) => sidecar(*config),
        Command::Capture(args) => Ok(capture::run(&args)?),
        Command::Drain(args) => drain(&args),
        Command::Cni(args) => plugin(&args),
        Command::Agent(args) => {
            logging::start("info", LogFormat::Text)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(agent::run(*args))?)
        }
    }
}

fn sidecar(config: Config) -> anyhow::Result<()> {
    logging::start(&config.log, config.log_format)?;
    let sidecar = app::start(config, Tables::default())?;
    let shared = sidecar.shared.clone();
    link::start(sidecar)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(until_told_to_end())?;
    shared.drain.advance(Phase::Terminating);
    finish(&shared);
    Ok(())
}

fn plugin(args: &CniArgs) -> anyhow::Result<()> {
    if let (Some(bin_dir), Some(conf_dir)) = (&args.bin_dir, &args.conf_dir) {
        logging::start("info", LogFormat::Text)?;
        if args.remove {
            cni::remove(bin_dir, conf_dir)?;
            if !args.stay {
                return Ok(());
            }
            loop {
                std::thread::park();
            }
        }
        if args.install {
            return Ok(cni::keep(bin_dir, conf_dir)?);
        }
    }
    // The runtime reads the reason from standard output.
    std::process::exit(i32::from(!cni::plugin()?))
}

async fn until_told_to_end() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Waits for what is in flight, but not for ever.
fn finish(shared: &Arc<Shared>) {
    let deadline = Instant::now() + Duration::from_secs(shared.config.drain_seconds);
    while shared.metrics.connections.are_open() && Instant::now() < deadline {
        std::thread::sleep(FINISH_POLL);
    }
}

/// Chosen: no pod's end is noticeably longer for it.
const FINISH_POLL: Duration = Duration::from_millis(10);

fn drain(args: &DrainArgs) -> anyhow::Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], args.admin_port));
    let no_sidecar = || format!("no sidecar answers on {address}; is it running in this network namespace?");
    let mut stream = TcpStream::connect_timeout(&address, DRAIN_TIMEOUT).with_context(no_sidecar)?;
    stream.set_read_timeout(Some(DRAIN_TIMEOUT))?;
    stream.write_all(b"POST /drain HTTP/1.0\r\nContent-Length: 0\r\n\r\n").with_context(no_sidecar)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(no_sidecar)?;
    anyhow::ensure!(answer.contains(" 200 "), "the sidecar refuses to drain: {answer}");
    Ok(())
}

/// Chosen: it is on loopback and does nothing but set a flag.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
