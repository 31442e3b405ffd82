//! The numbers of the kernel's FUSE protocol (`include/uapi/linux/fuse.h`), as far as this mount speaks it and fuser, whose flags are
//! used here, keeps them to itself. The structures are read and written field by field in [`super::wire`].

/// Version that is spoken: 7.40. The kernel then takes the smaller of both minor numbers.
pub const MAJOR: u32 = 7;
/// See [`MAJOR`].
pub const MINOR: u32 = 40;
/// Oldest minor version whose structures have the lengths that are assumed here (Linux 3.15).
pub const MINOR_MIN: u32 = 23;

/// Length of `struct fuse_in_header`.
pub const IN_HEADER_BYTES: usize = 40;
/// Length of `struct fuse_out_header`.
pub const OUT_HEADER_BYTES: usize = 16;

/// What is asked for.
pub mod opcode {
    #![allow(missing_docs, reason = "the names are those of the header")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// `fuse_setattr_in.valid`.
pub mod fattr {
    #![allow(missing_docs, reason = "the names are those of the header")]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// `fuse_getattr_in.getattr_flags`: the handle is valid.
pub const GETATTR_FH: u32 = 1 << 0;
/// `fuse_fsync_in.fsync_flags`: fdatasync.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;

/// Code of the message that makes the kernel forget attributes.
pub const NOTIFY_INVAL_INODE: i32 = 2;

/// `FUSE_DEV_IOC_BACKING_OPEN`: `_IOW(229, 1, struct fuse_backing_map)`, Linux 6.9.
pub const DEV_IOC_BACKING_OPEN: libc::Ioctl = 0x4010_e501u32 as libc::Ioctl;
/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`.
pub const DEV_IOC_BACKING_CLOSE: libc::Ioctl = 0x4004_e502u32 as libc::Ioctl;

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
pub const DEV_IOC_CLONE: libc::Ioctl = 0x8004_e500u32 as libc::Ioctl;
