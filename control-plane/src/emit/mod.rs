//! The model as xDS resources, pure: one folder for each kind of client, because their dialects differ.
//!
//! Every resource encodes to the same bytes on every replica and after every restart, because its version is their
//! hash: a map field holds one entry, or goes through [`pb::merged`]. Called by `publish`, which decides when.

mod balancing;
mod cors;
pub mod envoy;
mod fault;
pub mod grpc;
mod health;
pub mod heddle;
pub mod index;
mod mirrors;
mod outlier;
pub mod pb;
mod per_route;
mod session;
mod shares;

pub use index::Index;
