//! Carries actions out below one directory, by descriptors, so that any depth and any name works.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::{Path as StdPath, PathBuf},
    ptr,
};

use rustix::{
    fs::{
        AtFlags, Dir, FallocateFlags, FileType, Gid, IFlags, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps,
        Uid, XattrFlags,
    },
    io::Errno,
};

use crate::{
    rng::content,
    storm::{
        action::{Action, CHANGED_FLAGS, Move, NodeToMake, Outcome, Path},
        generator::SLOTS,
    },
};

/// A directory to storm, and the files that are open in it.
#[derive(Debug)]
pub struct Performer {
    root: OwnedFd,
    slots: Vec<Option<File>>,
}

/// What a worker does to an empty slot.
const NOTHING_OPEN: Errno = Errno::BADF;

impl Performer {
    /// Works below `root`.
    pub fn new(root: &StdPath) -> Result<Self, Errno> {
        let root = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())?;
        Ok(Performer { root, slots: (0..SLOTS).map(|_| None).collect() })
    }

    /// Closes what is open.
    pub fn close_all(&mut self) {
        self.slots.fill_with(|| None);
    }

    /// Takes away the inode flags that a storm may have set, of everything, so that the tree can be removed.
    ///
    /// # Errors
    /// What a call on an object says; file systems that have no flags are fine.
    pub fn clear_flags(&self) -> Result<(), Errno> {
        clear_flags_below(self.root.as_fd())
    }

    fn dir(&self, names: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        for name in names {
            at = rustix::fs::openat(&at, name.as_slice(), flags, Mode::empty())?;
        }
        Ok(at)
    }

    /// The directory that holds the path's last name, and that name. The root itself cannot be an object of these.
    fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a [u8]), Errno> {
        let (dir, name) = path.split().ok_or(Errno::BUSY)?;
        Ok((self.dir(dir)?, name))
    }

    fn slot(&self, slot: usize) -> Result<&File, Errno> {
        self.slots[slot].as_ref().ok_or(NOTHING_OPEN)
    }

    /// Does it.
    pub fn perform(&mut self, action: &Action) -> Outcome {
        match action {
            Action::Create { path, mode, len, fill } => self.create(path, *mode, *len, *fill),
            Action::CreateUnnamed { path, mode, len, fill, named } => {
                self.create_unnamed(path, *mode, content(*fill, *len), *named)
            }
            Action::Open { slot, path, append, create } => {
                self.slots[*slot] = None;
                self.slots[*slot] = Some(self.open(path, *append, *create)?);
                Ok(0)
            }
            Action::Close { slot } => self.slots[*slot].take().map(|_| 0).ok_or(NOTHING_OPEN),
            Action::RemoveAll { path } => self.remove_all(path),
            Action::SetFlags { path, flags } => {
                let (dir, name) = self.parent(path)?;
                set_flags(dir.as_fd(), name, *flags)
            }
            Action::List { path } => list(&self.dir(&path.0)?),
            Action::Stat { path } => self.stat(path),
            _ if slot_of(action).is_some() => self.on_open_file(action),
            _ => self.on_path(action),
        }
    }

    fn create(&self, path: &Path, mode: u32, len: usize, fill: u64) -> Outcome {
        let (dir, name) = self.parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(mode))?);
        file.write_all_at(&content(fill, len), 0).map_err(|error| errno(&error))?;
        Ok(len as u64)
    }

    fn create_unnamed(&self, path: &Path, mode: u32, bytes: Vec<u8>, named: bool) -> Outcome {
        let (dir, name) = self.parent(path)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&dir, c".", flags, Mode::from_raw_mode(mode))?);
        file.write_all_at(&bytes, 0).map_err(|error| errno(&error))?;
        if named {
            let open = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(rustix::fs::CWD, open, &dir, name, AtFlags::SYMLINK_FOLLOW)?;
        }
        Ok(bytes.len() as u64)
    }

    fn open(&self, path: &Path, append: bool, create: bool) -> Result<File, Errno> {
        let (dir, name) = self.parent(path)?;
        match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Opening a pipe or a device would wait for, or talk to, somebody else.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => return Err(Errno::NXIO),
            Ok(_) => {}
            Err(Errno::NOENT) if create => {}
            Err(error) => return Err(error),
        }
        let mut flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        flags.set(OFlags::APPEND, append);
        flags.set(OFlags::CREATE, create);
        let file = File::from(rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o640))?);
        // Somebody else may have made a pipe of that name since.
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(file),
            _ => Err(Errno::NXIO),
        }
    }

    fn on_open_file(&self, action: &Action) -> Outcome {
        match action {
            Action::Write { slot, offset, len, fill } => {
                write_at(self.slot(*slot)?.as_fd(), &content(*fill, *len), *offset).map(|n| n as u64)
            }
            Action::WriteNext { slot, len, fill } => {
                Ok(rustix::io::write(self.slot(*slot)?, &content(*fill, *len))? as u64)
            }
            Action::MapWrite { slot, offset, len, fill } => {
                map_write(self.slot(*slot)?, *offset, &content(*fill, *len))
            }
            Action::SetLen { slot, len } => rustix::fs::ftruncate(self.slot(*slot)?, *len).map(|()| 0),
            Action::Allocate { slot, offset, len } => self.allocate(*slot, FallocateFlags::empty(), *offset, *len),
            Action::Punch { slot, offset, len } => {
                self.allocate(*slot, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, *offset, *len)
            }
            Action::Zero { slot, offset, len } => self.allocate(*slot, FallocateFlags::ZERO_RANGE, *offset, *len),
            Action::Sync { slot } => rustix::fs::fsync(self.slot(*slot)?).map(|()| 0),
            Action::Copy { from, to, from_offset, to_offset, len } => {
                let (mut from_offset, mut to_offset) = (*from_offset, *to_offset);
                let (from, to) = (self.slot(*from)?, self.slot(*to)?);
                let copied = rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), *len)?;
                Ok(copied as u64)
            }
            Action::Read { slot, offset, len } => {
                let mut bytes = vec![0; *len];
                let read = rustix::io::pread(self.slot(*slot)?, &mut bytes, *offset)?;
                Ok(digest(&bytes[..read]))
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn allocate(&self, slot: usize, flags: FallocateFlags, offset: u64, len: u64) -> Outcome {
        rustix::fs::fallocate(self.slot(slot)?, flags, offset, len).map(|()| 0)
    }

    fn on_path(&self, action: &Action) -> Outcome {
        match action {
            Action::MakeDir { path, mode } => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(*mode))?;
            }
            Action::MakeNode { path, node, mode } => {
                let (dir, name) = self.parent(path)?;
                let (kind, device) = match node {
                    NodeToMake::Regular => (FileType::RegularFile, 0),
                    NodeToMake::Fifo => (FileType::Fifo, 0),
                    NodeToMake::Socket => (FileType::Socket, 0),
                    NodeToMake::CharDevice => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                };
                rustix::fs::mknodat(&dir, name, kind, Mode::from_raw_mode(*mode), device)?;
            }
            Action::Symlink { path, target } => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::symlinkat(target.as_slice(), &dir, name)?;
            }
            Action::Link { from, to } => {
                let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
                rustix::fs::linkat(&from_dir, from, &to_dir, to, AtFlags::empty())?;
            }
            Action::Rename { from, to, how } => {
                let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
                let flags = match how {
                    Move::Plain => RenameFlags::empty(),
                    Move::NoReplace => RenameFlags::NOREPLACE,
                    Move::Exchange => RenameFlags::EXCHANGE,
                    Move::Whiteout => RenameFlags::WHITEOUT,
                };
                rustix::fs::renameat_with(&from_dir, from, &to_dir, to, flags)?;
            }
            Action::Unlink { path } => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
            }
            Action::RemoveDir { path } => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?;
            }
            _ => return self.on_attributes(action),
        }
        Ok(0)
    }

    fn on_attributes(&self, action: &Action) -> Outcome {
        match action {
            Action::TruncatePath { path, len } => {
                let file = self.open(path, false, false)?;
                rustix::fs::ftruncate(&file, *len)?;
            }
            Action::SetMode { path, mode } => {
                let (dir, name) = self.parent(path)?;
                if file_type(dir.as_fd(), name)? == FileType::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(*mode), AtFlags::empty())?;
            }
            Action::SetOwner { path, uid, gid } => {
                let (dir, name) = self.parent(path)?;
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                rustix::fs::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Action::SetTimes { path, seconds, nanos } => {
                let (dir, name) = self.parent(path)?;
                let time = Timespec { tv_sec: *seconds, tv_nsec: i64::from(*nanos) };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Action::SetXattr { path, name, value } => {
                let (_dir, path) = self.proc_path(path)?;
                rustix::fs::lsetxattr(&path, *name, value, XattrFlags::empty())?;
            }
            Action::RemoveXattr { path, name } => {
                let (_dir, path) = self.proc_path(path)?;
                rustix::fs::lremovexattr(&path, *name)?;
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(0)
    }

    /// A short path to the object, for calls that know no descriptors; good while the descriptor lives.
    fn proc_path(&self, path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
        let (dir, name) = self.parent(path)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(std::ffi::OsStr::from_bytes(name));
        Ok((dir, short))
    }

    fn stat(&self, path: &Path) -> Outcome {
        let (dir, name) = self.parent(path)?;
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(digest(&attributes(&stat)))
    }

    fn remove_all(&self, path: &Path) -> Outcome {
        let (dir, name) = self.parent(path)?;
        if file_type(dir.as_fd(), name)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        remove_tree(dir.as_fd(), name).map(|()| 0)
    }
}

fn slot_of(action: &Action) -> Option<usize> {
    match action {
        Action::Write { slot, .. }
        | Action::WriteNext { slot, .. }
        | Action::MapWrite { slot, .. }
        | Action::SetLen { slot, .. }
        | Action::Allocate { slot, .. }
        | Action::Punch { slot, .. }
        | Action::Zero { slot, .. }
        | Action::Sync { slot }
        | Action::Copy { from: slot, .. }
        | Action::Read { slot, .. } => Some(*slot),
        _ => None,
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn file_type(dir: BorrowedFd<'_>, name: &[u8]) -> Result<FileType, Errno> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// What two equal trees agree on; not times (they ran at different times), and a directory's size is its file system's business.
fn attributes(stat: &Stat) -> Vec<u8> {
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let size = if is_dir { 0 } else { stat.st_size };
    format!("{} {} {} {} {} {}", stat.st_mode, stat.st_uid, stat.st_gid, size, stat.st_nlink, stat.st_rdev).into_bytes()
}

fn digest(bytes: &[u8]) -> u64 {
    let mut cut = [0; 8];
    cut.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    u64::from_le_bytes(cut)
}

/// The object's flags among [`CHANGED_FLAGS`] become these; says which of them it has then.
fn set_flags(dir: BorrowedFd<'_>, name: &[u8], flags: u32) -> Outcome {
    // What a pipe or a device would answer is not the file system's business.
    if !matches!(file_type(dir, name)?, FileType::RegularFile | FileType::Directory) {
        return Err(Errno::NOTTY);
    }
    let how = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let object = rustix::fs::openat(dir, name, how, Mode::empty())?;
    let changed = IFlags::from_bits_retain(CHANGED_FLAGS);
    let others = rustix::fs::ioctl_getflags(&object)?.difference(changed);
    rustix::fs::ioctl_setflags(&object, others | IFlags::from_bits_retain(flags))?;
    Ok(u64::from(rustix::fs::ioctl_getflags(&object)?.intersection(changed).bits()))
}

fn clear_flags_below(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in names(dir)? {
        match set_flags(dir, &name, 0) {
            Ok(_) | Err(Errno::NOTTY | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        if file_type(dir, &name)? == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            clear_flags_below(rustix::fs::openat(dir, name.as_slice(), flags, Mode::empty())?.as_fd())?;
        }
    }
    Ok(())
}

fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn list(dir: &OwnedFd) -> Outcome {
    let mut all = Vec::new();
    for name in names(dir.as_fd())? {
        all.extend_from_slice(&name);
        all.push(0);
    }
    Ok(digest(&all))
}

/// rm -r without following anything; what others put there meanwhile makes it fail with ENOTEMPTY.
fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for child in names(inner.as_fd())? {
        // Looked at first: what has inode flags may not be removed, and that is the answer to who tries (EPERM), before its type.
        match file_type(inner.as_fd(), &child)? {
            FileType::Directory => remove_tree(inner.as_fd(), &child)?,
            _ => rustix::fs::unlinkat(&inner, child.as_slice(), AtFlags::empty())?,
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn write_at(file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    rustix::io::pwrite(file, bytes, offset)
}

/// Stores through a shared mapping. The file is grown to hold them first: stores past its end would raise SIGBUS.
///
/// Another worker may cut the file between the check and the stores. So the stores go through the kernel (`process_vm_writev` on
/// ourselves), which answers EFAULT where a plain store would kill the process.
fn map_write(file: &File, offset: u64, bytes: &[u8]) -> Outcome {
    // The kernel's FUSE does not know these flags of a file that is open already (SEMANTICS, P5).
    if rustix::fs::ioctl_getflags(file).is_ok_and(|flags| flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND)) {
        return Err(Errno::PERM);
    }
    let end = offset + bytes.len() as u64;
    if (rustix::fs::fstat(file)?.st_size as u64) < end {
        rustix::fs::ftruncate(file, end)?;
    }
    let start = offset & !4095;
    let len = (end - start) as usize;
    // SAFETY: a fresh mapping at an address that the kernel chooses; nobody else knows of it.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            start as libc::off_t,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(errno(&std::io::Error::last_os_error()));
    }
    let local = libc::iovec { iov_base: bytes.as_ptr() as *mut libc::c_void, iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: base.wrapping_byte_add((offset - start) as usize), iov_len: bytes.len() };
    // SAFETY: both vectors describe memory of this process that lives through the call: `bytes`, which is only read, and the mapping.
    let stored = unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
    let stored = if stored < 0 { Err(errno(&std::io::Error::last_os_error())) } else { Ok(stored as u64) };
    // SAFETY: `base` and `len` are those of the mapping above; it is not used after munmap.
    unsafe {
        libc::msync(base, len, libc::MS_SYNC);
        libc::munmap(base, len);
    }
    stored
}
