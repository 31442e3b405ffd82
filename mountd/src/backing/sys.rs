//! System calls on the backing directory that the standard library lacks, each named by its purpose.
//!
//! Everything goes through descriptors: an object is reached by `*at` calls, or through its own descriptor by the magic link
//! `/proc/self/fd/N`, so that no path is ever built and no depth is too deep.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use bytes::Bytes;
use rustix::{
    fs::{AtFlags, IFlags, Mode, OFlags, Statx, StatxFlags, XattrFlags},
    io::Errno,
};
use tandem_proto::{Attr, NodeKind, Timestamp, stage::NodeType};

/// What `statx` says about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Inode number.
    pub ino: u64,
    /// Device of the file system (btrfs: of the subvolume).
    pub dev: (u32, u32),
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred block size.
    pub blksize: u32,
    /// Device number of a device file.
    pub rdev: (u32, u32),
    /// Last access.
    pub atime: Timestamp,
    /// Last modification.
    pub mtime: Timestamp,
    /// Last change.
    pub ctime: Timestamp,
    /// Birth, where the file system keeps it.
    pub btime: Option<Timestamp>,
}

impl Stat {
    fn new(raw: &Statx) -> Stat {
        let time = |time: rustix::fs::StatxTimestamp| Timestamp { seconds: time.tv_sec, nanos: time.tv_nsec };
        let has_btime = raw.stx_mask & StatxFlags::BTIME.bits() != 0;
        Stat {
            ino: raw.stx_ino,
            dev: (raw.stx_dev_major, raw.stx_dev_minor),
            mode: u32::from(raw.stx_mode),
            nlink: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            size: raw.stx_size,
            blocks: raw.stx_blocks,
            blksize: raw.stx_blksize,
            rdev: (raw.stx_rdev_major, raw.stx_rdev_minor),
            atime: time(raw.stx_atime),
            mtime: time(raw.stx_mtime),
            ctime: time(raw.stx_ctime),
            btime: has_btime.then(|| time(raw.stx_btime)),
        }
    }

    /// Whether both are attributes of one object, looked at twice. Without times of birth a number that was used again in between looks the same.
    pub fn is_same_object(&self, other: &Stat) -> bool {
        (self.ino, self.dev, self.btime) == (other.ino, other.dev, other.btime)
    }

    /// A directory of which only the number is known.
    pub fn of_directory(ino: u64) -> Stat {
        Stat {
            ino,
            dev: (0, 0),
            mode: libc::S_IFDIR,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            blksize: 4096,
            rdev: (0, 0),
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: None,
        }
    }

    /// The replicated attributes.
    pub fn attr(&self) -> Attr {
        Attr { mode: self.mode & 0o7777, uid: self.uid, gid: self.gid, mtime: self.mtime }
    }

    /// The type of the object.
    pub fn node_type(&self) -> NodeType {
        match self.mode & libc::S_IFMT {
            libc::S_IFDIR => NodeType::Directory,
            libc::S_IFLNK => NodeType::Symlink,
            libc::S_IFIFO => NodeType::Fifo,
            libc::S_IFSOCK => NodeType::Socket,
            libc::S_IFCHR => NodeType::CharDevice,
            libc::S_IFBLK => NodeType::BlockDevice,
            _ => NodeType::Regular,
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_regular(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }
}

/// Attributes of the object behind a descriptor.
pub fn stat(fd: impl AsFd) -> io::Result<Stat> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    Ok(Stat::new(&rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)?))
}

/// Does `act` on a file that was made immutable or append-only as if it were not yet, and makes it so again: for what was stored before, of
/// which the kernel tells later. If it is neither, that was not the reason: `EPERM`. A crash in between leaves it without the flag.
pub fn despite_flags<T>(fd: impl AsFd, act: impl FnOnce() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    let flags = rustix::fs::ioctl_getflags(&fd)?;
    let protecting = IFlags::IMMUTABLE | IFlags::APPEND;
    if !flags.intersects(protecting) {
        return Err(Errno::PERM);
    }
    rustix::fs::ioctl_setflags(&fd, flags - protecting)?;
    let done = act();
    if let Err(error) = rustix::fs::ioctl_setflags(&fd, flags) {
        tracing::error!(%error, ?flags, "a file lost its protection (chattr) while what was stored before was written, and could not be given it again: set it again");
    }
    done
}

