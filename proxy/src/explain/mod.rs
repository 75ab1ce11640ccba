//! Why a request goes where it goes: each decision about it, made by the very functions that serve, and written down.
//!
//! [`Request`] is what is asked about, [`Sight`] the tables and the moment it is asked in; [`outbound`] says what the client's
//! sidecar does and [`inbound`](inbound()) what the server's does. Pure, and nothing is counted, taken or sent. Answers are data
//! ([`answer`]) with a form for people ([`text`]). Asked by the admin page `/explain` and by the `heddle` tool.
//!
//! Where chance decides (weights, shares of faults) every outcome is told with its percentage.

pub mod answer;
mod cluster;
mod describe;
mod form;
mod inbound;
mod outbound;
mod request;
pub mod text;

use std::time::{Duration, SystemTime};

pub use answer::{Ending, Inbound, Outbound, Outcome};
pub use form::{Asked, Direction, Explained, Form, find, read_query};
pub use inbound::{Caller, inbound};
pub use outbound::outbound;
pub use request::{Invalid, Request, Speaks, Target};

use crate::tables::{Millis, Tables};

/// The tables and the moment in which a question is answered.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'t> {
    /// What the sidecar was told.
    pub tables: &'t Tables,
    /// Since the process began, as ejections and rate limits count.
    pub elapsed: Duration,
    /// For sessions that end.
    pub wall: SystemTime,
}

impl Sight<'_> {
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
