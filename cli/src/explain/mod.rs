//! `heddle explain`: why a request goes where it goes, from the client's sidecar to the application behind the server's; or what
//! a cause means.
//!
//! The mesh is asked ([`mesh`]): a directory of manifests with nothing running, or a live control plane, both of which say what
//! sidecars are told. That is put into a sidecar's own tables ([`tables`]), and the sidecar's own evaluator says what follows
//! ([`whole`]). A live sidecar is asked itself ([`sidecar`]), so its answer has its endpoints' state in it.

pub mod mesh;
mod page;
mod sidecar;
mod tables;
pub mod whole;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use heddle_proxy::explain::{Request, Target};
use serde::Serialize;

use mesh::{Mesh, MeshArgs};
pub use tables::Cache;
use whole::Whole;

/// Arguments of `heddle explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// What is asked for: http://api.shop:8080/cart?x=1, http2://…, grpc://…, tls://name, tcp://name:port; or a cause as it
    /// stands in x-heddle-error, to have it explained.
    #[arg(value_name = "URL|CAUSE")]
    what: String,
    /// The workload that asks, NAMESPACE/NAME of a Pod or Workload, or of what keeps its pods running.
    #[arg(long, value_name = "WORKLOAD")]
    from: Option<String>,
    /// Method. Default: GET, of grpc:// POST.
    #[arg(short = 'X', long)]
    method: Option<String>,
    /// A header, `name: value`; may be given more than once.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The address that the URL's host has for the client, ADDRESS:PORT. Default: that of the Service of this name.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<SocketAddr>,
    /// Explains by a directory of manifests, with nothing running.
    #[arg(long, value_name = "DIR", group = "source")]
    manifests: Option<PathBuf>,
    /// Explains by a live control plane: its admin port, as 127.0.0.1:15014 behind `kubectl port-forward`.
    #[arg(long, value_name = "ADDR", group = "source")]
    control_plane: Option<SocketAddr>,
    /// Explains by the client's live sidecar: its admin port, as 127.0.0.1:15000 behind `kubectl port-forward`.
    #[arg(long, value_name = "ADDR", group = "source")]
    sidecar: Option<SocketAddr>,
    /// With --sidecar: the server's live sidecar, whose side follows the client's.
    #[arg(long, value_name = "ADDR", requires = "sidecar")]
    server_sidecar: Option<SocketAddr>,
    /// What the mesh is set to, where manifests alone are asked.
    #[command(flatten)]
    mesh: MeshArgs,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints the explanation.
///
/// # Errors
/// If what is asked is none, or whoever is asked cannot answer.
#[allow(clippy::print_stdout, reason = "this is the command's output")]
pub fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    if !args.what.contains("://") {
        print!("{}", page::of(&args.what)?);
        return Ok(());
    }
    let (mut request, target) = Request::of_url(&args.what)?;
    if let Some(method) = &args.method {
        request.method.clone_from(method);
    }
    args.headers.iter().try_for_each(|header| request.add_header(header))?;
    request.head()?;
    let whole = explain(args, &request, &target)?;
    print!("{}", written(args.output, &whole, Whole::text)?);
    Ok(())
}

fn explain(args: &ExplainArgs, request: &Request, target: &Target) -> anyhow::Result<Whole> {
    if let Some(address) = args.sidecar {
        let destination = args.address.map_or_else(|| target.to_string(), |address| address.to_string());
        return sidecar::explain(address, args.server_sidecar, &destination, request, args.from.as_deref());
    }
    let mesh = match (&args.manifests, args.control_plane) {
        (Some(directory), _) => Mesh::manifests(directory, &args.mesh)?,
        (None, Some(address)) => Mesh::control_plane(address),
        (None, None) => bail!("nothing to ask: give --manifests DIR, --control-plane ADDR or --sidecar ADDR"),
    };
    let from = args.from.as_deref().context("--from is missing: which workload asks, as shop/web")?;
    let mut whole = whole::explain(&mesh, &mut Cache::default(), from, target, args.address, request)?;
    whole.add_places(&mesh)?;
    Ok(whole)
}

/// An answer as it is wanted.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn written<T: Serialize>(output: Output, answer: &T, text: impl Fn(&T) -> String) -> anyhow::Result<String> {
    Ok(match output {
        Output::Text => text(answer),
        Output::Json => serde_json::to_string_pretty(answer)? + "\n",
    })
}
