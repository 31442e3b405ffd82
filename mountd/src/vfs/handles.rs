//! Open files by handle number.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::RwLock;
use rustix::fs::{Mode, OFlags};

use super::{access::Access, inodes::Inode};
use crate::backing::sys;

/// An open file.
pub struct OpenFile {
    /// Of the backing file.
    pub fd: Arc<OwnedFd>,
    /// The inode.
    pub inode: Arc<Inode>,
    /// Whether it may be written through this handle.
    pub writable: bool,
    /// Whether it can be read through this handle (files opened for writing only are widened where that is allowed).
    pub readable: bool,
    /// How the kernel writes it.
    pub access: Access,
    /// Its descriptor appends, wherever a write is told to go (a file with `chattr +a` can be opened no other way).
    pub appends: bool,
}

impl OpenFile {
    /// A descriptor through which what is written goes where it is told to, also if that is not the end of the file. `EPERM` if the file
    /// may only be appended to.
    pub fn placing(&self) -> rustix::io::Result<Placing<'_>> {
        if !self.appends {
            return Ok(Placing::Own(&self.fd));
        }
        let path = sys::ProcPath::new(&self.fd);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path.as_str(), flags, Mode::empty()).map(Placing::Another)
    }
}

/// See [`OpenFile::placing`].
pub enum Placing<'a> {
    /// The file's own.
    Own(&'a OwnedFd),
    /// Opened for this.
    Another(OwnedFd),
}

impl AsFd for Placing<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Placing::Own(fd) => fd.as_fd(),
            Placing::Another(fd) => fd.as_fd(),
        }
    }
}

/// All open files.
#[derive(Default)]
pub struct HandleTable {
    slots: RwLock<Slots>,
    writers: AtomicUsize,
}

#[derive(Default)]
struct Slots {
    files: Vec<Option<Arc<OpenFile>>>,
    free: Vec<u64>,
}

impl HandleTable {
    /// Adds one; its number.
    pub fn insert(&self, file: OpenFile) -> u64 {
        self.writers.fetch_add(usize::from(file.writable), Ordering::Relaxed);
        let file = Some(Arc::new(file));
        let mut slots = self.slots.write();
        match slots.free.pop() {
            Some(handle) => {
                slots.files[handle as usize] = file;
                handle
            }
            None => {
                slots.files.push(file);
                slots.files.len() as u64 - 1
            }
        }
    }

    /// The file of a number.
    pub fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.slots.read().files.get(handle as usize)?.clone()
    }

    /// Takes one out; it closes with its last user.
    pub fn remove(&self, handle: u64) -> Option<Arc<OpenFile>> {
        let mut slots = self.slots.write();
        let file = slots.files.get_mut(handle as usize)?.take();
        if let Some(file) = &file {
            self.writers.fetch_sub(usize::from(file.writable), Ordering::Relaxed);
            slots.free.push(handle);
        }
        file
    }

    /// How many files are open.
    pub fn len(&self) -> usize {
        let slots = self.slots.read();
        slots.files.len() - slots.free.len()
    }

    /// Whether some file is open for writing.
    pub fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Relaxed) > 0
    }

    /// The inodes that are open for reading and writing, which a shared mapping needs; each once.
    pub fn mappable(&self) -> Vec<Arc<Inode>> {
        let slots = self.slots.read();
        let open = slots.files.iter().flatten().filter(|file| file.writable && file.readable);
        let mut inodes: Vec<_> = open.map(|file| file.inode.clone()).collect();
        drop(slots);
        inodes.sort_by_key(|inode| inode.node);
        inodes.dedup_by_key(|inode| inode.node);
        inodes
    }
}
