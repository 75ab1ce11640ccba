//! The xDS v3 transport protocol, both halves: aggregated discovery (ADS), incremental and state-of-the-world.
//!
//! What is here moves named, versioned byte strings; what they mean is the business of whoever calls. The protocol itself
//! ([`delta`], [`sotw`]) is pure: messages in, messages out, no socket, no clock, no randomness. The sockets stand around
//! it: [`server`] for the control plane, [`client`] for the sidecar.
//!
//! Sources: the xDS transport protocol document and `envoy/service/discovery/v3/discovery.proto`. Left out:
//! `resource_locators` and dynamic parameters (not implemented by Envoy either), `xdstp://` names, resource TTLs and
//! heartbeats, `resource_errors`, the non-aggregated services, REST.

pub mod client;
pub mod delta;
pub mod nack;
pub mod protocol;
pub mod resource;
pub mod server;
pub mod snapshot;
pub mod sotw;
mod wire;

/// Envoy's protobuf for who a client says it is: sent in the first request of a stream.
pub use envoy_types::pb::envoy::config::core::v3::Node;
