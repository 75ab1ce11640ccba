//! Translation for gRPC clients.
