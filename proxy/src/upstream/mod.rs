//! Connections to endpoints: lend one from the worker's pool, or dial.

mod connect;
mod http;
mod pool;

pub use connect::{Dialer, Dialled, Towards};
pub use http::{Sender, Version};
pub use pool::{Lease, Pools, lend};
