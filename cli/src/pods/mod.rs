//! Pods without a cluster: a network namespace for each workload, on one bridge.
//!
//! Nothing has a name on the machine: no mount in /run/netns, no interface in the namespace the command was started
//! in. A namespace lives as long as a descriptor or a process holds it, so when the process that made the pods ends,
//! however it ends, namespaces, interfaces, rules and children are gone.
//!
//! Processes only: no images, no file systems, no resource limits. Called by `heddle demo` and by the tests.

pub mod child;
pub mod exec;
pub mod fabric;
pub mod netns;
pub mod user;

pub use child::Child;
pub use fabric::{Fabric, Pod};
pub use netns::Netns;
