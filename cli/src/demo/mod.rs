//! `heddle demo`: a whole mesh on this machine, and a story told with it.
//!
//! A control plane that reads a directory of manifests, seven workloads in network namespaces of their own, each with
//! its sidecar and real capture; then one change after the other, each with what was observed. Needs root, or a kernel
//! that lets users make user namespaces. Nothing is left behind: namespaces, rules and processes end with this process.

mod exposition;
mod files;
mod mesh;
mod observe;
mod screen;
mod story;
pub mod workloads;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;

use crate::pods::user::{self, Entered};

/// Settings of `heddle demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Tells the story and ends; fails unless each step was observed.
    #[arg(long)]
    once: bool,
    /// Leaves the mesh running after the story, until Ctrl-C.
    #[arg(long, conflicts_with = "once")]
    keep: bool,
    /// Worker threads of each sidecar.
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

/// Runs the demo.
///
/// # Errors
/// If the mesh cannot be started, or with `--once`, if a step was not observed.
pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    // Before any thread: a user namespace is entered by a process with one.
    let own = std::env::current_exe()?;
    let entered = user::enter(&format!("sudo {} demo", own.display()))?;
    let interrupted = Interrupted::default();
    interrupted.listen()?;
    let mesh = mesh::Mesh::start(&own, args.workers, entered == Entered::UserNamespace, &interrupted)?;
    screen::watch(&mesh, Some(screen::INTERLUDE), &interrupted);
    let told = story::tell(&mesh, &interrupted);
    if interrupted.is_set() {
        screen::say("\nInterrupted; nothing is left behind.");
        anyhow::ensure!(!args.once, "interrupted before every step was observed");
        return Ok(());
    }
    told?;
    if args.keep {
        screen::invite(&mesh);
        screen::watch(&mesh, None, &interrupted);
    } else if !args.once {
        screen::watch(&mesh, Some(screen::INTERLUDE), &interrupted);
    }
    Ok(())
}

/// Whether Ctrl-C was pressed; everything that waits looks at it.
#[derive(Debug, Clone, Default)]
pub struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// Whether it was.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn listen(&self) -> anyhow::Result<()> {
        let flag = self.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _inside = runtime.enter();
            use tokio::signal::unix::{SignalKind, signal};
            [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                let [interrupt, terminate] = &mut signals;
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            flag.store(true, Ordering::Relaxed);
        })?;
        Ok(())
    }
}
