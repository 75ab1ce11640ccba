//! A process in a pod, killed by its own id when dropped.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// A running process and the group it leads. Dropping it kills the group and waits for the process.
///
/// Processes that left the group (setsid) are not followed, and when *this* process is killed only the leader dies
/// with it, if it was started through [`exec`](super::exec).
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts `command` as the leader of a new process group: signals from the terminal go to us alone, who end
    /// children in order.
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        let process = command.process_group(0).spawn()?;
        Ok(Self { process, ended: None })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The child's stdin, if it was piped and not taken before.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.process.stdin.take()
    }

    /// The child's stdout, if it was piped and not taken before.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.process.stdout.take()
    }

    /// The child's stderr, if it was piped and not taken before.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.process.stderr.take()
    }

    /// Sends a signal to the process, not its group.
    ///
    /// # Errors
    /// If it has ended and been waited for, or the system refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.ended.is_some() {
            return Err(Errno::ESRCH.into());
        }
        Ok(kill(self.pid(), signal)?)
    }

    /// Waits until the process has ended, then kills what is left of its group.
    ///
    /// # Errors
    /// If the system refuses to wait.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.end(WaitPidFlag::empty())
    }

    /// The exit status if the process has ended.
    ///
    /// # Errors
    /// If the system refuses to look.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() && self.has_ended(WaitPidFlag::WNOHANG)? {
            self.end(WaitPidFlag::WNOHANG)?;
        }
        Ok(self.ended)
    }

    /// Kills the group now and waits for the process.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.kill_group();
        self.wait()
    }

    fn end(&mut self, flags: WaitPidFlag) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        self.has_ended(flags)?;
        // Between end and reaping, while no other process can have got the group's id.
        self.kill_group();
        let status = self.process.wait()?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Looks, or waits, without reaping.
    fn has_ended(&self, flags: WaitPidFlag) -> io::Result<bool> {
        loop {
            match waitid(Id::Pid(self.pid()), flags | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(status) => return Ok(status.pid().is_some()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn kill_group(&self) {
        if self.ended.is_none() {
            // No such group: the process had ended and led nobody.
            let _ = killpg(self.pid(), Signal::SIGKILL);
        }
    }

    fn pid(&self) -> Pid {
        // The kernel's pids are positive i32; std shows them as u32.
        Pid::from_raw(self.process.id().cast_signed())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Nothing can be done about a refusal here.
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        Child::spawn(command).unwrap()
    }

    fn first_line(child: &mut Child) -> String {
        let mut line = String::new();
        BufReader::new(child.stdout().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    #[test]
    fn a_dropped_child_takes_its_own_children_with_it() {
        let mut child = shell("sleep 1000 & echo $!; wait");
        let stdout = child.stdout().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        lines.next().unwrap().unwrap();

        drop(child);

        // Both held the other end of this pipe.
        assert!(lines.next().is_none());
    }

    #[test]
    fn a_child_that_ends_by_itself_leaves_its_status_and_no_group() {
        let mut child = shell("sleep 1000 & echo started; exit 7");
        let mut lines = BufReader::new(child.stdout().unwrap()).lines();

        assert_eq!(child.wait().unwrap().code(), Some(7));
        assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(7));
        assert_eq!(lines.next().unwrap().unwrap(), "started");
        assert!(lines.next().is_none());
        assert!(child.signal(Signal::SIGTERM).is_err());
    }

    #[test]
    fn a_signal_reaches_a_running_child() {
        let mut child = shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done");
        assert_eq!(first_line(&mut child), "ready");
        assert!(child.try_wait().unwrap().is_none());

        child.signal(Signal::SIGTERM).unwrap();

        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}
