//! Heddle on a real Kubernetes: one cluster for all tests of this target, a namespace for each.
//!
//! `scripts/test` starts the cluster, runs these and ends it. By hand: `tests/cluster/cluster up`, then
//! `cargo test -p heddle-tests --test kubernetes -- --test-threads=1`. Without a cluster every test fails and says so.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up fails the test")]

mod addresses;
mod chart;
mod cluster;
mod identity;
mod injection;
mod prometheus;
mod rollouts;
mod routes;
mod seen;
mod source;
mod status;
