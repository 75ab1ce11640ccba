//! Named bytes in a directory, all exchanged at once, so that a reader never sees a key beside another key's chain.
//!
//! Layout, as the kubelet writes Secret volumes (and Envoy's `watched_directory` expects):
//!
//! ```text
//! <directory>/..data        -> ..1a2b-0        one rename exchanges everything
//! <directory>/..1a2b-0/key.pem                 this generation's files
//! <directory>/key.pem       -> ..data/key.pem  what users of the directory open
//! ```
//!
//! The one place of this crate that touches files and draws names from the clock and the process id. It does not know
//! what the bytes mean ([`crate::state`] and [`identity_files`] do), except that text with a private key gets mode
//! 0600 and everything else 0644. One writer per directory for [`Directory::replace`]; any number for
//! [`Directory::create_or_read`]. Called by the control plane (its state) and by `heddle-proxy agent`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bundle::Bundle;
use crate::credential::Identity;
use crate::state::Files;

/// A directory in the layout above. Holds no handle: every call opens what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory(PathBuf);

/// Why files were not read or written; nothing visible has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{action} {path}: {error}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A name that would leave the directory or hide in it.
    #[error("file name `{0}` is not allowed; use letters, digits, `.`, `-` and `_`, not beginning with `.`")]
    Name(String),
    /// Over a limit.
    #[error("{path}: {what}", path = path.display())]
    Limit {
        /// Where.
        path: PathBuf,
        /// Which limit, with its value.
        what: String,
    },
}

impl Directory {
    /// Names a directory; it is made at the first write.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The files of the present generation; `None` if there was never one.
    pub fn read(&self) -> Result<Option<Files>, Error> {
        let data = self.0.join(DATA);
        for _ in 0..READ_TRIES {
            let Some(generation) = present(&data)? else { return Ok(None) };
            let files = read_generation(&self.0.join(&generation));
            // If the link is still the same, nobody has begun to remove what was read.
            if present(&data)?.as_ref() == Some(&generation) {
                return files.map(Some);
            }
        }
        let error = io::Error::other(format!("exchanged {READ_TRIES} times while it was read"));
        Err(Error::Io { action: "reading", path: data, error })
    }

    /// Returns what is there; if nothing is, writes what `make` returns, unless somebody else was first, whose files
    /// are then returned. All callers get the same bytes.
    pub fn create_or_read<E: From<Error>>(&self, make: impl FnOnce() -> Result<Files, E>) -> Result<Files, E> {
        if let Some(files) = self.read()? {
            return Ok(files);
        }
        let files = make()?;
        let generation = self.write_generation(&files)?;
        // Making a link that exists fails: of several writers exactly one succeeds.
        match symlink(&generation, self.0.join(DATA)) {
            Ok(()) => {
                self.link_names(&files)?;
                self.sync()?;
                Ok(files)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove(&self.0.join(generation))?;
                let path = self.0.join(DATA);
                let vanished = || io::Error::other("it was removed while being created");
                self.read()?.ok_or_else(|| Error::Io { action: "reading", path, error: vanished() }.into())
            }
            Err(error) => Err(Error::Io { action: "linking", path: self.0.join(DATA), error }.into()),
        }
    }

    /// Exchanges all files for `files` in one rename. The generation before is kept until the next exchange, for
    /// readers that resolved the link just before.
    pub fn replace(&self, files: &Files) -> Result<(), Error> {
        let previous = fs::read_link(self.0.join(DATA)).ok();
        let generation = self.write_generation(files)?;
        let link = self.0.join(format!("{generation}{LINK_SUFFIX}"));
        symlink(&generation, &link).map_err(io("linking", &link))?;
        fs::rename(&link, self.0.join(DATA)).map_err(io("renaming", &link))?;
        self.link_names(files)?;
        self.sync()?;
        self.clean(&generation, previous.as_deref())
    }

