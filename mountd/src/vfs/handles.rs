//! Open files by handle number.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
};

use parking_lot::RwLock;
use rustix::fs::{Mode, OFlags};

use super::{access::Access, inodes::Inode, readahead::Stream};
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
    /// What an fsync through it has to say besides, once: an error of one through another descriptor, told between the `open(2)` of this one
    /// and the first use of it, when it got its own. Every descriptor that was open is told of it.
    pub owed: AtomicI32,
    /// How it is read through this handle.
    pub stream: Stream,
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

/// A file that was opened for reading, of which nothing was asked yet.
pub struct Unopened {
    /// The inode.
    pub inode: Arc<Inode>,
    /// How it is opened then.
    pub flags: OFlags,
    /// How the kernel reads it.
    pub access: Access,
    /// See [`Inode::failures`], when it was opened.
    pub failures: u64,
}

/// What the number of a handle stands for.
#[derive(Clone)]
pub enum Handle {
    /// A file with its descriptor.
    Open(Arc<OpenFile>),
    /// One that needs none yet.
    Unopened(Arc<Unopened>),
}

/// All open files.
#[derive(Default)]
pub struct HandleTable {
    slots: RwLock<Slots>,
    writers: AtomicUsize,
}

#[derive(Default)]
struct Slots {
    handles: Vec<Option<Handle>>,
    free: Vec<u64>,
}

impl HandleTable {
    /// Adds one; its number.
    pub fn insert(&self, file: OpenFile) -> u64 {
        self.writers.fetch_add(usize::from(file.writable), Ordering::Relaxed);
        self.add(Handle::Open(Arc::new(file)))
    }

    /// Adds one without a descriptor; its number.
    pub fn insert_unopened(&self, file: Unopened) -> u64 {
        self.add(Handle::Unopened(Arc::new(file)))
    }

    fn add(&self, handle: Handle) -> u64 {
        let mut slots = self.slots.write();
        match slots.free.pop() {
            Some(number) => {
                slots.handles[number as usize] = Some(handle);
                number
            }
            None => {
                slots.handles.push(Some(handle));
                slots.handles.len() as u64 - 1
            }
        }
    }

    /// What a number stands for.
    pub fn get(&self, handle: u64) -> Option<Handle> {
        self.slots.read().handles.get(handle as usize)?.clone()
    }

    /// The file of a number, if it has a descriptor.
    pub fn get_open(&self, handle: u64) -> Option<Arc<OpenFile>> {
        match self.get(handle)? {
            Handle::Open(file) => Some(file),
            Handle::Unopened(_) => None,
        }
    }

    /// A file that had no descriptor has one now; the file that its number stands for. Another one may have been faster. None if the number
    /// stands for something else meanwhile.
    pub fn opened(&self, handle: u64, was: &Arc<Unopened>, file: OpenFile) -> Option<Arc<OpenFile>> {
        let mut slots = self.slots.write();
        let slot = slots.handles.get_mut(handle as usize)?.as_mut()?;
        match slot {
            Handle::Open(file) => return Some(file.clone()),
            Handle::Unopened(is) if !Arc::ptr_eq(is, was) => return None,
            Handle::Unopened(_) => {}
        }
        let file = Arc::new(file);
        *slot = Handle::Open(file.clone());
        Some(file)
    }

    /// Takes one out; it closes with its last user.
    pub fn remove(&self, handle: u64) -> Option<Handle> {
        let mut slots = self.slots.write();
        let removed = slots.handles.get_mut(handle as usize)?.take()?;
        slots.free.push(handle);
        // What goes with it may take a while.
        drop(slots);
        if let Handle::Open(file) = &removed {
            self.writers.fetch_sub(usize::from(file.writable), Ordering::Relaxed);
        }
        Some(removed)
    }

    /// How many files are open.
    pub fn len(&self) -> usize {
        let slots = self.slots.read();
        slots.handles.len() - slots.free.len()
    }

    /// Whether some file is open for writing.
    pub fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Relaxed) > 0
    }

    /// The inodes that are open for reading and writing, which a shared mapping needs, through the kernel's cache; each once.
    pub fn mappable(&self) -> Vec<Arc<Inode>> {
        let slots = self.slots.read();
        let open = slots.handles.iter().filter_map(|handle| match handle {
            Some(Handle::Open(file)) if file.writable && file.readable && file.access == Access::Cached => {
                Some(file.inode.clone())
            }
            _ => None,
        });
        let mut inodes: Vec<_> = open.collect();
        drop(slots);
        inodes.sort_by_key(|inode| inode.node);
        inodes.dedup_by_key(|inode| inode.node);
        inodes
    }
}
