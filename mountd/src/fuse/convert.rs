//! Between fuser's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow};
use tandem_proto::{Timestamp, stage::NodeType};

use crate::{
    backing::sys::Stat,
    vfs::{Caller, SetTime, VfsError},
};

/// The answer that a name means nothing, which the kernel may believe: inode 0.
pub const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

/// Who asks.
pub fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// What the application gets; what the application cannot be blamed for is also logged.
pub fn errno(error: &VfsError) -> Errno {
    let errno = error.errno();
    if matches!(error, VfsError::Commit(_)) || errno == libc::EIO {
        tracing::warn!(%error, errno, "a file system call failed");
    }
    Errno::from_i32(errno)
}

/// Attributes as the kernel wants them. `ino` is what it takes for the node id where an entry is answered.
pub fn file_attr(ino: u64, stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.node_type()),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: kernel_device(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

/// A node's type.
pub fn file_type(node_type: NodeType) -> FileType {
    match node_type {
        NodeType::Regular => FileType::RegularFile,
        NodeType::Directory => FileType::Directory,
        NodeType::Symlink => FileType::Symlink,
        NodeType::Fifo => FileType::NamedPipe,
        NodeType::Socket => FileType::Socket,
        NodeType::CharDevice => FileType::CharDevice,
        NodeType::BlockDevice => FileType::BlockDevice,
    }
}

/// The kernel's 32-bit form of a device number (`new_encode_dev`).
fn kernel_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The C library's form of the kernel's 32-bit one.
pub fn device(rdev: u32) -> u64 {
    let (major, minor) = ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00));
    rustix::fs::makedev(major, minor)
}

/// A time that is before 1970 as well as after.
fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let seconds = if time.seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    seconds.and_then(|at| at.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time to set. Before 1970 fuser takes the nanoseconds off instead of adding them; that is undone here.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(match at.duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                Timestamp { seconds: -(before.as_secs() as i64), nanos: before.subsec_nanos() }
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use fuser::TimeOrNow;
    use tandem_proto::Timestamp;

    use super::{device, kernel_device, set_time, system_time};
    use crate::vfs::SetTime;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = Timestamp { seconds: -2, nanos: 800_000_000 };
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::new(1, 200_000_000));
        // As fuser hands in -2 s and 800,000,000 ns.
        let handed = TimeOrNow::SpecificTime(UNIX_EPOCH - Duration::new(2, 800_000_000));
        assert_eq!(set_time(handed), SetTime::At(time));
    }

    #[test]
    fn device_numbers_survive_the_kernels_form() {
        for (major, minor) in [(1, 3), (259, 70_000), (4095, 0xf_ffff)] {
            let dev = device(kernel_device((major, minor)));
            assert_eq!((rustix::fs::major(dev), rustix::fs::minor(dev)), (major, minor));
        }
    }
}
