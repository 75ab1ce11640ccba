//! Programs of others in Go, built from modules under `tests/` whose `go.mod` and `go.sum` pin them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `package` of the module in `tests/<module>`, if Go's own cache does not have it; `name` is the program's. Two builds at
/// once make the same file one after the other.
pub fn program(module: &str, package: &str, name: &str) -> PathBuf {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join(module);
    let made = Path::new(DIRECTORY).join(name);
    let mut go = Command::new("go");
    go.current_dir(&module).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly");
    go.args(["build", "-trimpath", "-buildvcs=false", "-o"]).arg(&made).arg(package);
    let built = go.output().expect("Go is not installed: install Go 1.26 or newer (go.dev)");
    assert!(built.status.success(), "{package} cannot be built:\n{}", String::from_utf8_lossy(&built.stderr));
    made
}

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/go");
