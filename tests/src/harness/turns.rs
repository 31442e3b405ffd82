//! Bounds how many labs run at a time: each has several busy processes, and a starved daemon fails tests for nothing.

use std::sync::{Condvar, Mutex, PoisonError};

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// A place among the running labs; given back on drop.
#[derive(Debug)]
pub struct Turn(());

fn limit() -> usize {
    let chosen = std::env::var("TANDEM_TEST_JOBS").ok().and_then(|text| text.parse().ok());
    chosen.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from)).max(1)
}

impl Turn {
    /// Waits for a place.
    pub fn wait() -> Turn {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken >= limit() {
            taken = FREED.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += 1;
        Turn(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
