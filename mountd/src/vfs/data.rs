//! Open files: open, read, write, flush, release, fsync, seek.
//!
//! Every write(2) arrives here before it returns (write-through), with the offset that the kernel chose, so the backing descriptor
//! need not append by itself; where it has to ([`OpenFile::placing`]), that is asked for at the end of the file only. Stores through a shared
//! mapping arrive as writes when the kernel writes the page back.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use rustix::{
    fs::{OFlags, SeekFrom},
    pipe::SpliceFlags,
};
use smallvec::{SmallVec, smallvec};
use tandem_proto::{Change, Changes, InodeId, limits, stage::NodeType};

use super::{
    Access, CacheMode, Caller, Entry, FsyncMode, Journal, Reserved as _, Vfs, VfsError, VfsResult, attr_change,
    handles::{Handle, OpenFile, Unopened},
    inodes::{Inode, InodeState, Privileges},
    mtime_change, reached,
    readahead::Stream,
};
use crate::{
    backing::sys::{self, Stat},
    commit::{
        ATTRIBUTES, MarkCell, MarkCells,
        marks::{FILE_BLOCKS_MAX, WHOLE_FILE},
        waiters::Ticket,
    },
};

/// An open file, for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its number.
    pub handle: u64,
    /// How the kernel reads and writes it.
    pub access: Access,
    /// The number of the backing file, for the kernel, if that is around the daemon; else 0.
    pub backing: u32,
}

/// Name of the xattr that holds file capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// Zeroes from this length on are said as a range: shorter ones cost no more as bytes.
const ZEROES_FROM: usize = 4096;

/// Told how an fsync went.
pub type FsyncDone = Box<dyn FnOnce(VfsResult<()>) + Send>;

/// Flags with which the backing file is opened. The kernel orders appends and does O_SYNC by fsync; files opened for writing
/// only are also read, to send what a copy made.
pub(super) fn backing_flags(flags: i32) -> OFlags {
    let mode = if flags & libc::O_ACCMODE == libc::O_RDONLY { OFlags::RDONLY } else { OFlags::RDWR };
    mode | OFlags::CLOEXEC | OFlags::NONBLOCK
}

/// A write that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Through this handle.
    pub handle: u64,
    /// From here on.
    pub offset: u64,
    /// What is written.
    pub data: &'a [u8],
    /// By whom.
    pub writer: Writer,
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A program's call.
    Call {
        /// Suid, sgid and file capabilities must go.
        kills_privileges: bool,
    },
    /// The kernel, out of its page cache: what was stored through a mapping, or waited with `cache=writeback`. Whether that was allowed was
    /// decided when it was stored.
    PageCache,
}

impl<J: Journal> Vfs<J> {
    /// Opens a regular file.
    pub fn open(&self, node: u64, flags: i32) -> VfsResult<Opened> {
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writable {
            self.writable()?;
        }
        self.room_for_another()?;
        let inode = self.inode(node)?;
        let mut wide = backing_flags(flags);
        // Who may ask for it was asked by the kernel; an ordinary user's daemon might not be allowed what its caller is.
        wide.set(OFlags::NOATIME, flags & libc::O_NOATIME != 0 && self.daemon.uid == 0);
        if !writable && self.backing.opens_by_handle() && inode.was_opened() {
            // What the kernel has in its cache it does not ask for, so most of these are never read here. That it can be opened is known; who
            // removes it leaves a descriptor of it.
            let ((access, backing), failures) = (self.enter(&inode, flags)?, inode.failures());
            let handle = self.handles.insert_unopened(Unopened { inode, flags: wide, access, failures });
            return Ok(Opened { handle, access, backing });
        }
        let mut appends = false;
        let opened = match self.open_inode(&inode, wide) {
            // A file that may only be appended to (chattr +a) is opened for that only; the kernel's offset is its end then.
            Err(VfsError::Backing(error))
                if error.raw_os_error() == Some(libc::EPERM)
                    && flags & libc::O_APPEND != 0
                    && self.cache_mode == CacheMode::Strict =>
            {
                appends = true;
                self.open_inode(&inode, wide | OFlags::APPEND)
            }
            other => other,
        };
        let (fd, readable) = match opened {
            Err(VfsError::Backing(error))
                if error.raw_os_error() == Some(libc::EACCES) && flags & libc::O_ACCMODE == libc::O_WRONLY =>
            {
                (self.open_inode(&inode, OFlags::WRONLY | OFlags::NONBLOCK)?, false)
            }
            other => (other?, true),
        };
        self.opened_as(Arc::new(fd), inode, flags, readable, appends)
    }

