//! The mtime of files under write. Sending it with every write would double the ops, so it is sent when the writing pauses:
//! at close, at fsync, after a second of rest, and when somebody asks for a flush. A file that is fsynced after each write would need
//! two ops, and two waits, for each: where the fsync waits for the replica, the write says the mtime too; where it does not, it is said every
//! [`SAID_EVERY`].
//!
//! To ask for an mtime is not free: since Linux 6.13 a file whose time was looked at gets another, finer one from its next write, so that
//! both can be told apart (multigrain timestamps). That changes the inode, and the next fsync has to write it; otherwise the writes of one
//! tick share their time, and fsync writes the data alone.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Condvar, Mutex};
use smallvec::smallvec;
use tandem_proto::Timestamp;
use tandem_runtime::memory;

use super::{
    CacheMode, Caller, Journal, Reserved as _, Vfs, VfsResult, inodes::Inode, mtime_change, setattr::set_mtime,
};
use crate::{
    backing::sys,
    commit::{ATTRIBUTES, MarkCell},
};

/// How long a file rests before its mtime is sent.
const REST: Duration = Duration::from_secs(1);
/// Time between two sayings of the mtime of a file that is fsynced again and again and nobody waits for the replica.
const SAID_EVERY: Duration = Duration::from_millis(100);
/// How often the queue is looked at.
const TICK: Duration = Duration::from_millis(250);

/// Whether a time is one of the last second's: the kernel's own, of a write. What is older, or yet to come, somebody set.
fn is_of_now(time: Timestamp) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(now).is_ok_and(|now| (time.seconds..=time.seconds.saturating_add(1)).contains(&now))
}

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
        self.tell_blocks(inode, fd);
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
                reached = self.fd_locked(inode)?;
                &*reached
            }
        };
        let mut stat = sys::stat(fd)?;
        if let Some(mtime) = state.told_mtime.filter(|mtime| *mtime != stat.mtime) {
            match set_mtime(fd, mtime) {
                // It was made immutable since: then its own stays.
                Err(error) if error.errno() == libc::EPERM => {}
                set => set?,
            }
            stat = sys::stat(fd)?;
        }
        state.mtime_said = Some(Instant::now());
        self.journal.reserve().fill(caller.origin(), smallvec![mtime_change(inode.id, &stat)]);
        Ok(())
    }

    /// Whether an fsync that does not wait for the replica has the mtime said. With `cache=writeback` what the file below has may be another
    /// time than the kernel's, and is put right with it: at once, if somebody set one that is not of now.
    pub(super) fn is_mtime_due(&self, inode: &Inode) -> bool {
        let state = inode.lock();
        let of_now = self.cache_mode == CacheMode::Strict || state.told_mtime.is_some_and(is_of_now);
        !of_now || state.mtime_said.is_none_or(|said| said.elapsed() >= SAID_EVERY)
    }

    /// With `cache=writeback` the kernel knows its own size and mtime, but not how many blocks it became: makes it ask, if they are others
    /// than when it was made to ask last. (What makes them fewer, a cut or a hole, makes it ask by itself.) To ask is not free: with the
    /// attributes it forgets that the file has no capabilities, so its next write is two requests more.
    pub(super) fn tell_blocks(&self, inode: &Inode, fd: Option<&OwnedFd>) {
        if !std::mem::take(&mut inode.lock().blocks_untold) {
            return;
        }
        let blocks = match fd {
            Some(fd) => sys::blocks(fd).ok(),
            None => self.fd(inode).ok().and_then(|fd| sys::blocks(&*fd).ok()),
        };
        let told = std::mem::replace(&mut inode.lock().blocks_told, blocks);
        if blocks.is_none() || blocks != told {
            self.ask_again(inode);
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
            self.forget_backing_files();
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
            match state.written.max(state.stored) {
                Some(changed) if now.saturating_duration_since(changed) < rest => {
                    drop(state);
                    self.settler.push(inode);
                }
                _ => {
                    // Cleared first: a write that comes now queues it again.
                    state.queued = false;
                    let stored = state.stored.take();
                    drop(state);
                    if stored.is_some() {
                        self.ask_again(&inode);
                    }
                    if let Err(error) = self.settle(self.daemon, &inode, None) {
                        tracing::debug!(inode = %inode.id, %error, "the mtime of a file could not be sent; trying again");
                        let mut state = inode.lock();
                        // A mark that could not be written left it as it was.
                        if state.written.is_some() {
                            self.queue(&inode, &mut state);
                        }
                    }
                }
            }
        }
    }
}
