//! xDS resources → [`tables`](crate::tables): the control plane's word put in force, whole and in order.
//!
//! ```text
//!   wishes ──► assemble::Core ──► what to subscribe to ──► xDS client
//!                    ▲   └──────► tables, published whole
//!   one file per resource kind: bytes → parsed, or where and why not (NACK)  ◄── xDS client
//! ```
//!
//! - [`listener`], [`route`], [`cluster`], [`endpoints`], [`inbound`] read one resource each; pure. This folder is the
//!   only place in the sidecar that names protobuf.
//! - [`assemble`] keeps what was read and what follows from it: what waits for what, what is in force, what nobody
//!   uses any more; pure, time is passed in.
//! - [`driver`] runs on the control thread and puts the two to the sockets and clocks.
//!
//! Envoy's meaning of a field holds here too; what this sidecar does not know is refused where leaving it out would
//! change what happens to traffic.

pub mod assemble;
mod balancing;
pub mod cluster;
mod cors;
pub mod counts;
pub mod driver;
pub mod endpoints;
mod fault;
mod headers;
mod health;
pub mod inbound;
pub mod listener;
mod outlier;
mod rate_limit;
mod rbac;
mod read;
mod retry;
pub mod route;
mod session;

pub use counts::Counts;
pub use driver::run;
pub use read::Error;