/// Has the kernel write what its page cache holds of a file, and waits for that. Nothing else of the file: neither its times nor a disk.
pub fn write_pages(fd: impl AsFd) -> rustix::io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes no pointers; the descriptor is open.
    match unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Length of the file behind a descriptor. Unlike [`stat`] it does not ask for times, so the file's next write need not be told from its
/// last one: since Linux 6.13 that costs a change of the inode, which the next fsync writes.
pub fn size(fd: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::SIZE)?.stx_size)
}

/// How many blocks of 512 bytes the file behind a descriptor takes. Does not ask for times either.
pub fn blocks(fd: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BLOCKS)?.stx_blocks)
}

/// Attributes of a name; a symbolic link's own.
pub fn stat_at(dir: impl AsFd, name: &OsStr) -> io::Result<Stat> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    Ok(Stat::new(&rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, mask)?))
}

/// A name that is only looked at: it reads nothing, follows nothing and triggers nothing (devices, fifos).
pub fn open_path_at(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// The magic link of a descriptor, on the stack.
pub struct ProcPath {
    text: arrayvec::Text,
}

mod arrayvec {
    //! A text of at most 32 bytes.

    /// Text on the stack.
    #[derive(Default)]
    pub struct Text {
        bytes: [u8; 32],
        len: usize,
    }

    impl Text {
        /// What was written.
        pub fn as_str(&self) -> &str {
            std::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
        }
    }

    impl std::fmt::Write for Text {
        fn write_str(&mut self, part: &str) -> std::fmt::Result {
            let end = self.len + part.len();
            self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(part.as_bytes());
            self.len = end;
            Ok(())
        }
    }
}

impl ProcPath {
    /// Of this descriptor.
    pub fn new(fd: impl AsFd) -> ProcPath {
        let mut text = arrayvec::Text::default();
        // "/proc/self/fd/" and ten digits always fit.
        let _ = write!(text, "/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        ProcPath { text }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        self.text.as_str()
    }
}

/// Opens what an O_PATH descriptor stands for.
pub fn reopen(path_fd: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(ProcPath::new(path_fd).as_str(), flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// Text of a symbolic link behind an O_PATH descriptor.
pub fn read_link(fd: impl AsFd) -> io::Result<Bytes> {
    Ok(rustix::fs::readlinkat(fd, c"", Vec::new())?.into_bytes().into())
}

/// What the object is, with what belongs to its type.
pub fn kind(fd: impl AsFd, stat: &Stat) -> io::Result<NodeKind> {
    let (major, minor) = stat.rdev;
    Ok(match stat.node_type() {
        NodeType::Regular => NodeKind::Regular,
        NodeType::Directory => NodeKind::Directory,
        NodeType::Symlink => NodeKind::Symlink(read_link(fd)?),
        NodeType::Fifo => NodeKind::Fifo,
        NodeType::Socket => NodeKind::Socket,
        NodeType::CharDevice => NodeKind::CharDevice { major, minor },
        NodeType::BlockDevice => NodeKind::BlockDevice { major, minor },
    })
}

/// Largest list of xattr names and largest value that Linux knows.
const XATTR_MAX: usize = 64 << 10;

/// Value of an extended attribute; `None`: there is none.
pub fn get_xattr(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Bytes>> {
    let mut short = [0; 256];
    let path = ProcPath::new(fd.as_fd());
    let found = match rustix::fs::fgetxattr(fd.as_fd(), name, &mut short) {
        // An O_PATH descriptor.
        Err(Errno::BADF) => rustix::fs::getxattr(path.as_str(), name, &mut short),
        found => found,
    };
    match found {
        Ok(len) => return Ok(Some(Bytes::copy_from_slice(&short[..len]))),
        Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error.into()),
    }
    let mut value = Vec::with_capacity(XATTR_MAX);
    match rustix::fs::getxattr(path.as_str(), name, rustix::buffer::spare_capacity(&mut value)) {
        Ok(_) => Ok(Some(value.into())),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Names of all extended attributes, each ended by NUL.
pub fn list_xattr_raw(fd: impl AsFd) -> io::Result<Vec<u8>> {
    let mut names = Vec::with_capacity(256);
    // Without a path, where that is enough: not for O_PATH descriptors.
    match rustix::fs::flistxattr(fd.as_fd(), rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => return Ok(names),
        Err(_) => names.clear(),
    }
    let path = ProcPath::new(fd);
    loop {
        match rustix::fs::listxattr(path.as_str(), rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) => return Ok(names),
            Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
            Err(rustix::io::Errno::RANGE) if names.capacity() < XATTR_MAX => names = Vec::with_capacity(XATTR_MAX),
            Err(error) => return Err(error.into()),
        }
    }
}

/// xfs shows ACLs a second time to root, in a form of its own, and a change of one is a change of the other.
pub fn acl_by_another_name(name: &[u8]) -> Option<&'static [u8]> {
    match name {
        b"trusted.SGI_ACL_FILE" => Some(b"system.posix_acl_access"),
        b"trusted.SGI_ACL_DEFAULT" => Some(b"system.posix_acl_default"),
        _ => None,
    }
}

/// Whether an extended attribute is part of the replicated state. Others are made up by their file system.
pub fn is_replicated_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || (name.starts_with(b"trusted.") && acl_by_another_name(name).is_none())
        || name.starts_with(b"security.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// Names and values of extended attributes.
pub type Xattrs = Vec<(Bytes, Bytes)>;

/// All replicated extended attributes, by name.
pub fn xattrs(fd: impl AsFd) -> io::Result<Xattrs> {
    match allowed_xattrs(fd)? {
        (all, false) => Ok(all),
        (_, true) => Err(io::Error::from_raw_os_error(libc::EACCES)),
    }
}

/// Those that we may read, and whether there are others: values of `user.*` are as closed as the data.
pub fn allowed_xattrs(fd: impl AsFd) -> io::Result<(Xattrs, bool)> {
    let (mut all, mut refused) = (Vec::new(), false);
    for name in list_xattr_raw(fd.as_fd())?.split(|byte| *byte == 0) {
        if !is_replicated_xattr(name) {
            continue;
        }
        match get_xattr(fd.as_fd(), name) {
            Ok(Some(value)) => all.push((Bytes::copy_from_slice(name), value)),
            Ok(None) => {}
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => refused = true,
            Err(error) => return Err(error),
        }
    }
    all.sort();
    Ok((all, refused))
}

/// Sets an extended attribute.
pub fn set_xattr(fd: impl AsFd, name: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()> {
    Ok(rustix::fs::setxattr(ProcPath::new(fd).as_str(), name, value, flags)?)
}

/// Removes an extended attribute.
pub fn remove_xattr(fd: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::removexattr(ProcPath::new(fd).as_str(), name)?)
}

/// Sets permission bits through any descriptor.
pub fn chmod(fd: impl AsFd, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::fchmod(fd.as_fd(), mode) {
        // An O_PATH descriptor.
        Err(Errno::BADF) => Ok(rustix::fs::chmod(ProcPath::new(fd).as_str(), mode)?),
        done => Ok(done?),
    }
}

/// Sets owner and group; `None` keeps.
pub fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let uid = uid.map(rustix::fs::Uid::from_raw);
    let gid = gid.map(rustix::fs::Gid::from_raw);
    Ok(rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?)
}
