//! The files of one demo: manifests, the control plane's state, tokens, and how applications misbehave.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A directory that is gone when this is dropped.
#[derive(Debug)]
pub struct Files {
    directory: tempfile::TempDir,
}

/// What the mesh begins with.
const MANIFESTS: [(&str, &str); 4] = [
    ("10-namespace.yaml", include_str!("../../../examples/shop/10-namespace.yaml")),
    ("20-workloads.yaml", include_str!("../../../examples/shop/20-workloads.yaml")),
    ("30-services.yaml", include_str!("../../../examples/shop/30-services.yaml")),
    ("40-strict.yaml", include_str!("../../../examples/shop/40-strict.yaml")),
];

impl Files {
    /// Writes what the mesh begins with.
    ///
    /// # Errors
    /// If the temporary directory cannot be written.
    pub fn new() -> io::Result<Self> {
        let files = Self { directory: tempfile::Builder::new().prefix("heddle-demo-").tempdir()? };
        for directory in [files.manifests(), files.state(), files.secrets(), files.behaviours()] {
            fs::create_dir(directory)?;
        }
        for (name, text) in MANIFESTS {
            fs::write(files.manifests().join(name), text)?;
        }
        // The sidecars run as another user.
        open_to_all(files.directory.path())?;
        open_to_all(&files.secrets())?;
        Ok(files)
    }

    /// What describes the mesh.
    pub fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// The control plane's own.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Join tokens and roots, for the sidecars.
    pub fn secrets(&self) -> PathBuf {
        self.directory.path().join("secrets")
    }

    fn behaviours(&self) -> PathBuf {
        self.directory.path().join("behaviour")
    }

    /// How `workload` misbehaves.
    pub fn behaviour(&self, workload: &str) -> PathBuf {
        self.behaviours().join(workload)
    }

    /// Where standard error of `process` goes.
    pub fn log(&self, process: &str) -> PathBuf {
        self.directory.path().join(format!("{process}.log"))
    }

    /// Puts a manifest in force, atomically.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn apply(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.manifests().join(name);
        write_at_once(&path, text)?;
        Ok(path)
    }

    /// Takes a manifest out of force.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn withdraw(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.manifests().join(name))
    }

    /// Makes `workload` misbehave, or behave with an empty `text`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn misbehave(&self, workload: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.behaviour(workload);
        write_at_once(&path, text)?;
        Ok(path)
    }
}

/// By rename, so that nobody reads half a file. The temporary name ends in nothing that is read as a manifest.
fn write_at_once(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)?;
    fs::rename(temporary, path)
}

fn open_to_all(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}
