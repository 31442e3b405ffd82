//! Between the kernel's structures and ours.

use std::time::Duration;

use fuser::FopenFlags;
use rustix::fs::StatVfs;
use tandem_proto::Timestamp;

use super::{
    abi::fattr,
    wire::{Fields, Header, Out, Short},
};
use crate::{
    backing::sys::Stat,
    vfs::{Access, Caller, Entry, Opened, SetAttr, SetTime, VfsError},
};

/// How long the kernel may believe names and attributes: the backing directory has one owner, which is the kernel's own cache.
const TTL: Duration = Duration::from_secs(3600);

/// Length of `struct fuse_entry_out`.
pub const ENTRY_BYTES: usize = 128;

/// Who asks.
pub fn caller(header: &Header) -> Caller {
    Caller { uid: header.uid, gid: header.gid, pid: header.pid }
}

/// What the application gets; what the application cannot be blamed for is also logged.
pub fn errno(error: &VfsError) -> i32 {
    let errno = error.errno();
    if errno == libc::EINTR {
        tracing::debug!(%error, "a file system call was interrupted");
    } else if matches!(error, VfsError::Commit(_)) || errno == libc::EIO {
        tracing::warn!(%error, errno, "a file system call failed");
    }
    errno
}

/// `struct fuse_attr`.
fn attr(out: Out, ino: u64, stat: &Stat) -> Out {
    let times = [stat.atime, stat.mtime, stat.ctime];
    let mut out = out.u64(ino).u64(stat.size).u64(stat.blocks);
    for time in times {
        out = out.u64(time.seconds as u64);
    }
    for time in times {
        out = out.u32(time.nanos);
    }
    out.u32(stat.mode)
        .u32(stat.nlink)
        .u32(stat.uid)
        .u32(stat.gid)
        .u32(kernel_device(stat.rdev))
        .u32(stat.blksize)
        .u32(0)
}

/// `struct fuse_attr_out`.
pub fn attributes(stat: &Stat) -> Out {
    attr(Out::default().u64(TTL.as_secs()).u32(0).u32(0), stat.ino, stat)
}

/// `struct fuse_entry_out`.
pub fn entry(entry: &Entry) -> Out {
    let out = Out::default().u64(entry.node).u64(entry.generation).u64(TTL.as_secs()).u64(TTL.as_secs());
    attr(out.u32(0).u32(0), entry.stat.ino, &entry.stat)
}

/// `struct fuse_entry_out` of what changes by itself: the kernel asks again each time.
pub fn entry_for_now(node: u64, stat: &Stat) -> Out {
    attr(Out::default().u64(node).zeroes(32), node, stat)
}

/// `struct fuse_attr_out` of what changes by itself.
pub fn attributes_for_now(stat: &Stat) -> Out {
    attr(Out::default().zeroes(16), stat.ino, stat)
}

/// `struct fuse_open_out` of what is read from us each time.
pub fn opened_uncached() -> Out {
    Out::default().u64(0).u32(FopenFlags::FOPEN_DIRECT_IO.bits()).u32(0)
}

/// The answer that a name means nothing, which the kernel may believe: node 0.
pub fn nothing() -> Out {
    Out::default().u64(0).u64(0).u64(TTL.as_secs()).zeroes(ENTRY_BYTES - 24)
}

/// `struct fuse_open_out`. What was read stays valid over opens, because nobody else writes; mtimes are settled at release, so close
/// costs no round trip. With `cache=writeback` the kernel asks for a FLUSH all the same; were it answered that there is none, it would not write its pages at
/// close any more.
pub fn opened(out: Out, opened: Opened) -> Out {
    let flags = FopenFlags::FOPEN_NOFLUSH
        | match opened.access {
            Access::Cached => FopenFlags::FOPEN_KEEP_CACHE,
            Access::Direct => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_DIRECT_IO,
            Access::Passthrough => FopenFlags::FOPEN_PASSTHROUGH,
            // The kernel lets that one decide, and passthrough allow it.
            Access::Beside => FopenFlags::FOPEN_PASSTHROUGH | FopenFlags::FOPEN_DIRECT_IO,
        };
    out.u64(opened.handle).u32(flags.bits()).u32(opened.backing)
}

/// `struct fuse_statfs_out`.
pub fn statfs(fs: &StatVfs) -> Out {
    Out::default()
        .u64(fs.f_blocks)
        .u64(fs.f_bfree)
        .u64(fs.f_bavail)
        .u64(fs.f_files)
        .u64(fs.f_ffree)
        .u32(fs.f_bsize as u32)
        .u32(fs.f_namemax as u32)
        .u32(fs.f_frsize as u32)
        .zeroes(28)
}

