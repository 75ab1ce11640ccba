//! heddle-control-plane
