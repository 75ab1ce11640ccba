//! A JSON Patch (RFC 6902) in the making.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, MoveOperation, Patch, PatchOperation, ReplaceOperation};
use serde_json::Value;

/// Operations in the order they were written; a path means the document as those before have left it.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<PatchOperation>);

impl Edits {
    /// Adds a field, or inserts before an item of a list.
    pub(super) fn add(&mut self, path: PointerBuf, value: Value) {
        self.0.push(PatchOperation::Add(AddOperation { path, value }));
    }

    pub(super) fn replace(&mut self, path: PointerBuf, value: Value) {
        self.0.push(PatchOperation::Replace(ReplaceOperation { path, value }));
    }

    /// Takes an item from where it is to where it should be.
    pub(super) fn shift(&mut self, from: PointerBuf, path: PointerBuf) {
        self.0.push(PatchOperation::Move(MoveOperation { from, path }));
    }

    pub(super) fn into_patch(self) -> Patch {
        Patch(self.0)
    }
}

/// `["spec", "containers", 0]` as a pointer (RFC 6901).
macro_rules! pointer {
    ($($token:expr),* $(,)?) => {{
        let mut pointer = json_patch::jsonptr::PointerBuf::new();
        $(pointer.push_back(json_patch::jsonptr::Token::new($token.to_string()));)*
        pointer
    }};
}
pub(super) use pointer;
