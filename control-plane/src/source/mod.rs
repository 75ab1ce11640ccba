//! Where objects come from.
//!
//! [`directory`]: manifests in files, watched. [`manifest`]: one manifest's text to objects, the same for every source
//! of text. Nothing here interprets objects beyond what makes one readable.

pub mod directory;
pub mod manifest;
