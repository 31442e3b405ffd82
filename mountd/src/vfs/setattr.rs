//! Attributes: size, owner, mode, times.

use bytes::Bytes;
use rustix::fs::{AtFlags, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use smallvec::SmallVec;
use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Instant,
};
use tandem_proto::{Change, Changes, Timestamp, limits, stage::NodeType};

use super::{
    CacheMode, Caller, Journal, Reserved as _, Vfs, VfsResult, attr_change,
    data::{CAPABILITY, without_set_ids},
    inodes::{Inode, InodeState, Privileges},
};
use crate::{
    backing::sys::{self, Stat},
    commit::{
        ATTRIBUTES, MarkCell, MarkCells,
        dirty::{DirtySet, Scope},
        marks::WHOLE_FILE,
    },
};

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The file system's now.
    Now,
    /// This one.
    At(Timestamp),
}

/// What to set; `None` keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    /// Whether nothing of it is replicated state.
    fn is_atime_only(&self) -> bool {
        SetAttr { atime: None, ..*self } == SetAttr::default()
    }
}

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

impl<J: Journal> Vfs<J> {
    /// [`Vfs::setattr_telling`] for who waits for its end.
    pub fn setattr(&self, caller: Caller, node: u64, handle: Option<u64>, set: SetAttr) -> VfsResult<Stat> {
        self.setattr_telling(caller, node, handle, set, |_| {})
    }

    /// Sets attributes, one system call each; what resulted, also if a later one failed, is the op. `tell` is told what they are now as soon
    /// as nothing can fail any more, before the op is filled, as by [`Vfs::write_keeping`]. It is not called if something failed.
    pub fn setattr_telling(
        &self,
        caller: Caller,
        node: u64,
        handle: Option<u64>,
        set: SetAttr,
        tell: impl FnOnce(&Stat),
    ) -> VfsResult<Stat> {
        let inode = self.inode(node)?;
        let file = handle.and_then(|handle| self.handles.get_open(handle));
        let fd = self.fd(&inode)?;
        if set.is_atime_only() {
            self.writable()?;
            set_times(&fd, &set)?;
            let stat = sys::stat(&fd)?;
            tell(&stat);
            return Ok(stat);
        }
        let closed = set.mode.is_some() && self.backing.was_unreadable(&inode.id, &fd);
        let cells = self.cells(&inode, &fd, &set, closed)?;
        // Opened before the lock: it may be slow, and fail.
        let opened = match (&file, set.size) {
            (Some(file), _) if file.writable => None,
            (_, Some(_)) => Some(self.open_inode(&inode, OFlags::WRONLY | OFlags::NONBLOCK)?),
            (_, None) => None,
        };
        let writer = opened.as_ref().or(file.as_ref().map(|file| &*file.fd));
        let (_mark, mut state) = self.mark_and_lock(&inode, &cells)?;
        let capability_before = set.size.is_some() || set.uid.is_some() || set.gid.is_some() && inode.node_type == FILE;
        let capability_before =
            capability_before && state.privileges != Privileges::Absent && sys::get_xattr(&fd, CAPABILITY)?.is_some();
        let slot = (!state.unnamed).then(|| self.journal.reserve());
        let done = self.failed(&cells, apply(caller, &fd, writer, &set));
        if set.mode.is_some_and(|mode| mode & (libc::S_ISUID | libc::S_ISGID) != 0)
            || state.privileges == Privileges::Present
        {
            state.privileges = Privileges::Unknown;
        }
        state.written = None;
        if let (CacheMode::Writeback, Some(SetTime::At(time))) = (self.cache_mode, set.mtime) {
            state.told_mtime = Some(time);
            state.mtime_said = Some(Instant::now());
        }
        let resulted = resulted(&inode, &fd, &set, capability_before, &mut state);
        if closed {
            self.look_again(&inode, &fd);
        }
        let (after, changes) = match slot {
            Some(_) => self.unsaid(&cells, resulted)?,
            None => resulted?,
        };
        // Whose name it bears has to be asked while he still waits.
        let slot = slot.map(|slot| (slot, caller.origin()));
        if done.is_ok() {
            tell(&after);
        }
        if let Some((slot, origin)) = slot {
            slot.fill(origin, changes);
        }
        done.map(|()| after)
    }