    /// Writes `files` to a directory nobody looks at yet; returns its name.
    fn write_generation(&self, files: &Files) -> Result<String, Error> {
        check(&self.0, files)?;
        DirBuilder::new().recursive(true).mode(0o755).create(&self.0).map_err(io("making", &self.0))?;
        let name = generation_name();
        let path = self.0.join(&name);
        DirBuilder::new().mode(0o755).create(&path).map_err(io("making", &path))?;
        for (name, bytes) in files {
            let path = path.join(name);
            let mode = if is_secret(bytes) { 0o600 } else { 0o644 };
            let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
            let mut file = file.map_err(io("making", &path))?;
            file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("writing", &path))?;
        }
        File::open(&path).and_then(|directory| directory.sync_all()).map_err(io("syncing", &path))?;
        Ok(name)
    }

    /// Makes a link for each name that has none, and removes those of names that are gone.
    fn link_names(&self, files: &Files) -> Result<(), Error> {
        for name in files.keys() {
            let link = self.0.join(name);
            match symlink(Path::new(DATA).join(name), &link) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::Io { action: "linking", path: link, error }),
            }
        }
        for (name, path) in self.entries()? {
            let ours = fs::read_link(&path).is_ok_and(|target| target == Path::new(DATA).join(&name));
            if ours && !files.contains_key(&name) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes every generation but the present and the previous one, also what a killed writer left.
    fn clean(&self, present: &str, previous: Option<&Path>) -> Result<(), Error> {
        for (name, path) in self.entries()? {
            let ours = name.starts_with(GENERATION_PREFIX);
            if ours && name != present && previous != Some(Path::new(&name)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(io("reading", &self.0))? {
            let entry = entry.map_err(io("reading", &self.0))?;
            if let Ok(name) = entry.file_name().into_string() {
                entries.push((name, entry.path()));
            }
        }
        Ok(entries)
    }

    fn sync(&self) -> Result<(), Error> {
        File::open(&self.0).and_then(|directory| directory.sync_all()).map_err(io("syncing", &self.0))
    }
}

/// The files of `heddle-proxy agent`, for Envoy and gRPC: `key.pem`, `chain.pem` (leaf first), `bundle.pem`.
pub fn identity_files(identity: &Identity, bundle: &Bundle) -> Files {
    [("key.pem", identity.key_pem()), ("chain.pem", identity.chain_pem()), ("bundle.pem", bundle.to_pem())]
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text.into_bytes()))
        .collect()
}

fn check(directory: &Path, files: &Files) -> Result<(), Error> {
    let limit = |what: String| Error::Limit { path: directory.into(), what };
    if files.len() > MAX_FILES {
        return Err(limit(format!("{} files; the limit is {MAX_FILES}", files.len())));
    }
    for (name, bytes) in files {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
            return Err(Error::Name(name.clone()));
        }
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(limit(format!("`{name}` is {} bytes; the limit is {MAX_FILE_BYTES}", bytes.len())));
        }
    }
    Ok(())
}

/// Where the link points; `None` if there is none.
fn present(data: &Path) -> Result<Option<PathBuf>, Error> {
    match fs::read_link(data) {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Io { action: "reading", path: data.into(), error }),
    }
}

fn read_generation(generation: &Path) -> Result<Files, Error> {
    let mut files = Files::new();
    for entry in fs::read_dir(generation).map_err(io("reading", generation))? {
        let path = entry.map_err(io("reading", generation))?.path();
        if files.len() == MAX_FILES {
            return Err(Error::Limit { path: generation.into(), what: format!("over {MAX_FILES} files") });
        }
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        files.insert(name.into(), read_limited(&path)?);
    }
    Ok(files)
}

fn read_limited(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io("opening", path))?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io("reading", path))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::Limit { path: path.into(), what: format!("over {MAX_FILE_BYTES} bytes") });
    }
    Ok(bytes)
}

/// RFC 7468: every label of a private key ends like this.
fn is_secret(bytes: &[u8]) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    bytes.windows(MARK.len()).any(|window| window == MARK)
}

/// Different for every call on one machine; sorts by time for whoever looks.
fn generation_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{GENERATION_PREFIX}{nanos:x}-{:x}-{count:x}", std::process::id())
}

/// Removes a file, link or directory; it may be gone already.
fn remove(path: &Path) -> Result<(), Error> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { action: "removing", path: path.into(), error })
        }
        _ => Ok(()),
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| Error::Io { action, path: path.into(), error }
}

