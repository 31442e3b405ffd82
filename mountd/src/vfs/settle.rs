//! The mtime of files under write. Sending it with every write would double the ops, so it is sent when the writing pauses:
//! at close, at fsync, after a second of rest, and when somebody asks for a flush. A file that is fsynced after each write would need
//! two ops, and two waits, for each: there the write says the mtime too.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use smallvec::smallvec;
use tandem_runtime::memory;

use super::{Caller, Journal, Reserved as _, Vfs, VfsResult, inodes::Inode, mtime_change, setattr::set_mtime};
use crate::{
    backing::sys,
    commit::{ATTRIBUTES, MarkCell},
};

/// How long a file rests before its mtime is sent.
const REST: Duration = Duration::from_secs(1);
/// How often the queue is looked at.
const TICK: Duration = Duration::from_millis(250);

/// Files whose mtime is to be sent.
#[derive(Default)]
pub struct Settler {
    queue: Mutex<Queue>,
    /// Held by who has taken files out of the queue: whoever settles all must not miss those.
    taken: Mutex<()>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    inodes: VecDeque<Arc<Inode>>,
    stopping: bool,
}

impl Settler {
    /// Adds a file. At most once: its state says whether it is in.
    pub fn push(&self, inode: Arc<Inode>) {
        self.queue.lock().inodes.push_back(inode);
    }

    fn take_all(&self) -> VecDeque<Arc<Inode>> {
        std::mem::take(&mut self.queue.lock().inodes)
    }
}

impl<J: Journal> Vfs<J> {
    /// Sends the mtime of a file if it was written since it was last sent. `fd`: any descriptor of it.
    pub(super) fn settle(&self, caller: Caller, inode: &Inode, fd: Option<&OwnedFd>) -> VfsResult<()> {
        self.tell_blocks(inode);
        if inode.lock().written.is_none() {
            return Ok(());
        }
        let _mark = self.mark(&[MarkCell::File { id: inode.id, block: ATTRIBUTES }])?;
        let mut state = inode.lock();
        if state.written.take().is_none() || state.unnamed {
            return Ok(());
        }
        let reached;
        let fd = match fd {
            Some(fd) => fd,
            None => {
                reached = self.fd(inode)?;
                &*reached
            }
        };
        let mut stat = sys::stat(fd)?;
        if let Some(mtime) = state.told_mtime.filter(|mtime| *mtime != stat.mtime) {
            set_mtime(fd, mtime)?;
            stat = sys::stat(fd)?;
        }
        self.journal.reserve().fill(caller.origin(), smallvec![mtime_change(inode.id, &stat)]);
        Ok(())
    }

    /// With `cache=writeback` the kernel knows its own size and mtime, but not how many blocks it became: makes it ask.
    pub(super) fn tell_blocks(&self, inode: &Inode) {
        let untold = std::mem::take(&mut inode.lock().blocks_untold);
        if untold && let Some(invalidate) = self.invalidate.get() {
            invalidate(inode.node);
        }
    }

    /// Settles files at rest, and gives back the memory of inodes that the kernel forgot, until [`Vfs::stop_settler`]. Runs in a thread of its own.
    pub fn run_settler(&self) {
        loop {
            {
                let mut queue = self.settler.queue.lock();
                if queue.stopping {
                    return;
                }
                self.settler.wake.wait_for(&mut queue, TICK);
            }
            self.settle_older_than(REST);
            if self.inodes.shrink() {
                memory::give_back();
            }
        }
    }

    /// Ends the settler's thread.
    pub fn stop_settler(&self) {
        self.settler.queue.lock().stopping = true;
        self.settler.wake.notify_all();
    }

    /// Settles all files now.
    pub fn settle_all(&self) {
        self.settle_older_than(Duration::ZERO);
    }

    fn settle_older_than(&self, rest: Duration) {
        let _taken = self.settler.taken.lock();
        let now = Instant::now();
        for inode in self.settler.take_all() {
            let mut state = inode.lock();
            match state.written {
                Some(written) if now.saturating_duration_since(written) < rest => {
                    drop(state);
                    self.settler.push(inode);
                }
                _ => {
                    // Cleared first: a write that comes now queues it again.
                    state.queued = false;
                    drop(state);
                    if let Err(error) = self.settle(self.daemon, &inode, None) {
                        tracing::debug!(inode = %inode.id, %error, "the mtime of a file could not be sent; trying again");
                        let mut state = inode.lock();
                        // A mark that could not be written left it as it was.
                        if state.written.is_some() && !std::mem::replace(&mut state.queued, true) {
                            self.settler.push(inode.clone());
                        }
                    }
                }
            }
        }
    }
}
