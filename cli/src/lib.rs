//! heddle
