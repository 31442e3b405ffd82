//! Directory streams. They have no state here: the offset of an entry is the backing file system's own cookie, so a listing goes
//! on where it was whatever came and went in between.

use std::{
    ffi::OsStr,
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt as _,
    sync::{Arc, atomic::Ordering},
};

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use tandem_proto::stage::NodeType;

use super::{Caller, Entry, Journal, Vfs, VfsError, VfsResult, inodes::Inode};
use crate::backing::sys::{self, Stat};

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// Inode number.
    pub ino: u64,
    /// Where the listing goes on after it.
    pub next: u64,
    /// Its type; `None`: not known.
    pub node_type: Option<NodeType>,
    /// Its name.
    pub name: &'a OsStr,
}

/// Takes entries until it is full.
pub trait Sink {
    /// Takes one; `true`: it did not fit.
    fn take(&mut self, listed: Listed<'_>, entry: Option<&Entry>) -> bool;
}

/// How many bytes of entries are read from the backing file system at a time: about what fits one answer.
const BUFFER_BYTES: usize = 8 << 10;

impl<J: Journal> Vfs<J> {
    /// Lists names from `offset` on.
    pub fn readdir(&self, node: u64, offset: u64, sink: &mut dyn Sink) -> VfsResult<()> {
        let crossable = self.backing.may_hold_foreign();
        self.list(node, offset, OFlags::empty(), &mut |dir, listed| {
            let looked_at = crossable && matches!(listed.node_type, None | Some(NodeType::Directory));
            if looked_at && !matches!(listed.name.as_bytes(), b"." | b"..") {
                // If it cannot be looked at, it is listed as below.
                let stat = self.fd(dir).and_then(|fd| Ok(sys::stat_at(&fd, listed.name)?));
                if stat.is_ok_and(|stat| self.backing.is_foreign_at(&dir.id, listed.name, &stat)) {
                    return Ok(false);
                }
            }
            Ok(sink.take(listed, None))
        })
    }

    /// Lists names with what they mean. Each entry that was taken, but `.` and `..`, counts a lookup.
    pub fn readdir_plus(&self, caller: Caller, node: u64, offset: u64, sink: &mut dyn Sink) -> VfsResult<()> {
        self.list(node, offset, OFlags::empty(), &mut |dir, listed| {
            if matches!(listed.name.as_bytes(), b"." | b"..") {
                return Ok(sink.take(listed, Some(&self.dot_entry(&listed))));
            }
            let dir_fd = self.fd(dir)?;
            let changes = self.changes.load(Ordering::SeqCst);
            let found = sys::stat_at(&dir_fd, listed.name).map_err(VfsError::from);
            let found = found.and_then(|stat| self.identify(dir, (&dir_fd, listed.name), stat));
            let Ok((id, stat)) = found else {
                // It went in between, or cannot be looked at: the name alone, without a promise what it means.
                return Ok(sink.take(listed, None));
            };
            if self.backing.is_foreign_at(&dir.id, listed.name, &stat) {
                return Ok(false);
            }
            let inode = self.inodes.remember(id, &stat);
            self.note_side(&inode, &stat, dir, &dir_fd, listed.name);
            self.saw_name(&inode, dir, listed.name);
            let stat = self.as_told(caller, &inode, (changes, stat), || sys::stat_at(&dir_fd, listed.name));
            let full = sink.take(listed, Some(&self.entry(&inode, stat)));
            if full {
                self.inodes.forget(inode.node, 1);
            }
            Ok(full)
        })
    }

    /// The kernel uses only number and type of these two.
    fn dot_entry(&self, listed: &Listed<'_>) -> Entry {
        let stat = Stat::of_directory(listed.ino);
        Entry { node: self.inodes.node_of(listed.ino), generation: 0, stat }
    }

    /// Each entry of a directory, from `offset` on, until `each` says that it is enough. `flags`: for its open.
    pub(super) fn list(
        &self,
        node: u64,
        offset: u64,
        flags: OFlags,
        each: &mut dyn FnMut(&Arc<Inode>, Listed<'_>) -> VfsResult<bool>,
    ) -> VfsResult<()> {
        let inode = self.inode(node)?;
        let fd = self.open_inode(&inode, OFlags::RDONLY | OFlags::DIRECTORY | flags)?;
        if offset != 0 {
            rustix::fs::seek(&fd, SeekFrom::Start(offset))?;
        }
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut stream = RawDir::new(&fd, &mut buffer);
        while let Some(entry) = stream.next() {
            let entry = entry?;
            let listed = Listed {
                ino: entry.ino(),
                next: entry.next_entry_cookie(),
                node_type: node_type(entry.file_type()),
                name: OsStr::from_bytes(entry.file_name().to_bytes()),
            };
            if each(&inode, listed)? {
                break;
            }
        }
        Ok(())
    }
}

/// Type of a directory entry, if the file system says it.
pub(crate) fn node_type(file_type: FileType) -> Option<NodeType> {
    Some(match file_type {
        FileType::RegularFile => NodeType::Regular,
        FileType::Directory => NodeType::Directory,
        FileType::Symlink => NodeType::Symlink,
        FileType::Fifo => NodeType::Fifo,
        FileType::Socket => NodeType::Socket,
        FileType::CharacterDevice => NodeType::CharDevice,
        FileType::BlockDevice => NodeType::BlockDevice,
        FileType::Unknown => return None,
    })
}
