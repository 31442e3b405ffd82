//! The real tree, on the file system of the storage directory.

use std::{
    borrow::Cow,
    ffi::CString,
    io,
    num::NonZeroU64,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use rustix::{
    fs::{
        AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, SeekFrom, StatxFlags, fallocate,
        ftruncate, linkat, makedev, mkdirat, mknodat, openat2, renameat, renameat_with, seek, statx, symlinkat, syncfs,
        unlinkat,
    },
    io::Errno,
};
use tandem_proto::{
    op::{NodeKind, Timestamp},
    stage::NodeType,
};

use super::{Area, Found, ReplicaTree, Stat, fs_meta, rush};
use crate::apply::ObjectIdentity;

/// The real tree: areas in a volume's directory. See [`ReplicaTree`].
#[derive(Clone)]
pub struct FsTree {
    inner: Arc<Inner>,
}

struct Inner {
    areas: [FsNode; Area::ALL.len()],
    unprivileged: bool,
    /// Longest name that the file system takes.
    name_max: usize,
    /// Cleared for good when the file system has no file handles.
    handles: AtomicBool,
}

/// An open object of the real tree.
#[derive(Clone)]
pub struct FsNode {
    pub(super) fd: Arc<OwnedFd>,
    /// Opened with O_PATH: attributes only, and those through other system calls.
    pub(super) path_only: bool,
}

impl AsFd for FsNode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);
/// Bytes of a file that may be on their way to the disk before more are waited for: unbounded, the disk's queue takes 256 MiB of a first sync,
/// and the fsync of another volume stands behind them.
const WRITING_BEHIND: u64 = 4 << 20;
/// The same while another volume has somebody who waits for the disk.
const WRITING_BEHIND_RUSH: u64 = 1 << 20;
/// Longest name of Linux.
const NAME_MAX: usize = 255;
/// With less room than this a name that is cut could not be told from another.
const NAME_MAX_LEAST: usize = 64;
/// Largest file handle of Linux.
const HANDLE_BYTES_MAX: usize = 128;

/// `struct file_handle` with room.
#[repr(C)]
struct FileHandle {
    handle_bytes: u32,
    handle_type: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

impl FsTree {
    /// Opens the areas below a volume's directory, and makes those that are missing.
    pub fn open(volume: &Path) -> io::Result<Self> {
        Self::open_with_names_of(volume, NAME_MAX)
    }

