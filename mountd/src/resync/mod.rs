//! Resync: makes the replica equal by sending current state of the cells that may differ.

pub mod pull;
pub mod reader;

pub use reader::{FileReader, ListedEntry, NodeView, StateReader};
