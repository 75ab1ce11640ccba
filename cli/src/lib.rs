//! heddle

pub mod pods;