    /// The same with a bound of names that is not above that of the file system.
    fn open_with_names_of(volume: &Path, name_max: usize) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        tandem_runtime::durable::create_private_dir(volume)?;
        let top = rustix::fs::open(volume, flags, Mode::empty())?;
        // A link in the place of an area leads out of the volume, whoever put it there.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = |area: Area| -> io::Result<FsNode> {
            let fd = match openat2(&top, area.path(), flags, Mode::empty(), resolve) {
                Err(Errno::NOENT) => {
                    tandem_runtime::durable::create_private_dir(&volume.join(area.path()))?;
                    openat2(&top, area.path(), flags, Mode::empty(), resolve)?
                }
                Err(Errno::LOOP) => {
                    let path = volume.join(area.path());
                    return Err(io::Error::other(format!("{} is a symbolic link, or behind one", path.display())));
                }
                answer => answer?,
            };
            Ok(FsNode { fd: Arc::new(fd), path_only: false })
        };
        let [tree, staging, parked, limbo, discard, history, incoming] = Area::ALL.map(open);
        let tree = tree?;
        let takes = usize::try_from(rustix::fs::fstatvfs(&*tree.fd)?.f_namemax).unwrap_or(NAME_MAX);
        Ok(FsTree {
            inner: Arc::new(Inner {
                areas: [tree, staging?, parked?, limbo?, discard?, history?, incoming?],
                name_max: takes.clamp(NAME_MAX_LEAST, NAME_MAX).min(name_max),
                unprivileged: !rustix::process::geteuid().is_root(),
                handles: AtomicBool::new(true),
            }),
        })
    }

    /// All of what stands at a name that makes its kind: also where a symlink leads, and which device it is.
    pub fn kind(&self, dir: &FsNode, name: &[u8]) -> io::Result<NodeKind> {
        let stat = statx(&*dir.fd, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        Ok(match node_type(FileType::from_raw_mode(stat.stx_mode.into()))? {
            NodeType::Regular => NodeKind::Regular,
            NodeType::Directory => NodeKind::Directory,
            NodeType::Symlink => {
                let target = rustix::fs::readlinkat(&*dir.fd, name, Vec::new())?;
                NodeKind::Symlink(Bytes::from(target.into_bytes()))
            }
            NodeType::Fifo => NodeKind::Fifo,
            NodeType::Socket => NodeKind::Socket,
            NodeType::CharDevice => NodeKind::CharDevice { major, minor },
            NodeType::BlockDevice => NodeKind::BlockDevice { major, minor },
        })
    }

    /// The name in the tree. One that is longer than the file system takes is cut and told from others by its digest, the same way
    /// each time; readers have the true one from the catalog.
    fn name<'a>(&self, name: &'a [u8]) -> Cow<'a, [u8]> {
        if name.len() <= self.inner.name_max {
            return Cow::Borrowed(name);
        }
        let digest = blake3::hash(name);
        let mark = format!("~{}", &digest.to_hex()[..32]);
        let mut cut = name[..self.inner.name_max - mark.len()].to_vec();
        cut.extend_from_slice(mark.as_bytes());
        Cow::Owned(cut)
    }

    fn open_flags(node_type: NodeType) -> (OFlags, bool) {
        match node_type {
            NodeType::Regular => (OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOATIME, false),
            NodeType::Directory => (OFlags::RDONLY | OFlags::DIRECTORY, false),
            _ => (OFlags::PATH, true),
        }
    }

    fn open_beneath(dir: &FsNode, name: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(&*dir.fd, name, flags, mode, RESOLVE) {
            // O_NOATIME is for the owner only.
            Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => {
                Ok(openat2(&*dir.fd, name, flags - OFlags::NOATIME, mode, RESOLVE)?)
            }
            answer => Ok(answer?),
        }
    }

    /// File handle, or inode number and birth time where the file system has none.
    fn identify(&self, dir: impl AsFd, name: &[u8], flags: AtFlags) -> io::Result<ObjectIdentity> {
        if self.inner.handles.load(Ordering::Relaxed) {
            match handle_of(&dir, name, flags) {
                Ok(identity) => return Ok(identity),
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.inner.handles.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        let flags = flags | AtFlags::SYMLINK_NOFOLLOW;
        let stat = statx(dir, name, flags, StatxFlags::INO | StatxFlags::BTIME)?;
        let mut bytes = [0; 21];
        bytes[0] = 2;
        bytes[1..9].copy_from_slice(&stat.stx_ino.to_le_bytes());
        bytes[9..17].copy_from_slice(&stat.stx_btime.tv_sec.to_le_bytes());
        bytes[17..].copy_from_slice(&stat.stx_btime.tv_nsec.to_le_bytes());
        Ok(ObjectIdentity::new(&bytes).unwrap_or_else(|| unreachable!("21 bytes fit")))
    }
}

fn handle_of(dir: impl AsFd, name: &[u8], flags: AtFlags) -> io::Result<ObjectIdentity> {
    let name = CString::new(name)?;
    let mut handle = FileHandle { handle_bytes: HANDLE_BYTES_MAX as u32, handle_type: 0, bytes: [0; HANDLE_BYTES_MAX] };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: name is NUL-terminated, handle has handle_bytes of room, and both outlive the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            flags.bits() as libc::c_int,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    let len = (handle.handle_bytes as usize).min(HANDLE_BYTES_MAX);
    let mut bytes = [0; HANDLE_BYTES_MAX + 5];
    bytes[0] = 1;
    bytes[1..5].copy_from_slice(&handle.handle_type.to_le_bytes());
    bytes[5..5 + len].copy_from_slice(&handle.bytes[..len]);
    ObjectIdentity::new(&bytes[..5 + len]).ok_or_else(|| io::Error::other("a file handle beyond its bound"))
}

fn node_type(file_type: FileType) -> io::Result<NodeType> {
    Ok(match file_type {
        FileType::RegularFile => NodeType::Regular,
        FileType::Directory => NodeType::Directory,
        FileType::Symlink => NodeType::Symlink,
        FileType::Fifo => NodeType::Fifo,
        FileType::Socket => NodeType::Socket,
        FileType::CharacterDevice => NodeType::CharDevice,
        FileType::BlockDevice => NodeType::BlockDevice,
        FileType::Unknown => return Err(io::Error::other("an object of no type that Linux knows")),
    })
}

/// Reads at an offset until `buffer` is full or the file ends; how many bytes.
pub fn read_full_at(file: impl AsFd, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(&file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

impl ReplicaTree for FsTree {
    type Node = FsNode;

    fn area(&self, area: Area) -> FsNode {
        self.inner.areas[area as usize].clone()
    }

    fn open(&self, dir: &FsNode, name: &[u8], node_type: NodeType) -> io::Result<FsNode> {
        let (flags, path_only) = Self::open_flags(node_type);
        let fd = Self::open_beneath(dir, &self.name(name), flags, Mode::empty())?;
        Ok(FsNode { fd: Arc::new(fd), path_only })
    }

    fn find(&self, dir: &FsNode, name: &[u8]) -> io::Result<Option<Found>> {
        let name = &*self.name(name);
        let stat = match statx(&*dir.fd, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
            Err(Errno::NOENT) => return Ok(None),
            answer => answer?,
        };
        let node_type = node_type(FileType::from_raw_mode(stat.stx_mode.into()))?;
        Ok(Some(Found { identity: self.identify(&*dir.fd, name, AtFlags::empty())?, node_type }))
    }

    fn create(&self, dir: &FsNode, name: &[u8], kind: &NodeKind) -> io::Result<(ObjectIdentity, Option<FsNode>)> {
        let name = &*self.name(name);
        let private = Mode::RUSR | Mode::WUSR;
        let opened = match kind {
            NodeKind::Regular => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                Some((Self::open_beneath(dir, name, flags, private)?, false))
            }
            NodeKind::Directory => {
                mkdirat(&*dir.fd, name, Mode::RWXU)?;
                Some((Self::open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?, false))
            }
            NodeKind::Symlink(target) => {
                symlinkat(&target[..], &*dir.fd, name)?;
                None
            }
            NodeKind::Fifo => {
                mknodat(&*dir.fd, name, FileType::Fifo, private, 0)?;
                None
            }
            NodeKind::Socket => {
                mknodat(&*dir.fd, name, FileType::Socket, private, 0)?;
                None
            }
            NodeKind::CharDevice { major, minor } => {
                mknodat(&*dir.fd, name, FileType::CharacterDevice, private, makedev(*major, *minor))?;
                None
            }
            NodeKind::BlockDevice { major, minor } => {
                mknodat(&*dir.fd, name, FileType::BlockDevice, private, makedev(*major, *minor))?;
                None
            }
        };
        let (fd, path_only) = match opened {
            Some(opened) => opened,
            None => (Self::open_beneath(dir, name, OFlags::PATH, Mode::empty())?, true),
        };
        let node = FsNode { fd: Arc::new(fd), path_only };
        if !matches!(kind, NodeKind::Symlink(_)) {
            fs_meta::drop_inherited_acls(&node)?;
        }
        Ok((self.identity(&node)?, Some(node)))
    }

    fn link(&self, from: &FsNode, name: &[u8], to: &FsNode, to_name: &[u8]) -> io::Result<()> {
        Ok(linkat(&*from.fd, &*self.name(name), &*to.fd, &*self.name(to_name), AtFlags::empty())?)
    }

    fn rename(&self, from: &FsNode, name: &[u8], to: &FsNode, to_name: &[u8]) -> io::Result<()> {
        Ok(renameat(&*from.fd, &*self.name(name), &*to.fd, &*self.name(to_name))?)
    }

    fn exchange(&self, from: &FsNode, name: &[u8], to: &FsNode, to_name: &[u8]) -> io::Result<()> {
        Ok(renameat_with(&*from.fd, &*self.name(name), &*to.fd, &*self.name(to_name), RenameFlags::EXCHANGE)?)
    }

    fn unlink(&self, dir: &FsNode, name: &[u8]) -> io::Result<()> {
        Ok(unlinkat(&*dir.fd, &*self.name(name), AtFlags::empty())?)
    }

    fn rmdir(&self, dir: &FsNode, name: &[u8]) -> io::Result<()> {
        Ok(unlinkat(&*dir.fd, &*self.name(name), AtFlags::REMOVEDIR)?)
    }

    fn list(&self, dir: &FsNode) -> io::Result<Vec<(Bytes, NodeType)>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&*dir.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let file_type = match entry.file_type() {
                FileType::Unknown => {
                    let stat = statx(&*dir.fd, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
                    FileType::from_raw_mode(stat.stx_mode.into())
                }
                known => known,
            };
            names.push((Bytes::copy_from_slice(name), node_type(file_type)?));
        }
        Ok(names)
    }

    fn identity(&self, node: &FsNode) -> io::Result<ObjectIdentity> {
        self.identify(&*node.fd, b"", AtFlags::EMPTY_PATH)
    }

    fn stat(&self, node: &FsNode) -> io::Result<Stat> {
        let stat = statx(&*node.fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        let mode = u32::from(stat.stx_mode);
        Ok(Stat {
            node_type: node_type(FileType::from_raw_mode(mode))?,
            attr: tandem_proto::op::Attr {
                mode: mode & 0o7777,
                uid: stat.stx_uid,
                gid: stat.stx_gid,
                mtime: Timestamp { seconds: stat.stx_mtime.tv_sec, nanos: stat.stx_mtime.tv_nsec },
            },
            size: stat.stx_size,
            links: stat.stx_nlink.into(),
        })
    }

    fn allocated(&self, node: &FsNode) -> io::Result<u64> {
        let stat = statx(&*node.fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BLOCKS)?;
        Ok(stat.stx_blocks.saturating_mul(512))
    }

    fn set_owner(&self, node: &FsNode, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        fs_meta::set_owner(node, uid, gid)
    }

    fn set_mode(&self, node: &FsNode, mode: u32) -> io::Result<()> {
        fs_meta::set_mode(node, mode)
    }

    fn set_mtime(&self, node: &FsNode, mtime: Timestamp) -> io::Result<()> {
        fs_meta::set_mtime(node, mtime)
    }

    fn list_xattrs(&self, node: &FsNode) -> io::Result<Vec<Bytes>> {
        fs_meta::list_xattrs(node)
    }

    fn xattr(&self, node: &FsNode, name: &[u8]) -> io::Result<Option<Bytes>> {
        fs_meta::xattr(node, name)
    }

    fn set_xattr(&self, node: &FsNode, name: &[u8], value: &[u8]) -> io::Result<()> {
        fs_meta::set_xattr(node, name, value)
    }

    fn remove_xattr(&self, node: &FsNode, name: &[u8]) -> io::Result<()> {
        fs_meta::remove_xattr(node, name)
    }

    fn read_at(&self, node: &FsNode, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        read_full_at(&*node.fd, offset, buffer)
    }

    fn write_at(&self, node: &FsNode, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&*node.fd, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn punch(&self, node: &FsNode, offset: u64, len: u64) -> io::Result<()> {
        let size = self.stat(node)?.size;
        let len = len.min(size.saturating_sub(offset));
        if len == 0 {
            return Ok(());
        }
        match fallocate(&*node.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeroes(node, offset, len),
            answer => Ok(answer?),
        }
    }

    fn set_size(&self, node: &FsNode, size: u64) -> io::Result<()> {
        Ok(ftruncate(&*node.fd, size)?)
    }

    fn next_data(&self, node: &FsNode, from: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match seek(&*node.fd, SeekFrom::Data(from)) {
            Err(Errno::NXIO) => return Ok(None),
            answer => answer?,
        };
        Ok(Some((start, seek(&*node.fd, SeekFrom::Hole(start))?)))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(syncfs(&*self.inner.areas[Area::Tree as usize].fd)?)
    }

    fn sync_ahead(&self) {
        // A descriptor of its own: a writeback error is told once to each, and this one's answer is thrown away.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(own) = rustix::fs::openat(&*self.inner.areas[Area::Tree as usize].fd, c".", flags, Mode::empty()) {
            let _ = syncfs(own);
        }
    }

    fn write_back(&self, node: &FsNode, offset: u64, len: u64) {
        let range = |offset: u64, len: u64, flags: u32| {
            // SAFETY: plain numbers and an open descriptor. An error is told to the sync of the file system as well.
            let _ =
                unsafe { libc::sync_file_range(node.fd.as_raw_fd(), offset.cast_signed(), len.cast_signed(), flags) };
        };
        range(offset, len, libc::SYNC_FILE_RANGE_WRITE);
        let behind = if rush::is_on() { WRITING_BEHIND_RUSH } else { WRITING_BEHIND };
        let ahead = (offset + len).saturating_sub(behind);
        if ahead > 0 {
            // What another volume's fsync waits for stands behind no more than this in the disk's queue.
            range(ahead.saturating_sub(len), len, libc::SYNC_FILE_RANGE_WAIT_BEFORE);
        }
    }

    fn forget_cached(&self, node: &FsNode, offset: u64, len: u64) {
        // Best effort: what is refused is read from memory.
        let _ = rustix::fs::fadvise(&*node.fd, offset, NonZeroU64::new(len), rustix::fs::Advice::DontNeed);
    }

    fn copy_range(&self, from: &FsNode, to: &FsNode, offset: u64, len: u64) -> io::Result<u64> {
        let (mut at, mut to_at) = (offset, offset);
        let mut done = 0;
        while done < len {
            let part = usize::try_from(len - done).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(&*from.fd, Some(&mut at), &*to.fd, Some(&mut to_at), part) {
                Ok(0) => break,
                Ok(copied) => done += copied as u64,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV | Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn is_unprivileged(&self) -> bool {
        self.inner.unprivileged
    }
}

impl FsTree {
    fn write_zeroes(&self, node: &FsNode, offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZEROES.len() as u64);
            self.write_at(node, offset + done, &ZEROES[..part as usize])?;
            done += part;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "fs_tests.rs"]
mod tests;
