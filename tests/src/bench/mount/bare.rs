//! What no file system of this kind goes below: a file system that remembers names and lengths and nothing else, beside the mounts that are
//! measured. One thread answers, and looks for the next request without ever sleeping, nor do processors. Content that is written is dropped; what is
//! read is zeroes.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr,
    Request, Session, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::{fs::OFlags, io::Errno as Refused};

use super::{
    Plan,
    work::{self, Place, Record},
};
use crate::harness::median;

/// Requests of which one figure is made.
const BATCH: u32 = 1000;
/// Figures of which the median is taken.
const BATCHES: usize = 15;
/// Nothing changes behind the kernel's back, and it is told so for as long.
const LASTING: Duration = Duration::from_secs(3600);
/// Longest read.
const READ_MAX: usize = 1 << 20;

#[derive(Clone, Copy)]
struct Node {
    number: u64,
    kind: FileType,
    len: u64,
}

#[derive(Default)]
struct Tree {
    names: HashMap<(u64, OsString), u64>,
    nodes: HashMap<u64, Node>,
}

struct Bare {
    zeroes: Vec<u8>,
    tree: Mutex<Tree>,
}

impl Node {
    fn attr(&self) -> FileAttr {
        FileAttr {
            ino: INodeNo(self.number),
            size: self.len,
            blocks: self.len.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: self.kind,
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

impl Tree {
    fn make(&mut self, parent: INodeNo, name: &OsStr, kind: FileType) -> Node {
        // The root is 1.
        let node = Node { number: self.nodes.len() as u64 + 2, kind, len: 0 };
        self.nodes.insert(node.number, node);
        self.names.insert((parent.0, name.to_owned()), node.number);
        node
    }

    fn node(&self, number: INodeNo) -> Node {
        let root = Node { number: 1, kind: FileType::Directory, len: 0 };
        self.nodes.get(&number.0).copied().unwrap_or(root)
    }
}

/// As the mounts do: what is only written goes around the kernel's cache.
fn opened(flags: i32) -> FopenFlags {
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => FopenFlags::FOPEN_DIRECT_IO,
        _ => FopenFlags::FOPEN_KEEP_CACHE,
    }
}

impl Filesystem for Bare {
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LASTING, &self.tree.lock().node(ino).attr());
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.tree.lock();
        if let Some((node, size)) = tree.nodes.get_mut(&ino.0).zip(size) {
            node.len = size;
        }
        reply.attr(&LASTING, &tree.node(ino).attr());
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = self.tree.lock();
        match tree.names.get(&(parent.0, name.to_owned())) {
            Some(number) => reply.entry(&LASTING, &tree.node(INodeNo(*number)).attr(), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.tree.lock().make(parent, name, FileType::Directory);
        reply.entry(&LASTING, &made.attr(), Generation(0));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, flags: i32, reply: ReplyCreate) {
        let made = self.tree.lock().make(parent, name, FileType::RegularFile);
        reply.created(&LASTING, &made.attr(), Generation(0), FileHandle(0), opened(flags));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.tree.lock().names.remove(&(parent.0, name.to_owned()));
        reply.ok();
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), opened(flags.0));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.tree.lock().node(ino).len.saturating_sub(offset).min(u64::from(size)) as usize;
        reply.data(&self.zeroes[..len.min(READ_MAX)]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Some(node) = self.tree.lock().nodes.get_mut(&ino.0) {
            node.len = node.len.max(offset + data.len() as u64);
        }
        reply.written(data.len() as u32);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }
}

/// Mounted for a while on an empty directory, at the same work as far as it can do it. Seconds of a request and its answer.
pub fn measure(dir: &Path, plan: &Plan, archive: &Path, record: Record<'_>) -> io::Result<f64> {
    let bare = Bare { zeroes: vec![0; READ_MAX], tree: Mutex::default() };
    let session = Session::new(bare, dir, &Config::default())?;
    // fuser asks again and again for what is not there yet.
    rustix::fs::fcntl_setfl(&session, OFlags::NONBLOCK)?;
    let session = session.spawn()?;
    let _awake = keep_awake();
    let measured = ask(dir).and_then(|seconds| {
        work(dir, plan, archive, record)?;
        Ok(seconds)
    });
    session.umount_and_join()?;
    measured
}

/// Processors do not sleep until this is dropped, as they do not while a mount is asked quickly (on few processors, and as root).
fn keep_awake() -> Option<File> {
    if !(2..=8).contains(&std::thread::available_parallelism().map_or(1, usize::from)) {
        return None;
    }
    let mut device = OpenOptions::new().write(true).open("/dev/cpu_dma_latency").ok()?;
    device.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(device)
}

fn work(dir: &Path, plan: &Plan, archive: &Path, record: Record<'_>) -> io::Result<()> {
    let place = Place { dir, quiet: &|| Ok(()), settle: &|| false, requests: &|| None };
    if plan.has("data") {
        let large = dir.join("large");
        File::create(&large)?.set_len(plan.scale.large_bytes)?;
        work::warm_reads(&large, &plan.scale, record)?;
        work::small_writes(&place, &plan.scale, record)?;
    }
    if plan.has("names") {
        work::names(&place, &plan.scale, record)?;
    }
    if plan.has("programs") {
        let tree = dir.join("tree");
        fs::create_dir(&tree)?;
        work::unpack(&place, &tree, archive, record)?;
    }
    Ok(())
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
