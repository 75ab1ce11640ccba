//! Real applications between two sidecars with mutual TLS and no setting: every port is detected, the server's sidecar
//! takes nothing but mutual TLS, and both sidecars must have counted exactly what the client did.
//!
//! Servers and clients are Debian's packages, installed by `scripts/test`; a test whose program is missing fails and
//! says which package to install.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up fails the test")]

mod databases;
mod grpc;
mod http;
mod nats;
mod redis;
mod websocket;

use std::ffi::OsStr;
use std::process::Command;

use heddle_tests::programs::Program;

/// Threads of each sidecar, where a test is cheap enough to run twice.
const WORKERS: [usize; 2] = [1, 3];

/// Debian's curl, quiet but for errors, without anybody's configuration.
fn curl<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Program { name: "curl", package: "curl" }.command();
    // First, or it would read ~/.curlrc. Seconds; a hang is a failure.
    command.args(["--disable", "--silent", "--show-error", "--max-time", "30"]).args(arguments);
    command
}

/// Debian's Python, for which Debian packages libraries, running a script of this directory.
fn python(script: &str, library: &'static str) -> Command {
    let mut command = Program { name: "python3", package: library }.command();
    command.arg("-u").arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/applications").join(script));
    command
}

/// `len` octets without a pattern, the same each time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}
