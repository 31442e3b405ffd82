//! Looking: lookup, attributes, link text, file system figures, and forgetting.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::Ordering,
};

use bytes::Bytes;
use rustix::fs::{OFlags, StatVfs};
use tandem_proto::limits;

use super::{Caller, Entry, Journal, Vfs, VfsError, VfsResult};
use crate::backing::sys::{self, Stat};

impl<J: Journal> Vfs<J> {
    /// What a name means. Counts a lookup.
    pub fn lookup(&self, caller: Caller, parent: u64, name: &OsStr) -> VfsResult<Entry> {
        self.lookup_telling(caller, parent, name, None)
    }

    /// The same. `tell` is called before all is known that is kept of an object that the kernel did not know: the caller need not wait for it.
    pub fn lookup_telling(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        tell: Option<&mut dyn FnMut(&Entry)>,
    ) -> VfsResult<Entry> {
        if name.len() > limits::NAME_MAX {
            return Err(VfsError::NameTooLong);
        }
        let dir = self.inode(parent)?;
        let dir_fd = self.fd(&dir)?;
        let changes = self.changes.load(Ordering::SeqCst);
        let stat = sys::stat_at(&dir_fd, name)?;
        if let Some(tell) = tell
            && let Some(entry) = self.tell_at_once(caller, (changes, stat), (parent, &dir_fd, name), tell)
        {
            return Ok(entry);
        }
        let (id, stat) = self.identify(&dir, (&dir_fd, name), stat)?;
        if self.backing.is_foreign_at(&dir.id, name, &stat) {
            return Err(VfsError::NotFound);
        }
        let inode = self.inodes.remember(id, &stat);
        self.note_side(&inode, &stat, &dir, &dir_fd, name);
        self.saw_name(&inode, &dir, name);
        let stat = self.as_told(caller, &inode, (changes, stat), || sys::stat_at(&dir_fd, name));
        Ok(self.entry(&inode, stat))
    }

    /// Tells of an object that was just looked at, if the kernel does not know it and its name says nothing else about it; then finds out its
    /// id. Names may change as soon as it is told: whoever changes this one meets the object himself. What comes by another way leaves it unknown
    /// (ESTALE: the kernel asks for the name again).
    fn tell_at_once(
        &self,
        caller: Caller,
        (changes, stat): (u64, Stat),
        (dir, dir_fd, name): (u64, &OwnedFd, &OsStr),
        tell: &mut dyn FnMut(&Entry),
    ) -> Option<Entry> {
        let plain = self.backing.opens_by_handle() && self.backing.excludes().is_empty() && !self.has_path_rules();
        if !plain || self.backing.is_foreign(&stat) {
            return None;
        }
        let expected = self.inodes.expect(&stat, caller.pid)?;
        // See `as_told`.
        if self.changes.load(Ordering::SeqCst) != changes {
            expected.withdraw();
            return None;
        }
        let entry = Entry { node: expected.node, generation: expected.generation, stat };
        tell(&entry);
        let found = self.backing.id_at(dir_fd, name, &stat);
        match found.and_then(|id| Ok((id, sys::stat_at(dir_fd, name)?))) {
            Ok((id, again)) if again.is_same_object(&stat) => expected.is(id, &stat),
            Ok(_) => tracing::debug!(
                node = entry.node,
                "a name means something else since it was told: changed around the mount"
            ),
            Err(error) => {
                tracing::warn!(%error, node = entry.node, "what a name means was told, and cannot be reached")
            }
        }
        self.look_ahead(dir, dir_fd, name);
        Some(entry)
    }

    /// The kernel forgot so many lookups of a node.
    pub fn forget(&self, node: u64, lookups: u64) {
        self.inodes.forget(node, lookups);
    }

    /// Attributes, through the handle if one is given.
    pub fn getattr(&self, caller: Caller, node: u64, handle: Option<u64>) -> VfsResult<Stat> {
        if let Some(file) = handle.and_then(|handle| self.handles.get_open(handle)) {
            file.inode.asked.note(caller.pid);
            return Ok(sys::stat(&file.fd)?);
        }
        let inode = self.inode(node)?;
        inode.asked.note(caller.pid);
        Ok(sys::stat(&*self.fd(&inode)?)?)
    }

    /// Text of a symbolic link.
    pub fn readlink(&self, node: u64) -> VfsResult<Bytes> {
        let inode = self.inode(node)?;
        Ok(sys::read_link(&*self.fd(&inode)?)?)
    }

    /// Figures of the file system.
    pub fn statfs(&self) -> VfsResult<StatVfs> {
        Ok(rustix::fs::fstatvfs(self.backing.root())?)
    }

    /// Inode flags and the like (`lsattr`, `chattr`), as the backing file system answers. They hold on it, and are no part of what is
    /// replicated. Whether the caller may set them was asked by the kernel, which knows these two commands. `argument` is what was passed;
    /// the answer is `out_size` long.
    pub fn ioctl(&self, node: u64, command: u32, argument: &[u8], out_size: usize) -> VfsResult<Vec<u8>> {
        let sets = matches!(command, FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR);
        let known = sets || matches!(command, FS_IOC_GETFLAGS | FS_IOC_GETVERSION | FS_IOC_FSGETXATTR);
        if !known || out_size > IOCTL_MAX || argument.len() > IOCTL_MAX {
            return Err(rustix::io::Errno::NOTTY.into());
        }
        if sets {
            self.writable()?;
        }
        let inode = self.inode(node)?;
        let fd = self.open_inode(&inode, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let mut buffer = [0u8; IOCTL_MAX];
        buffer[..argument.len()].copy_from_slice(argument);
        // SAFETY: these commands read and write at most `IOCTL_MAX` bytes at the pointer.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), command as libc::Ioctl, buffer.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error().into());
        }
        if sets {
            // The time of its last change is another.
            self.ask_again(&inode);
        }
        Ok(buffer[..out_size].to_vec())
    }
}

/// `_IOR('f', 1, long)`
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
/// `_IOR('v', 1, long)`
const FS_IOC_GETVERSION: u32 = 0x8008_7601;
/// `_IOR('X', 31, struct fsxattr)`
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
/// `_IOW('f', 2, long)`
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
/// `_IOW('X', 32, struct fsxattr)`
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
/// Largest of what they pass: `struct fsxattr`, rounded up.
const IOCTL_MAX: usize = 32;