/// `struct fuse_statx_out`: what `stat` has, and the time of birth.
pub fn statx(stat: &Stat) -> Out {
    statx_for(TTL, stat)
}

/// The same of what changes by itself.
pub fn statx_for_now(stat: &Stat) -> Out {
    statx_for(Duration::ZERO, stat)
}

fn statx_for(ttl: Duration, stat: &Stat) -> Out {
    let birth = if stat.btime.is_some() { libc::STATX_BTIME } else { 0 };
    let time = |out: Out, time: Timestamp| out.u64(time.seconds as u64).u32(time.nanos).u32(0);
    let out = Out::default().u64(ttl.as_secs()).u32(0).u32(0).u64(0).u64(0);
    let out = out.u32(libc::STATX_BASIC_STATS | birth).u32(stat.blksize).u64(0);
    let out = out.u32(stat.nlink).u32(stat.uid).u32(stat.gid).u16(stat.mode as u16).u16(0);
    let out = out.u64(stat.ino).u64(stat.size).u64(stat.blocks).u64(0);
    let times = [stat.atime, stat.btime.unwrap_or_default(), stat.ctime, stat.mtime];
    let out = times.into_iter().fold(out, time);
    out.u32(stat.rdev.0).u32(stat.rdev.1).u32(stat.dev.0).u32(stat.dev.1).zeroes(112)
}

/// `struct fuse_setattr_in`: the handle, if one is given, and what to set.
pub fn set_attr(fields: &mut Fields<'_>) -> Result<(Option<u64>, SetAttr), Short> {
    let valid = fields.u32()?;
    fields.u32()?;
    let (handle, size, _lock_owner) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let seconds = [fields.u64()?, fields.u64()?, fields.u64()?];
    let nanos = [fields.u32()?, fields.u32()?, fields.u32()?];
    let mode = fields.u32()?;
    fields.u32()?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let given = |flag: u32| valid & flag != 0;
    let time = |at: usize, flag: u32, now: u32| {
        let set = Timestamp { seconds: seconds[at] as i64, nanos: nanos[at] };
        given(flag).then_some(if given(now) { SetTime::Now } else { SetTime::At(set) })
    };
    let set = SetAttr {
        mode: given(fattr::MODE).then_some(mode),
        uid: given(fattr::UID).then_some(uid),
        gid: given(fattr::GID).then_some(gid),
        size: given(fattr::SIZE).then_some(size),
        atime: time(0, fattr::ATIME, fattr::ATIME_NOW),
        mtime: time(1, fattr::MTIME, fattr::MTIME_NOW),
    };
    Ok((given(fattr::FH).then_some(handle), set))
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

#[cfg(test)]
mod tests {
    use tandem_proto::Timestamp;

    use super::{ENTRY_BYTES, attributes, device, entry, kernel_device, nothing, set_attr, statx};
    use crate::{
        backing::sys::Stat,
        fuse::wire::{Out, request},
        vfs::{Entry, SetAttr, SetTime},
    };

    #[test]
    fn structures_have_the_lengths_that_the_kernel_checks() {
        let stat = Stat::of_directory(7);
        assert_eq!(attributes(&stat).as_bytes().len(), 104);
        assert_eq!(entry(&Entry { node: 7, generation: 0, stat }).as_bytes().len(), ENTRY_BYTES);
        assert_eq!(nothing().as_bytes().len(), ENTRY_BYTES);
        assert_eq!(statx(&stat).as_bytes().len(), 288);
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let body = Out::default().u32(1 << 5 | 1 << 4 | 1 << 7).u32(0).zeroes(24).u64(0).u64((-2i64) as u64).u64(0);
        let body = body.u32(0).u32(800_000_000).u32(0).zeroes(20);
        let header = Out::default().u32(40 + body.as_bytes().len() as u32).zeroes(36);
        let bytes = [header.as_bytes(), body.as_bytes()].concat();
        let (_, mut fields) = request(&bytes).expect("whole");
        let mtime = Some(SetTime::At(Timestamp { seconds: -2, nanos: 800_000_000 }));
        let expected = SetAttr { atime: Some(SetTime::Now), mtime, ..SetAttr::default() };
        assert_eq!(set_attr(&mut fields), Ok((None, expected)));
    }

    #[test]
    fn device_numbers_survive_the_kernels_form() {
        for (major, minor) in [(1, 3), (259, 70_000), (4095, 0xf_ffff)] {
            let dev = device(kernel_device((major, minor)));
            assert_eq!((rustix::fs::major(dev), rustix::fs::minor(dev)), (major, minor));
        }
    }
}
