//! What this process writes to standard output, read back: where sidecars in it write their access logs.
//!
//! The whole process is concerned, so a test that uses this is the only one in its file.

use std::fs::File;
use std::io::stdout;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::unistd::{dup, dup2_stdout};

/// Standard output goes to a file until this is dropped.
pub struct Captured {
    file: File,
    before: OwnedFd,
}

impl Captured {
    /// Begins.
    pub fn begin() -> Self {
        let before = dup(stdout()).unwrap();
        let file = tempfile::tempfile().unwrap();
        dup2_stdout(&file).unwrap();
        Self { file, before }
    }

    /// The lines of JSON so far.
    pub fn json(&self) -> Vec<serde_json::Value> {
        let mut bytes = vec![0; usize::try_from(self.file.metadata().unwrap().len()).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        // What is not JSON, such as the test harness' own words, and a line that is not whole are left out.
        bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // The harness' verdict has to be seen; there is nothing to do if it cannot be.
        let _ = dup2_stdout(&self.before);
    }
}
