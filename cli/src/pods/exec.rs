//! `heddle pod-exec`: becomes another program that dies with the process that started it.
//!
//! A program that knows nothing of pods (curl, nginx) is started through our own binary: it asks the kernel for a
//! kill when its parent ends, changes to the sidecar's user if told to, and execs. Also makes the command line for
//! that. It starts nothing itself and waits for nothing.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clap::Args;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, getppid, setgid, setgroups, setuid};

/// Arguments of `heddle pod-exec`; not meant for people.
#[derive(Debug, Clone, Args)]
pub struct PodExecArgs {
    /// Process whose end ends the program.
    #[arg(long)]
    pub parent: i32,
    /// User and group to become first; needs root.
    #[arg(long)]
    pub uid: Option<u32>,
    /// Program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// Why the program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user cannot be changed.
    #[error("cannot become user {uid}: {source}; it needs root, and {uid} must be mapped in the user namespace")]
    User {
        /// The user.
        uid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel does not take the request for a kill.
    #[error("cannot ask for a kill at the parent's end: {0}")]
    DeathSignal(#[source] io::Error),
    /// Who started us is gone.
    #[error("process {parent} has ended before its child began")]
    Orphan {
        /// Its id.
        parent: i32,
    },
    /// The program cannot be executed.
    #[error("cannot execute {program}: {source}; is it installed?")]
    Exec {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing to execute.
    #[error("no program given: heddle pod-exec --parent PID -- PROGRAM [ARGUMENT...]")]
    NoProgram,
}

/// Becomes the program. Returns only errors.
///
/// # Errors
/// If the user cannot be changed, the parent is gone, or the program cannot be executed.
pub fn main(args: &PodExecArgs) -> Result<Infallible, Error> {
    let (program, arguments) = args.command.split_first().ok_or(Error::NoProgram)?;
    if let Some(uid) = args.uid {
        become_user(uid).map_err(|source| Error::User { uid, source })?;
    }
    // After the change of user, which makes the kernel forget it.
    die_with_parent(args.parent)?;
    let source = Command::new(program).args(arguments).exec();
    Err(Error::Exec { program: program.to_string_lossy().into_owned(), source })
}

/// Asks the kernel to kill this process when the thread that started it ends.
///
/// # Errors
/// If the kernel refuses, or `parent`, the process that started it, has ended already.
pub fn die_with_parent(parent: i32) -> Result<(), Error> {
    set_pdeathsig(Signal::SIGKILL).map_err(|errno| Error::DeathSignal(errno.into()))?;
    // It may have ended between fork and the request; then no signal comes.
    if getppid() == Pid::from_raw(parent) { Ok(()) } else { Err(Error::Orphan { parent }) }
}

/// A command that runs `program` through `own`, the `heddle` binary, as user `uid` if given. Arguments of the program
/// are added by the caller. To be started by this process.
pub fn command(own: &Path, uid: Option<u32>, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(own);
    command.arg("pod-exec").arg(format!("--parent={}", std::process::id()));
    if let Some(uid) = uid {
        command.arg(format!("--uid={uid}"));
    }
    command.arg("--").arg(program);
    command
}

fn become_user(uid: u32) -> io::Result<()> {
    setgroups(&[])?;
    setgid(Gid::from_raw(uid))?;
    setuid(Uid::from_raw(uid))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Tool {
        #[command(flatten)]
        args: PodExecArgs,
    }

    #[test]
    fn the_command_line_it_makes_is_the_one_it_reads() {
        let mut made = command(Path::new("heddle"), Some(1337), "curl");
        made.args(["--uid", "x", "--", "-v"]);
        let line = made.get_args().map(OsStr::to_owned).collect::<Vec<_>>();
        assert_eq!(line[0], "pod-exec");

        // The sub-command's name stands where a tool's own name would.
        let args = Tool::try_parse_from(line).unwrap().args;

        assert_eq!(args.parent, std::process::id().cast_signed());
        assert_eq!(args.uid, Some(1337));
        assert_eq!(args.command, ["curl", "--uid", "x", "--", "-v"]);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let parent = getppid().as_raw();
        let args = PodExecArgs { parent, uid: None, command: vec!["/nowhere/at-all".into()] };

        let error = main(&args).unwrap_err();

        set_pdeathsig(None).unwrap();
        assert!(error.to_string().starts_with("cannot execute /nowhere/at-all"), "{error}");
    }

    #[test]
    fn a_child_whose_parent_is_gone_does_not_begin() {
        let error = die_with_parent(getppid().as_raw() + 1).unwrap_err();

        set_pdeathsig(None).unwrap();
        assert!(matches!(error, Error::Orphan { .. }), "{error}");
    }
}
