//! The HTTP path: from a request that hyper read to the response that hyper writes.
//!
//! `serve` glues hyper to one downstream connection; `request` is the path itself; everything else here is called
//! from `request` or `attempt`. Never names protobuf, and knows configuration only as `tables`.

pub mod attempt;
pub mod body;
pub mod error;
pub mod filter;
pub mod guard;
pub mod headers;
pub mod request;
pub mod route;
pub mod serve;
pub mod upgrade;

/// Largest request or response head, in octets: start line and all fields. One limit for HTTP/1 and HTTP/2
/// (SETTINGS_MAX_HEADER_LIST_SIZE, RFC 9113 §6.5.2). Chosen: Envoy's default is 60 KiB, Node's 16 KiB.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most fields in one head. Chosen: twice Envoy's default of 100.
pub const MAX_HEADER_FIELDS: usize = 200;
