//! Where objects come from.
//!
//! [`directory`]: manifests in files, watched. [`kubernetes`]: the API server of a cluster. Either hands out [`Snapshot`]s, and
//! nothing behind them knows which it was. [`manifest`]: one manifest's text to objects, the same for every source of text.
//! Nothing here interprets objects beyond what makes one readable.

pub mod directory;
pub mod kubernetes;
pub mod manifest;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::objects::{Kind, ObjectKey, Objects};

/// What a source holds now.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Everything that is in force.
    pub objects: Objects,
    /// What is not in force as it is now, in order.
    pub problems: Arc<[Problem]>,
    /// What is left alone because nobody here reads its kind, as `shop.yaml: apps/v1 Deployment api`.
    pub ignored: Arc<[String]>,
    /// Kinds of which not everything was read yet. While there are any, nothing is to be served: what is not here may be there
    /// all the same.
    pub waiting: Arc<[Kind]>,
    /// The statuses the API server has, of the objects that have one from us; none where there is no API server.
    pub observed: Arc<BTreeMap<ObjectKey, Arc<Observed>>>,
}

/// An object's status as it was last seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The version of the object it was seen in.
    pub resource_version: String,
    /// As written; null if there is none.
    pub status: serde_json::Value,
}

/// Something that is not in force as it is now; what it said before, if anything, stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// A file below the directory, or an object as `Service shop/api`, or a kind.
    pub place: String,
    /// What is wrong, with field and value, and what would be right.
    pub reason: String,
}

impl Snapshot {
    /// Whether everything was read at least once.
    pub fn is_whole(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}
