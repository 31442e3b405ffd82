//! Resync: makes the replica equal by sending current state of the cells that may differ, while the folder is used.
//!
//! [`plan`] decides what to read next (pure), [`read`] reads it through a [`StateReader`], `link` carries it. [`pull`] is the other
//! direction: an empty folder filled from the replica.

mod expected;
pub mod plan;
pub mod pull;
pub mod read;
pub mod reader;

pub use reader::{FileReader, ListedEntry, NodeView, StateReader};
