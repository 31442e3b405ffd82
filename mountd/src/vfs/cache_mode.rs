//! How the kernel keeps what is written: the choice between order and small writes.
//!
//! ```text
//! strict     write(2) ─► WRITE ─► answered                order is the application's, call by call
//! writeback  write(2) ─► page cache … WRITE, when the kernel likes: at fsync and close, and when the flush timer asks
//! ```
//! In `writeback` the kernel owns size and mtime of files, appends by itself, and reads through descriptors that were opened for writing
//! only. It does not look at its dirty pages when it seeks for data and holes, so that is left to its own answer (all is data).

use std::fmt;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Every write(2) arrives before it returns.
    #[default]
    Strict,
    /// Writes arrive at fsync and close, and within the flush interval.
    Writeback,
}

impl CacheMode {
    /// Between what the replica keeps the application's order, for people.
    pub fn order(self) -> &'static str {
        match self {
            CacheMode::Strict => "every call",
            CacheMode::Writeback => "fsync and close",
        }
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CacheMode::Strict => "strict",
            CacheMode::Writeback => "writeback",
        })
    }
}
