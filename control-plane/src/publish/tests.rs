//! What a change forgets, and what it keeps.
