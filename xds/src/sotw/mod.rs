//! The state-of-the-world protocol (`StreamAggregatedResources`), for Envoy and gRPC clients that speak no incremental one.
//! The server's half only, pure.

pub mod server;

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