    /// Whether there is a descriptor for one more open file. An open is where a program expects to be told that there is none.
    pub(super) fn room_for_another(&self) -> VfsResult<()> {
        if self.handles.len() < self.open_max { Ok(()) } else { Err(rustix::io::Errno::MFILE.into()) }
    }

    /// Keeps what was made for a handle. The entry is as if it was never looked up if that fails.
    pub(super) fn opened(
        &self,
        entry: Entry,
        fd: impl Into<Arc<OwnedFd>>,
        inode: Arc<Inode>,
        flags: i32,
    ) -> VfsResult<(Entry, Opened)> {
        let opened = self.opened_as(fd.into(), inode, flags, true, false);
        opened.inspect_err(|_| self.forget(entry.node, 1)).map(|opened| (entry, opened))
    }

    fn opened_as(
        &self,
        fd: Arc<OwnedFd>,
        inode: Arc<Inode>,
        flags: i32,
        readable: bool,
        appends: bool,
    ) -> VfsResult<Opened> {
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let (access, backing) = self.enter(&inode, flags)?;
        inode.note_open(&fd);
        if readable {
            inode.note_readable();
        }
        let owed = AtomicI32::new(0);
        let stream = Stream::default();
        let file = OpenFile { fd, inode, writable, readable, access, appends, owed, stream };
        Ok(Opened { handle: self.handles.insert(file), access, backing })
    }

    /// The file of a handle. What was opened for reading gets its descriptor now, if it has none yet.
    pub(super) fn file(&self, handle: u64) -> VfsResult<Arc<OpenFile>> {
        let unopened = match self.handles.get(handle).ok_or(VfsError::BadHandle(handle))? {
            Handle::Open(file) => return Ok(file),
            Handle::Unopened(file) => file,
        };
        let (inode, access) = (unopened.inode.clone(), unopened.access);
        let fd = Arc::new(self.open_inode(&inode, unopened.flags).inspect_err(|_| inode.note_unreadable())?);
        inode.note_open(&fd);
        inode.pin_instead(&fd);
        // What an fsync was told before this descriptor was there, it does not say.
        let owed = AtomicI32::new(match inode.failures() {
            failures if failures == unopened.failures => 0,
            failures => (failures as u32).cast_signed(),
        });
        let stream = Stream::default();
        let file = OpenFile { fd, inode, writable: false, readable: true, access, appends: false, owed, stream };
        self.handles.opened(handle, &unopened, file).ok_or(VfsError::BadHandle(handle))
    }

    /// Opens the object behind an inode. Not to be called under its lock.
    pub(super) fn open_inode(&self, inode: &Inode, flags: OFlags) -> VfsResult<OwnedFd> {
        self.sparing(|| reached(inode, || self.open_locked(inode, flags)))
    }

    /// The same under its lock.
    pub(super) fn open_locked(&self, inode: &Inode, flags: OFlags) -> VfsResult<OwnedFd> {
        if let Some(pin) = inode.pinned() {
            return Ok(sys::reopen(&pin, flags)?);
        }
        match self.backing.open_id(&inode.id, flags)? {
            Some(fd) => Ok(fd),
            None => match inode.pinned() {
                Some(pin) => Ok(sys::reopen(&pin, flags)?),
                None => Err(VfsError::Stale(inode.node)),
            },
        }
    }

    /// Whether who writes through this handle and wants that synced (`RWF_DSYNC`) leaves it to us: around its cache the kernel does not
    /// ask for it afterwards.
    pub fn syncs_writes(&self, handle: u64) -> bool {
        self.file(handle).is_ok_and(|file| file.access.is_uncached())
    }

