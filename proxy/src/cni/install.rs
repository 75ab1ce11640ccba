//! `heddle-proxy cni --install`: puts the plugin on a node and into its network configuration, and keeps it there.
//!
//! A DaemonSet runs it with the node's folders mounted. The binary comes first, then the entry, each by a rename, so that a
//! runtime never sees half of either. The network provider may write its configuration anew at any time, so it is looked at
//! again and again. Nothing is taken away when it ends: while it is replaced by its next version, pods still start captured.
//! `--remove` takes everything away.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{ANNOTATIONS, FILE_NAME};

/// Settings of `heddle-proxy cni`. Without any, it is the plugin itself.
#[derive(Debug, Clone, Default, Args)]
pub struct CniArgs {
    /// Puts the plugin on this node and keeps it there, until the process is ended.
    #[arg(long, requires_all = ["bin_dir", "conf_dir"])]
    pub install: bool,
    /// Takes the plugin from this node.
    #[arg(long, conflicts_with = "install", requires_all = ["bin_dir", "conf_dir"])]
    pub remove: bool,
    /// With --remove: does nothing more then, until the process is ended, for a DaemonSet, whose pods must not end.
    #[arg(long, requires = "remove")]
    pub stay: bool,
    /// The node's folder of CNI plugins, as mounted here; on the node mostly /opt/cni/bin.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// The node's folder of network configurations, as mounted here; on the node mostly /etc/cni/net.d.
    #[arg(long, value_name = "DIR")]
    pub conf_dir: Option<PathBuf>,
}

/// Why the plugin is not on the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{}: {source}; is the node's folder mounted, writable, and does this run as root?", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing to be chained behind.
    #[error("{}: no network configuration yet; the network provider of the cluster writes one", .0.display())]
    None(PathBuf),
    /// One plugin alone, which nothing can be chained behind.
    #[error("{}: only a list of plugins (.conflist) can be added to; write this one as a list", .0.display())]
    NoList(PathBuf),
    /// No JSON, or no list of plugins in it.
    #[error("{}: {reason}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Keeps the plugin on the node. Ends only on SIGTERM, by its default.
///
/// # Errors
/// If the binary cannot be put there.
pub fn keep(bin_dir: &Path, conf_dir: &Path) -> Result<(), Error> {
    copy_binary(bin_dir)?;
    let mut before = None;
    loop {
        // Said when it changes, not at every look.
        let now = match add(conf_dir) {
            Ok(Some(path)) => format!("plugin added to {}", path.display()),
            Ok(None) => String::new(),
            Err(error) => error.to_string(),
        };
        if !now.is_empty() && before.as_ref() != Some(&now) {
            tracing::info!("{now}");
        }
        before = Some(now);
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Takes entry and binary away; success too where they are not.
///
/// # Errors
/// If a file cannot be read or written.
pub fn remove(bin_dir: &Path, conf_dir: &Path) -> Result<(), Error> {
    for path in configurations(conf_dir)? {
        let text = read(&path)?;
        if let Some(without) = without(&text, &path)? {
            replace(&path, without.as_bytes())?;
        }
    }
    let binary = bin_dir.join(FILE_NAME);
    match fs::remove_file(&binary) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File { path: binary, source }),
        _ => Ok(()),
    }
}

fn copy_binary(bin_dir: &Path) -> Result<(), Error> {
    let own = Path::new("/proc/self/exe");
    let path = bin_dir.join(FILE_NAME);
    let bytes = fs::read(own).map_err(|source| Error::File { path: own.to_owned(), source })?;
    write(&path, &bytes, 0o755)
}

/// Adds the plugin to the configuration in force; which one, if it was not there.
fn add(conf_dir: &Path) -> Result<Option<PathBuf>, Error> {
    let path = configurations(conf_dir)?.into_iter().next().ok_or_else(|| Error::None(conf_dir.to_owned()))?;
    if path.extension().is_none_or(|extension| extension != "conflist") {
        return Err(Error::NoList(path));
    }
    let Some(with) = with(&read(&path)?, &path)? else { return Ok(None) };
    replace(&path, with.as_bytes())?;
    Ok(Some(path))
}

