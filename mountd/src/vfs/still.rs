//! Objects that are looked at for a comparison: what is read under the lock of an object's cells is what the ops say that were reserved
//! before, no more and no less.

use std::io;

use tandem_proto::InodeId;

use super::{Journal, Vfs, inodes::Borrowed};
use crate::backing::sys;

/// An object whose changes can be noticed.
pub struct Still<'a> {
    inode: Borrowed<'a>,
}

impl<J: Journal> Vfs<J> {
    /// An object by its id; `None`: it is gone, or has no name any more.
    pub fn still(&self, id: &InodeId) -> io::Result<Option<Still<'_>>> {
        let Some(fd) = self.backing().path_fd(id)? else { return Ok(None) };
        let stat = sys::stat(&*fd)?;
        if stat.nlink == 0 {
            return Ok(None);
        }
        Ok(Some(Still { inode: self.inodes.borrow(*id, &stat) }))
    }
}

impl Still<'_> {
    /// Calls `read` while nobody changes the object; `true` as its argument: its mtime was not told to the replica yet. Returns also the
    /// [`Still::turns`] of that moment.
    pub fn locked<R>(&self, read: impl FnOnce(bool) -> R) -> (R, u64) {
        let state = self.inode.lock();
        let result = read(state.written.is_some());
        (result, self.inode.turns())
    }

    /// Counts who had the lock. The same number twice means that nothing changed the object in between, and that nobody is about to with a
    /// seq that was reserved in between.
    pub fn turns(&self) -> u64 {
        self.inode.turns()
    }
}
