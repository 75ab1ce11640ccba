//! Connections to endpoints: lend one from the worker's pool, or dial.

mod connect;
mod pool;

pub use connect::{Dialer, Io};
pub use pool::{Lease, Pools, Sender, lend};
