//! The FUSE adapter: the only importer of fuser. Each request becomes one call of the vfs, each result one reply; what needs a
//! decision is decided there, not here.

mod connection;
mod convert;
mod listing;

pub use self::connection::{Audience, Connection};

use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use crate::vfs::{CopyRange, Entry, Journal, Making, Place, SetAttr, Vfs, VfsError, VfsResult};

use self::{
    convert::{caller, errno, file_attr, set_time},
    listing::{Names, NamesPlus},
};

/// How long the kernel may believe names and attributes: the backing directory has one owner, which is the kernel's own cache.
const TTL: Duration = Duration::from_secs(3600);

/// Largest write request: what one op carries.
const WRITE_MAX: u32 = tandem_proto::limits::DATA_MAX as u32;

struct Adapter<J: Journal> {
    vfs: Arc<Vfs<J>>,
}

thread_local! {
    /// What reads read into: one buffer a thread.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn making<'a>(request: &Request, umask: u32, parent: INodeNo, name: &'a OsStr) -> Making<'a> {
    Making { caller: caller(request), umask, parent: parent.0, name }
}

fn reply_entry(reply: ReplyEntry, result: VfsResult<Entry>) {
    match result {
        Ok(entry) => reply.entry(&TTL, &file_attr(entry.node, &entry.stat), Generation(entry.generation)),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_empty(reply: ReplyEmpty, result: VfsResult<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_written(reply: ReplyWrite, result: VfsResult<usize>) {
    match result {
        Ok(written) => reply.written(written as u32),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, result: VfsResult<impl AsRef<[u8]>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.as_ref().len() as u32),
        Ok(value) if value.as_ref().len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(value.as_ref()),
        Err(error) => reply.error(errno(&error)),
    }
}

/// What the kernel is asked for beyond what it must have; each on its own, because one that it lacks would refuse all.
const WISHES: [InitFlags; 12] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

impl<J: Journal> Filesystem for Adapter<J> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without these, permissions of what is made would be wrong.
        config
            .add_capabilities(InitFlags::FUSE_DONT_MASK | InitFlags::FUSE_POSIX_ACL)
            .map_err(|missing| io::Error::other(format!("this kernel's FUSE lacks {missing:?}")))?;
        for wish in WISHES {
            if let Err(missing) = config.add_capabilities(wish) {
                tracing::debug!(?missing, "the kernel's FUSE lacks a capability");
            }
        }
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.vfs.lookup(parent.0, name) {
            Err(error) if error.errno() == libc::ENOENT => reply.entry(&TTL, &convert::NOTHING, Generation(0)),
            other => reply_entry(reply, other),
        }
    }

    fn forget(&self, _request: &Request, node: INodeNo, lookups: u64) {
        self.vfs.forget(node.0, lookups);
    }

    fn getattr(&self, _request: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.vfs.getattr(node.0, handle.map(|handle| handle.0)) {
            Ok(stat) => reply.attr(&TTL, &file_attr(stat.ino, &stat)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        match self.vfs.setattr(caller(request), node.0, handle.map(|handle| handle.0), set) {
            Ok(stat) => reply.attr(&TTL, &file_attr(stat.ino, &stat)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        match self.vfs.readlink(node.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        reply_entry(reply, self.vfs.mknod(making(request, umask, parent, name), mode, convert::device(rdev)));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        reply_entry(reply, self.vfs.mkdir(making(request, umask, parent, name), mode));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.vfs.unlink(caller(request), parent.0, name));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.vfs.rmdir(caller(request), parent.0, name));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        reply_entry(reply, self.vfs.symlink(making(request, 0, parent, name), target.as_os_str()));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = Place { parent: parent.0, name };
        let to = Place { parent: new_parent.0, name: new_name };
        reply_empty(reply, self.vfs.rename(caller(request), from, to, flags.bits()));
    }

    fn link(&self, request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, self.vfs.link(caller(request), node.0, parent.0, name));
    }

    fn open(&self, _request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.vfs.open(node.0, flags.0) {
            Ok(opened) => reply.opened(FileHandle(opened.handle), OPEN_FLAGS),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.vfs.read(handle.0, offset, &mut buffer[..size]) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        reply_written(reply, self.vfs.write(caller(request), handle.0, offset, data, kill));
    }

    fn flush(&self, request: &Request, _node: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply_empty(reply, self.vfs.flush(caller(request), handle.0));
    }

    fn release(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.vfs.release(caller(request), handle.0));
    }

    fn fsync(&self, request: &Request, _node: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let done = Box::new(move |result| reply_empty(reply, result));
        self.vfs.fsync(caller(request), handle.0, data_only, done);
    }

    fn opendir(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Once said, the kernel opens directories by itself and caches listings.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _request: &Request, node: INodeNo, _handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        let mut names = Names { reply };
        match self.vfs.readdir(node.0, offset, &mut names) {
            Ok(()) => names.reply.ok(),
            Err(error) => names.reply.error(errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let mut names = NamesPlus { reply, taken: 0 };
        match self.vfs.readdir_plus(node.0, offset, &mut names) {
            // What was taken counts lookups, so it must reach the kernel even if the listing failed further on.
            Err(error) if names.taken == 0 => names.reply.error(errno(&error)),
            Ok(()) | Err(_) => names.reply.ok(),
        }
    }

    fn fsyncdir(&self, _request: &Request, node: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.vfs.fsync_dir(node.0, Box::new(move |result| reply_empty(reply, result)));
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        match self.vfs.statfs() {
            Ok(fs) => reply.statfs(
                fs.f_blocks,
                fs.f_bfree,
                fs.f_bavail,
                fs.f_files,
                fs.f_ffree,
                fs.f_bsize as u32,
                fs.f_namemax as u32,
                fs.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.vfs.setxattr(caller(request), node.0, name, value, flags));
    }

    fn getxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.vfs.getxattr(node.0, name));
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.vfs.listxattr(caller(request), node.0));
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.vfs.removexattr(caller(request), node.0, name));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.vfs.create(making(request, umask, parent, name), mode, flags) {
            Ok((entry, opened)) => reply.created(
                &TTL,
                &file_attr(entry.node, &entry.stat),
                Generation(entry.generation),
                FileHandle(opened.handle),
                OPEN_FLAGS,
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn ioctl(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        _in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        match self.vfs.ioctl(node.0, command, out_size as usize) {
            Ok(data) => reply.ioctl(0, &data),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fallocate(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.vfs.fallocate(caller(request), handle.0, mode, offset, length));
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let found = u64::try_from(offset).map_err(|_| VfsError::Invalid);
        match found.and_then(|offset| self.vfs.lseek(handle.0, offset, whence)) {
            Ok(found) => reply.offset(found as i64),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _node_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        _node_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copy =
            CopyRange { from: handle_in.0, from_offset: offset_in, to: handle_out.0, to_offset: offset_out, len };
        reply_written(reply, self.vfs.copy_file_range(caller(request), copy));
    }
}

/// What was read stays valid over opens, because nobody else writes; mtimes are settled at release, so close costs no round trip.
const OPEN_FLAGS: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);
