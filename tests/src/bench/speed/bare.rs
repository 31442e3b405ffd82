//! What no file system of this kind goes below: one request and its answer. A file system that says at once that there is no such
//! attribute, and nothing else, beside the mounts that are measured; one thread asks, one answers.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::Path,
    time::{Duration, Instant, UNIX_EPOCH},
};

use fuser::{Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, ReplyAttr, ReplyXattr, Request};
use rustix::io::Errno as Refused;

use crate::harness::median;

/// Requests of which one figure is made.
const BATCH: u32 = 1000;
/// Figures of which the median is taken.
const BATCHES: usize = 15;
/// It has one directory and says so for as long.
const LASTING: Duration = Duration::from_secs(3600);

struct Bare;

impl Filesystem for Bare {
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::Directory,
            perm: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&LASTING, &attr);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }
}

/// Seconds of a request and its answer, mounted for a moment on an empty directory.
pub fn request_seconds(dir: &Path) -> io::Result<f64> {
    let session = fuser::spawn_mount(Bare, dir, &fuser::Config::default())?;
    let measured = ask(dir);
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
