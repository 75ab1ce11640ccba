//! The demo, as a newcomer runs it: the story is told to its end, as root and as nobody, and nothing is left behind.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// This crate's copy of the `heddle` binary.
const HEDDLE: &str = env!("CARGO_BIN_EXE_heddle-under-test");
/// Debian's `nobody`.
const NOBODY: u32 = 65_534;

fn demo(adapt: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(HEDDLE);
    command.args(["demo", "--once"]);
    adapt(&mut command);
    command.output().unwrap()
}

/// Demo directories and processes of the demo that are there now.
fn left_behind() -> Vec<String> {
    let directories = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let directories = directories.map(|entry| entry.path().display().to_string());
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?.replace('\0', " ");
        (line.contains("demo-workload") || line.contains("heddle-demo-")).then_some(line)
    });
    directories.filter(|path| path.contains("heddle-demo-")).chain(processes).collect()
}

fn assert_told(output: &Output) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("Every step was observed."), "{out}\n{err}");
    assert_eq!(left_behind(), Vec::<String>::new());
}

#[test]
fn the_story_is_observed_as_root() {
    assert_told(&demo(|_| {}));
}

#[test]
fn the_story_is_observed_by_a_user_without_privileges() {
    // Somewhere nobody may read and execute.
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("heddle");
    fs::copy(HEDDLE, &binary).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = demo(|command| {
        *command = Command::new(&binary);
        command.args(["demo", "--once"]).current_dir("/").uid(NOBODY).gid(NOBODY).env("HOME", "/");
    });
    assert_told(&output);
}