/// Configurations in the order in which runtimes look for one (containerd's go-cni, CRI-O's ocicni): by name.
fn configurations(conf_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File { path: conf_dir.to_owned(), source };
    let mut all = Vec::new();
    for entry in fs::read_dir(conf_dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let known = path.extension().and_then(|extension| extension.to_str());
        if matches!(known, Some("conf" | "conflist" | "json")) {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// The list with our entry at its end; `None`: it has it already.
fn with(text: &str, path: &Path) -> Result<Option<String>, Error> {
    let mut list = parse(text, path)?;
    let entry = json!({ "type": FILE_NAME, "capabilities": { ANNOTATIONS: true } });
    let plugins = plugins(&mut list, path)?;
    if plugins.last() == Some(&entry) {
        return Ok(None);
    }
    plugins.retain(|plugin| plugin["type"] != FILE_NAME);
    plugins.push(entry);
    Ok(Some(format!("{list:#}\n")))
}

/// The list without our entry; `None`: it has none.
fn without(text: &str, path: &Path) -> Result<Option<String>, Error> {
    let mut list = parse(text, path)?;
    let Ok(plugins) = plugins(&mut list, path) else { return Ok(None) };
    let before = plugins.len();
    plugins.retain(|plugin| plugin["type"] != FILE_NAME);
    Ok((plugins.len() < before).then(|| format!("{list:#}\n")))
}

fn parse(text: &str, path: &Path) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::Syntax { path: path.to_owned(), reason: error.to_string() })
}

fn plugins<'l>(list: &'l mut Value, path: &Path) -> Result<&'l mut Vec<Value>, Error> {
    let plugins = list["plugins"].as_array_mut();
    plugins.ok_or_else(|| Error::Syntax { path: path.to_owned(), reason: "there is no list `plugins`".to_owned() })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// With the rights it had.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    write(path, bytes, metadata.permissions().mode())
}

/// Whole or not at all. The unfinished file has a name no runtime reads.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let unfinished = path.with_extension("heddle-unfinished");
    let written = fs::write(&unfinished, bytes)
        .and_then(|()| fs::set_permissions(&unfinished, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Until the configuration is looked at again. Chosen: a provider that writes it anew leaves pods uncaptured for so long, and
/// these find out themselves and do not run.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"{ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "bridge" }, { "type": "portmap" }] }"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn types(path: &Path) -> Vec<String> {
        let list: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_plugin_stands_last_in_the_configuration_in_force_and_once() {
        let folder = folder(&[("10-pods.conflist", LIST), ("99-other.conflist", LIST), ("05-readme", "no")]);
        let path = folder.path().join("10-pods.conflist");

        assert_eq!(add(folder.path()).unwrap(), Some(path.clone()));
        assert_eq!(add(folder.path()).unwrap(), None);

        assert_eq!(types(&path), ["bridge", "portmap", "heddle-cni"]);
        assert_eq!(types(&folder.path().join("99-other.conflist")), ["bridge", "portmap"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn removing_leaves_what_was_there() {
        let (conf, bin) = (folder(&[("10-pods.conflist", LIST), ("20.conf", "{}")]), folder(&[(FILE_NAME, "")]));
        add(conf.path()).unwrap();

        for _ in 0..2 {
            remove(bin.path(), conf.path()).unwrap();
        }

        let list: Value =
            serde_json::from_str(&fs::read_to_string(conf.path().join("10-pods.conflist")).unwrap()).unwrap();
        assert_eq!(list, serde_json::from_str::<Value>(LIST).unwrap());
        assert_eq!(fs::read_dir(bin.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_added_to_is_named() {
        for (files, reason) in [
            (&[][..], "no network configuration yet"),
            (&[("10.conf", "{}")][..], "write this one as a list"),
            (&[("10.conflist", "{")][..], "EOF"),
            (&[("10.conflist", "{}")][..], "no list `plugins`"),
        ] {
            let error = add(folder(files).path()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn the_binary_that_is_put_there_is_this_one() {
        let bin = folder(&[]);
        copy_binary(bin.path()).unwrap();
        let path = bin.path().join(FILE_NAME);
        assert_eq!(fs::read(&path).unwrap(), fs::read("/proc/self/exe").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
