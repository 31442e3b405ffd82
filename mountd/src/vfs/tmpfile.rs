//! Files that are born without a name (O_TMPFILE), and the first name that one may get.
//!
//! Without a name it is no part of the replicated state, so what is done to it makes no ops, as with a file whose last name went. Its
//! first name is its birth: one op says name, attributes and content together, because no state of the mount had the name without the
//! content. A content that no op can carry goes as state, published as one step, see [`Reserved::fill_without_data`].

use std::{ffi::OsStr, os::fd::OwnedFd, sync::Arc};

use rustix::fs::{Mode, OFlags, SeekFrom};
use smallvec::smallvec;
use tandem_proto::{Change, Changes, Name, limits};

use super::{
    Caller, Entry, Journal, Making, Opened, Reserved as _, Vfs, VfsResult, attr_change,
    caller::adopt_umask,
    create::{Born, link_fd, xattr_changes},
    data::{backing_flags, read_back},
    inodes::{Inode, InodeState},
};
use crate::{
    backing::sys,
    commit::{ATTRIBUTES, MarkCell},
};

/// Data extents that one op names; a file in more pieces goes as state.
const EXTENTS_MAX: usize = 32;

impl<J: Journal> Vfs<J> {
    /// Creates and opens a regular file without a name, on the file system of `making.parent`; the name in `making` means nothing.
    pub fn tmpfile(&self, making: Making<'_>, mode: u32, flags: i32) -> VfsResult<(Entry, Opened)> {
        self.writable()?;
        self.room_for_another()?;
        let dir = self.inode(making.parent)?;
        let dir_fd = self.fd(&dir)?;
        adopt_umask(making.umask)?;
        let open_flags = backing_flags(flags) | OFlags::RDWR | OFlags::TMPFILE;
        let fd = rustix::fs::openat(&dir_fd, c".", open_flags, Mode::from_raw_mode(mode & 0o7777))?;
        let (Born { id, stat, fd }, _) = self.adopt(making.caller, &dir_fd, making.name, Some(fd))?;
        let inode = self.inodes.remember(id, &stat);
        let mut state = inode.lock();
        state.unnamed = true;
        // What ACL it inherited was not looked at.
        state.born(stat.mode, true);
        drop(state);
        let fd = Arc::new(fd);
        inode.pin(Some(fd.clone()));
        let entry = self.entry(&inode, stat);
        self.opened(entry, fd, inode, flags)
    }

    /// Gives a file without names its first one. The locks of both are held, and `state` is the file's.
    pub(super) fn link_first(
        &self,
        caller: Caller,
        (inode, fd): (&Inode, &OwnedFd),
        (dir, dir_fd): (&Inode, &OwnedFd),
        (name, op_name): (&OsStr, Name),
        state: &mut InodeState,
    ) -> VfsResult<()> {
        let cells = [MarkCell::Dir(dir.id), MarkCell::File { id: inode.id, block: ATTRIBUTES }];
        let mut slot = Some(self.journal.reserve());
        self.failed_names(&mut slot, caller, &[(dir, dir_fd)], link_fd(fd, dir_fd, name))?;
        let Some(slot) = slot else { return Ok(()) };
        state.unnamed = false;
        state.written = None;
        state.forget_xattrs();
        inode.pin(None);
        let stat = self.unsaid(&cells, sys::stat(fd).map_err(Into::into))?;
        let mut changes: Changes = smallvec![Change::Birth { id: inode.id, kind: tandem_proto::NodeKind::Regular }];
        changes.extend(self.unsaid(&cells, xattr_changes(inode.id, fd))?);
        changes.push(Change::Entry { dir: dir.id, name: op_name, old: None, new: Some(inode.id) });
        changes.push(Change::Size { id: inode.id, size: stat.size });
        changes.push(attr_change(inode.id, &stat));
        changes.extend(self.dir_mtime(dir, dir_fd));
        match self.content(inode, stat.size, limits::CHANGES_MAX - changes.len()) {
            Some(data) => {
                changes.extend(data);
                slot.fill(caller.origin(), changes);
            }
            None => slot.fill_without_data(caller.origin(), changes),
        }
        Ok(())
    }

    /// All data of a file, if an op can carry it. A file that cannot be read here goes as state too, which is tried again.
    fn content(&self, inode: &Inode, size: u64, most: usize) -> Option<Changes> {
        let (mut changes, mut at, mut bytes) = (Changes::new(), 0, 0);
        if size == 0 {
            return Some(changes);
        }
        let fd = self.open_locked(inode, OFlags::RDONLY).ok()?;
        while at < size {
            let start = match rustix::fs::seek(&fd, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                Err(_) => return None,
            };
            let end = rustix::fs::seek(&fd, SeekFrom::Hole(start)).ok()?.min(size);
            bytes += end.saturating_sub(start);
            if bytes > limits::DATA_MAX as u64 || changes.len() >= most.min(EXTENTS_MAX) {
                return None;
            }
            let data = read_back(&fd, start, (end - start) as usize).ok()?;
            changes.push(Change::Data { id: inode.id, offset: start, data });
            at = end;
        }
        Some(changes)
    }
}
