//! Objects from a directory of manifests, watched and reloaded.
//!
//! All files `*.yaml`, `*.yml` and `*.json` below the directory count, hidden ones apart (a mounted ConfigMap keeps its
//! versions in such). A file that is broken, half-written or contradicts another changes nothing: what it last said
//! well stays in force, and the file is named with line, field, value and remedy. Two files contradict each other when
//! both hold the same object, a Pod and a Workload of the same name, or Services with the same cluster IP; the file
//! that said it first keeps it. A file that is gone takes its objects along; one that is suddenly empty does not, because
//! that is how a file being written looks. The directory itself must stay where it is while it is watched.
//!
//! [`Loader`] reads and compares and is called by hand in tests; [`watch`] calls it when files change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::Watcher;
use tokio::sync::{mpsc, watch};

use super::manifest::{self, Manifest};
use super::{Problem, Snapshot};
use crate::objects::{Object, ObjectKey, Objects};
use crate::translate::cluster_ips;

/// Why a file, or the directory, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{0}: check that it exists and may be read")]
    Read(String),
    /// The directory cannot be watched.
    #[error("cannot watch {path}: {reason}: raise fs.inotify.max_user_watches, or restart after changes")]
    Watch {
        /// The directory.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// More than is read.
    #[error("{what} is above the limit of {limit}: {remedy}")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much is read.
        limit: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// Nothing in it, where there was something.
    #[error("the file is empty; what it said before stays: to take its objects out, delete the file")]
    Empty,
    /// The text is no manifest.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// Another file, or another object of the same file, says so already.
    #[error("line {line}: {object}: {claim} is taken by {other}: remove or rename one of them")]
    Contradiction {
        /// Where the object stands.
        line: u64,
        /// The object.
        object: String,
        /// What can be had once only.
        claim: String,
        /// Who has it.
        other: String,
    },
}

/// The directory as it was last read.
#[derive(Debug)]
pub struct Loader {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    snapshot: Snapshot,
}

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Below the directory.
    pub file: PathBuf,
    /// From 1.
    pub line: u64,
}

#[derive(Debug, Default)]
struct File {
    /// What it said when it was last good.
    good: Manifest,
    /// What it says now, if that is a manifest.
    new: Option<Manifest>,
    error: Option<Error>,
    text: Option<String>,
}

