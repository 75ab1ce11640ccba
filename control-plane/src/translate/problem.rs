//! What is wrong with a part of a route: for everybody and ever, or for this mesh as it is now.

use std::fmt;

/// Why a rule cannot hold as it is written, in a sentence with its value and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// It cannot be meant.
    Impossible(String),
    /// Gateway API knows it, sidecars do not.
    Unsupported(String),
    /// What it names is not there, or cannot be meant.
    Unresolved(String),
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self::Impossible(text)
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Self::Impossible(text.to_owned())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Impossible(text) | Self::Unsupported(text) | Self::Unresolved(text) => f.write_str(text),
        }
    }
}
