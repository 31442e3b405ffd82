//! The file system calls: what the kernel asks for, done on the backing directory, and committed as ops.
//!
//! ```text
//! a change:  mark (durable, may block on the local disk)          commit.mark(cells)
//!            lock the inodes whose cells change, by number        inodes::Locks
//!            reserve the seq ─► system call ─► what resulted      commit.reserve()
//!            fill the slot, or void it; unlock; answer            a write and a SETATTR are answered before they are filled
//! ```
//! It promises: the backing file system decides every result and errno; every change of replicated state becomes exactly one op
//! that says what resulted; conflicting ops have the order in which the backing saw them. It knows nothing of FUSE messages.
//!
//! One family of calls per file: [`lookup`](self) and attributes, `create`, `remove`, `rename`, `data`, `extents`, `xattr`,
//! `dirs`; `settle` replicates the mtime of files under write.

pub mod access;
mod ahead;
mod asked;
pub mod cache_mode;
pub mod caller;
pub mod error;
pub mod inodes;
pub mod journal;

mod create;
mod data;
mod dirs;
mod extents;
mod handles;
mod lookup;
mod passthrough;
mod promise;
mod readahead;
mod remove;
mod rename;
mod rules;
mod setattr;
mod settle;
pub mod still;
mod tmpfile;
mod xattr;

use std::{
    cell::Cell,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tandem_proto::{AttrPatch, Change, InodeId, Name, Position, limits};

use crate::{
    backing::{
        Backing, descriptors_max, path_fds_max,
        sys::{self, Stat},
    },
    commit::{MarkCell, MarkCells},
};

pub use self::{
    access::Access,
    cache_mode::CacheMode,
    caller::Caller,
    create::Making,
    data::{FsyncDone, Opened, Write, Writer},
    dirs::{Listed, Sink},
    error::{VfsError, VfsResult},
    extents::CopyRange,
    journal::{Journal, Reserved},
    passthrough::{BackingFiles, ReadRules, Reads},
    promise::{FsyncMode, FsyncRules},
    rename::Place,
    setattr::{SetAttr, SetTime},
};

use self::{
    handles::HandleTable,
    inodes::{Borrowed, Inode, InodeState, InodeTable},
    settle::Settler,
};

/// An object as the kernel is told of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Node id.
    pub node: u64,
    /// Tells inodes of one number apart.
    pub generation: u64,
    /// Its attributes.
    pub stat: Stat,
}

/// The file system. See the module.
pub struct Vfs<J> {
    backing: Arc<Backing>,
    journal: Arc<J>,
    inodes: InodeTable,
    handles: HandleTable,
    settler: Settler,
    fsync: FsyncRules,
    /// See [`passthrough`].
    passthrough: Option<passthrough::Passthrough>,
    cache_mode: CacheMode,
    /// See [`ahead`].
    ahead: Mutex<ahead::Ahead>,
    /// See [`readahead`].
    readahead: readahead::Readahead,
    /// So many files may be open: what is only read may wait for its descriptor, and there will be one.
    open_max: usize,
    daemon: Caller,
    /// See [`Vfs::when_attributes_change`].
    invalidate: OnceLock<Invalidate>,
    /// How often [`Vfs::outdate`] was called.
    changes: AtomicU64,
    /// See [`Vfs::held_writes`].
    held: OnceLock<Arc<AtomicUsize>>,
}

/// Tells the kernel that it must ask for the attributes of a node again.
pub type Invalidate = Box<dyn Fn(u64) + Send + Sync>;

/// An object that a name means, held for the time of a call.
struct Child<'a> {
    inode: Borrowed<'a>,
    /// Looked at again under its lock.
    stat: Cell<Stat>,
    fd: Arc<OwnedFd>,
}

impl<J: Journal> Vfs<J> {
    /// Over this backing directory. [`Vfs::run_settler`] must run in a thread.
    pub fn new(backing: Arc<Backing>, journal: Arc<J>, fsync: impl Into<FsyncRules>) -> io::Result<Vfs<J>> {
        let root = sys::stat(backing.root())?;
        Ok(Vfs {
            inodes: InodeTable::new(&root),
            handles: HandleTable::default(),
            settler: Settler::default(),
            daemon: Caller::daemon(),
            invalidate: OnceLock::new(),
            changes: AtomicU64::new(0),
            held: OnceLock::new(),
            backing,
            journal,
            fsync: fsync.into(),
            passthrough: None,
            cache_mode: CacheMode::default(),
            ahead: Mutex::default(),
            readahead: readahead::Readahead::new(),
            open_max: open_max(),
        })
    }

    /// The same in this mode.
    #[must_use]
    pub fn with_cache_mode(mut self, cache_mode: CacheMode) -> Vfs<J> {
        self.cache_mode = cache_mode;
        self
    }

