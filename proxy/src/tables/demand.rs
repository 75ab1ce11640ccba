//! Asking for destinations that are not known yet.
//!
//! A worker that meets an unknown original destination leaves its wish here and waits for a publication; the
//! control thread takes the wishes and subscribes. All connections to one destination share one subscription.

use std::net::SocketAddr;

use tokio::sync::mpsc;

/// Wishes that may wait for the control thread. Chosen: it takes them at once, so this fills only when it is stuck,
/// and then refusing is right.
const QUEUE: usize = 4_096;

/// The workers' end.
#[derive(Debug)]
pub struct Demand(mpsc::Sender<SocketAddr>);

/// The control thread's end.
pub type Wishes = mpsc::Receiver<SocketAddr>;

impl Demand {
    /// Both ends.
    pub fn new() -> (Self, Wishes) {
        let (sender, wishes) = mpsc::channel(QUEUE);
        (Self(sender), wishes)
    }

    /// Asks for `destination`; false if nobody takes wishes, or too many wait.
    pub fn ask(&self, destination: SocketAddr) -> bool {
        self.0.try_send(destination).is_ok()
    }
}
