//! The injection settings in force: a file, read again when it changes, so that what new pods are given needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::inject::Settings;
use crate::metrics::Metrics;

/// Reads the file.
///
/// # Errors
/// Says what is wrong with it: field, value, and what would be right.
pub fn read(path: &Path) -> Result<Settings, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Settings::parse(&text).map_err(|error| error.to_string())
}

/// Takes over what the file says whenever it says something else. A file that cannot be read changes nothing, and is named and
/// counted. Never ends.
pub async fn follow(path: PathBuf, in_force: watch::Sender<Arc<Settings>>, metrics: Metrics) {
    let mut problem = None;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let file = path.clone();
        // A mounted file may be slow to read.
        let said =
            tokio::task::spawn_blocking(move || read(&file)).await.unwrap_or_else(|error| Err(error.to_string()));
        match said {
            Ok(settings) => {
                problem = None;
                let changed = in_force.send_if_modified(|before| {
                    let changed = **before != settings;
                    if changed {
                        *before = Arc::new(settings);
                    }
                    changed
                });
                if changed {
                    tracing::info!(path = %path.display(), "injection settings changed; they hold for new pods");
                }
            }
            Err(error) if problem.as_ref() != Some(&error) => {
                metrics.injection_settings_refused();
                tracing::error!(path = %path.display(), error, "injection settings cannot be used; those before stay");
                problem = Some(error);
            }
            Err(_) => {}
        }
    }
}

/// Between two looks at the file. Chosen: a mounted ConfigMap takes a minute to change, so nobody waits for this.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_file_is_taken_over_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("injection.yaml");
        std::fs::write(&path, "log: info").unwrap();
        let metrics = Metrics::new().unwrap();
        let (sender, mut in_force) = watch::channel(Arc::new(read(&path).unwrap()));
        tokio::spawn(follow(path.clone(), sender, metrics.clone()));

        std::fs::write(&path, "log: debug").unwrap();
        in_force.changed().await.unwrap();
        assert_eq!(in_force.borrow_and_update().log, "debug");

        std::fs::write(&path, "lgo: warn").unwrap();
        let refused = || String::from_utf8(metrics.text().unwrap()).unwrap().contains("_settings_refused_total 1");
        while !refused() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        assert!(!in_force.has_changed().unwrap());

        std::fs::write(&path, "log: warn").unwrap();
        in_force.changed().await.unwrap();
        assert_eq!(in_force.borrow().log, "warn");
    }
}
