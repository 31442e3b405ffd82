//! The flush timer of `cache=writeback`: what was written waits in the kernel no longer than the interval.
//!
//! The kernel's own clock for dirty pages is one for the whole machine (30 s). `syncfs` on the mount makes it write those of this mount
//! now; it starts that and does not wait for the answers. While no file is open for writing nothing is dirty (close writes), and nothing
//! is asked: a descriptor of the mount, however short, would be in the way of who unmounts it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{Mode, OFlags};

use crate::vfs::{Journal, Vfs};

/// Ends the timer when it is dropped.
#[derive(Debug)]
pub struct Flusher {
    stop: Arc<Stop>,
}

#[derive(Debug, Default)]
struct Stop {
    stopping: Mutex<bool>,
    wake: Condvar,
}

impl Flusher {
    /// Starts it for the mount over `dir`, which `vfs` answers.
    pub fn start<J: Journal>(dir: PathBuf, vfs: Arc<Vfs<J>>, interval: Duration) -> io::Result<Flusher> {
        let stop = Arc::new(Stop::default());
        let stopped = stop.clone();
        thread::Builder::new().name("flusher".into()).spawn(move || {
            while !stopped.within(interval) {
                if vfs.has_writers()
                    && let Err(error) = flush(&dir)
                {
                    tracing::debug!(%error, "what the kernel holds for the mount could not be asked for");
                }
            }
        })?;
        Ok(Flusher { stop })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        *self.stop.stopping.lock() = true;
        self.stop.wake.notify_all();
    }
}

impl Stop {
    /// Whether it was asked for within this time.
    fn within(&self, interval: Duration) -> bool {
        let mut stopping = self.stopping.lock();
        self.wake.wait_while_for(&mut stopping, |stopping| !*stopping, interval);
        *stopping
    }
}

fn flush(dir: &Path) -> io::Result<()> {
    let root = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::syncfs(&root)?)
}
