//! The Heddle sidecar: takes over a pod's TCP traffic and gives it mutual TLS, load balancing, retries, circuit
//! breaking, authorization and metrics.
//!
//! A library with a thin `main.rs`. The data path runs on single-threaded workers ([`worker`]); configuration
//! reaches it only as immutable [`tables`].

pub mod admin;
pub mod agent;
pub mod app;
pub mod applications;
#[cfg(test)]
mod assertions;
pub mod authz;
pub mod balance;
pub mod capture;
pub mod cni;
pub mod commands;
pub mod concurrency;
pub mod config;
pub mod detect;
pub mod drain;
pub mod explain;
pub mod gather;
pub mod health;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod link;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod opaque;
pub mod outbound;
pub mod probes;
pub mod rate_limit;
pub mod reading;
pub mod relay;
pub mod resolve;
pub mod stream;
pub mod sync;
pub mod tables;
pub mod tls;
pub mod upstream;
pub mod worker;
