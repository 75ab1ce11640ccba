//! Programs of others inside pods: servers that are stopped with the test, clients whose output is read.
//!
//! Every program is started through util-linux' `setpriv`, which asks the kernel to kill it when this process ends, so
//! nothing is left when a test is killed. Its environment is empty but for what is set here: no proxy settings, no
//! language of whoever runs the tests.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use heddle::pods::Child;
use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

use crate::pods::MeshPod;

/// How long a program may take to get ready, to end its work or to stop. Generous: a data base is made on a busy
/// machine in less.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where Debian's packages put programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, a name or a path, and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// As on a command line.
    pub name: &'static str,
    /// What to install.
    pub package: &'static str,
}

impl Program {
    /// A command that runs a program that was built for the tests, as root.
    pub fn built(path: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.env_clear().args(["--pdeathsig", "KILL", "--"]).arg(path);
        command
    }

    /// A command that runs it as root.
    pub fn command(self) -> Command {
        self.command_with(&[])
    }

    /// A command that runs it as `user`, for servers that refuse to be root.
    pub fn command_as(self, user: &str) -> Command {
        self.command_with(&[&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"])
    }

    fn command_with(self, options: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").env("HOME", "/nonexistent");
        command.args(["--pdeathsig", "KILL"]).args(options).arg("--").arg(self.find());
        command
    }

    fn find(self) -> PathBuf {
        let found = PATH.split(':').map(|directory| PathBuf::from(directory).join(self.name));
        found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
            panic!("{} is not installed: apt-get install {} (scripts/test does it)", self.name, self.package)
        })
    }
}

/// A directory that belongs to `user` and is gone when dropped.
pub fn directory_of(user: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let owner = self::user(user);
    std::os::unix::fs::chown(directory.path(), Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
    directory
}

/// The user a server's package has made.
pub fn user(name: &str) -> User {
    let found = User::from_name(name).unwrap();
    found.unwrap_or_else(|| {
        panic!("this machine has no user {name}: its server is not installed (scripts/test does it)")
    })
}

/// A server of others in a pod; stopped when dropped. If the test fails, what it said is shown.
pub struct Server {
    process: Process,
    stop: Signal,
}

impl Server {
    /// Starts it in `pod` and waits until it says `ready`.
    pub fn start(pod: &MeshPod, command: Command, ready: &str) -> Self {
        Self::start_stopped_by(Signal::SIGTERM, pod, command, ready)
    }

    /// [`Server::start`] for a server that ends in order at another signal than SIGTERM.
    pub fn start_stopped_by(stop: Signal, pod: &MeshPod, command: Command, ready: &str) -> Self {
        let server = Self { process: Process::start(pod, command, Stdio::null()), stop };
        let said = |heard: &Heard| heard.streams.iter().any(|stream| contains(stream, ready.as_bytes()));
        let heard = server.process.hear_until(|heard| said(heard) || heard.open == 0);
        assert!(said(&heard), "{} did not say {ready:?} within {PATIENCE:?}", server.process.name);
        drop(heard);
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself. Whatever is left at the deadline is killed with the process's own drop.
        let _ = self.process.child.signal(self.stop);
        let heard = self.process.hear_until(|heard| heard.open == 0);
        if std::thread::panicking() {
            let [stdout, stderr] = heard.streams.each_ref().map(|stream| String::from_utf8_lossy(stream));
            eprintln!("{} said:\n{stdout}\n{stderr}", self.process.name);
        }
    }
}

/// What a client said.
#[derive(Debug)]
pub struct Outcome {
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output as text, without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// Runs a client in `pod` to its end, which must be a success.
pub fn run(pod: &MeshPod, command: Command) -> Outcome {
    run_with(pod, command, Stdio::null())
}

/// [`run`] with a standard input.
pub fn run_with(pod: &MeshPod, command: Command, stdin: Stdio) -> Outcome {
    let mut process = Process::start(pod, command, stdin);
    let heard = process.hear_until(|heard| heard.open == 0);
    let [stdout, stderr] = heard.streams.clone();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    let ended = heard.open == 0;
    drop(heard);
    let said = String::from_utf8_lossy(&stdout);
    assert!(ended, "{} did not end within {PATIENCE:?}; it said {said:?}\n{stderr}", process.name);
    let status = process.child.wait().unwrap();
    assert!(status.success(), "{}: {status}; it said {said:?}\n{stderr}", process.name);
    Outcome { stdout, stderr }
}

/// A running program and what it has said so far.
struct Process {
    name: String,
    child: Child,
    ears: Arc<Ears>,
}

#[derive(Default)]
struct Ears {
    heard: Mutex<Heard>,
    more: Condvar,
}

#[derive(Default)]
struct Heard {
    /// Standard output and standard error.
    streams: [Vec<u8>; 2],
    /// How many of them have not ended.
    open: usize,
}

impl Process {
    fn start(pod: &MeshPod, mut command: Command, stdin: Stdio) -> Self {
        // After setpriv and its options.
        let name = command.get_args().skip_while(|arg| *arg != "--").nth(1).unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pod.netns().spawn(command).unwrap();
        let ears = Arc::new(Ears { heard: Mutex::new(Heard { open: 2, ..Heard::default() }), more: Condvar::new() });
        let (stdout, stderr) = (child.stdout().unwrap(), child.stderr().unwrap());
        ears.clone().attach(0, stdout);
        ears.clone().attach(1, stderr);
        Self { name, child, ears }
    }

    /// Waits until `enough`, or for as long as our patience lasts.
    fn hear_until(&self, enough: impl Fn(&Heard) -> bool) -> MutexGuard<'_, Heard> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = self.ears.lock();
        while !enough(&heard) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            heard = self.ears.more.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        heard
    }
}

impl Ears {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attach(self: Arc<Self>, stream: usize, mut pipe: impl Read + Send + 'static) {
        std::thread::spawn(move || {
            let mut chunk = [0; 16 * 1024];
            loop {
                let read = pipe.read(&mut chunk).unwrap_or(0);
                let mut heard = self.lock();
                match read {
                    0 => heard.open -= 1,
                    len => heard.streams[stream].extend_from_slice(&chunk[..len]),
                }
                self.more.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "loom-server is not installed: apt-get install loom-tools")]
    fn a_program_that_is_missing_is_named_with_its_package() {
        Program { name: "loom-server", package: "loom-tools" }.command();
    }

    #[test]
    fn a_program_sees_nothing_of_our_environment() {
        let mut command = Program { name: "env", package: "coreutils" }.command();
        let said = command.output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let names = said.lines().filter_map(|line| line.split('=').next()).collect::<Vec<_>>();
        assert!(names.iter().all(|name| ["PATH", "LC_ALL", "HOME"].contains(name)), "{said}");
    }
}
