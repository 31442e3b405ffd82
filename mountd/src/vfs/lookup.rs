//! Looking: lookup, attributes, link text, file system figures, and forgetting.

use std::ffi::OsStr;

use bytes::Bytes;
use rustix::fs::StatVfs;
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
}
