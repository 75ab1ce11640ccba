//! Root where there is none: a user namespace of one's own, so that pods need no privileges.
//!
//! Only our own user is mapped, to 0; no setuid helper (newuidmap) is used, so a sidecar cannot have a user of its
//! own there and is told apart by mark. Called once, first thing in `main`, before any thread starts.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// How the process came by the right to make pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It had it. Nothing was changed.
    Already,
    /// It is now in a user namespace and a network namespace of its own.
    UserNamespace,
}

/// Why the process cannot have that right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not let this user make user namespaces.
    #[error("cannot enter a user namespace: {source}; {reason}. Run this instead:\n\n    {instead}\n")]
    Forbidden {
        /// What the kernel said.
        source: io::Error,
        /// Which setting forbids it, as far as it can be told.
        reason: String,
        /// The command to run.
        instead: String,
    },
    /// Called too late.
    #[error("a user namespace can only be entered by a process with one thread; this one has {threads}")]
    Threads {
        /// How many it has.
        threads: usize,
    },
    /// /proc cannot be read or written.
    #[error("cannot use {path}: {source}; is /proc mounted?")]
    Proc {
        /// The file.
        path: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Gets the right to make network namespaces and to change users' rules in them: by doing nothing if the process has
/// it, else by entering a user namespace. `as_root` is the command that does the same as root, for the message.
///
/// # Errors
/// If the kernel forbids it; the message says what to run instead.
pub fn enter(as_root: &str) -> Result<Entered, Error> {
    if may_make_pods(&read(STATUS)?) {
        return Ok(Entered::Already);
    }
    let threads = fs::read_dir(TASKS).map_err(|source| Error::Proc { path: TASKS, source })?.count();
    if threads != 1 {
        return Err(Error::Threads { threads });
    }
    // Read before: inside, nobody is mapped yet.
    let (uid, gid) = (geteuid(), getegid());
    let entered = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    entered
        // A group map may be written without privileges only if groups cannot be dropped (user_namespaces(7)).
        .and_then(|()| fs::write("/proc/self/setgroups", "deny"))
        .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {uid} 1\n")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {gid} 1\n")))
        .map_err(|source| {
            let (reason, instead) = advice(&Settings::read(), as_root);
            Error::Forbidden { source, reason, instead }
        })?;
    Ok(Entered::UserNamespace)
}

const STATUS: &str = "/proc/self/status";
const TASKS: &str = "/proc/self/task";

/// CAP_SETGID, CAP_SETUID, CAP_NET_ADMIN, CAP_SYS_ADMIN: bits of a capability mask, linux/capability.h.
const NEEDED: u64 = 1 << 6 | 1 << 7 | 1 << 12 | 1 << 21;

fn read(path: &'static str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Proc { path, source })
}

/// Reads the effective capabilities in proc_pid_status(5)'s text.
fn may_make_pods(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask & NEEDED == NEEDED)
}

/// The kernel settings that can forbid user namespaces; `None` where the kernel has no such setting.
#[derive(Debug, Default)]
struct Settings {
    /// Namespaces a user may have; 0 forbids.
    max_user_namespaces: Option<u64>,
    /// Debian's older switch; 0 forbids.
    unprivileged_userns_clone: Option<u64>,
    /// Ubuntu's AppArmor switch; 1 takes all capabilities away inside.
    apparmor_restrict: Option<u64>,
}

impl Settings {
    fn read() -> Self {
        let number = |path| fs::read_to_string(path).ok()?.trim().parse().ok();
        Self {
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restrict: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        }
    }
}

/// What forbids, and the command that helps.
fn advice(settings: &Settings, as_root: &str) -> (String, String) {
    let (setting, value) = match settings {
        Settings { unprivileged_userns_clone: Some(0), .. } => ("kernel.unprivileged_userns_clone", 1),
        Settings { max_user_namespaces: Some(0), .. } => ("user.max_user_namespaces", 1024),
        Settings { apparmor_restrict: Some(1..), .. } => ("kernel.apparmor_restrict_unprivileged_userns", 0),
        _ => {
            let reason = "no sysctl forbids it, so a container's seccomp profile or a security module does";
            return (reason.into(), as_root.into());
        }
    };
    let reason = format!("the sysctl {setting} forbids it to users other than root");
    (reason, format!("{as_root}\n\nor, once, to allow it:\n\n    sudo sysctl -w {setting}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_is_read_from_effective_capabilities() {
        assert!(may_make_pods("Name:\theddle\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_make_pods("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n"));
        // A container's default set: setuid and setgid, neither NET_ADMIN nor SYS_ADMIN.
        assert!(!may_make_pods("CapEff:\t00000000a80425fb\n"));
        assert!(!may_make_pods(""));
    }

    #[test]
    fn the_setting_that_forbids_is_named_with_the_command_that_allows() {
        for (settings, expected) in [
            (
                Settings { apparmor_restrict: Some(1), max_user_namespaces: Some(9), ..Settings::default() },
                "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ),
            (
                Settings { max_user_namespaces: Some(0), ..Settings::default() },
                "sudo sysctl -w user.max_user_namespaces=1024",
            ),
            (
                Settings { unprivileged_userns_clone: Some(0), ..Settings::default() },
                "sudo sysctl -w kernel.unprivileged_userns_clone=1",
            ),
        ] {
            let (_, instead) = advice(&settings, "sudo heddle demo");
            assert!(instead.starts_with("sudo heddle demo\n") && instead.ends_with(expected), "{instead}");
        }
    }

    #[test]
    fn without_such_a_setting_the_command_as_root_is_what_is_left() {
        let (_, instead) =
            advice(&Settings { max_user_namespaces: Some(9), ..Settings::default() }, "sudo heddle demo");
        assert_eq!(instead, "sudo heddle demo");
    }
}