    /// Reads into `buffer`; how much. Less only at the end of the file.
    pub fn read(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> VfsResult<usize> {
        let file = self.file(handle)?;
        self.readahead.is_read(&file.fd, &file.stream, offset, buffer.len());
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&file.fd, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(rustix::io::Errno::INTR) => {}
                // A part is no answer: the kernel would take its end for the end of the file.
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// [`Vfs::read`] into a pipe that has room for it, without a copy. If that fails, there may be a part of it in the pipe.
    pub fn splice(&self, handle: u64, offset: u64, len: usize, pipe: impl AsFd) -> VfsResult<usize> {
        let file = self.file(handle)?;
        self.readahead.is_read(&file.fd, &file.stream, offset, len);
        let (mut done, mut from) = (0, offset);
        while done < len {
            match rustix::pipe::splice(&file.fd, Some(&mut from), pipe.as_fd(), None, len - done, SpliceFlags::NONBLOCK)
            {
                Ok(0) => break,
                Ok(moved) => done += moved,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// [`Vfs::write_keeping`] of data that is copied.
    pub fn write(
        &self,
        caller: Caller,
        handle: u64,
        offset: u64,
        data: &[u8],
        kill_privileges: bool,
    ) -> VfsResult<usize> {
        let writer = Writer::Call { kills_privileges: kill_privileges };
        self.write_keeping(caller, Write { handle, offset, data, writer }, Bytes::copy_from_slice, |_| {})
    }

    /// Writes; how much. `keep` keeps what was written, for its op. `tell` is told how much as soon as nothing can fail any more, before the
    /// op is filled: who waits goes on meanwhile. Its place in the order is reserved and its cells are locked, so whatever he does next
    /// comes after it.
    pub fn write_keeping(
        &self,
        caller: Caller,
        Write { handle, offset, data, writer }: Write<'_>,
        keep: impl FnOnce(&[u8]) -> Bytes,
        tell: impl FnOnce(usize),
    ) -> VfsResult<usize> {
        let file = self.file(handle)?;
        let data = &data[..data.len().min(limits::DATA_MAX)];
        let inode = &*file.inode;
        let cells = data_cells(inode.id, offset, data.len() as u64);
        let kill = (writer == Writer::Call { kills_privileges: true }).then_some(&caller);
        let (_mark, mut state) = self.mark_and_lock(inode, &cells)?;
        let before = self.before_content(&file, &mut state)?;
        // Where the file ended, if zeroes are written: those are said as a range.
        let end_before = if is_zeroes(data) { Some(sys::size(&file.fd)?) } else { None };
        let slot = (!state.unnamed).then(|| self.journal.reserve());
        let done = write_for(&file, data, offset, writer);
        if writer == Writer::PageCache && self.cache_mode == CacheMode::Strict {
            // Also of one that failed: it may have changed the mtime before it found no room.
            self.note_stored(&file.inode, &mut state);
        }
        let (written, failed) = match done {
            (0, Some(errno)) => self.failed_content(&cells, &file.inode, &mut state, Err(errno))?,
            (written, Some(errno)) => (written, self.failed::<()>(&cells, Err(errno.into())).err()),
            (written, None) => (written, None),
        };
        // Whose name it bears has to be asked while he still waits.
        let slot = slot.map(|slot| (slot, caller.origin()));
        if slot.is_some() {
            // Who has all mtimes sent once he goes on must find it.
            self.queue(&file.inode, &mut state);
        }
        let mut tell = Some(tell);
        if !before.present && failed.is_none() {
            tell.take().into_iter().for_each(|tell| tell(written));
        }
        if let Some((slot, origin)) = slot {
            if written > 0 {
                let mut changes: Changes = match end_before {
                    Some(end_before) => zeroes(inode.id, offset, written as u64, end_before),
                    None => smallvec![Change::Data { id: inode.id, offset, data: keep(&data[..written]) }],
                };
                let cleared = self.clear_privileges(&file, before, kill, &mut state, &mut changes);
                let said = self.say_mtime(&file, &mut state, &mut changes);
                slot.fill(origin, changes);
                cleared?;
                if !said {
                    self.note_write(&file.inode, &mut state);
                }
            } else {
                slot.void();
                self.note_write(&file.inode, &mut state);
            }
        } else {
            self.clear_privileges(&file, before, kill, &mut state, &mut Changes::new())?;
            self.note_write(&file.inode, &mut state);
        }
        if let Some(failed) = failed {
            return Err(failed);
        }
        tell.into_iter().for_each(|tell| tell(written));
        Ok(written)
    }

    /// Adds the mtime to the op of a write, if it is time to; then nothing is left to be sent later.
    fn say_mtime(&self, file: &OpenFile, state: &mut InodeState, changes: &mut Changes) -> bool {
        if !std::mem::take(&mut state.says_mtime) {
            return false;
        }
        let Ok(stat) = sys::stat(&file.fd) else { return false };
        changes.push(mtime_change(file.inode.id, &stat));
        state.written = None;
        true
    }

    /// The content changed under the lock: its mtime has to be replicated when the writing pauses.
    pub(super) fn note_write(&self, inode: &Arc<Inode>, state: &mut InodeState) {
        state.blocks_untold = self.cache_mode == CacheMode::Writeback;
        if !state.unnamed {
            state.written = Some(Instant::now());
            self.queue(inode, state);
        }
    }

    /// The kernel wrote back what was stored through a mapping, under the lock: see [`Vfs::outdate`]. It does not keep a SETATTR waiting meanwhile
    /// as it does for a write(2), and what that is answered it believes whenever it comes; so it is told once more when the storing pauses.
    fn note_stored(&self, inode: &Arc<Inode>, state: &mut InodeState) {
        self.outdate(inode, Caller { pid: 0, ..self.daemon });
        if !state.unnamed {
            state.stored = Some(Instant::now());
            self.queue(inode, state);
        }
    }

    /// Has the settler look at it.
    pub(super) fn queue(&self, inode: &Arc<Inode>, state: &mut InodeState) {
        if !std::mem::replace(&mut state.queued, true) {
            self.settler.push(inode.clone());
        }
    }

    /// A change of content that failed, under the lock: it may have changed the mtime all the same, as a write does before it finds no
    /// room.
    pub(super) fn failed_content<T>(
        &self,
        cells: &[MarkCell],
        inode: &Arc<Inode>,
        state: &mut InodeState,
        result: rustix::io::Result<T>,
    ) -> VfsResult<T> {
        if result.is_err() {
            self.note_write(inode, state);
        }
        self.failed(cells, result.map_err(Into::into))
    }

    /// Before the content changes, under the lock: what has to be known of it.
    pub(super) fn before_content(&self, file: &OpenFile, state: &mut InodeState) -> VfsResult<Privileged> {
        if self.cache_mode == CacheMode::Writeback && state.told_mtime.is_none() {
            // What the kernel was told is its own until it tells another; it need not, if it thinks that no time has passed.
            state.told_mtime = Some(sys::stat(&file.fd)?.mtime);
        }
        Privileged::look(file, state)
    }

    /// After the content changed: clears suid and sgid if asked to, and notes what the backing cleared by itself.
    pub(super) fn clear_privileges(
        &self,
        file: &OpenFile,
        before: Privileged,
        kill: Option<&Caller>,
        state: &mut InodeState,
        changes: &mut Changes,
    ) -> VfsResult<()> {
        if !before.present {
            return Ok(());
        }
        state.privileges = Privileges::Unknown;
        let cells = [MarkCell::File { id: file.inode.id, block: ATTRIBUTES }];
        self.unsaid(&cells, self.kill_privileges(file, before, kill, changes))
    }

    fn kill_privileges(
        &self,
        file: &OpenFile,
        before: Privileged,
        kill: Option<&Caller>,
        changes: &mut Changes,
    ) -> VfsResult<()> {
        let id = file.inode.id;
        let mut stat = sys::stat(&file.fd)?;
        if let Some(caller) = kill {
            let mode = stat.mode & 0o7777;
            let kept = without_set_ids(&stat, caller);
            if kept != mode {
                sys::chmod(&file.fd, kept)?;
                stat = sys::stat(&file.fd)?;
            }
        }
        if stat.mode != before.mode {
            changes.push(attr_change(id, &stat));
            self.ask_again(&file.inode);
        }
        if before.capability && sys::get_xattr(&file.fd, CAPABILITY)?.is_none() {
            changes.push(Change::Xattr { id, name: Bytes::from_static(CAPABILITY), value: None });
        }
        Ok(())
    }

    /// A descriptor of the file is closed.
    pub fn flush(&self, caller: Caller, handle: u64) -> VfsResult<()> {
        match self.handles.get_open(handle) {
            Some(file) if file.writable => self.settle(caller, &file.inode, Some(&file.fd)),
            _ => Ok(()),
        }
    }

    /// The last descriptor of the handle is closed.
    pub fn release(&self, caller: Caller, handle: u64) -> VfsResult<()> {
        let file = match self.handles.remove(handle) {
            None => return Ok(()),
            Some(Handle::Unopened(file)) => {
                self.leave(&file.inode, file.access);
                return Ok(());
            }
            Some(Handle::Open(file)) => file,
        };
        self.leave(&file.inode, file.access);
        if !file.writable {
            return Ok(());
        }
        self.journal.closed(&file.inode.id);
        self.settle(caller, &file.inode, Some(&file.fd))
    }

    /// Makes the file durable as the mount promises, then calls `done`, perhaps later and from another thread. The ticket is of who
    /// waits for the replica, see [`Vfs::interrupt`].
    pub fn fsync(&self, caller: Caller, handle: u64, data_only: bool, done: FsyncDone) -> Option<Ticket> {
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(error) => {
                done(Err(error));
                return None;
            }
        };
        self.promise(&file.inode, self.fsync_locally(caller, &file, data_only), done)
    }

    fn fsync_locally(&self, caller: Caller, file: &OpenFile, data_only: bool) -> VfsResult<()> {
        self.tell_blocks(&file.inode, Some(&file.fd));
        let durable = self.fsync.of(&file.inode) == FsyncMode::Durable;
        // fdatasync promises no mtime.
        if file.writable && !data_only && (durable || self.is_mtime_due(&file.inode)) {
            // First, so that it is on its way to the replica while the local disk works.
            self.settle(caller, &file.inode, Some(&file.fd))?;
            file.inode.lock().says_mtime = durable;
        }
        if durable {
            self.journal.hurry();
        }
        self.journal.tell_news();
        let synced = if data_only { rustix::fs::fdatasync(&file.fd) } else { rustix::fs::fsync(&file.fd) };
        self.synced(&file.inode, synced)?;
        match file.owed.swap(0, Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno).into()),
        }
    }

    /// After a failed fsync nobody knows which of the written bytes are on the disk: what is read from now on may be older.
    fn synced(&self, inode: &Inode, result: rustix::io::Result<()>) -> VfsResult<()> {
        match result {
            Ok(()) => Ok(()),
            // A file system that is full, or one that knows no fsync for such an object, lost nothing.
            Err(error @ (rustix::io::Errno::INVAL | rustix::io::Errno::ROFS | rustix::io::Errno::INTR)) => {
                Err(error.into())
            }
            Err(error) => {
                inode.note_failure(error.raw_os_error());
                tracing::error!(inode = %inode.id, %error, "the backing directory could not make a file durable: what it holds is suspect");
                self.journal.not_durable(match inode.node_type {
                    NodeType::Directory => MarkCell::Dir(inode.id),
                    _ => MarkCell::File { id: inode.id, block: WHOLE_FILE },
                });
                Err(error.into())
            }
        }
    }

    /// The inodes of which the kernel may hold pages that were stored through shared mappings.
    pub fn mappable(&self) -> Vec<Arc<Inode>> {
        self.handles.mappable()
    }

    /// Makes the names of a directory durable as the mount promises; as [`Vfs::fsync`].
    pub fn fsync_dir(&self, node: u64, done: FsyncDone) -> Option<Ticket> {
        let inode = match self.inode(node) {
            Ok(inode) => inode,
            Err(error) => {
                done(Err(error));
                return None;
            }
        };
        let synced = self
            .open_inode(&inode, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|fd| self.synced(&inode, rustix::fs::fsync(&fd)));
        self.promise(&inode, synced, done)
    }

    fn promise(&self, inode: &Inode, local: VfsResult<()>, done: FsyncDone) -> Option<Ticket> {
        if local.is_err() || self.fsync.of(inode) == FsyncMode::Local {
            done(local);
            return None;
        }
        let seq = self.journal.last_reserved();
        self.journal.when_durable(seq, Box::new(move |result| done(result.map_err(VfsError::from))))
    }

    /// A signal came to a call that waits for the replica.
    pub fn interrupt(&self, ticket: Ticket) {
        self.journal.interrupt(ticket);
    }

    /// Finds the next data or hole.
    pub fn lseek(&self, handle: u64, offset: u64, whence: i32) -> VfsResult<u64> {
        if i64::try_from(offset).is_err() {
            // Before the beginning there is neither.
            return Err(rustix::io::Errno::NXIO.into());
        }
        if self.cache_mode == CacheMode::Writeback {
            // The kernel asks without having written its dirty pages: what they hold would be a hole. It answers by itself then.
            return Err(rustix::io::Errno::NOSYS.into());
        }
        let file = self.file(handle)?;
        let position = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(VfsError::Invalid),
        };
        Ok(rustix::fs::seek(&file.fd, position)?)
    }
}

/// Writes where it is told to. Linux's `pwrite` to a descriptor that appends does not: it is asked to at the end only.
fn write_at(file: &OpenFile, data: &[u8], offset: u64) -> rustix::io::Result<usize> {
    if !file.appends || sys::size(&file.fd).is_ok_and(|end| end == offset) {
        return rustix::io::pwrite(&file.fd, data, offset);
    }
    rustix::io::pwrite(file.placing()?, data, offset)
}

/// Writes for who asks: how much, and what stopped the rest. A program is told how much there was room for. The kernel, which writes back what
/// it has, does not look at that (`fuse_writepage_end` knows errors only): it is told what became of the rest, or nobody would be.
fn write_for(file: &OpenFile, data: &[u8], offset: u64, writer: Writer) -> (usize, Option<rustix::io::Errno>) {
    let mut done = 0;
    loop {
        let (rest, at) = (&data[done..], offset + done as u64);
        let result = match write_at(file, rest, at) {
            Err(rustix::io::Errno::PERM) if writer == Writer::PageCache => {
                sys::despite_flags(&file.fd, || write_at(file, rest, at))
            }
            other => other,
        };
        match result {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return (done, Some(errno)),
            Ok(0) if !rest.is_empty() && writer == Writer::PageCache => return (done, Some(rustix::io::Errno::IO)),
            Ok(written) => {
                done += written;
                if writer != Writer::PageCache || done >= data.len() {
                    return (done, None);
                }
            }
        }
    }
}

/// Whether a write is nothing but zeroes, and long enough to be said as a range instead of as bytes.
fn is_zeroes(data: &[u8]) -> bool {
    // Compared with itself, one byte further: as fast as memcmp, and done at the first byte for nearly everything else.
    data.len() >= ZEROES_FROM && data[0] == 0 && data[..data.len() - 1] == data[1..]
}

/// What came of zeroes that were written into a file that ended at `end_before`: what was there is a hole, and what was not is new length.
fn zeroes(id: InodeId, offset: u64, len: u64, end_before: u64) -> Changes {
    let end = offset.saturating_add(len);
    let mut changes = Changes::new();
    if offset < end_before {
        changes.push(Change::Hole { id, offset, len: end.min(end_before) - offset });
    }
    if end > end_before {
        changes.push(Change::Size { id, size: end });
    }
    changes
}

/// The cells of marks that an extent touches.
pub(super) fn data_cells(id: InodeId, offset: u64, len: u64) -> MarkCells {
    let first = offset / limits::MARK_BLOCK;
    let last = offset.saturating_add(len.saturating_sub(1)) / limits::MARK_BLOCK;
    if last - first >= u64::from(FILE_BLOCKS_MAX) {
        // A hole may be as long as a file: its blocks one by one would be looked at for minutes, under a lock that all wait for.
        return smallvec![MarkCell::File { id, block: WHOLE_FILE }];
    }
    (first..=last).map(|block| MarkCell::File { id, block }).collect::<SmallVec<_>>()
}

/// The mode after a change of content by somebody without special rights: no suid; no sgid where it means a group, and where it means
/// mandatory locking only if he is of that group.
pub(super) fn without_set_ids(stat: &Stat, caller: &Caller) -> u32 {
    let mode = stat.mode & 0o7777;
    let mut kept = mode & !libc::S_ISUID;
    if mode & libc::S_ISGID != 0 && (mode & libc::S_IXGRP != 0 || !caller.in_group(stat.gid)) {
        kept &= !libc::S_ISGID;
    }
    kept
}

/// What a file had before its content changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Privileged {
    present: bool,
    mode: u32,
    capability: bool,
}

impl Privileged {
    /// Looks once; a file that has none is not looked at again until somebody may have set some.
    pub(super) fn look(file: &OpenFile, state: &mut InodeState) -> VfsResult<Privileged> {
        if state.privileges == Privileges::Absent {
            return Ok(Privileged::default());
        }
        let mode = sys::stat(&file.fd)?.mode;
        let capability = sys::get_xattr(&file.fd, CAPABILITY)?.is_some();
        let present = capability || mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        state.privileges = if present { Privileges::Present } else { Privileges::Absent };
        Ok(Privileged { present, mode, capability })
    }
}

/// Reads a range of a file that was just changed under the lock, as data changes.
pub(super) fn read_back(fd: impl AsFd, offset: u64, len: usize) -> VfsResult<Bytes> {
    let mut buffer = vec![0; len];
    let mut done = 0;
    while done < len {
        match rustix::io::pread(fd.as_fd(), &mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Ok(read) => done += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(buffer.into())
}
