//! Whether somebody waits for this daemon's disk: volumes whose ops have to be durable say so, and those that bring bulk data to the disk keep
//! the disk's queue shorter then.
//!
//! One for the whole process, because the disk is one: what a volume writes stands before what another one waits for. A hint, nothing else.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// For so long after the last time somebody waited the queue is kept short.
const LATELY: Duration = Duration::from_millis(500);

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// Milliseconds after [`BEGUN`], and one more; 0: never.
static LAST: AtomicU64 = AtomicU64::new(0);

fn now_ms() -> u64 {
    u64::try_from(BEGUN.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
}

/// Ops of a live volume are about to be made durable.
pub fn note() {
    LAST.store(now_ms() + 1, Ordering::Relaxed);
}

/// Whether that was so a moment ago.
pub fn is_on() -> bool {
    let last = LAST.load(Ordering::Relaxed);
    last > 0 && Duration::from_millis(now_ms().saturating_sub(last - 1)) < LATELY
}
