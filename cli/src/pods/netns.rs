//! One network namespace, held by a descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns, unshare};

use super::Child;

/// Why a namespace cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not allow a new one.
    #[error(
        "cannot make a network namespace: {0}; it needs CAP_SYS_ADMIN (root, or a user namespace of one's own) and \
         room under /proc/sys/user/max_net_namespaces"
    )]
    Create(#[source] io::Error),
    /// The namespace cannot be entered.
    #[error(
        "cannot enter a network namespace: {0}; has the process changed its user or user namespace since it made it?"
    )]
    Enter(#[source] io::Error),
    /// No thread to work in it.
    #[error("cannot start a thread for a network namespace: {0}; is the limit of processes reached (ulimit -u)?")]
    Thread(#[source] io::Error),
    /// A program cannot be started.
    #[error("cannot start {program}: {source}; is it installed and executable?")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A network namespace; gone when this is dropped and no process is left in it.
///
/// Its keeper thread starts all children, because a child's parent-death signal comes when the *thread* that started
/// it ends, not the process: they die with the namespace and no sooner.
#[derive(Debug)]
pub struct Netns {
    namespace: OwnedFd,
    // Taken, in this order, by `drop` alone.
    work: Option<mpsc::Sender<Start>>,
    keeper: Option<JoinHandle<()>>,
}

/// A child to start and where to say how that went.
type Start = (Command, mpsc::SyncSender<io::Result<Child>>);

impl Netns {
    /// A new namespace with nothing in it but `lo`, which is down.
    ///
    /// # Errors
    /// If the kernel does not allow it or there is no thread to be had.
    pub fn new() -> Result<Self, Error> {
        Self::kept_by(|| unshare_here().map_err(Error::Create))
    }

    /// The namespace that `path` names, one that others made: `/proc/<pid>/ns/net`, or a file below `/run/netns`. It
    /// stays when this is dropped.
    ///
    /// # Errors
    /// If `path` is not a network namespace that may be entered or there is no thread to be had.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        Self::kept_by(move || enter(&path).map_err(Error::Enter))
    }

    /// The namespace into which `move_into` moves the keeper thread.
    fn kept_by(move_into: impl FnOnce() -> Result<OwnedFd, Error> + Send + 'static) -> Result<Self, Error> {
        let (made, namespace) = mpsc::sync_channel(1);
        let (work, orders) = mpsc::channel::<Start>();
        let keeper = thread::Builder::new().name("netns-keeper".into()).spawn(move || {
            let _ = made.send(move_into());
            for (command, started) in orders {
                // The other end waits for this answer.
                let _ = started.send(Child::spawn(command));
            }
        });
        let keeper = keeper.map_err(Error::Thread)?;
        let namespace = namespace.recv().unwrap_or_else(|_| Err(Error::Create(keeper_gone())))?;
        Ok(Self { namespace, work: Some(work), keeper: Some(keeper) })
    }

    /// Runs `work` on a fresh thread inside the namespace and returns what it returns. Sockets it opens and threads it
    /// starts stay in the namespace. A panic in it goes on in the caller.
    ///
    /// # Errors
    /// If no thread is to be had or the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Enter(errno.into()))?;
                Ok(work())
            });
            match thread.map_err(Error::Thread)?.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts `command` inside the namespace, in a process group of its own. A child that asks for a signal at its
    /// parent's death (`setpriv --pdeathsig`) gets it when this is dropped: keep it as long as the child.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Child, Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (started, answer) = mpsc::sync_channel(1);
        if let Some(work) = &self.work {
            // A keeper that is gone drops the other end of `started`: seen below.
            let _ = work.send((command, started));
        }
        let child = answer.recv().unwrap_or_else(|_| Err(keeper_gone()));
        child.map_err(|source| Error::Spawn { program, source })
    }

    /// A path to the namespace that lasts as long as this: for `heddle-proxy capture --netns`, also from another
    /// process of the same user.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The keeper ends when nobody can order from it any more, and with it children that outlived their `Child`.
        self.work = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Moves the calling thread into a new namespace.
fn unshare_here() -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    // The thread's own entry; /proc/self is the main thread's.
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Moves the calling thread into the namespace that `path` names.
fn enter(path: &Path) -> io::Result<OwnedFd> {
    let namespace = OwnedFd::from(File::open(path)?);
    setns(&namespace, CloneFlags::CLONE_NEWNET)?;
    Ok(namespace)
}

fn keeper_gone() -> io::Error {
    io::Error::other("the namespace's keeper thread has ended")
}
