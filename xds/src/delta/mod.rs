//! The incremental protocol (`DeltaAggregatedResources`), both halves as pure state machines: messages in, messages out; no
//! IO, no clock, no randomness.
//!
//! The tests here run the two halves against each other over a wire that breaks anywhere.

pub mod client;
pub mod server;

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
