//! Puts [`Core`] to the sockets and the clock: runs on the control thread, for as long as the sidecar.
//!
//! The xDS client hands updates to a handler, workers hand in wishes, a tick passes the time; each of them changes the
//! core under a lock that is never held across an await, and what follows is published and subscribed at once.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heddle_xds::Node;
use heddle_xds::client::{self, Connect, Connection, Error, Subscriptions};
use heddle_xds::delta::client::Update;
use heddle_xds::nack::Reject;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::assemble::{Command, Core};
use super::counts::{Counts, count};
use crate::tables::demand::Wishes;
use crate::tables::{Millis, Tables};

/// Keeps `publish`ed tables in step with the control plane, for as long as workers can wish. `now` is the clock that
/// [`Seen`](crate::tables::Seen) is written by. `publish` is called with whole tables, from the tasks of this future.
pub fn run<C, P, N>(
    node: Node,
    connect: C,
    wishes: Wishes,
    counts: Arc<Counts>,
    publish: P,
    now: N,
) -> impl Future<Output = ()> + Send + 'static
where
    C: Connect,
    P: Fn(Tables) + Send + Sync + 'static,
    N: Fn() -> Millis + Send + Sync + 'static,
{
    let shared =
        Arc::new(Shared { core: Mutex::new(Core::new(counts.clone())), changed: Notify::new(), counts, publish, now });
    let handler = shared.clone();
    let (subscriptions, client) = client::new(node, connect, move |update: &Update| handler.apply(update));
    async move {
        let driver = Driver { shared, subscriptions, unsent: VecDeque::new() };
        // The client ends when the driver drops its subscriptions.
        tokio::join!(client, driver.run(wishes));
    }
}

/// What the xDS client's task and the driver share.
struct Shared<P, N> {
    core: Mutex<Core>,
    /// The core may have something new to subscribe to.
    changed: Notify,
    counts: Arc<Counts>,
    publish: P,
    now: N,
}

impl<P: Fn(Tables), N: Fn() -> Millis> Shared<P, N> {
    fn apply(&self, update: &Update) -> Vec<Reject> {
        let mut core = self.core();
        let rejects = core.apply(update, (self.now)());
        self.publish(&mut core);
        drop(core);
        self.changed.notify_one();
        for reject in &rejects {
            tracing::warn!(kind = %update.kind, %reject, "refused; the last good version stays");
        }
        rejects
    }

    /// Changes the core, publishes what follows and returns what is to be subscribed to.
    fn change(&self, change: impl FnOnce(&mut Core, Millis)) -> Vec<Command> {
        let mut core = self.core();
        change(&mut core, (self.now)());
        self.publish(&mut core);
        core.take_commands()
    }

    fn publish(&self, core: &mut Core) {
        // Under the lock, so that two publications cannot overtake one another.
        if let Some(tables) = core.take_tables() {
            (self.publish)(tables);
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // A panic in the middle of a change leaves what was told before and after it; the next change goes on from there.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Driver<P, N> {
    shared: Arc<Shared<P, N>>,
    subscriptions: Subscriptions,
    /// Commands the client had no place for.
    unsent: VecDeque<Command>,
}

impl<P: Fn(Tables), N: Fn() -> Millis> Driver<P, N> {
    async fn run(mut self, mut wishes: Wishes) {
        let mut connection = self.subscriptions.connection();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let commands = tokio::select! {
                wish = wishes.recv() => {
                    let Some(first) = wish else { return };
                    self.shared.change(|core, now| {
                        core.wish(first, now);
                        // All that wait: one subscription for a burst.
                        while let Ok(next) = wishes.try_recv() {
                            core.wish(next, now);
                        }
                    })
                }
                () = self.shared.changed.notified() => self.shared.change(|_, _| {}),
                _ = ticks.tick() => self.shared.change(Core::tick),
                () = tokio::time::sleep(RETRY), if !self.unsent.is_empty() => Vec::new(),
                change = connection.changed() => {
                    if change.is_err() {
                        return;
                    }
                    self.note(&connection.borrow_and_update());
                    continue;
                }
            };
            self.unsent.extend(commands);
            if self.send().is_err() {
                return;
            }
        }
    }

    fn note(&self, connection: &Connection) {
        let counts = &self.shared.counts;
        let connected = matches!(connection, Connection::Connected);
        counts.connected.store(connected, std::sync::atomic::Ordering::Relaxed);
        if let Connection::Waiting { failures, error } = connection {
            count(&counts.disconnects);
            tracing::info!(failures, %error, "no control plane; everything known stays in force");
        }
    }

    /// In order, as far as the client takes them. Fails if it is gone.
    fn send(&mut self) -> Result<(), Error> {
        while let Some(command) = self.unsent.front() {
            let name = command.name.clone();
            let given = if command.wanted {
                self.subscriptions.subscribe(command.kind, name)
            } else {
                self.subscriptions.unsubscribe(command.kind, name)
            };
            match given {
                Ok(()) => drop(self.unsent.pop_front()),
                Err(Error::Busy) => return Ok(()),
                Err(Error::Ended) => return Err(Error::Ended),
            }
        }
        Ok(())
    }
}

/// How often waiting and unused things are looked at. Chosen: far finer than the times they are given.
const TICK: Duration = Duration::from_secs(1);
/// How soon commands are tried again the client had no place for. Chosen: it takes a thousand in far less.
const RETRY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
