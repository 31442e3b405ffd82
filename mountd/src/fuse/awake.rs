//! Keeps processors from sleeping while a program and the thread that answers it take turns within microseconds.
//!
//! Whoever asks sleeps until it is answered, and its processor with it, if nobody else wants that. To wake a processor takes longer than most answers: in a
//! virtual machine it is the hypervisor that wakes it (10 µs and more), on hardware it depends on how deep it sleeps. The kernel keeps processors awake for
//! whoever says that it cannot wait (`/dev/cpu_dma_latency`, Documentation/power/pm_qos_interface.rst): they poll for work then, as the thread that
//! takes requests does, and for as long as that does. See `docs/decisions/0053`.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use super::processors;

/// The kernel knows this wish for all processors only. Where there are more, most of them would be kept awake for nothing.
const PROCESSORS_MAX: i64 = 8;
/// Microseconds that waking may take: none.
pub(super) const AT_ONCE: i32 = 0;
/// The same when nobody waits: `PM_QOS_CPU_LATENCY_DEFAULT_VALUE`.
pub(super) const WHENEVER: i32 = 2_000_000_000;

/// A wish for processors that do not sleep, of all threads that serve a mount together. Gone with the process, however it ends.
#[derive(Debug, Default)]
pub struct Awake {
    /// What it was last made, for whoever would make it the same.
    held: AtomicBool,
    /// Takes wishes, in order; `None`: they cannot be made.
    device: Mutex<Option<File>>,
}

impl Awake {
    /// Where that may be asked for, which usually root may, on a machine of few processors.
    pub fn new() -> Awake {
        if !(2..=PROCESSORS_MAX).contains(&processors::online()) {
            return Awake::default();
        }
        match OpenOptions::new().write(true).open("/dev/cpu_dma_latency") {
            Ok(device) => Awake::over(device),
            Err(error) => {
                tracing::debug!(%error, "processors may sleep between requests");
                Awake::default()
            }
        }
    }

    fn over(device: File) -> Awake {
        Awake { device: Mutex::new(Some(device)), ..Awake::default() }
    }

    /// Requests come within microseconds of each other from now on. Costs nothing if they did before.
    pub fn hold(&self) {
        if !self.held.load(Ordering::Relaxed) {
            self.wish(true);
        }
    }

    /// They do not.
    pub fn release(&self) {
        if self.held.load(Ordering::Relaxed) {
            self.wish(false);
        }
    }

    fn wish(&self, held: bool) {
        let mut device = self.device.lock();
        // Only here it changes, so what was wished last is what the kernel has.
        if self.held.load(Ordering::Relaxed) == held {
            return;
        }
        let Some(file) = device.as_mut() else { return };
        let latency = if held { AT_ONCE } else { WHENEVER };
        match file.write_all(&latency.to_ne_bytes()) {
            Ok(()) => self.held.store(held, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, "processors may sleep between requests from now on");
                *device = None;
                self.held.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// What was wished, for tests.
#[cfg(test)]
pub(super) mod testing {
    use std::fs;

    use super::Awake;
    pub(in super::super) use super::{AT_ONCE, WHENEVER};

    /// A file that takes the place of the device.
    pub struct Wishes(tempfile::NamedTempFile);

    impl Wishes {
        pub fn new() -> Wishes {
            Wishes(tempfile::NamedTempFile::new().expect("temporary file"))
        }

        pub fn awake(&self) -> Awake {
            Awake::over(self.0.reopen().expect("opened"))
        }

        pub fn all(&self) -> Vec<i32> {
            let bytes = fs::read(self.0.path()).expect("read");
            bytes.chunks(4).map(|wish| i32::from_ne_bytes(wish.try_into().expect("four bytes"))).collect()
        }

        pub fn last(&self) -> Option<i32> {
            self.all().last().copied()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::{AT_ONCE, Awake, WHENEVER, testing::Wishes};

    #[test]
    fn only_a_change_is_told_and_threads_that_disagree_leave_it_as_the_last_one_said() {
        let wishes = Wishes::new();
        let awake = Arc::new(wishes.awake());
        awake.release();
        awake.hold();
        awake.hold();
        awake.release();
        awake.release();
        assert_eq!(wishes.all(), [AT_ONCE, WHENEVER]);
        let holders: Vec<_> = (0..4)
            .map(|_| {
                let awake = awake.clone();
                thread::spawn(move || {
                    for _ in 0..500 {
                        awake.hold();
                        awake.release();
                    }
                })
            })
            .collect();
        holders.into_iter().for_each(|holder| holder.join().expect("no panic"));
        awake.release();
        assert!(
            wishes.all().chunks(2).all(|pair| pair == [AT_ONCE, WHENEVER]),
            "they take turns, and the last says that nobody waits"
        );
    }

    #[test]
    fn where_it_cannot_be_asked_for_nothing_happens() {
        let awake = Awake::default();
        awake.hold();
        awake.release();
    }
}
