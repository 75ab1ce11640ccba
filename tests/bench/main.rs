//! The benchmark: what a pair of sidecars costs, beside Envoy doing the same in the same run.
//!
//! ```text
//! cargo run --release -p heddle-tests --bin bench        (root; `scripts/test` has installed Envoy)
//! ```
//!
//! Client → sidecar → mutual TLS → sidecar → origin, in two network namespaces with real capture and all defaults on:
//! as `heddle-proxy` with a control plane, as a pair of Envoys with a static configuration that does the same and no
//! more, and direct. Rounds are interleaved: each starts each peer's sidecars afresh, takes all its figures, stops them.
//! Both sidecars have one worker and share one processor; client and origin, in this process, have the other.
//! Figures are taken for 2 s, closed loops after 1 s of warm-up; one taken while other programs used more than 0.3
//! processors is taken again, at most twice. It prints medians over the rounds, [lowest–highest], and ratios.
//!
//! It judges nothing and its figures hold for one machine: compare ratios, and only of one run.
//!
//! It is also the `heddle` it needs: started as `bench pod-exec …` or `bench control-plane …` it is that command.

#![allow(clippy::print_stdout, reason = "a table is its purpose")]

mod envoy;
mod figures;
mod load;
mod machine;
mod mesh;
mod origin;
mod rig;

use std::path::PathBuf;

use clap::Parser;

use crate::figures::Figures;
use crate::load::{Pace, Protocol};
use crate::rig::{Peer, Rig};

/// Compares a pair of Heddle's sidecars with a pair of Envoys, and with none.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Peers to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Peer::Direct, Peer::Heddle, Peer::Envoy])]
    peers: Vec<Peer>,
    /// The `heddle-proxy` to measure; built from this workspace if not given.
    #[arg(long)]
    proxy: Option<PathBuf>,
    /// The Envoy to compare with.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/pypi/envoy/_bin/envoy"))]
    envoy: PathBuf,
    /// Starts the first of `--peers`, says where its sidecars are, and calls through them with HTTP/1.1 (with --grpc:
    /// gRPC) until it is stopped: for profilers.
    #[arg(long)]
    profile: bool,
    /// With --profile: gRPC.
    #[arg(long, requires = "profile")]
    grpc: bool,
    /// With --profile: at the open loops' rate.
    #[arg(long, requires = "profile")]
    open: bool,
}

fn main() -> anyhow::Result<()> {
    if matches!(std::env::args().nth(1).as_deref(), Some("pod-exec" | "control-plane")) {
        return heddle::main();
    }
    let arguments = Arguments::parse();
    let rig = Rig::new(&arguments)?;
    if arguments.profile {
        let protocol = if arguments.grpc { Protocol::Grpc } else { Protocol::Http1 };
        return rig.run_for_profiler(
            arguments.peers[0],
            protocol,
            if arguments.open { Pace::Open } else { Pace::Closed },
        );
    }
    let mut figures = Figures::default();
    for round in 0..arguments.rounds {
        for &peer in &arguments.peers {
            eprintln!("round {} of {}: {peer}", round + 1, arguments.rounds);
            rig.measure(peer, &mut figures)?;
        }
    }
    figures.print(&arguments.peers);
    Ok(())
}
