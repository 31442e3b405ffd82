//! Extended attributes, and POSIX ACLs, which are two of them.

use std::{
    ffi::OsStr,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
};

use bytes::Bytes;
use rustix::fs::XattrFlags;
use tandem_proto::{Change, Changes};

use super::{
    Caller, Journal, Reserved as _, Vfs, VfsError, VfsResult, attr_change,
    data::CAPABILITY,
    inodes::{Inode, Privileges},
};
use crate::{
    backing::sys::{self, Stat},
    commit::{ATTRIBUTES, MarkCell},
};

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

impl<J: Journal> Vfs<J> {
    /// Reads one; ENODATA if there is none.
    pub fn getxattr(&self, node: u64, name: &OsStr) -> VfsResult<Bytes> {
        let inode = self.inode(node)?;
        let no_data = || VfsError::from(rustix::io::Errno::NODATA);
        if name.as_bytes() == CAPABILITY && inode.try_lock().is_some_and(|state| state.privileges == Privileges::Absent)
        {
            // The kernel asks before each chown.
            return Err(no_data());
        }
        let fd = self.fd(&inode)?;
        sys::get_xattr(&fd, name.as_bytes())?.ok_or_else(no_data)
    }

    /// Names of all that the caller may know of, each ended by NUL.
    pub fn listxattr(&self, caller: Caller, node: u64) -> VfsResult<Vec<u8>> {
        let inode = self.inode(node)?;
        let all = sys::list_xattr_raw(&*self.fd(&inode)?)?;
        if caller.uid == 0 {
            return Ok(all);
        }
        // The daemon sees trusted ones that the caller would not.
        let mut seen = Vec::with_capacity(all.len());
        for name in all.split_inclusive(|byte| *byte == 0).filter(|name| !name.starts_with(b"trusted.")) {
            seen.extend_from_slice(name);
        }
        Ok(seen)
    }

    /// Sets one.
    pub fn setxattr(&self, caller: Caller, node: u64, name: &OsStr, value: &[u8], flags: i32) -> VfsResult<()> {
        let flags = XattrFlags::from_bits(flags as u32).ok_or(VfsError::Invalid)?;
        self.change_xattr(caller, node, name, |fd, before| {
            sys::set_xattr(fd, name, value, flags)?;
            // The daemon may keep sgid where the caller may not.
            let sgid = before.mode & libc::S_ISGID != 0;
            if name.as_bytes() == ACL_ACCESS && sgid && caller.uid != 0 && !caller.in_group(before.gid) {
                return Ok(sys::stat(fd).and_then(|stat| sys::chmod(fd, stat.mode & 0o7777 & !libc::S_ISGID)));
            }
            Ok(Ok(()))
        })
    }

    /// Removes one.
    pub fn removexattr(&self, caller: Caller, node: u64, name: &OsStr) -> VfsResult<()> {
        self.change_xattr(caller, node, name, |fd, _| sys::remove_xattr(fd, name).map(Ok))
    }

    /// `change`: the outer error means that nothing was changed, the inner one that it was done in part; what resulted is the op.
    fn change_xattr(
        &self,
        caller: Caller,
        node: u64,
        name: &OsStr,
        change: impl FnOnce(&OwnedFd, &Stat) -> io::Result<io::Result<()>>,
    ) -> VfsResult<()> {
        let inode = self.inode(node)?;
        let cells = [MarkCell::File { id: inode.id, block: ATTRIBUTES }];
        let fd = self.fd(&inode)?;
        let (_mark, mut state) = self.mark_and_lock(&inode, &cells)?;
        let before = sys::stat(&fd)?;
        let closed = name.as_bytes() == ACL_ACCESS && self.backing.was_unreadable(&inode.id, &fd);
        let slot = (!state.unnamed).then(|| self.journal.reserve());
        let done = self.failed(&cells, change(&fd, &before).map_err(Into::into))?;
        state.forget_xattrs();
        self.outdate(&inode, caller);
        if closed {
            self.look_again(&inode, &fd);
        }
        if let Some(slot) = slot {
            slot.fill(caller.origin(), self.unsaid(&cells, self.xattr_changes(&inode, &fd, name, &before))?);
        }
        Ok(done?)
    }

    /// What resulted: an ACL that says no more than the mode is not kept, and one that is kept changes the mode.
    fn xattr_changes(&self, inode: &Inode, fd: &OwnedFd, name: &OsStr, before: &Stat) -> VfsResult<Changes> {
        let mut changes = Changes::new();
        let name = sys::acl_by_another_name(name.as_bytes()).unwrap_or(name.as_bytes());
        if sys::is_replicated_xattr(name) {
            let value = sys::get_xattr(fd, name)?;
            changes.push(Change::Xattr { id: inode.id, name: Bytes::copy_from_slice(name), value });
        }
        let after = sys::stat(fd)?;
        if after.mode != before.mode {
            changes.push(attr_change(inode.id, &after));
        }
        Ok(changes)
    }
}
