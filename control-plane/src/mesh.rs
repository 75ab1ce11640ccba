//! From changed objects to published resources: the one task that translates.
//!
//! Each round takes the newest snapshot of the source, however many came since the last; what did not change is not
//! translated again. A translation that panicked changes nothing that worked: it is logged, and the next change is taken
//! from the last state that was published. Made by [`crate::app`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::objects::{KINDS, Objects};
use crate::publish::Publisher;
use crate::source::{Problem, Snapshot};
use crate::translate::{self, Settings};

/// What translation works with.
#[derive(Debug)]
pub struct Mesh {
    settings: Settings,
    publisher: Arc<Publisher>,
    metrics: Metrics,
    last: Mutex<Last>,
}

/// What the last round worked with.
#[derive(Debug, Default)]
struct Last {
    /// What the published state was made of.
    objects: Objects,
    problems: Arc<[Problem]>,
}

impl Mesh {
    /// Translates and publishes the first snapshot: after this there is a mesh to serve.
    pub fn begin(settings: Settings, publisher: Arc<Publisher>, metrics: Metrics, first: &Snapshot) -> Self {
        let seen = Instant::now();
        publisher.publish(translate::all(&first.objects, &settings), None, seen);
        metrics.published(seen.elapsed());
        let mut last = Last::default();
        last.count(&metrics, first);
        last.objects = first.objects.clone();
        Self { settings, publisher, metrics, last: Mutex::new(last) }
    }

    /// Publishes every change, until the source ends.
    pub async fn follow(self, mut snapshots: watch::Receiver<Snapshot>) {
        let this = Arc::new(self);
        while snapshots.changed().await.is_ok() {
            let seen = Instant::now();
            let snapshot = snapshots.borrow_and_update().clone();
            let worker = Arc::clone(&this);
            // A whole mesh may take a second; streams go on meanwhile.
            let done = tokio::task::spawn_blocking(move || worker.take(&snapshot, seen)).await;
            if let Err(error) = done {
                tracing::error!(%error, "a change could not be translated; everything stays as it was");
            }
        }
    }

    fn take(&self, snapshot: &Snapshot, seen: Instant) {
        // Each part is exchanged whole, so what a panic left is usable.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.count(&self.metrics, snapshot);
        if snapshot.objects.generation() == last.objects.generation() {
            // Something was said about the objects, and nothing by them.
            return;
        }
        let Some(before) = self.publisher.snapshot() else { return };
        let (translation, touched) =
            translate::update(before.translation(), &last.objects, &snapshot.objects, &self.settings);
        let changed = self.publisher.publish(translation, Some(&touched), seen);
        last.objects = snapshot.objects.clone();
        if changed {
            self.metrics.published(seen.elapsed());
        }
    }
}

impl Last {
    fn count(&mut self, metrics: &Metrics, snapshot: &Snapshot) {
        let new = snapshot.problems.iter().filter(|problem| !self.problems.contains(problem)).count();
        metrics.source_read(new, snapshot.problems.len());
        self.problems = snapshot.problems.clone();
        for kind in KINDS {
            metrics.objects(kind.name(), snapshot.objects.count(kind));
        }
    }
}
