//! How often a thread lost its processor to another one: then a call that took long was not slow by itself.

use std::{cell::RefCell, mem};

/// How often a thread had to make room for another; to be asked by that thread only.
#[derive(Debug, Default)]
pub struct Preempted {
    /// So often it had happened when it was last asked.
    seen: i64,
}

impl Preempted {
    /// How often this thread had to make room for another since this was last asked; where the kernel does not tell, never.
    pub fn since_last_time(&mut self) -> u64 {
        // SAFETY: plain integers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes one `rusage`, which is ours.
        if unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) } < 0 {
            return 0;
        }
        let before = mem::replace(&mut self.seen, usage.ru_nivcsw);
        usage.ru_nivcsw.saturating_sub(before).unsigned_abs()
    }
}

thread_local! {
    static OF_CALLS: RefCell<Preempted> = RefCell::default();
}

/// Whether this thread had to make room for another since it last asked, about its calls.
pub fn since_last_call() -> bool {
    OF_CALLS.with_borrow_mut(Preempted::since_last_time) > 0
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::{Duration, Instant},
    };

    use super::Preempted;

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
            let mut preempted = Preempted::default();
            preempted.since_last_time();
            let begun = Instant::now();
            let mut lost = false;
            while !lost && begun.elapsed() < Duration::from_secs(30) {
                lost = preempted.since_last_time() > 0;
            }
            stop.store(true, Ordering::Relaxed);
            assert!(lost, "it shared the processors for 30 s and never made room");
        });
    }
}
