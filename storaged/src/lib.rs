//! The storage daemon of TandemFS.
pub mod index;
pub mod log;
pub mod apply;
pub mod catalog;
pub mod reader;
pub mod tree;
