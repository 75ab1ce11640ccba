//! Attempts beside one another: where an answer does not come for a while, another endpoint is asked too, and the first good answer
//! counts (Dean and Barroso, "The Tail at Scale", 2013). Only for requests that may be made twice and have no body.

use std::sync::Arc;
use std::time::Instant;

use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use super::{Outcome, Source, Target, Tries, asks_for_retry, attempt, pick};
use crate::balance::breaker::{self, Kind};
use crate::tables::cluster::Endpoint;
use crate::tables::route::Hedge;

/// The outcome of attempts at `first` and at others; a failed one counts only if it is the last.
pub(super) async fn race(
    target: &Target<'_>,
    hedge: &Hedge,
    first: Arc<Endpoint>,
    source: &Source,
    tries: &mut Tries,
    tried: &mut impl FnMut(&Endpoint),
) -> Outcome {
    let permit = tries.permit.take();
    let mut running = FuturesUnordered::new();
    running.push(begin(target, first, source, tries.endpoints.len(), permit));
    let (mut left, mut next) = (hedge.attempts, Instant::now() + hedge.delay);
    loop {
        let ended = match tokio::time::timeout_at(next.into(), running.next()).await {
            Ok(ended) => ended,
            Err(_) if left == 0 => running.next().await,
            Err(_) => {
                (left, next) = (left - 1, next + hedge.delay);
                running.extend(another(target, source, tries, tried));
                continue;
            }
        };
        // There is one until this returns.
        let Some(outcome) = ended else { continue };
        if running.is_empty() || is_good(target, &outcome) {
            if let Ok((_, lease)) = &outcome {
                tried(&lease.endpoint);
            }
            return outcome;
        }
    }
}

/// One more attempt, if the budget of retries has room, at an endpoint that was not asked yet.
fn another<'r>(
    target: &'r Target<'_>,
    source: &Source,
    tries: &mut Tries,
    tried: &mut impl FnMut(&Endpoint),
) -> Option<LocalBoxFuture<'r, Outcome>> {
    let cluster = target.cluster;
    let endpoint = pick(target, &tries.endpoints).ok().filter(|endpoint| !tries.endpoints.contains(&endpoint.id()))?;
    let permit = breaker::permit(&cluster.state, &cluster.settings, Kind::Retries)?;
    tries.endpoints.push(endpoint.id());
    tried(&endpoint);
    target.worker.shared.metrics.retries.record(&cluster.name, "hedge");
    Some(begin(target, endpoint, source, tries.endpoints.len(), Some(permit)))
}

fn begin<'r>(
    target: &'r Target<'_>,
    endpoint: Arc<Endpoint>,
    source: &Source,
    number: usize,
    permit: Option<breaker::Permit>,
) -> LocalBoxFuture<'r, Outcome> {
    let mut twin = source.twin();
    Box::pin(async move { attempt(target, endpoint, &mut twin, number, permit).await })
}

fn is_good(target: &Target<'_>, outcome: &Outcome) -> bool {
    let policy = target.rule.and_then(|rule| rule.retry.as_ref());
    let again = |response| policy.is_some_and(|policy| asks_for_retry(policy, response));
    outcome.as_ref().is_ok_and(|(response, _)| !again(response))
}