impl Loader {
    /// A loader that has read nothing yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), files: BTreeMap::new(), snapshot: Snapshot::default() }
    }

    /// Reads what changed and returns what is in force now. An unreadable directory keeps everything as it was.
    pub fn reload(&mut self) -> Result<Snapshot, Error> {
        let mut found = BTreeSet::new();
        let mut problems = Vec::new();
        list(&self.root, &self.root, 0, &mut found, &mut problems)?;
        self.files.retain(|path, _| found.contains(path));
        for path in found {
            let full = self.root.join(&path);
            self.files.entry(path).or_default().read(&full);
        }
        self.settle_contradictions();
        for (path, file) in &mut self.files {
            if let Some(new) = file.new.clone() {
                file.good = new;
            }
            problems.extend(file.error.as_ref().map(|error| problem(path, error)));
        }
        problems.sort();
        let ignored = self
            .files
            .iter()
            .flat_map(|(path, file)| file.good.ignored.iter().map(move |what| format!("{}: {what}", path.display())));
        self.snapshot = Snapshot {
            objects: self.objects(),
            problems: problems.into(),
            ignored: ignored.collect(),
            ..Snapshot::default()
        };
        Ok(self.snapshot.clone())
    }

    /// Where an object stands, or an entry of its list of rules or limits, by place or by name.
    pub fn place(&self, key: &ObjectKey, entry: Option<&str>) -> Option<Place> {
        self.files.iter().find_map(|(path, file)| {
            let line = file.good.objects.iter().find(|parsed| parsed.object.key() == *key)?.line;
            let entry = entry.and_then(|entry| manifest::line_of_entry(file.text.as_deref()?, line, entry));
            Some(Place { file: path.clone(), line: entry.unwrap_or(line) })
        })
    }

    /// Takes back new contents that claim what another file has, until no two do.
    fn settle_contradictions(&mut self) {
        loop {
            let mut taken: BTreeMap<String, (PathBuf, String)> = BTreeMap::new();
            // Old contents first: they never contradict each other, and they keep what they have.
            let mut order: Vec<_> = self.files.iter().map(|(path, file)| (file.rank(), path.clone())).collect();
            order.sort();
            let mut refused = None;
            'files: for (_, path) in &order {
                let Some(file) = self.files.get(path) else { continue };
                for parsed in &file.current().objects {
                    for claim in claims(&parsed.object) {
                        let here = parsed.object.key().to_string();
                        if let Some((other, holder)) = taken.get(&claim) {
                            let shown = format!("{holder} in {}", other.display());
                            let error = Error::Contradiction { line: parsed.line, object: here, claim, other: shown };
                            refused = Some((path.clone(), other.clone(), error));
                            break 'files;
                        }
                        taken.insert(claim, (path.clone(), here));
                    }
                }
            }
            let Some((path, other, error)) = refused else { return };
            // The one that had it before keeps it, whichever comes first by name.
            let loser = if path != other && self.held_before(&path, &error) { other } else { path };
            match self.files.get_mut(&loser) {
                Some(file) if file.new.is_some() => {
                    file.new = None;
                    file.error = Some(error);
                }
                // Old contents alone cannot contradict each other.
                _ => return,
            }
        }
    }

    fn held_before(&self, path: &Path, error: &Error) -> bool {
        let Error::Contradiction { claim, .. } = error else { return false };
        let before = self.files.get(path).map(|file| &file.good);
        before.is_some_and(|good| good.objects.iter().any(|parsed| claims(&parsed.object).contains(claim)))
    }

    /// The objects in force; those that say what they said are the same shared values, others a generation older.
    fn objects(&self) -> Objects {
        let before = &self.snapshot.objects;
        let mut now = before.clone();
        let mut keys = BTreeSet::new();
        for parsed in self.files.values().flat_map(|file| &file.good.objects) {
            let key = parsed.object.key();
            let unchanged = before.object(&key).is_some_and(|old| old.same(&parsed.object));
            if !unchanged {
                now.set(parsed.object.clone());
            }
            keys.insert(key);
        }
        for key in before.keys().difference(&keys) {
            now.remove(key);
        }
        now
    }
}

impl File {
    /// Takes in what the file says now.
    fn read(&mut self, path: &Path) {
        let text = match read_limited(path) {
            Ok(text) => text,
            Err(error) => {
                (self.new, self.error, self.text) = (None, Some(error), None);
                return;
            }
        };
        // Unchanged and in force: nothing to do. Unchanged and refused: what stood in its way may be gone.
        if self.text.as_ref() == Some(&text) && self.error.is_none() {
            self.new = None;
            return;
        }
        match manifest::parse(&text) {
            Ok(new) if new.objects.is_empty() && new.ignored.is_empty() && !self.good.objects.is_empty() => {
                (self.new, self.error) = (None, Some(Error::Empty));
            }
            Ok(new) => (self.new, self.error) = (Some(self.keep_unchanged(new)), None),
            Err(error) => (self.new, self.error) = (None, Some(error.into())),
        }
        self.text = Some(text);
    }

    /// Objects that say what they said stay the same shared values; changed ones get the next generation.
    fn keep_unchanged(&self, mut new: Manifest) -> Manifest {
        for parsed in &mut new.objects {
            let key = parsed.object.key();
            let old = self.good.objects.iter().find(|old| old.object.key() == key);
            match old {
                Some(old) if old.value == parsed.value => parsed.object = old.object.clone(),
                Some(old) => {
                    let last = old.object.metadata().generation.unwrap_or(1);
                    let same_spec = old.value.get("spec") == parsed.value.get("spec");
                    parsed.object.set_generation(if same_spec { last } else { last + 1 });
                }
                None => parsed.object.set_generation(1),
            }
        }
        new
    }

    fn current(&self) -> &Manifest {
        self.new.as_ref().unwrap_or(&self.good)
    }

    fn rank(&self) -> u8 {
        u8::from(self.new.is_some())
    }
}

fn problem(file: &Path, error: &Error) -> Problem {
    Problem { place: file.display().to_string(), reason: error.to_string() }
}

