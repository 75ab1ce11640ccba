//! The control plane: reads the objects that describe a mesh and tells every sidecar what it needs, over xDS.

pub mod admin;
pub mod admit;
pub mod ads;
pub mod api;
pub mod app;
pub mod authority;
pub mod cluster;
pub mod config;
pub mod emit;
pub mod explain;
pub mod feedback;
pub mod inject;
pub mod issue;
pub mod listen;
pub mod logging;
pub mod mesh;
pub mod metrics;
pub mod model;
pub mod objects;
pub mod publish;
pub mod replicas;
pub mod source;
pub mod status;
pub mod translate;
pub mod validate;
pub mod webhook;
