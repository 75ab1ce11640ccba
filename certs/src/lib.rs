//! Identity and certificates of the mesh: SPIFFE IDs, the certificate authority, trust bundles, rustls verifiers by
//! identity, join tokens, and the signing service.
//!
//! Everything but [`store`] is pure: `now` is passed in as [`std::time::SystemTime`]; there is no clock, environment,
//! file or socket. Randomness is drawn only for keys, serial numbers and token ids, from aws-lc-rs. It imports no other
//! crate of Heddle, and `rcgen` is used only here.
//!
//! | Way of a certificate | Module |
//! |---|---|
//! | a workload makes a key and a request | [`csr`] |
//! | proves who it is outside Kubernetes | [`token`] |
//! | sends the request | [`rpc`] |
//! | today's authority signs it by the profile, and it is checked | [`slots`], [`ca`], [`profile`], [`check`] |
//! | the workload holds it and renews it in time | [`credential`], [`rotate`] |
//! | peers believe it | [`bundle`], [`verify`], [`peer`], [`tls`] |

mod clock;

pub mod bundle;
pub mod ca;
pub mod check;
pub mod credential;
pub mod crypto;
pub mod csr;
pub mod identity;
pub mod peer;
pub mod profile;
pub mod rotate;
pub mod rpc;
pub mod slots;
pub mod state;
pub mod store;
pub mod tls;
pub mod token;
pub mod verify;
