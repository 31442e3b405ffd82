//! The storage daemon of TandemFS: logs the op stream, applies it to a plain tree, keeps a content index.
//!
//! The way of a batch: [`ingest`] (may it?) → [`log`] (durable) → [`volume`] (in which order) → [`apply`] ([`tree`] and
//! [`catalog`]) → [`index`] and [`history`] behind it. One thread owns a volume; tokio does network only.

pub mod admin;
pub mod apply;
pub mod catalog;
pub mod config;
pub mod copies;
pub mod history;
pub mod hooks;
pub mod index;
pub mod ingest;
pub mod log;
pub mod offline;
pub mod pull;
pub mod reader;
pub mod reload;
pub mod sandbox;
pub mod scrub;
pub mod server;
pub mod storage;
pub mod tree;
pub mod trust;
pub mod verify;
pub mod volume;