/// The link that is exchanged: the kubelet's name for it.
const DATA: &str = "..data";

/// Hidden, and hidden from whoever lists a volume: the kubelet's rule of two dots, and a mark of our own.
const GENERATION_PREFIX: &str = "..heddle-";

/// Of the link before it is renamed.
const LINK_SUFFIX: &str = ".link";

/// Tries of a read that an exchange overtakes. Chosen: exchanges are hours apart, a read takes microseconds.
const READ_TRIES: usize = 16;

/// Files in one directory. Chosen: a state has seven.
const MAX_FILES: usize = 64;

/// Bytes of one file. A Secret holds 1 MiB in all (Kubernetes, `MaxSecretSize`).
const MAX_FILE_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        pairs.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect()
    }

    fn names(directory: &Directory) -> BTreeSet<String> {
        directory.entries().unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn what_is_written_is_read_and_seen_under_its_name() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path().join("a/b"));
        assert_eq!(directory.read().unwrap(), None);
        let written = files(&[("ca.crt", "one"), ("ca.key", "two")]);
        directory.replace(&written).unwrap();
        assert_eq!(directory.read().unwrap(), Some(written));
        assert_eq!(fs::read_to_string(directory.path().join("ca.crt")).unwrap(), "one");
    }

    #[test]
    fn an_exchange_moves_one_link_and_keeps_one_generation_back() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path());
        for text in ["1", "2", "3"] {
            directory.replace(&files(&[("key.pem", text), ("chain.pem", text)])).unwrap();
        }
        let generations = names(&directory).into_iter().filter(|name| name.starts_with(GENERATION_PREFIX)).count();
        assert_eq!(generations, 2);
        assert_eq!(fs::read_to_string(directory.path().join("key.pem")).unwrap(), "3");
        assert_eq!(fs::read_link(directory.path().join("key.pem")).unwrap(), Path::new("..data/key.pem"));
    }

    #[test]
    fn names_that_are_gone_lose_their_link_and_foreign_files_stay() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path());
        fs::write(temporary.path().join("mine.txt"), "mine").unwrap();
        directory.replace(&files(&[("next.crt", "x"), ("ca.crt", "x")])).unwrap();
        directory.replace(&files(&[("ca.crt", "y")])).unwrap();
        let names = names(&directory);
        assert!(names.contains("ca.crt") && names.contains("mine.txt") && !names.contains("next.crt"));
    }

    #[test]
    fn only_private_keys_are_unreadable_to_others() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path());
        directory
            .replace(&files(&[("a", "-----BEGIN EC PRIVATE KEY-----"), ("b", "-----BEGIN CERTIFICATE-----")]))
            .unwrap();
        let mode = |name| fs::metadata(temporary.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("a"), mode("b")), (0o600, 0o644));
    }

    #[test]
    fn of_many_creators_one_wins_and_all_get_its_files() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path());
        let results: BTreeSet<Files> = thread::scope(|scope| {
            let create = |i: usize| {
                let directory = &directory;
                move || directory.create_or_read(|| Ok::<_, Error>(files(&[("ca.key", &i.to_string())]))).unwrap()
            };
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(create(i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results.len(), 1);
        assert_eq!(directory.read().unwrap(), results.first().cloned());
        assert_eq!(names(&directory).len(), 3, "{:?}", names(&directory));
    }

    #[test]
    fn names_that_leave_the_directory_are_refused_and_change_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path());
        for name in ["../x", "..data", "", "a/b", ".hidden"] {
            assert!(matches!(directory.replace(&files(&[(name, "x")])), Err(Error::Name(_))), "{name}");
        }
        assert_eq!(names(&directory).len(), 0);
    }

    #[test]
    fn a_reader_never_sees_two_generations_mixed() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::new(temporary.path());
        let pair = |text: &str| files(&[("key.pem", text), ("chain.pem", text)]);
        directory.replace(&pair("0")).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| (0..30).for_each(|i| directory.replace(&pair(&i.to_string())).unwrap()));
            while !writer.is_finished() {
                let read = directory.read().unwrap().unwrap();
                assert_eq!((read.len(), &read["key.pem"]), (2, &read["chain.pem"]));
            }
        });
    }
}
