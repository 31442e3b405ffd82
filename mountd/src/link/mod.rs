//! The link to the storage daemon.

pub mod client;
pub mod start;
