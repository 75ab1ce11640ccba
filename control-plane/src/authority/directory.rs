//! What a control plane keeps, in a directory: read, made, exchanged, and locked against a second control plane.
//!
//! All files are exchanged at once ([`heddle_certs::store`]). `ca.crt` and `ca.key` that a user laid there as plain files are
//! taken over.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use heddle_certs::state::Files;
use heddle_certs::store::{self, Directory};

use super::kept::BROUGHT;

/// A directory that is held.
#[derive(Debug)]
pub(super) struct Locked {
    directory: Directory,
    _lock: File,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be read or written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Another process works with it.
    #[error("{0} is in use by another control plane; give each its own --state")]
    Locked(PathBuf),
    /// A file beside the state cannot be read or written.
    #[error("{action} {path}: {error}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Locked {
    /// Holds the directory, making it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(io_error("making", path))?;
        let lock = lock(path)?;
        Ok(Self { directory: Directory::new(path), _lock: lock })
    }

    /// What is kept there, or else what a user laid there.
    pub(super) fn read(&self) -> Result<Option<Files>, Error> {
        match self.directory.read()? {
            Some(files) => Ok(Some(files)),
            None => brought(self.directory.path()),
        }
    }

    /// Exchanges all files, and takes away what a user laid there, which would stand in their way.
    pub(super) fn replace(&self, files: &Files) -> Result<(), Error> {
        let unfinished = self.is_unfinished();
        self.directory.replace(files)?;
        // Only now is what the user brought kept elsewhere; then its names are free for links to it.
        if unfinished {
            remove_brought(self.directory.path())?;
            self.directory.replace(files)?;
        }
        Ok(())
    }

    /// Whether something that a user laid there is still to be taken away.
    pub(super) fn is_unfinished(&self) -> bool {
        BROUGHT.iter().any(|name| is_plain(&self.directory.path().join(name)))
    }
}

/// `ca.crt` and `ca.key` as plain files: an authority the user brought.
fn brought(directory: &Path) -> Result<Option<Files>, Error> {
    let mut files = Files::new();
    for name in BROUGHT {
        let path = directory.join(name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= MAX_BROUGHT_BYTES => {
                files.insert(name.to_owned(), fs::read(&path).map_err(io_error("reading", &path))?);
            }
            Ok(metadata) => {
                let error = io::Error::other(format!("{} bytes; the limit is {MAX_BROUGHT_BYTES}", metadata.len()));
                return Err(Error::Io { action: "reading", path, error });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::Io { action: "reading", path, error }),
        }
    }
    Ok((!files.is_empty()).then_some(files))
}

fn remove_brought(directory: &Path) -> Result<(), Error> {
    for path in BROUGHT.map(|name| directory.join(name)) {
        if is_plain(&path) {
            fs::remove_file(&path).map_err(io_error("removing", &path))?;
        }
    }
    Ok(())
}

fn is_plain(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join(LOCK);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(io_error("opening", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(Error::Io { action: "locking", path, error }),
    }
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| Error::Io { action, path: path.into(), error }
}

/// Held while a control plane works with the directory. Begins with a dot: it is none of the state's files.
const LOCK: &str = ".lock";
/// Bytes of each piece a user brings: a chain of large certificates has a tenth of it.
const MAX_BROUGHT_BYTES: u64 = 256 * 1024;
