//! What no file system of this kind goes below: one request and its answer, and reads that the kernel answers from its own cache. A file
//! system that says at once that there is no such attribute, and has one file of zeroes, beside the mounts that are measured; one thread
//! asks, one answers.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::Path,
    time::{Duration, Instant, UNIX_EPOCH},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};
use rustix::io::Errno as Refused;

use super::work::{self, Record, Scale};

use crate::harness::median;

/// Requests of which one figure is made.
const BATCH: u32 = 1000;
/// Figures of which the median is taken.
const BATCHES: usize = 15;
/// Nothing in it changes, and it says so for as long.
const LASTING: Duration = Duration::from_secs(3600);

struct Bare {
    zeroes: Vec<u8>,
    size: u64,
}

/// Its only file.
const FILE: INodeNo = INodeNo(2);
const NAME: &str = "zeroes";
/// Longest read.
const READ_MAX: usize = 1 << 20;

impl Bare {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (size, kind) = if ino == FILE { (self.size, FileType::RegularFile) } else { (0, FileType::Directory) };
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Bare {
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LASTING, &self.attr(ino));
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&LASTING, &self.attr(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.size.saturating_sub(offset).min(u64::from(size)) as usize;
        reply.data(&self.zeroes[..len.min(READ_MAX)]);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }
}

/// Mounted for a while on an empty directory: seconds of a request and its answer; and what reads from the kernel's cache take, if `reads`.
pub fn measure(dir: &Path, scale: &Scale, reads: bool, record: Record<'_>) -> io::Result<f64> {
    let bare = Bare { zeroes: vec![0; READ_MAX], size: scale.large_bytes };
    let session = fuser::spawn_mount(bare, dir, &fuser::Config::default())?;
    let measured = ask(dir).and_then(|seconds| {
        if reads {
            work::warm_reads(&dir.join(NAME), scale, record)?;
        }
        Ok(seconds)
    });
    session.umount_and_join()?;
    measured
}

fn ask(dir: &Path) -> io::Result<f64> {
    let root = File::open(dir)?;
    let mut times = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let begun = Instant::now();
        for _ in 0..BATCH {
            match rustix::fs::fgetxattr(&root, "user.none", &mut [0_u8; 8]) {
                Err(Refused::NODATA) => {}
                other => return Err(io::Error::other(format!("the bare file system answers {other:?}"))),
            }
        }
        times.push(begun.elapsed());
    }
    Ok(median(&mut times).as_secs_f64() / f64::from(BATCH))
}
