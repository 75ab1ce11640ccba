//! Silence on a request that is under way: nothing of its body and nothing of its response.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::body::Counter;

/// Which time is over.
pub enum Over {
    /// That for all of it.
    Limit,
    /// That for silence.
    Idle,
}

/// What `future` gives, if it does so before `limit` and not after a silence of `idle`; while `progress` grows there is none.
pub async fn within<T>(
    limit: Option<Instant>,
    idle: Option<Duration>,
    progress: &Counter,
    future: impl Future<Output = T>,
) -> Result<T, Over> {
    let mut future = pin!(future);
    loop {
        let (before, silent) = (progress.get(), idle.map(|idle| Instant::now() + idle));
        let next = match (limit, silent) {
            (Some(limit), Some(silent)) => limit.min(silent),
            (limit, silent) => match limit.or(silent) {
                Some(next) => next,
                None => return Ok(future.await),
            },
        };
        if let Ok(value) = tokio::time::timeout_at(next.into(), &mut future).await {
            return Ok(value);
        }
        if limit.is_some_and(|limit| limit <= next) {
            return Err(Over::Limit);
        }
        if progress.get() == before {
            return Err(Over::Idle);
        }
    }
}

/// Watches a response's body, and what is left of its request's.
pub struct Watch {
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    /// When something came last, as far as it was looked at.
    last: Instant,
    /// Of the request's body.
    seen: u64,
}

impl Watch {
    /// Begins now.
    pub fn begin(idle: Duration, progress: &Counter) -> Self {
        let timer = Box::pin(tokio::time::sleep(idle));
        Self { idle, timer, last: Instant::now(), seen: progress.get() }
    }

    /// A part of the response came.
    pub fn came(&mut self) {
        self.last = Instant::now();
    }

    /// Ready when there was silence for too long; `progress` is the request's.
    pub fn poll_over(&mut self, progress: &Counter, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if progress.get() != self.seen {
                self.seen = progress.get();
                self.last = Instant::now();
            }
            let over = self.last + self.idle;
            if over <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(over.into());
        }
    }
}
