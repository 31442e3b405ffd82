//! Whether a thread lost its processor to another one: then a call that took long was not slow by itself.

use std::{cell::Cell, mem};

thread_local! {
    /// So often it had happened when the thread last asked.
    static SEEN: Cell<i64> = const { Cell::new(0) };
}

/// Whether this thread had to make room for another since it last asked. Where the kernel does not tell, it had not.
pub fn since_last_time() -> bool {
    // SAFETY: plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one `rusage`, which is ours.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) } < 0 {
        return false;
    }
    SEEN.replace(usage.ru_nivcsw) < usage.ru_nivcsw
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::{Duration, Instant},
    };

    use super::since_last_time;

    #[test]
    fn a_thread_among_more_than_there_are_processors_loses_its_own() {
        let stop = AtomicBool::new(false);
        let busy = || {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        thread::scope(|scope| {
            let threads = thread::available_parallelism().map_or(1, usize::from);
            (0..threads).for_each(|_| drop(scope.spawn(busy)));
            since_last_time();
            let begun = Instant::now();
            let mut lost = false;
            while !lost && begun.elapsed() < Duration::from_secs(30) {
                lost = since_last_time();
            }
            stop.store(true, Ordering::Relaxed);
            assert!(lost, "it shared the processors for 30 s and never made room");
        });
    }
}