    /// How the kernel keeps what is written.
    pub fn cache_mode(&self) -> CacheMode {
        self.cache_mode
    }

    /// Whether some file is open for writing, so that the kernel may hold what was not written yet.
    pub fn has_writers(&self) -> bool {
        self.handles.has_writers()
    }

    /// The backing directory.
    pub fn backing(&self) -> &Arc<Backing> {
        &self.backing
    }

    /// The commit.
    pub fn journal(&self) -> &Arc<J> {
        &self.journal
    }

    /// The kernel must ask for the attributes of an inode again, and takes nothing for new that is on its way.
    fn ask_again(&self, inode: &Inode) {
        if let Some(invalidate) = self.invalidate.get() {
            invalidate(inode.node);
        }
    }

    /// Attributes were changed by a call after which the kernel does no more than ask for them again: one on names (for the directory, and for
    /// what was moved), on an extended attribute, which may be an ACL and set the mode, on an extent that leaves the size, and pages that it
    /// writes back. What somebody else was told before, and hears of after the call, it would take for new, and keep. (After SETATTR, LINK,
    /// UNLINK, for the object, and write(2) it does not.) To be called after the change and before the answer.
    fn outdate(&self, inode: &Inode, caller: Caller) {
        // First, for who looks before he knows which inode it is.
        self.changes.fetch_add(1, Ordering::SeqCst);
        if inode.asked.take_others(caller.pid) {
            self.ask_again(inode);
        }
    }

    /// Attributes as a caller may be told them who will be answered for an inode that was found by looking at them, `changes` ago: if any were
    /// changed meanwhile, he may not have counted yet as one who asked.
    fn as_told(
        &self,
        caller: Caller,
        inode: &Inode,
        (changes, stat): (u64, Stat),
        look: impl FnOnce() -> io::Result<Stat>,
    ) -> Stat {
        inode.asked.note(caller.pid);
        if self.changes.load(Ordering::SeqCst) == changes {
            return stat;
        }
        match look() {
            Ok(again) if again.is_same_object(&stat) => again,
            _ => {
                self.ask_again(inode);
                stat
            }
        }
    }

    /// What to do when a call changed attributes that the kernel does not expect it to change (a write that took suid away).
    /// Only the first is kept.
    pub fn when_attributes_change(&self, invalidate: Invalidate) {
        let _ = self.invalidate.set(invalidate);
    }

    /// Where to look for the number of writes that are held back. Only the first is kept.
    pub fn when_asked_for_held(&self, count: Arc<AtomicUsize>) {
        let _ = self.held.set(count);
    }

    /// How many writes are held back because the link is slower than the writer.
    pub fn held_writes(&self) -> usize {
        self.held.get().map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// What fsync promises where.
    pub fn fsync_rules(&self) -> &FsyncRules {
        &self.fsync
    }

    /// Whether names have to be known.
    fn has_path_rules(&self) -> bool {
        self.fsync.has_paths() || self.passthrough.as_ref().is_some_and(passthrough::Passthrough::has_paths)
    }

    /// A name of an inode was seen; only rules for paths need to know.
    fn saw_name(&self, inode: &Arc<Inode>, dir: &Arc<Inode>, name: &OsStr) {
        if self.has_path_rules() {
            inode.named(dir, name.as_bytes());
        }
    }

    /// A position that holds the last change of an inode.
    pub fn position_of(&self, node: u64) -> VfsResult<Position> {
        Ok(self.journal.position_of(&self.inode(node)?.id))
    }

    /// Where an inode is now, for people, from the root of the mount.
    pub fn shown_path(&self, node: u64) -> Option<String> {
        let inode = self.inodes.get(node)?;
        let fd = self.fd(&inode).ok()?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        let below = path.strip_prefix(self.backing.dir()).unwrap_or(&path);
        Some(format!("/{}", below.display().to_string().trim_start_matches('/')))
    }

    /// How many inodes are known.
    pub fn inodes_known(&self) -> usize {
        self.inodes.len()
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        self.handles.len()
    }

    /// How many files are read ahead of who reads them.
    pub fn files_read_ahead(&self) -> usize {
        self.readahead.files()
    }

    fn inode(&self, node: u64) -> VfsResult<Arc<Inode>> {
        self.inodes.get(node).ok_or(VfsError::Stale(node))
    }

    /// A descriptor of an inode: one that is open anyway, or one with O_PATH. Not to be called under its lock.
    fn fd(&self, inode: &Inode) -> VfsResult<Arc<OwnedFd>> {
        reached(inode, || self.fd_locked(inode))
    }

    /// The same under its lock.
    fn fd_locked(&self, inode: &Inode) -> VfsResult<Arc<OwnedFd>> {
        if let Some(fd) = inode.pinned().or_else(|| inode.open()) {
            return Ok(fd);
        }
        match self.backing.path_fd(&inode.id)? {
            Some(fd) => Ok(fd),
            // It may have lost its last name, and been pinned, in between.
            None => inode.pinned().ok_or(VfsError::Stale(inode.node)),
        }
    }

    /// Opens what a call needs; where no descriptor is left, in place of those that are kept for later.
    fn sparing<T>(&self, open: impl Fn() -> VfsResult<T>) -> VfsResult<T> {
        match open() {
            Err(VfsError::Backing(error)) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                self.backing.close_path_fds();
                open()
            }
            other => other,
        }
    }

