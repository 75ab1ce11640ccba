//! heddle-certs