/// What no two objects may have.
fn claims(object: &Object) -> Vec<String> {
    let key = object.key();
    let mut claims = vec![key.to_string()];
    let node = format!("workload name {}/{}", key.namespace, key.name);
    match object {
        Object::Pod(_) | Object::Workload(_) => claims.push(node),
        Object::Service(service) => {
            claims.extend(cluster_ips(service).into_iter().map(|ip| format!("cluster IP {ip}")));
        }
        _ => {}
    }
    claims
}

fn list(
    root: &Path,
    folder: &Path,
    depth: usize,
    found: &mut BTreeSet<PathBuf>,
    problems: &mut Vec<Problem>,
) -> Result<(), Error> {
    let entries = fs::read_dir(folder).map_err(|error| Error::Read(format!("{}: {error}", folder.display())))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::Read(format!("{}: {error}", folder.display())))?;
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // Follows links, as a mounted ConfigMap needs; what vanished meanwhile is no longer there.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
        if hidden {
            continue;
        }
        if metadata.is_dir() {
            if depth >= MAX_DEPTH {
                let what = format!("folder {}", relative.display());
                let error = Error::Limit { what, limit: MAX_DEPTH as u64, remedy: "put its files higher up" };
                problems.push(problem(&relative, &error));
            } else {
                list(root, &path, depth + 1, found, problems)?;
            }
        } else if is_manifest(&path) {
            if found.len() >= MAX_FILES {
                let error =
                    Error::Limit { what: "number of files".into(), limit: MAX_FILES as u64, remedy: "join files" };
                problems.push(problem(&relative, &error));
                return Ok(());
            }
            found.insert(relative);
        }
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    matches!(path.extension().and_then(|extension| extension.to_str()), Some("yaml" | "yml" | "json"))
}

fn read_limited(path: &Path) -> Result<String, Error> {
    let failed = |error: std::io::Error| Error::Read(error.to_string());
    let mut text = String::new();
    let read =
        fs::File::open(path).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > MAX_FILE_BYTES {
        let what = "size of the file in bytes".into();
        return Err(Error::Limit { what, limit: MAX_FILE_BYTES, remedy: "split it" });
    }
    Ok(text)
}

/// A directory under watch. Dropping it ends the watch; the snapshots stay as they are.
#[derive(Debug)]
pub struct Watch {
    snapshots: watch::Receiver<Snapshot>,
    _watcher: notify::RecommendedWatcher,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    /// Snapshots as they come; the first is there already.
    pub fn snapshots(&self) -> watch::Receiver<Snapshot> {
        self.snapshots.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads `root` and watches it. Must be called within a tokio runtime. Fails if the directory cannot be read or watched
/// now; what goes wrong later is logged, and everything stays as it was.
pub fn watch(root: &Path) -> Result<Watch, Error> {
    let (dirty, changes) = mpsc::channel(1);
    // Watched before it is read, so that no change falls between.
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.as_ref().map_or(true, |event| !event.kind.is_access()) {
            // Full: a reload is due already.
            let _ = dirty.try_send(());
        }
    })
    .map_err(|error| watch_error(root, &error))?;
    watcher.watch(root, notify::RecursiveMode::Recursive).map_err(|error| watch_error(root, &error))?;
    let mut loader = Loader::new(root);
    let first = loader.reload()?;
    log_changes(&Snapshot::default(), &first);
    let (sender, snapshots) = watch::channel(first);
    let task = tokio::spawn(reload_on_change(loader, changes, sender));
    Ok(Watch { snapshots, _watcher: watcher, task })
}

async fn reload_on_change(mut loader: Loader, mut changes: mpsc::Receiver<()>, sender: watch::Sender<Snapshot>) {
    while changes.recv().await.is_some() {
        settle(&mut changes).await;
        let reloaded = tokio::task::spawn_blocking(move || {
            let result = loader.reload();
            (loader, result)
        });
        let Ok((back, result)) = reloaded.await else { return };
        loader = back;
        match result {
            Ok(snapshot) => {
                log_changes(&sender.borrow(), &snapshot);
                sender.send_if_modified(|last| {
                    let differs = last.objects.generation() != snapshot.objects.generation()
                        || last.problems != snapshot.problems
                        || last.ignored != snapshot.ignored;
                    *last = snapshot;
                    differs
                });
            }
            Err(error) => tracing::error!(%error, "the directory cannot be read; everything stays as it was"),
        }
    }
}

