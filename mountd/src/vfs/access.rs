//! How the kernel reads and writes an open file: through its cache, or with the caller's own pages.
//!
//! What is opened for writing only can neither be read nor mapped through that descriptor, so its writes need not pass the cache: that
//! saves a copy, and the question whether the first write takes privileges away. What can be read may be mapped, which needs the cache.
//! In `cache=writeback` the kernel owns what is written, so nothing may pass its pages by.
//! Where a file may be read past the daemon, [`super::passthrough`] decides.

use super::CacheMode;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Pages stay in the kernel's cache.
    Cached,
    /// Each write is a request.
    Direct,
    /// The kernel reads the backing file itself.
    Passthrough,
    /// Each read and write is a request, beside who reads like that.
    Beside,
}

impl Access {
    /// Whether it goes together with reads that pass the daemon by.
    pub fn is_around(self) -> bool {
        matches!(self, Access::Passthrough | Access::Beside)
    }

    /// Whether writes pass the kernel's cache by.
    pub fn is_uncached(self) -> bool {
        matches!(self, Access::Direct | Access::Beside)
    }

    /// Of a file that is opened with these flags.
    pub fn of(flags: i32, cache_mode: CacheMode) -> Access {
        match cache_mode {
            // After a write that goes around its cache the kernel syncs nothing, whatever the file was opened with.
            CacheMode::Strict if flags & (libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC) == libc::O_WRONLY => {
                Access::Direct
            }
            _ => Access::Cached,
        }
    }
}
