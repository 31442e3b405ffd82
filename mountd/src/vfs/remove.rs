//! Names that go: unlink and rmdir.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use rustix::fs::AtFlags;
use tandem_proto::{Change, Changes};

use super::{
    Caller, Child, Journal, Reserved as _, Vfs, VfsResult, checked_name,
    inodes::{Inode, Locks},
};

impl<J: Journal> Vfs<J> {
    /// Removes a name of anything but a directory.
    pub fn unlink(&self, caller: Caller, parent: u64, name: &OsStr) -> VfsResult<()> {
        self.remove(caller, parent, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: Caller, parent: u64, name: &OsStr) -> VfsResult<()> {
        self.remove(caller, parent, name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, caller: Caller, parent: u64, name: &OsStr, flags: AtFlags) -> VfsResult<()> {
        let op_name = checked_name(name)?;
        let dir = self.inode(parent)?;
        let _mark = self.mark_names(&[&dir])?;
        let dir_fd = self.fd(&dir)?;
        loop {
            let child = self.child(&dir, &dir_fd, name)?;
            let mut locks = Locks::take(&[&dir, &child.inode]);
            if !self.still_means(&dir_fd, name, Some(&child))? {
                continue;
            }
            let outside = self.leaves_out(&dir, &dir_fd, name, flags.contains(AtFlags::REMOVEDIR));
            let mut slot = (!dir.is_outside()).then(|| self.journal.reserve());
            let removed = rustix::fs::unlinkat(&dir_fd, name, flags);
            self.failed_names(&mut slot, caller, &[(&dir, &dir_fd)], removed)?;
            self.outdate(&dir, caller);
            if let Some(slot) = slot {
                let mut changes = Changes::new();
                if !outside {
                    let old = Some(child.inode.id);
                    changes.push(Change::Entry { dir: dir.id, name: op_name, old, new: None });
                }
                changes.extend(self.dir_mtime(&dir, &dir_fd));
                slot.fill(caller.origin(), changes);
            }
            self.lost_name(&mut locks, &child, &dir, name);
            return Ok(());
        }
    }

    /// After a name of it went, under its lock: if it was the last, the object leaves the replicated state, and its descriptor
    /// keeps it reachable for those who have it open.
    pub(super) fn lost_name(&self, locks: &mut Locks<'_>, child: &Child<'_>, dir: &Inode, name: &OsStr) {
        let Child { inode, stat, fd } = child;
        let stat = stat.get();
        if self.has_path_rules() {
            inode.unnamed_at(dir, name.as_bytes());
        }
        if stat.is_dir() || stat.nlink <= 1 {
            let state = locks.of(inode);
            state.unnamed = true;
            state.written = None;
            // One that is open has a descriptor anyway: there are no two for each.
            inode.pin(Some(inode.open().unwrap_or_else(|| fd.clone())));
            self.backing.forget(&inode.id);
            self.journal.unnamed(&inode.id);
        } else {
            self.backing.lost_name(&inode.id, &dir.id, name);
        }
    }
}