/// Waits until nothing has changed for [`SETTLE`], but not for ever.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    let quiet = async { while let Ok(Some(())) = tokio::time::timeout(SETTLE, changes.recv()).await {} };
    let _ = tokio::time::timeout(MAX_SETTLE, quiet).await;
}

fn log_changes(before: &Snapshot, now: &Snapshot) {
    for problem in now.problems.iter().filter(|problem| !before.problems.contains(problem)) {
        tracing::warn!(file = problem.place, error = problem.reason, "not in force as it is now");
    }
    for what in now.ignored.iter().filter(|what| !before.ignored.contains(what)) {
        tracing::info!(what, "not of a kind that is read");
    }
}

fn watch_error(root: &Path, error: &notify::Error) -> Error {
    Error::Watch { path: root.display().to_string(), reason: error.to_string() }
}

/// Quiet time before a reload. Chosen: an editor's write and rename are closer together, and nobody notices it.
const SETTLE: Duration = Duration::from_millis(50);
/// Longest wait for quiet. Chosen: a directory that never rests is still read every second.
const MAX_SETTLE: Duration = Duration::from_secs(1);
/// Bytes of one file. Chosen: twice what etcd takes for one object.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Files of the directory. Chosen: a hundred times a large application.
const MAX_FILES: usize = 10_000;
/// Folders within folders. Chosen: links in a circle end somewhere.
const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn loader(&self) -> Loader {
            Loader::new(self.0.path())
        }
    }

    fn service(name: &str, ip: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  clusterIP: {ip}\n  \
             ports: [{{port: 80}}]\n"
        )
    }

    fn names(snapshot: &Snapshot) -> Vec<String> {
        snapshot.objects.keys().iter().map(ToString::to_string).collect()
    }

    fn ip(snapshot: &Snapshot, name: &str) -> String {
        let service = snapshot.objects.services.get("shop", name).unwrap();
        service.spec.as_ref().unwrap().cluster_ip.clone().unwrap()
    }

    #[test]
    fn a_broken_file_keeps_what_it_said_last_and_is_named_until_it_is_mended() {
        let dir = Dir::new();
        dir.write("a.yaml", &service("api", "10.96.0.1"));
        dir.write("b.yaml", &service("web", "10.96.0.2"));
        let mut loader = dir.loader();
        loader.reload().unwrap();
        dir.write("a.yaml", &service("api", "10.96.0.9").replace("port: 80", "port: eighty"));
        dir.write("b.yaml", &service("web", "10.96.0.8"));
        let broken = loader.reload().unwrap();
        assert_eq!((ip(&broken, "api"), ip(&broken, "web")), ("10.96.0.1".into(), "10.96.0.8".into()));
        assert_eq!(
            broken.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "a.yaml: line 6: Service shop/api: spec.ports[0].port: `eighty`: invalid type: string \"eighty\", expected i32"
            ]
        );
        dir.write("a.yaml", &service("api", "10.96.0.9"));
        let mended = loader.reload().unwrap();
        assert_eq!((ip(&mended, "api"), mended.problems.len()), ("10.96.0.9".into(), 0));
    }

    #[test]
    fn the_file_that_had_an_object_first_keeps_it_until_it_lets_go() {
        let dir = Dir::new();
        dir.write("z.yaml", &service("api", "10.96.0.1"));
        let mut loader = dir.loader();
        loader.reload().unwrap();
        dir.write("a.yaml", &service("api", "10.96.0.2"));
        let contradicted = loader.reload().unwrap();
        assert_eq!(ip(&contradicted, "api"), "10.96.0.1");
        let problem = contradicted.problems[0].to_string();
        assert!(problem.starts_with("a.yaml: line 1: Service shop/api") && problem.contains("z.yaml"), "{problem}");
        fs::remove_file(dir.0.path().join("z.yaml")).unwrap();
        let settled = loader.reload().unwrap();
        assert_eq!((ip(&settled, "api"), settled.problems.len()), ("10.96.0.2".into(), 0));
    }

    #[test]
    fn two_services_cannot_have_one_cluster_ip_nor_a_pod_and_a_workload_one_name() {
        let dir = Dir::new();
        dir.write("a.yaml", &service("api", "10.96.0.1"));
        dir.write("b.yaml", &service("web", "10.96.0.1"));
        let workload =
            "apiVersion: heddle.dev/v1alpha1\nkind: Workload\nmetadata: {name: x}\nspec: {addresses: [10.1.0.1]}\n";
        dir.write("c.yaml", workload);
        dir.write("d.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}\n");
        let snapshot = dir.loader().reload().unwrap();
        assert_eq!(names(&snapshot), ["Service shop/api", "Workload default/x"]);
        let files: Vec<_> = snapshot.problems.iter().map(|problem| &*problem.place).collect();
        assert_eq!(files, ["b.yaml", "d.yaml"]);
    }

    #[test]
    fn objects_may_move_and_even_swap_files_in_one_step() {
        let dir = Dir::new();
        dir.write("a.yaml", &service("api", "10.96.0.1"));
        dir.write("b.yaml", &service("web", "10.96.0.2"));
        let mut loader = dir.loader();
        loader.reload().unwrap();
        dir.write("a.yaml", &service("web", "10.96.0.2"));
        dir.write("b.yaml", &service("api", "10.96.0.1"));
        let swapped = loader.reload().unwrap();
        assert_eq!((names(&swapped).len(), swapped.problems.len()), (2, 0), "{:?}", swapped.problems);
    }

    #[test]
    fn what_says_the_same_stays_the_same_value_and_a_new_spec_is_a_new_generation() {
        let dir = Dir::new();
        dir.write("a.yaml", &format!("{}---\n{}", service("api", "10.96.0.1"), service("web", "10.96.0.2")));
        let mut loader = dir.loader();
        let before = loader.reload().unwrap();
        dir.write("a.yaml", &format!("# note\n{}---\n{}", service("api", "10.96.0.1"), service("web", "10.96.0.3")));
        let after = loader.reload().unwrap();
        let changed = after.objects.changed_since(&before.objects);
        assert_eq!(changed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["Service shop/web"]);
        let generation = |name: &str| after.objects.services.get("shop", name).unwrap().metadata.generation;
        assert_eq!((generation("api"), generation("web")), (Some(1), Some(2)));
    }

    #[test]
    fn an_emptied_file_keeps_its_objects_and_a_deleted_one_takes_them_along() {
        let dir = Dir::new();
        dir.write("a.yaml", &service("api", "10.96.0.1"));
        let mut loader = dir.loader();
        loader.reload().unwrap();
        dir.write("a.yaml", "");
        let emptied = loader.reload().unwrap();
        assert_eq!((names(&emptied).len(), &emptied.problems[0].reason), (1, &Error::Empty.to_string()));
        fs::remove_file(dir.0.path().join("a.yaml")).unwrap();
        assert!(names(&loader.reload().unwrap()).is_empty());
    }

    #[test]
    fn folders_are_read_and_hidden_ones_and_other_files_are_not() {
        let dir = Dir::new();
        dir.write("deep/er/a.yml", &service("api", "10.96.0.1"));
        dir.write("..2026/b.yaml", &service("web", "10.96.0.2"));
        dir.write(".a.yaml.swp", "not yaml: [");
        dir.write("README.md", "not yaml: [");
        dir.write("c.json", r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "api"}}"#);
        let snapshot = dir.loader().reload().unwrap();
        assert_eq!(names(&snapshot), ["Service shop/api"]);
        assert_eq!(
            (&*snapshot.ignored, snapshot.problems.len()),
            (&["c.json: apps/v1 Deployment api".to_owned()][..], 0)
        );
    }

    #[tokio::test]
    async fn a_watched_file_replaced_by_rename_is_read_again() {
        let dir = Dir::new();
        dir.write("a.yaml", &service("api", "10.96.0.1"));
        let watch = watch(dir.0.path()).unwrap();
        let mut snapshots = watch.snapshots();
        assert_eq!(ip(&snapshots.borrow_and_update(), "api"), "10.96.0.1");
        dir.write(".a.yaml.new", &service("api", "10.96.0.2"));
        fs::rename(dir.0.path().join(".a.yaml.new"), dir.0.path().join("a.yaml")).unwrap();
        let seen = snapshots.wait_for(|snapshot| ip(snapshot, "api") == "10.96.0.2");
        tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap().unwrap();
    }
}
