//! Programs of others that Debian does not have: from PyPI, pinned in `tests/requirements.txt`, put into `target/pypi`
//! by `scripts/test`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs::Program;

/// Envoy's own binary.
pub fn envoy() -> PathBuf {
    installed("envoy/_bin/envoy")
}

/// Helm, which `scripts/test` takes out of a package that holds it.
pub fn helm() -> PathBuf {
    installed("helm")
}

/// kubernetes-validate, by Debian's Python.
pub fn kubernetes_validate() -> Command {
    installed("kubernetes_validate/__main__.py");
    let mut command = Program { name: "python3", package: "python3" }.command();
    command.env("PYTHONPATH", DIRECTORY).env("PYTHONDONTWRITEBYTECODE", "1").args(["-m", "kubernetes_validate"]);
    command
}

/// A command that runs a Python script with PyPI's gRPC, by Debian's Python.
pub fn python_with_grpcio(script: &str) -> Command {
    installed("grpc/__init__.py");
    let mut command = Program { name: "python3", package: "python3" }.command();
    command.env("PYTHONPATH", DIRECTORY).env("PYTHONUNBUFFERED", "1").env("PYTHONDONTWRITEBYTECODE", "1").arg(script);
    command
}

fn installed(file: &str) -> PathBuf {
    let path = Path::new(DIRECTORY).join(file);
    assert!(
        path.is_file(),
        "{} is not there: run scripts/test, or: /usr/bin/python3 -m pip install --target target/pypi -r \
         tests/requirements.txt",
        path.display()
    );
    path
}

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/pypi");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "loom/server is not there: run scripts/test")]
    fn what_is_missing_is_named_with_how_to_get_it() {
        installed("loom/server");
    }
}