    /// A cut changes the data behind the new size; growing changes attributes only.
    fn cells(&self, inode: &Inode, fd: &Arc<OwnedFd>, set: &SetAttr, closed: bool) -> VfsResult<MarkCells> {
        let mut cells: MarkCells = SmallVec::new();
        cells.push(MarkCell::File { id: inode.id, block: ATTRIBUTES });
        if let Some(size) = set.size {
            let before = sys::size(fd)?;
            let block = size / limits::MARK_BLOCK;
            if before.div_ceil(limits::MARK_BLOCK) > block + 1 {
                // The size tells of the cut only until the file grows again: then the blocks behind it hold zeroes that nobody wrote.
                cells.push(MarkCell::File { id: inode.id, block: WHOLE_FILE });
            } else if size < before {
                cells.push(MarkCell::File { id: inode.id, block });
            }
        }
        if closed {
            cells.push(match inode.node_type {
                NodeType::Directory => MarkCell::Dir(inode.id),
                _ => MarkCell::File { id: inode.id, block: WHOLE_FILE },
            });
        }
        Ok(cells)
    }

    /// Rights of an object changed: what no resync could read and the daemon may read now is sent as it is. To be called before the slot is
    /// filled: ops on what the replica never heard of are legal only once it is known there.
    pub(super) fn look_again(&self, inode: &Inode, fd: &OwnedFd) {
        let Some(again) = self.backing.readable_again(&inode.id, fd) else { return };
        let mut cells = DirtySet::default();
        for id in again.ids {
            cells.insert_file(id);
        }
        if again.below {
            // What was changed below it while it was closed tells by size and times. Nothing is as new as this, so no file is read for its ctime.
            cells.insert_scope(Scope::Walk(Timestamp { seconds: FAR_FUTURE_S, nanos: 0 }));
        }
        self.journal.resend(&cells);
    }
}

/// The year 2242.
const FAR_FUTURE_S: i64 = 1 << 33;

const FILE: NodeType = NodeType::Regular;

/// What an inode is after attributes were set, and the op that says so.
fn resulted(
    inode: &Inode,
    fd: &Arc<OwnedFd>,
    set: &SetAttr,
    capability_before: bool,
    state: &mut InodeState,
) -> VfsResult<(Stat, Changes)> {
    let after = sys::stat(fd)?;
    let mut changes = Changes::new();
    if set.size.is_some() {
        changes.push(Change::Size { id: inode.id, size: after.size });
    }
    changes.push(attr_change(inode.id, &after));
    if set.mode.is_some() && !state.lacks_acl {
        let acl = sys::get_xattr(fd, ACL_ACCESS)?;
        state.lacks_acl = acl.is_none();
        // The ACL's mask is part of the mode.
        changes.extend(acl.map(|acl| Change::Xattr {
            id: inode.id,
            name: Bytes::from_static(ACL_ACCESS),
            value: Some(acl),
        }));
    }
    if capability_before && sys::get_xattr(fd, CAPABILITY)?.is_none() {
        changes.push(Change::Xattr { id: inode.id, name: Bytes::from_static(CAPABILITY), value: None });
    }
    Ok((after, changes))
}

fn apply(caller: Caller, fd: &Arc<OwnedFd>, writer: Option<&OwnedFd>, set: &SetAttr) -> VfsResult<()> {
    if let (Some(size), Some(writer)) = (set.size, writer) {
        rustix::fs::ftruncate(writer, size)?;
        let stat = sys::stat(fd)?;
        // The kernel leaves this to us, and the daemon's own rights must not decide.
        if caller.uid != 0 && without_set_ids(&stat, &caller) != stat.mode & 0o7777 {
            sys::chmod(fd, without_set_ids(&stat, &caller))?;
        }
    }
    if set.uid.is_some() || set.gid.is_some() {
        sys::chown(fd.as_fd(), set.uid, set.gid)?;
    }
    if let Some(mode) = set.mode {
        sys::chmod(fd, mode & 0o7777)?;
    }
    set_times(fd, set)
}

/// Sets the time of the last modification.
pub(super) fn set_mtime(fd: &OwnedFd, mtime: Timestamp) -> VfsResult<()> {
    set_times(fd, &SetAttr { mtime: Some(SetTime::At(mtime)), ..SetAttr::default() })
}

fn set_times(fd: &OwnedFd, set: &SetAttr) -> VfsResult<()> {
    if set.atime.is_none() && set.mtime.is_none() {
        return Ok(());
    }
    let time = |time: Option<SetTime>| match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(at)) => Timespec { tv_sec: at.seconds, tv_nsec: i64::from(at.nanos) },
    };
    let times = Timestamps { last_access: time(set.atime), last_modification: time(set.mtime) };
    match rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {
            let path = sys::ProcPath::new(fd);
            Ok(rustix::fs::utimensat(rustix::fs::CWD, path.as_str(), &times, AtFlags::empty())?)
        }
        other => Ok(other?),
    }
}
