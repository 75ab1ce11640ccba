//! How an application misbehaves, said by a file.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Reads the file anew at each request: it is a line, and a demo's requests are few.
pub struct Behaviour {
    file: PathBuf,
    requests: AtomicU64,
}

/// What to do with one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Misdeed {
    /// Answer 503 instead of working.
    pub fail: bool,
    /// Wait first.
    pub delay: Duration,
}

impl Behaviour {
    /// Follows `file`.
    pub fn new(file: PathBuf) -> Self {
        Self { file, requests: AtomicU64::new(0) }
    }

    /// For the next request.
    pub fn next(&self) -> Misdeed {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        misdeed(&text, number)
    }
}

/// `fail-every: N` and `delay-ms: N`, one a line.
fn misdeed(text: &str, number: u64) -> Misdeed {
    let value = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line?.trim().parse().ok()
    };
    let every = value("fail-every").filter(|every| *every > 0);
    Misdeed {
        fail: every.is_some_and(|every| number.is_multiple_of(every)),
        delay: Duration::from_millis(value("delay-ms").unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_fails_and_how_slowly() {
        assert_eq!(misdeed("", 0), Misdeed::default());
        let text = "fail-every: 3\ndelay-ms: 20\n";
        assert_eq!(misdeed(text, 3), Misdeed { fail: true, delay: Duration::from_millis(20) });
        assert!(!misdeed(text, 4).fail);
        assert!(misdeed("fail-every: 1", 7).fail);
    }
}
