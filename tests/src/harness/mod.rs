//! Real daemons for tests: a [`Lab`] is a temporary directory with storage daemons, mounts and the `tandem` command in it.
//!
//! Everything a lab starts ends with it, by process id and by path. A lab fails its test when a daemon logged a WARN or ERROR that the
//! test did not allow with a reason, or when it panicked. Where `/dev/fuse` or root is missing, [`Lab::new`] says SKIPPED.
//!
//! Environment: `TANDEM_BIN_DIR` (daemons to test instead of those beside the test), `TANDEM_TEST_SECONDS` (length of the long
//! tests), `TANDEM_TEST_JOBS` (labs at a time), `TANDEM_TEST_KEEP` (leave the directories of failed tests).

mod daemon;
mod lab;
mod mount;
pub mod rpc;
mod run;
mod storage;
mod turns;

pub use daemon::Daemon;
pub use lab::Lab;
pub use mount::{Mount, MountSpec, is_mounted};
pub use run::{Finished, binary, run, system};
pub use storage::Storage;

use std::time::{Duration, Instant};

/// How long a test that scales with time runs: `TANDEM_TEST_SECONDS`, else `default`.
pub fn seconds(default: u64) -> Duration {
    let chosen = std::env::var("TANDEM_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(chosen.unwrap_or(default))
}

/// Asks until the answer is yes; `false` if it was not within `limit`.
pub fn eventually(limit: Duration, mut ask: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        if ask() {
            return true;
        }
        if begin.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The middle one; zero if there are none.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
