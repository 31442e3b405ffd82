//! Looking: lookup, attributes, link text, file system figures, and forgetting.

use std::{ffi::OsStr, io, os::fd::AsRawFd as _};

use bytes::Bytes;
use rustix::fs::{OFlags, StatVfs};
use tandem_proto::limits;

use super::{Entry, Journal, Vfs, VfsError, VfsResult};
use crate::backing::sys::{self, Stat};

impl<J: Journal> Vfs<J> {
    /// What a name means. Counts a lookup.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> VfsResult<Entry> {
        if name.len() > limits::NAME_MAX {
            return Err(VfsError::NameTooLong);
        }
        let dir = self.inode(parent)?;
        let dir_fd = self.fd(&dir)?;
        let (id, stat) = self.identify(&dir, &dir_fd, name)?;
        if self.backing.is_foreign(&stat) {
            return Err(VfsError::NotFound);
        }
        let inode = self.inodes.remember(id, &stat);
        self.saw_name(&inode, &dir, name);
        Ok(self.entry(&inode, stat))
    }

    /// The kernel forgot so many lookups of a node.
    pub fn forget(&self, node: u64, lookups: u64) {
        self.inodes.forget(node, lookups);
    }

    /// Attributes, through the handle if one is given.
    pub fn getattr(&self, node: u64, handle: Option<u64>) -> VfsResult<Stat> {
        if let Some(file) = handle.and_then(|handle| self.handles.get(handle)) {
            return Ok(sys::stat(&file.fd)?);
        }
        let inode = self.inode(node)?;
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

    /// Inode flags and the like (`lsattr`), as the backing file system answers. Setting them is refused: they are no part of what
    /// is replicated.
    pub fn ioctl(&self, node: u64, command: u32, out_size: usize) -> VfsResult<Vec<u8>> {
        if !matches!(command, FS_IOC_GETFLAGS | FS_IOC_GETVERSION | FS_IOC_FSGETXATTR) || out_size > IOCTL_OUT_MAX {
            return Err(rustix::io::Errno::NOTTY.into());
        }
        let inode = self.inode(node)?;
        let fd = self.open_inode(&inode, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let mut out = [0u8; IOCTL_OUT_MAX];
        // SAFETY: these three commands write at most `IOCTL_OUT_MAX` bytes to the pointer, and read none.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), command as libc::Ioctl, out.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error().into()) } else { Ok(out[..out_size].to_vec()) }
    }
}

/// `_IOR('f', 1, long)`
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
/// `_IOR('v', 1, long)`
const FS_IOC_GETVERSION: u32 = 0x8008_7601;
/// `_IOR('X', 31, struct fsxattr)`
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
/// Largest of their answers: `struct fsxattr`, rounded up.
const IOCTL_OUT_MAX: usize = 32;
