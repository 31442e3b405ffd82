//! A file system in memory, which is all that it does: what one takes behind FUSE whose own work costs nothing. Of a long file only the
//! beginning is kept; the rest is zeroes.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    ffi::{OsStr, OsString},
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use tandem_runtime::processors;

/// Nothing changes behind the kernel's back, and it is told so for as long.
const LASTING: Duration = Duration::from_secs(3600);
/// Longest read.
const READ_MAX: usize = 1 << 20;
/// So much of the beginning of a file is kept.
const KEPT_MAX: usize = 4 << 20;
/// What the kernel is asked for if it can do it, as for the mounts that are measured (`mountd/src/fuse/connection.rs`).
const WISHES: [InitFlags; 10] = [
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_INIT_EXT,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

struct Node {
    attr: FileAttr,
    content: Vec<u8>,
    /// Of a directory, by the offset at which the kernel goes on.
    entries: BTreeMap<u64, (OsString, u64)>,
}

struct Tree {
    /// With the offset in the directory.
    names: HashMap<(u64, OsString), (u64, u64)>,
    nodes: HashMap<u64, Node>,
    last: u64,
}

struct Memory {
    zeroes: Vec<u8>,
    tree: Mutex<Tree>,
}

/// Mounts one that is empty, served by one thread that never sleeps; where there is one processor only, it leaves that to who asks.
pub fn mount(dir: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    // As the mounts have it: the kernel looks at permissions.
    config.mount_options = vec![MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    let session = Session::new(Memory::new(), dir, &config)?;
    if processors::count() > 1 {
        // fuser asks again and again for what is not there yet.
        rustix::fs::fcntl_setfl(&session, OFlags::NONBLOCK)?;
    }
    session.spawn()
}

impl Memory {
    /// With an empty root.
    fn new() -> Memory {
        let mut tree = Tree { names: HashMap::new(), nodes: HashMap::new(), last: 0 };
        tree.born(FileType::Directory, 0o755);
        Memory { zeroes: vec![0; READ_MAX], tree: Mutex::new(tree) }
    }
}

type Done<T> = Result<T, Errno>;

impl Tree {
    /// The first is the root.
    fn born(&mut self, kind: FileType, mode: u32) -> FileAttr {
        self.last += 1;
        let now = SystemTime::now();
        let attr = FileAttr {
            ino: INodeNo(self.last),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        self.nodes.insert(self.last, Node { attr, content: Vec::new(), entries: BTreeMap::new() });
        attr
    }

    fn make(&mut self, parent: INodeNo, name: &OsStr, kind: FileType, mode: u32) -> Done<FileAttr> {
        if self.names.contains_key(&(parent.0, name.to_owned())) {
            return Err(Errno::EEXIST);
        }
        let attr = self.born(kind, mode);
        self.give(parent.0, name, attr.ino.0)?;
        Ok(attr)
    }

    fn give(&mut self, dir: u64, name: &OsStr, node: u64) -> Done<()> {
        let entries = &mut self.node(dir)?.entries;
        let offset = entries.last_key_value().map_or(1, |(last, _)| last + 1);
        entries.insert(offset, (name.to_owned(), node));
        self.names.insert((dir, name.to_owned()), (node, offset));
        Ok(())
    }

    fn take(&mut self, dir: u64, name: &OsStr) -> Done<u64> {
        let (node, offset) = self.names.remove(&(dir, name.to_owned())).ok_or(Errno::ENOENT)?;
        self.node(dir)?.entries.remove(&offset);
        Ok(node)
    }

    /// One name of it is gone; what has none is forgotten when the kernel forgets it.
    fn lose(&mut self, node: u64) -> Done<()> {
        let attr = &mut self.node(node)?.attr;
        attr.nlink = attr.nlink.saturating_sub(if attr.kind == FileType::Directory { 2 } else { 1 });
        Ok(())
    }

    fn node(&mut self, number: u64) -> Done<&mut Node> {
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    fn found(&mut self, parent: INodeNo, name: &OsStr) -> Done<FileAttr> {
        let (node, _) = *self.names.get(&(parent.0, name.to_owned())).ok_or(Errno::ENOENT)?;
        Ok(self.node(node)?.attr)
    }

    fn rename(&mut self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> Done<()> {
        let node = self.take(from.0.0, from.1)?;
        if let Ok(replaced) = self.take(to.0.0, to.1) {
            self.lose(replaced)?;
        }
        self.give(to.0.0, to.1, node)
    }

    fn link(&mut self, node: u64, parent: INodeNo, name: &OsStr) -> Done<FileAttr> {
        if self.names.contains_key(&(parent.0, name.to_owned())) {
            return Err(Errno::EEXIST);
        }
        self.give(parent.0, name, node)?;
        let attr = &mut self.node(node)?.attr;
        attr.nlink += 1;
        Ok(*attr)
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr, kind: FileType) -> Done<()> {
        let found = self.found(parent, name)?;
        if kind == FileType::Directory && !self.node(found.ino.0)?.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        let node = self.take(parent.0, name)?;
        self.lose(node)
    }

    fn write(&mut self, number: u64, offset: u64, data: &[u8]) -> Done<()> {
        let node = self.node(number)?;
        let end = offset + data.len() as u64;
        let kept = usize::try_from(end).ok().filter(|end| *end <= KEPT_MAX);
        if let Some(end) = kept {
            let begin = end - data.len();
            if node.content.len() < end {
                node.content.resize(end, 0);
            }
            node.content[begin..end].copy_from_slice(data);
        }
        node.attr.size = node.attr.size.max(end);
        node.attr.blocks = node.attr.size.div_ceil(512);
        node.attr.mtime = SystemTime::now();
        node.attr.ctime = node.attr.mtime;
        Ok(())
    }
}

/// As the mounts do: what is only written goes around the kernel's cache, and closing asks for nothing.
fn opened(flags: i32) -> FopenFlags {
    let direct = match flags & libc::O_ACCMODE {
        libc::O_WRONLY => FopenFlags::FOPEN_DIRECT_IO,
        _ => FopenFlags::empty(),
    };
    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH | direct
}

fn answer_entry(reply: ReplyEntry, done: Done<FileAttr>) {
    match done {
        Ok(attr) => reply.entry(&LASTING, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn answer_empty(reply: ReplyEmpty, done: Done<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn answer_attr(reply: ReplyAttr, done: Done<FileAttr>) {
    match done {
        Ok(attr) => reply.attr(&LASTING, &attr),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Memory {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wish in WISHES {
            // An older kernel is asked more often.
            let _ = config.add_capabilities(wish);
        }
        Ok(())
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        // The kernel forgets what it knew at once.
        if let Entry::Occupied(node) = self.tree.lock().nodes.entry(ino.0)
            && node.get().attr.nlink == 0
        {
            node.remove();
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.tree.lock().found(parent, name);
        match found {
            // That there is nothing may be believed for as long: node 0.
            Err(errno) if errno.code() == libc::ENOENT => {
                let nothing = self.tree.lock().node(1).map(|root| FileAttr { ino: INodeNo(0), ..root.attr });
                answer_entry(reply, nothing);
            }
            found => answer_entry(reply, found),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attr(reply, self.tree.lock().node(ino.0).map(|node| node.attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let time = |given: TimeOrNow| match given {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        };
        let set = self.tree.lock().node(ino.0).map(|node| {
            let attr = &mut node.attr;
            attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
            (attr.uid, attr.gid) = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
            (attr.atime, attr.mtime) = (atime.map_or(attr.atime, time), mtime.map_or(attr.mtime, time));
            attr.ctime = SystemTime::now();
            if let Some(size) = size {
                attr.size = size;
                attr.blocks = size.div_ceil(512);
                node.content.truncate(usize::try_from(size).unwrap_or(usize::MAX));
            }
            node.attr
        });
        answer_attr(reply, set);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        answer_entry(reply, self.tree.lock().make(parent, name, FileType::Directory, mode & !umask));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.tree.lock().make(parent, name, FileType::RegularFile, mode & !umask) {
            Ok(attr) => reply.created(&LASTING, &attr, Generation(0), FileHandle(0), opened(flags)),
            Err(errno) => reply.error(errno),
        }
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(reply, self.tree.lock().link(ino.0, parent, name));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(reply, self.tree.lock().remove(parent, name, FileType::RegularFile));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(reply, self.tree.lock().remove(parent, name, FileType::Directory));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer_empty(reply, self.tree.lock().rename((parent, name), (new_parent, new_name)));
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), opened(flags.0));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The kernel then opens directories by itself and keeps what they list.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = self.tree.lock();
        let entries = tree.nodes.get(&ino.0).map(|node| node.entries.range(offset + 1..));
        for (offset, (name, node)) in entries.into_iter().flatten() {
            let kind = tree.nodes.get(node).map_or(FileType::RegularFile, |node| node.attr.kind);
            if reply.add(INodeNo(*node), *offset, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let tree = self.tree.lock();
        let entries = tree.nodes.get(&ino.0).map(|node| node.entries.range(offset + 1..));
        for (offset, (name, number)) in entries.into_iter().flatten() {
            if let Some(node) = tree.nodes.get(number)
                && reply.add(INodeNo(*number), *offset, name, &LASTING, &node.attr, Generation(0))
            {
                break;
            }
        }
        reply.ok();
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
        let tree = self.tree.lock();
        let Some(node) = tree.nodes.get(&ino.0) else { return reply.error(Errno::ENOENT) };
        let len = (node.attr.size.saturating_sub(offset).min(u64::from(size)) as usize).min(READ_MAX);
        let kept = usize::try_from(offset).ok().and_then(|offset| node.content.get(offset..)).unwrap_or_default();
        match kept.get(..len) {
            Some(kept) => reply.data(kept),
            None if kept.is_empty() => reply.data(&self.zeroes[..len]),
            None => reply.data(&[kept, &self.zeroes[..len - kept.len()]].concat()),
        }
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
        match self.tree.lock().write(ino.0, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }
}
