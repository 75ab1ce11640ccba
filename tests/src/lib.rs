//! heddle-tests