    fn writable(&self) -> VfsResult<()> {
        if self.journal.read_only() { Err(VfsError::ReadOnly) } else { Ok(()) }
    }

    fn mark(&self, cells: &[MarkCell]) -> VfsResult<J::Guard<'_>> {
        self.writable()?;
        Ok(self.journal.mark(cells)?)
    }

    /// Marks what will be changed of an inode itself, and locks it. What has no name, or is excluded, needs no mark: while it is locked it gets
    /// none, and what is done to it makes no ops. (Its birth covers it no more, so each mark would be a write to the disk.)
    fn mark_and_lock<'a>(
        &'a self,
        inode: &'a Inode,
        cells: &[MarkCell],
    ) -> VfsResult<(Option<J::Guard<'a>>, MutexGuard<'a, InodeState>)> {
        let state = inode.lock();
        if state.unnamed {
            self.writable()?;
            return Ok((None, state));
        }
        drop(state);
        let mark = self.mark(cells)?;
        Ok((Some(mark), inode.lock()))
    }

    /// The marks of a change to names; a directory that is excluded needs none.
    fn mark_names(&self, dirs: &[&Inode]) -> VfsResult<Option<J::Guard<'_>>> {
        self.writable()?;
        let cells: MarkCells = dirs.iter().filter(|dir| !dir.is_outside()).map(|dir| MarkCell::Dir(dir.id)).collect();
        if cells.is_empty() { Ok(None) } else { self.mark(&cells).map(Some) }
    }

    /// Whether a name is excluded from the volume, by itself or with its directory.
    fn leaves_out(&self, dir: &Inode, dir_fd: &OwnedFd, name: &OsStr, is_directory: bool) -> bool {
        if self.backing.excludes().is_empty() {
            return false;
        }
        dir.is_outside() || {
            let place = self.backing.place_of(dir_fd.as_fd());
            self.backing.leaves_out(&place, name.as_bytes(), is_directory)
        }
    }

    /// An inode was seen under a name. A file with several names is part of the volume as long as one of them is not known to be excluded.
    fn note_side(&self, inode: &Inode, stat: &Stat, dir: &Inode, dir_fd: &OwnedFd, name: &OsStr) {
        if self.backing.excludes().is_empty() {
            return;
        }
        let outside = self.leaves_out(dir, dir_fd, name, stat.is_dir()) && (stat.is_dir() || stat.nlink <= 1);
        if outside != inode.is_outside() {
            inode.set_outside(outside, &mut inode.lock());
        }
    }

    /// For what may fail after the backing directory was changed: the change happened, but what resulted cannot be said in an op. Its
    /// cells then differ, and are compared. To be called before the slot is void.
    fn unsaid<T>(&self, cells: &[MarkCell], result: VfsResult<T>) -> VfsResult<T> {
        result.inspect_err(|error| {
            tracing::warn!(%error, ?cells, "a change happened, and what resulted cannot be read: it is compared");
            for cell in cells {
                self.journal.suspect(*cell);
            }
        })
    }

    /// The same for a system call that failed: only after an I/O error may it have changed something all the same.
    fn failed<T>(&self, cells: &[MarkCell], result: VfsResult<T>) -> VfsResult<T> {
        match &result {
            Err(VfsError::Backing(error)) if error.raw_os_error() == Some(libc::EIO) => self.unsaid(cells, result),
            _ => result,
        }
    }

    /// A call on names that failed. The file system may have given a directory another time all the same: ext4 does, when it takes back
    /// a rename that leaves a whiteout because the target is a directory that is not empty.
    fn failed_names<T>(
        &self,
        slot: &mut Option<J::Slot<'_>>,
        caller: Caller,
        dirs: &[(&Inode, &OwnedFd)],
        result: rustix::io::Result<T>,
    ) -> VfsResult<T> {
        let inside = dirs.iter().filter(|(dir, _)| !dir.is_outside());
        let cells: MarkCells = inside.clone().map(|(dir, _)| MarkCell::Dir(dir.id)).collect();
        let result = self.failed(&cells, result.map_err(Into::into));
        if result.is_err()
            && let Some(slot) = slot.take()
        {
            slot.fill(caller.origin(), inside.filter_map(|(dir, fd)| self.dir_mtime(dir, fd)).collect());
        }
        result
    }

    /// The mtime of a directory whose names just changed, for their op; none of a directory that was removed: it is no part of the state.
    fn dir_mtime(&self, dir: &Inode, fd: &OwnedFd) -> Option<Change> {
        let stat = self.unsaid(&[MarkCell::Dir(dir.id)], sys::stat(fd).map_err(VfsError::from));
        stat.ok().filter(|stat| stat.nlink > 0).map(|stat| mtime_change(dir.id, &stat))
    }

    /// The id of what a name means, and its attributes; they were just looked at.
    fn identify(&self, dir: &Inode, (dir_fd, name): (&OwnedFd, &OsStr), mut stat: Stat) -> VfsResult<(InodeId, Stat)> {
        let id = loop {
            if let Some(inode) = self.inodes.same(&stat) {
                break inode.id;
            }
            let id = self.backing.id_at(dir_fd, name, &stat)?;
            // Another object may have got the name in between: its id must not go with these attributes.
            let again = sys::stat_at(dir_fd, name)?;
            if again.is_same_object(&stat) {
                break id;
            }
            stat = again;
        };
        self.backing.remember(&id, &dir.id, name);
        Ok((id, stat))
    }

    /// What a name means, opened, so that it stays reachable whatever happens to the name.
    fn child(&self, dir: &Inode, dir_fd: &OwnedFd, name: &OsStr) -> VfsResult<Child<'_>> {
        let fd = self.sparing(|| Ok(sys::open_path_at(dir_fd, name)?))?;
        let stat = sys::stat(&fd)?;
        if self.backing.is_foreign_at(&dir.id, name, &stat) {
            return Err(VfsError::CrossDevice);
        }
        let id = match self.inodes.same(&stat) {
            Some(inode) => inode.id,
            None => self.backing.id_of(&fd, &stat)?,
        };
        self.backing.remember(&id, &dir.id, name);
        let inode = self.inodes.borrow(id, &stat);
        self.note_side(&inode, &stat, dir, dir_fd, name);
        Ok(Child { inode, stat: Cell::new(stat), fd: Arc::new(fd) })
    }

    fn optional_child(&self, dir: &Inode, dir_fd: &OwnedFd, name: &OsStr) -> VfsResult<Option<Child<'_>>> {
        match self.child(dir, dir_fd, name) {
            Ok(child) => Ok(Some(child)),
            Err(VfsError::Backing(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a name still means what it meant before the locks were taken. Looks at it again: under the lock its links count.
    fn still_means(&self, dir_fd: &OwnedFd, name: &OsStr, expected: Option<&Child<'_>>) -> VfsResult<bool> {
        match (sys::stat_at(dir_fd, name), expected) {
            (Ok(found), Some(child)) => {
                let before = child.stat.replace(found);
                Ok(found.is_same_object(&before))
            }
            (Ok(_), None) => Ok(false),
            (Err(error), expected) if error.kind() == io::ErrorKind::NotFound => Ok(expected.is_none()),
            (Err(error), _) => Err(error.into()),
        }
    }

    fn entry(&self, inode: &Inode, stat: Stat) -> Entry {
        Entry { node: inode.node, generation: inode.generation, stat }
    }
}

/// Reaches an object that may just be losing its last name: who takes that keeps it reachable by the time at which he gives back its lock.
fn reached<T>(inode: &Inode, reach: impl Fn() -> VfsResult<T>) -> VfsResult<T> {
    match reach() {
        Err(VfsError::Stale(_)) => {
            drop(inode.lock());
            reach()
        }
        other => other,
    }
}

/// Descriptors that the daemon needs for itself: its threads, connections, logs and marks, and for calls under way.
const OWN_DESCRIPTORS: usize = 128;

/// How many files may be open at once.
fn open_max() -> usize {
    descriptors_max().saturating_sub(OWN_DESCRIPTORS + path_fds_max()).max(1)
}

/// A name as an op carries it.
fn checked_name(name: &OsStr) -> VfsResult<Name> {
    if name.len() > limits::NAME_MAX {
        return Err(VfsError::NameTooLong);
    }
    Name::new(name.as_bytes().to_vec()).ok_or(VfsError::BadName)
}

fn mtime_change(id: InodeId, stat: &Stat) -> Change {
    Change::Attr { id, patch: AttrPatch { mtime: Some(stat.mtime), ..AttrPatch::default() } }
}

fn attr_change(id: InodeId, stat: &Stat) -> Change {
    Change::Attr { id, patch: stat.attr().into() }
}
