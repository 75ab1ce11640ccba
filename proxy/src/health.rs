//! Asks endpoints whether they are well, where their cluster says so (`healthCheck` of a TrafficPolicy).
//!
//! Runs on the admin thread, apart from the workers, which read the verdicts in [`crate::balance::health`]. Every endpoint
//! that takes requests has a task of its own; [`run`] keeps them in step with the tables. Requests are made with this
//! workload's identity and stand in no metric of traffic.

mod ask;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::ask::Asker;
pub use self::ask::Failure;
use crate::balance::health::{self, Check};
use crate::tables::cluster::{Cluster, Endpoint};
use crate::worker::Shared;

/// Asks for as long as the sidecar runs.
pub async fn run(shared: Arc<Shared>) {
    let mut rounds = Rounds { places: Arc::new(Semaphore::new(MAX_AT_ONCE)), running: HashMap::new() };
    loop {
        let tables = shared.tables.load_full();
        let clusters = tables.clusters();
        let changed = shared.tables.wait_for(|now| (!std::ptr::eq(now, &*tables)).then_some(()));
        tokio::pin!(changed);
        loop {
            rounds.follow(&shared, &clusters);
            // Endpoints change without a publication.
            match rounds.running.is_empty() {
                true => changed.as_mut().await,
                false if tokio::time::timeout(TICK, changed.as_mut()).await.is_err() => continue,
                false => {}
            }
            break;
        }
    }
}

/// Who is asked now.
struct Rounds {
    /// For questions under way.
    places: Arc<Semaphore>,
    /// By [`Endpoint::id`].
    running: HashMap<u64, Running>,
}

struct Running {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    task: JoinHandle<()>,
}

impl Rounds {
    /// Begins with endpoints that are new, ends with those that are gone.
    fn follow(&mut self, shared: &Arc<Shared>, clusters: &[Arc<Cluster>]) {
        let mut wanted = HashMap::new();
        let mut left_out = 0;
        for cluster in clusters.iter().filter(|cluster| cluster.settings.health_check.is_some()) {
            for endpoint in cluster.endpoints.load().active() {
                if wanted.len() < MAX_ENDPOINTS {
                    wanted.insert(endpoint.id(), (cluster, endpoint.clone()));
                } else {
                    left_out += 1;
                }
            }
        }
        shared.metrics.health.endpoints(wanted.len(), left_out);
        self.running.retain(|id, running| {
            let stays = wanted.get(id).is_some_and(|(cluster, _)| Arc::ptr_eq(cluster, &running.cluster));
            if !stays {
                running.task.abort();
            }
            if !wanted.contains_key(id) {
                running.endpoint.state.health.forget();
            }
            stays
        });
        for (id, (cluster, endpoint)) in wanted {
            let Some(check) = &cluster.settings.health_check else { continue };
            self.running.entry(id).or_insert_with(|| {
                let asker = Asker::new(shared.clone(), cluster.clone(), endpoint.clone());
                let task = tokio::spawn(keep_asking(shared.clone(), self.places.clone(), check.clone(), asker));
                Running { cluster: cluster.clone(), endpoint, task }
            });
        }
        clusters.iter().filter(|cluster| is_counted(cluster)).for_each(|cluster| health::count(cluster));
    }
}

/// Whether somebody in it is asked, or was.
fn is_counted(cluster: &Cluster) -> bool {
    cluster.settings.health_check.is_some() || cluster.state.unwell.load(Ordering::Relaxed) > 0
}

async fn keep_asking(shared: Arc<Shared>, places: Arc<Semaphore>, check: Arc<Check>, mut asker: Asker) {
    loop {
        if asker.can_ask() {
            // Fails only when the semaphore is closed, which nobody does.
            let place = places.acquire().await;
            let answer = asker.ask(&check).await;
            drop(place);
            let Asker { cluster, endpoint, .. } = &asker;
            shared.metrics.health.asked(&cluster.name, answer.as_ref().err());
            if let Some(well) = endpoint.state.health.note(&check, answer.is_ok()) {
                health::count(cluster);
                let (cluster, endpoint) = (&cluster.name, endpoint.address);
                match answer {
                    Err(failure) if !well => {
                        tracing::warn!(%cluster, %endpoint, %failure, "endpoint is not well: it gets no requests");
                    }
                    _ => tracing::info!(%cluster, %endpoint, "endpoint is well again"),
                }
            }
        }
        // Varied, so that clients do not ask all at once.
        tokio::time::sleep(check.interval.mul_f64(1.0 + JITTER * fastrand::f64())).await;
    }
}

/// How soon new endpoints are asked the first time. Chosen: well below the time in which anyone sees that one is not well.
const TICK: Duration = Duration::from_secs(1);
/// Endpoints of one sidecar that are asked; what is above is counted and taken for well. Chosen: one connection and a
/// question each ten seconds for every one of them is already more than most workloads' own traffic.
const MAX_ENDPOINTS: usize = 2_000;
/// Questions under way at once; others wait. Chosen: as many as the sidecar's own probes.
const MAX_AT_ONCE: usize = 64;
/// By how much intervals vary. As Envoys are told (`interval_jitter_percent`).
const JITTER: f64 = 0.1;
