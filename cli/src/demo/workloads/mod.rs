//! The demo's applications: ordinary servers and clients that know nothing of a mesh.
//!
//! Each runs in a process of its own, in its pod, as `heddle demo-workload …`. How it misbehaves is said by a file that
//! the story writes, so that every cause can be looked at.

mod behaviour;
mod cart;
mod catalog;
mod shopper;
mod stock;
mod web;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

pub use shopper::Tally;

/// Which application to be.
#[derive(Debug, Subcommand)]
pub enum Workload {
    /// HTTP/1.1 server; asks the others for each page.
    Web {
        /// Where it listens and how it misbehaves.
        #[command(flatten)]
        server: Server,
        /// HTTP/2 service.
        #[arg(long)]
        catalog: SocketAddr,
        /// gRPC service.
        #[arg(long)]
        cart: SocketAddr,
        /// TCP service that speaks first.
        #[arg(long)]
        stock: SocketAddr,
    },
    /// HTTP/2 server.
    Catalog {
        /// Where it listens and how it misbehaves.
        #[command(flatten)]
        server: Server,
    },
    /// gRPC server, unary and streaming.
    Cart {
        /// Where it listens and how it misbehaves.
        #[command(flatten)]
        server: Server,
    },
    /// TCP server that speaks first.
    Stock {
        /// Where it listens and how it misbehaves.
        #[command(flatten)]
        server: Server,
    },
    /// HTTP/1.1 client; says what it saw, one JSON object a line.
    Shopper {
        /// What it calls.
        #[arg(long)]
        web: SocketAddr,
        /// Requests a second.
        #[arg(long, default_value_t = 40)]
        rate: u32,
    },
}

/// A server's settings.
#[derive(Debug, Clone, Args)]
pub struct Server {
    /// Its own name, told in answers.
    #[arg(long)]
    name: String,
    /// Port on every address.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// File that says how to misbehave; absent or empty: not at all.
    #[arg(long)]
    behaviour: PathBuf,
}

impl Server {
    async fn listen(&self) -> std::io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::bind(SocketAddr::from(([0u16; 8], self.port))).await
    }
}

/// Runs until killed.
///
/// # Errors
/// If the server's port is taken.
pub fn run(workload: Workload) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match workload {
            Workload::Web { server, catalog, cart, stock } => {
                web::run(server, web::Services { catalog, cart, stock }).await
            }
            Workload::Catalog { server } => catalog::run(server).await,
            Workload::Cart { server } => cart::run(server).await,
            Workload::Stock { server } => stock::run(server).await,
            Workload::Shopper { web, rate } => shopper::run(web, rate).await,
        }
    })
}
